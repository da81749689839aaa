package integration

import (
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// makeLimit is how long make may take, which compiles for several architectures.
const makeLimit = 10 * time.Minute

// Releases of two versions.
const (
	release1 = "1.0+test"
	release2 = "1.1+test"
)

// releaseArchs are the machine's architecture and another one.
var releaseArchs = map[string][]string{"amd64": {"amd64", "arm64"}, "arm64": {"arm64", "amd64"}}[runtime.GOARCH]

// makeRelease makes packages of a version from a copy of the source, below a directory that is there.
func makeRelease(t testing.TB, base, version string, vars ...string) (dist string) {
	t.Helper()
	dir := filepath.Join(base, version)
	mustSh(t, `mkdir "$1" && cp -r ../cmd ../fs ../lockengine ../packaging ../go.mod ../go.sum ../Makefile ../README.md "$1"`, dir)
	args := append([]string{"-C", dir, "release", "VERSION=" + version, "COMMIT=abcdef", "SOURCE_DATE_EPOCH=1700000000"}, vars...)
	p := newProgram(t, makeLimit, "make", args...)
	p.Env = append(p.Env, "PATH="+os.Getenv("PATH"), "GOFLAGS=") // go is not Debian's
	r := p.run(t)
	require.Zero(t, r.code, "make %q: %s%s", args, r.out, r.err)
	return filepath.Join(dir, "dist")
}

// firstRelease is of both architectures; made once for all tests.
func firstRelease(t testing.TB) (dist string) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(workDir, release1)); err == nil {
		return filepath.Join(workDir, release1, "dist")
	}
	return makeRelease(t, workDir, release1, "ARCHS="+strings.Join(releaseArchs, " "))
}

func filesBelow(t testing.TB, dir string) map[string][]byte {
	t.Helper()
	files := make(map[string][]byte)
	require.NoError(t, filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		files[strings.TrimPrefix(path, dir+"/")], err = os.ReadFile(path)
		return err
	}))
	return files
}

// TestRelease: two directories give the same binary and packages of one architecture, byte by byte. The binaries of both
// are static and say what they are.
func TestRelease(t *testing.T) {
	one, two := firstRelease(t), makeRelease(t, tempDir(t), release1, "ARCHS="+runtime.GOARCH)
	first, second := filesBelow(t, one), filesBelow(t, two)
	for name, bytesOfTwo := range second {
		assert.True(t, bytes.Equal(first[name], bytesOfTwo), "%s differs", name)
	}
	require.Len(t, second, len(first)-3, "all but the binary and the packages of the other architecture")
	machines := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}
	for _, arch := range releaseArchs {
		for _, format := range []string{"*_" + arch + ".deb", "*.rpm"} {
			found, err := filepath.Glob(filepath.Join(one, format))
			require.NoError(t, err)
			require.NotEmpty(t, found, format)
		}
		f, err := elf.NewFile(bytes.NewReader(first[arch+"/lockfs"]))
		require.NoError(t, err)
		require.Equal(t, machines[arch], f.Machine)
		for _, p := range f.Progs {
			require.NotEqual(t, elf.PT_INTERP, p.Type, "%s is not static", arch)
		}
	}
	said := newProgram(t, time.Minute, filepath.Join(one, runtime.GOARCH, "lockfs"), "version").run(t)
	require.Zero(t, said.code)
	require.Equal(t, fmt.Sprintf("lockfs %s abcdef %s linux/%s\n", release1, runtime.Version(), runtime.GOARCH), said.out)
}

// TestManPages are rendered without a warning.
func TestManPages(t *testing.T) {
	pages, err := filepath.Glob("../packaging/man/*.[1-8]")
	require.NoError(t, err)
	require.Len(t, pages, 3)
	for _, page := range pages {
		p := newProgram(t, time.Minute, "man", "--warnings", "-l", page)
		p.Env = append(p.Env, "MANWIDTH=80", "MAN_KEEP_FORMATTING=")
		r := p.run(t)
		assert.Zero(t, r.code, page)
		assert.Empty(t, r.err, page)
		assert.Contains(t, r.out, "SEE ALSO", page)
	}
}

// packaged are the files of the package, and what else has to be gone when it is removed.
var packaged = []string{"/usr/bin/lockfs", "/sbin/mount.lockfs", "/usr/lib/systemd/system/lockfs@.service"}

// installPackage leaves out what man-db does whenever a package comes: reading every manual page of the machine. The
// removal has it done once.
func installPackage(t *testing.T, deb string) {
	t.Helper()
	r := newProgram(t, time.Minute, "dpkg", "--no-triggers", "-i", deb).run(t)
	require.Zero(t, r.code, "%s%s", r.out, r.err)
}

// machinesDeb is the package of a release for this machine.
func machinesDeb(t testing.TB, dist string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dist, "*_"+runtime.GOARCH+".deb"))
	require.NoError(t, err)
	require.Len(t, found, 1)
	return found[0]
}

// TestPackage installs the .deb, mounts by fstab and by mount -t lockfs, upgrades the package under a lock that is held,
// and removes it while it is mounted.
func TestPackage(t *testing.T) {
	require.NotZero(t, sh(t, "dpkg -s lockfs").code, "a package lockfs is installed on this machine already")
	first := machinesDeb(t, firstRelease(t))
	second := machinesDeb(t, makeRelease(t, tempDir(t), release2, "ARCHS="+runtime.GOARCH, "FORMATS=deb"))
	t.Run("service", func(t *testing.T) { bootService(t, first) })
	base := tempDir(t)
	dir, state, fstab := base+"/mnt", base+"/state", base+"/fstab"
	require.NoError(t, os.Mkdir(dir, 0o755))
	require.NoError(t, os.WriteFile(fstab, fmt.Appendf(nil, "none %s lockfs state=%s,default-timeout=7m,nofail,x-test.a=b 0 0\n", dir, state), 0o644))
	t.Cleanup(func() {
		unix.Unmount(dir, unix.MNT_DETACH)
		sh(t, "dpkg -P lockfs")
	})
	installPackage(t, first)
	for _, path := range packaged {
		require.FileExists(t, path)
	}
	checkUnit(t)
	require.Zero(t, sh(t, `bash -n /usr/share/bash-completion/completions/lockfs`).code)

	// By fstab, twice: the second time it is there already.
	mustSh(t, `mount -T "$1" "$2" && mount -T "$1" -a -t lockfs`, fstab, dir)
	entry, mounted := mountedAt(dir)
	require.True(t, mounted)
	require.Equal(t, "none", entry.source)
	require.NoError(t, unix.Mkdir(dir+"/tlock/x", 0o755))
	require.Equal(t, "420", readValue(t, dir+"/tlock/x/timeout"), "the option default-timeout")
	require.NoError(t, os.WriteFile(dir+"/files/f", []byte("kept"), 0o644))
	mustSh(t, `umount "$1"`, dir)
	awaitUnlocked(t, state)

	// By mount -t, with output that is waited for, and not from a directory that it keeps busy.
	mustSh(t, `cd "$2" && x=$(mount -t lockfs -o state="$1",default-timeout=5m,noexec source "$2" 2>&1) && test -z "$x"`, state, dir)
	token := readValue(t, dir+"/tlock/x/token")
	require.Equal(t, "kept", readFile(t, dir+"/files/f"))
	require.Regexp(t, `noexec.* source `, mustSh(t, `grep " $1 " /proc/self/mountinfo`, dir))
	again := sh(t, `mount -t lockfs -o state="$2" source "$1"`, dir, state+"2")
	require.Equal(t, 32, again.code, again.err)
	require.Contains(t, again.err, "mounted already")

	// A new package serves the mount.
	require.Equal(t, release1, serving(dir))
	installPackage(t, second)
	eventually(t, restartLimit, "the new version serves", func() bool { return serving(dir) == release2 })
	require.Equal(t, token, readValue(t, dir+"/tlock/x/token"))

	// Removed while it is in use.
	user := newClient(t, dir+"/files")
	require.Equal(t, "ok", user.do("open g"))
	r := newProgram(t, hangLimit, "dpkg", "-r", "lockfs").run(t)
	require.Zero(t, r.code, "%s%s", r.out, r.err)
	_, mounted = mountedAt(dir)
	require.False(t, mounted, "still mounted")
	for _, path := range packaged {
		require.NoFileExists(t, path)
	}
	require.NotContains(t, sh(t, "dpkg -L lockfs").out, "/", "files of the package")
	require.Equal(t, "kept", readFile(t, state+"/files/f"), "what is the users' stays")
}

// bootService has systemd, booted on a copy of the machine, run the service of the package.
func bootService(t *testing.T, deb string) {
	log := tempDir(t) + "/log"
	r := newProgram(t, 2*time.Minute, "unshare", "--mount", "sh", "testdata/boot/machine.sh", deb, log).run(t)
	said, _ := os.ReadFile(log)
	require.Contains(t, string(said), "\npassed\n", "exit %d\n%s%s\n%s", r.code, r.out, r.err, said)
}

// serving is the version of the worker that serves dir; empty between two of them.
func serving(dir string) string {
	ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
	defer cancel()
	environs, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, environ := range environs {
		text, _ := os.ReadFile(environ)
		if !bytes.Contains(text, []byte(`"Dir":"`+dir+`"`)) {
			continue
		}
		if out, err := exec.CommandContext(ctx, filepath.Dir(environ)+"/exe", "version").Output(); err == nil {
			return strings.Fields(string(out))[1]
		}
	}
	return ""
}

// awaitUnlocked waits until nobody serves a state directory.
func awaitUnlocked(t testing.TB, state string) {
	t.Helper()
	require.Zero(t, sh(t, `flock -w 15 "$1/lock" true`, state).code, "lockfs did not end after umount")
}

// checkUnit has systemd check the unit that is installed.
func checkUnit(t testing.TB) {
	t.Helper()
	r := sh(t, `systemd-analyze verify --man=no "lockfs@$(systemd-escape -p /locks).service"`)
	require.Zero(t, r.code, r.err)
	require.Empty(t, r.err)
}

// A manager is the socket of a service manager (sd_notify(3)).
type manager struct {
	t    testing.TB
	conn *net.UnixConn
	env  []string
}

func newManager(t testing.TB) *manager {
	t.Helper()
	path := filepath.Join(tempDir(t), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return &manager{t, conn, []string{"NOTIFY_SOCKET=" + path}}
}

// hears returns the next message, "" if there is none for so long.
func (m *manager) hears(within time.Duration) string {
	m.t.Helper()
	var buf [4096]byte
	require.NoError(m.t, m.conn.SetReadDeadline(time.Now().Add(within)))
	n, err := m.conn.Read(buf[:])
	if os.IsTimeout(err) {
		return ""
	}
	require.NoError(m.t, err)
	return string(buf[:n])
}

// TestServiceManager: it hears when the mount is ready, and that the mount answers for as long as it does.
func TestServiceManager(t *testing.T) {
	const watchdog = 400 * time.Millisecond
	manager := newManager(t)
	t.Setenv("WATCHDOG_USEC", fmt.Sprint(watchdog.Microseconds()))
	for _, v := range manager.env {
		name, value, _ := strings.Cut(v, "=")
		t.Setenv(name, value)
	}
	m := newMount(t)
	require.Equal(t, "READY=1", manager.hears(mountLimit))
	for range 3 {
		require.Equal(t, "WATCHDOG=1", manager.hears(waitLimit))
	}
	worker := m.worker()
	require.NoError(t, syscall.Kill(worker, syscall.SIGSTOP))
	resume := sync.OnceFunc(func() { syscall.Kill(worker, syscall.SIGCONT) })
	t.Cleanup(resume)
	for manager.hears(3*watchdog) != "" { // what was under way
	}
	resume()
	require.Equal(t, "WATCHDOG=1", manager.hears(waitLimit), "it answers again")

	m.killWorker()
	require.Equal(t, "WATCHDOG=1", manager.hears(waitLimit), "so does the next worker")
	require.NoError(t, m.cmd.Process.Signal(syscall.SIGTERM))
	for said := "WATCHDOG=1"; said != "STOPPING=1"; said = manager.hears(mountLimit) {
		require.Equal(t, "WATCHDOG=1", said)
	}
	require.Zero(t, m.waitExit(mountLimit))
}

// TestMountMistakes: what cannot be mounted gets one line that says what is wrong, from lockfs mount and by mount(8)'s
// helper, each with its own exit codes; and nothing is mounted, or made in the mount point.
func TestMountMistakes(t *testing.T) {
	binary, err := testedBinary()
	require.NoError(t, err)
	m := newMount(t)
	base := tempDir(t)
	helper, state := base+"/mount.lockfs", base+"/state"
	require.NoError(t, os.Symlink(binary, helper))
	require.NoError(t, os.Symlink("empty", base+"/link"))
	empty, full, file, forbidden := base+"/empty", base+"/full", base+"/file", base+"/forbidden"
	for _, dir := range []string{empty, full, full + "/thing", forbidden} {
		require.NoError(t, os.Mkdir(dir, 0o755))
	}
	require.NoError(t, os.WriteFile(file, nil, 0o644))
	const usage, failed = 2, 3
	for _, tc := range []struct {
		options, dir string
		code         int
		says         string
	}{
		{"colour=red", empty, usage, `"colour=red" is not known`},
		{"rw,bogus", empty, usage, `"bogus" is not known`},
		{"fsname=", empty, usage, `"fsname=" is not known`},
		{"sync=never", empty, usage, `"never" is neither os nor always`},
		{"view-mode=7", empty, usage, `"7" is neither 0555 nor 0500`},
		{"default-timeout=soon", empty, usage, `"soon" is no duration`},
		{"max-timeout=1m,default-timeout=2m", empty, usage, `at most 1m`},
		{"files=" + empty, empty, usage, "is inside the mount point"},
		{"state=" + empty + "/state", empty, usage, "is inside the mount point"},
		{"state=" + empty, empty, usage, "is inside the mount point"},
		{"state=" + base + "/new/state", base + "/new", usage, "is inside the mount point"},
		{"state=" + base + "/link/state", empty, usage, "is inside the mount point"},
		{"files=" + base + "/missing", empty, failed, "/missing"},
		{"files=" + file, empty, failed, "is not a directory"},
		{"state=" + file, empty, failed, file},
		{"state=" + m.state, empty, failed, fmt.Sprintf("is in use by another lockfs, pid %d", m.cmd.Process.Pid)},
		{"rw", base + "/missing", failed, "make it with: mkdir -p " + base + "/missing"},
		{"rw", file, failed, file + " is not a directory"},
		{"rw", full, failed, "is not empty: it has thing"},
		{"rw", m.dir, failed, "mounted already"},
	} {
		options := "state=" + state + "," + tc.options
		mountCode := map[int]int{usage: 1, failed: 32}[tc.code]
		checkMistake(t, tc.says, tc.code, binary, "mount", "-o", options, tc.dir)
		checkMistake(t, tc.says, tc.code, binary, "mount", "--background", "-o", options, tc.dir)
		checkMistake(t, tc.says, mountCode, helper, "none", tc.dir, "-o", options)
	}
	for _, args := range [][]string{nil, {"none"}, {"none", empty, full}, {"none", empty, "--state", state}, {"none", empty, "-o"}} {
		checkMistake(t, "", 1, helper, args...)
	}
	// Not permitted: to root without the right, and to a user whose directory it is not.
	checkMistake(t, forbidden, failed, "setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin", binary, "mount", "--state", state, forbidden)
	require.NoError(t, os.Mkdir(base+"/home", 0o755))
	require.NoError(t, os.Chown(base+"/home", 1, 1))
	checkMistake(t, forbidden, failed, "setpriv", "--reuid", "1", "--regid", "1", "--clear-groups", "--inh-caps", "-all",
		binary, "mount", "--state", base+"/home/state", forbidden)

	for _, dir := range []string{empty, forbidden} {
		_, mounted := mountedAt(dir)
		require.False(t, mounted, dir)
		require.Empty(t, entries(t, dir), dir)
	}
	require.NotEmpty(t, readFile(t, m.path("README")))
	fake := newProgram(t, time.Minute, helper, "-f", "none", empty, "-o", "state="+state).run(t)
	require.Zero(t, fake.code, fake.err)
	_, mounted := mountedAt(empty)
	require.False(t, mounted, "only checked")
}

func checkMistake(t *testing.T, says string, code int, name string, args ...string) {
	t.Helper()
	r := newProgram(t, waitLimit, name, args...).run(t)
	assert.Equal(t, code, r.code, "%s %q: %s", name, args, r.err)
	assert.Contains(t, r.err, says, "%q", args)
	assert.Equal(t, 1, strings.Count(r.err, "\n"), "%q: one line, not\n%s", args, r.err)
}
