package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestSignalsUnmount: SIGINT and SIGTERM unmount cleanly.
func TestSignalsUnmount(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		t.Run(unix.SignalName(sig), func(t *testing.T) {
			m := newMount(t)
			require.NoError(t, unix.Mkdir(m.path("tlock/x"), 0o755))
			require.NoError(t, m.cmd.Process.Signal(sig))
			require.Zero(t, m.waitExit(mountLimit))
			_, left := mountedAt(m.dir)
			require.False(t, left)
			require.Empty(t, entries(t, m.dir))
		})
	}
}

// TestBusyMount: what still uses the mount delays its end by five seconds, not for ever.
func TestBusyMount(t *testing.T) {
	m := newMount(t)
	user := newClient(t, m.path("files"))
	require.Equal(t, "ok", user.do("open f"))
	start := time.Now()
	require.NoError(t, m.cmd.Process.Signal(syscall.SIGTERM))
	eventually(t, mountLimit, "the busy mount goes away", func() bool { _, left := mountedAt(m.dir); return !left })
	require.GreaterOrEqual(t, time.Since(start), 4500*time.Millisecond, "it is given five seconds")
	require.Regexp(t, "(?i)busy|lazi", m.stderr.String())
	user.kill()
	require.Zero(t, m.waitExit(mountLimit))
}

// TestBusyMountThatBecomesFree ends as soon as its last user does.
func TestBusyMountThatBecomesFree(t *testing.T) {
	m := newMount(t)
	user := newClient(t, m.path("files"))
	require.Equal(t, "ok", user.do("open f"))
	require.Equal(t, "ok", user.do("setlk f w 0 0"))
	require.NoError(t, m.cmd.Process.Signal(syscall.SIGTERM))
	user.kill()
	require.Zero(t, m.waitExit(mountLimit))
}

// TestWaitersAtUnmount: ending the mount ends those who wait on it, too.
func TestWaitersAtUnmount(t *testing.T) {
	m := newMount(t)
	s := newScene(t, m)
	s.play("a open f\nb open f\na setlk f w 0 0\nb setlkw f w 0 0 ...")
	require.NoError(t, m.cmd.Process.Signal(syscall.SIGTERM))
	require.Zero(t, m.waitExit(2*mountLimit))
	require.NotEqual(t, "ok", await(t, "b's wait", s.blocked["b"]), "no lock is granted by going away")
}

// TestDeadMountIsReplaced: a daemon that was killed leaves a mount that answers ENOTCONN; the next one takes its place.
func TestDeadMountIsReplaced(t *testing.T) {
	m := newMount(t)
	require.NoError(t, os.WriteFile(m.path("files/kept"), []byte("text"), 0o644))
	m.crash()
	entry, mounted := mountedAt(m.dir)
	if assert.True(t, mounted, "the kernel keeps the mount") {
		assert.Equal(t, "fuse.lockfs", entry.fstype)
	}
	var st unix.Stat_t
	assert.Equal(t, "ENOTCONN", errnoName(unix.Stat(m.dir, &st)))

	binary, err := testedBinary()
	require.NoError(t, err)
	again := mountAt(t, binary, m.dir, m.state)
	assert.Equal(t, "text", readFile(t, again.path("files/kept")))
	require.NoError(t, unix.Mkdir(again.path("tlock/x"), 0o755))
	require.NoError(t, again.cmd.Process.Signal(syscall.SIGTERM))
	require.Zero(t, again.waitExit(mountLimit))
	_, left := mountedAt(m.dir)
	require.False(t, left, "nor is the dead one left below")
}

// TestFilesOutliveTheMount: files/ is backed by --files, by default a folder of --state.
func TestFilesOutliveTheMount(t *testing.T) {
	binary, err := testedBinary()
	require.NoError(t, err)
	base, files := tempDir(t), tempDir(t)
	for i, text := range []string{"first", "second"} {
		m := mountAt(t, binary, base+"/mnt", base+"/state", "--files", files)
		if i > 0 {
			require.Equal(t, "first", readFile(t, m.path("files/f")))
		}
		require.NoError(t, os.WriteFile(m.path("files/f"), []byte(text), 0o644))
		require.NoError(t, m.cmd.Process.Signal(syscall.SIGTERM))
		require.Zero(t, m.waitExit(mountLimit))
		require.Equal(t, text, readFile(t, files+"/f"))
	}
}

// TestCommands of the command line that belong to the mount.
func TestCommands(t *testing.T) {
	m := newMount(t)
	version := lockfs(t, "version")
	require.Zero(t, version.code)
	require.Contains(t, version.out, "lockfs")
	require.Zero(t, lockfs(t, "ls", "--dir", m.dir).code)
	require.Empty(t, lockfs(t, "ls", "--json", "--dir", m.dir).out)
	require.NoError(t, unix.Mkdir(m.path("tlock/x"), 0o755))
	require.Contains(t, lockfs(t, "ls", "--dir", m.dir).out, "tlock/x")

	binary, err := testedBinary()
	require.NoError(t, err)
	byEnvironment := newProgram(t, time.Minute, binary, "ls")
	byEnvironment.Env = append(byEnvironment.Env, "LOCKFS_DIR="+m.dir)
	require.Contains(t, byEnvironment.run(t).out, "tlock/x")

	require.Zero(t, lockfs(t, "umount", m.dir).code)
	require.Zero(t, m.waitExit(mountLimit))
	_, left := mountedAt(m.dir)
	require.False(t, left)
}

// TestUmountWaits: when it has returned, nobody uses the state any more.
func TestUmountWaits(t *testing.T) {
	binary, err := testedBinary()
	require.NoError(t, err)
	base := tempDir(t)
	for range 5 {
		m := mountAt(t, binary, filepath.Join(base, "mnt"), filepath.Join(base, "state"))
		require.Zero(t, lockfs(t, "umount", m.dir).code)
		lock, err := os.Open(filepath.Join(m.state, "lock"))
		require.NoError(t, err)
		require.NoError(t, unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB))
		require.NoError(t, lock.Close())
	}
}

// TestMistakes on the command line get one line that names the value, and the exit code of their kind.
func TestMistakes(t *testing.T) {
	m := newMount(t)
	empty, state, with := tempDir(t), tempDir(t), tempDir(t)
	file := filepath.Join(with, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o644))
	for _, tc := range []struct {
		args  []string
		codes []int
		says  string
	}{
		{[]string{"mount", "--state", state, empty + "/missing"}, []int{2, 3}, empty + "/missing"},
		{[]string{"mount", "--state", state, file}, []int{2, 3}, file},
		{[]string{"mount", "--state", state, m.dir}, []int{2, 3}, m.dir}, // lockfs is there already
		{[]string{"mount", "--state", state, file + "/x"}, []int{2, 3}, file + "/x"},
		{[]string{"mount", "--state", file, empty}, []int{2, 3}, file},
		{[]string{"mount", "--state", state, "--files", empty + "/missing", empty}, []int{2, 3}, empty + "/missing"},
		{[]string{"mount", "--state", state, "--default-timeout", "soon", empty}, []int{2}, "soon"},
		{[]string{"mount", "--state", state, "--max-timeout", "-5", empty}, []int{2}, "-5"},
		{[]string{"mount", "--state", state, "--view-mode", "9", empty}, []int{2}, "9"},
		{[]string{"mount", "--state", state, "--colour", empty}, []int{2}, "--colour"},
		{[]string{"mount"}, []int{2}, ""},
		{[]string{"mount", empty, empty}, []int{2}, ""},
		{[]string{"dance"}, []int{2}, "dance"},
		{[]string{"umount", empty}, []int{3}, empty},
		{[]string{"umount"}, []int{2}, ""},
		{[]string{"ls", "--dir", empty}, []int{3}, empty},
		{[]string{"ls", "--dir", empty + "/missing"}, []int{3}, empty + "/missing"},
	} {
		r := lockfs(t, tc.args...)
		assert.Contains(t, tc.codes, r.code, "%v: %s", tc.args, r.err)
		assert.Contains(t, r.err, tc.says, "%v", tc.args)
		assert.Equal(t, 1, strings.Count(r.err, "\n"), "%v: one line, not\n%s", tc.args, r.err)
	}
	require.Empty(t, entries(t, empty))
	require.Equal(t, []string{"file"}, entries(t, with))
	require.NotEmpty(t, readFile(t, m.path("README")))
}

// privateDevice gives its script a /dev/fuse that everyone may open, as distributions do, in a private namespace.
const privateDevice = `
unshare --mount --propagation private sh -c '
	mknod -m 666 "$2/fuse" c 10 229 && chmod 666 "$2/fuse" && mount --bind "$2/fuse" /dev/fuse || exit 50
	exec setpriv --reuid 1 --regid 1 --clear-groups --inh-caps -all env HOME="$2" $3 sh -c "$4" sh "$1" "$2"
' sh "$1" "$2" "$3" "$4"`

// mountedScript mounts, uses and ends a lockfs as the user that it is run by.
const mountedScript = `
cd "$2" && mkdir mnt state || exit 40
"$1" mount --state "$2/state" "$2/mnt" & daemon=$!
i=0
until test -r mnt/README; do
	i=$((i+1)); test $i -gt 500 && exit 41
	kill -0 $daemon || exit 42
	sleep 0.02
done
grep "$2/mnt .*fuse.lockfs" /proc/self/mountinfo || exit 43
mkdir mnt/tlock/x && cat mnt/tlock/x/holder && rmdir mnt/tlock/x || exit 44
echo text > mnt/files/f && test "$(cat mnt/files/f)" = text || exit 45
flock -n mnt/files/f flock -n mnt/files/f true && exit 46
flock mnt/files/f grep -c /f mnt/view/locks || exit 47
kill $daemon && wait $daemon || exit 48
grep "$2/mnt " /proc/self/mountinfo && exit 49
exit 0`

// TestUnprivileged mounts as another user: through fusermount3, and in a user namespace without it.
func TestUnprivileged(t *testing.T) {
	binary, err := testedBinary()
	require.NoError(t, err)
	for name, within := range map[string]string{
		"fusermount3":    "",
		"user namespace": "unshare --user --map-root-user --mount",
	} {
		t.Run(name, func(t *testing.T) {
			dir := tempDir(t)
			require.NoError(t, os.Chown(dir, 1, 1))
			r := sh(t, privateDevice, binary, dir, within, mountedScript)
			require.Zero(t, r.code, "exit %d\n%s%s", r.code, r.out, r.err)
			if within != "" {
				require.Contains(t, r.out, "uid 0")
			} else {
				require.Contains(t, r.out, "uid 1")
			}
		})
	}
}

// TestUserNamespaceOfRoot is the plain `unshare -Urm` that an administrator would try.
func TestUserNamespaceOfRoot(t *testing.T) {
	binary, err := testedBinary()
	require.NoError(t, err)
	r := sh(t, `unshare -Urm sh -c "$3" sh "$1" "$2"`, binary, tempDir(t), mountedScript)
	require.Zero(t, r.code, "exit %d\n%s%s", r.code, r.out, r.err)
}

// TestTwoMountsAreTwoWorlds: a name held in one is free in the other.
func TestTwoMountsAreTwoWorlds(t *testing.T) {
	a, b := newMount(t), newMount(t)
	for _, m := range []*mount{a, b} {
		require.NoError(t, unix.Mkdir(m.path("tlock/x"), 0o755))
	}
	require.Len(t, a.locks(t), 1)
	require.NotZero(t, lockfs(t, "ls").code, "with two mounts one has to be named")
}

// TestStateInUse: two daemons cannot share a --state.
func TestStateInUse(t *testing.T) {
	m := newMount(t)
	other := tempDir(t)
	t.Cleanup(func() { unix.Unmount(other, unix.MNT_DETACH) })
	binary, err := testedBinary()
	require.NoError(t, err)
	r := newProgram(t, 5*time.Second, "timeout", "3", binary, "mount", "--state", m.state, other).run(t)
	require.Contains(t, []int{2, 3}, r.code)
	require.Contains(t, r.err, m.state)
	_, mounted := mountedAt(other)
	require.False(t, mounted, fmt.Sprint(r))
}
