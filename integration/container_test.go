package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// A podman runs containers from storage of its own, of which nothing is left when its test ends.
type podman struct {
	t      testing.TB
	dir    string
	args   []string // of every call
	libs   []string // flags that let a container run this test's own program
	before []string // the command that runs podman, if it is not run directly
}

// boxImage has busybox and nothing else, lockfsImage is built by the product's Containerfile.
const (
	boxImage    = "localhost/box"
	lockfsImage = "localhost/lockfs"
)

// podmanFlags keep all that podman has below a directory.
func podmanFlags(dir string) []string {
	return []string{
		"--root", dir + "/root", "--runroot", dir + "/run", "--tmpdir", dir + "/tmp", "--storage-driver", "vfs",
		"--runtime", "runc", "--cgroup-manager", "cgroupfs", "--log-level", "error",
	}
}

func newPodman(t testing.TB) *podman {
	t.Helper()
	dir := tempDir(t)
	p := &podman{t: t, dir: dir, args: podmanFlags(dir)}
	p.libs = []string{"--volume", workDir + ":" + workDir + ":ro"}
	for _, lib := range []string{"/lib", "/lib64", "/usr/lib"} {
		if _, err := os.Stat(lib); err == nil {
			p.libs = append(p.libs, "--volume", lib+":"+lib+":ro")
		}
	}
	t.Cleanup(p.cleanup)
	p.importBox()
	return p
}

// importBox makes an image of busybox.
func (p *podman) importBox() {
	p.t.Helper()
	mustSh(p.t, `mkdir -p "$1/box/bin" "$1/box/proc" && cp "$(PATH=/usr/bin:/bin command -v busybox)" "$1/box/bin/" &&
		for a in sh cat mkdir rmdir ls sleep flock id test; do ln -s busybox "$1/box/bin/$a"; done &&
		tar -C "$1/box" -cf "$1/box.tar" .`, p.dir)
	p.must("import", "--quiet", p.dir+"/box.tar", boxImage)
}

// cleanup removes every container and image, and unmounts what podman left.
func (p *podman) cleanup() {
	p.call("rm", "--all", "--force", "--time", "0")
	p.call("rmi", "--all", "--force")
	if text, err := os.ReadFile(p.dir + "/tmp/pause.pid"); err == nil { // what keeps an ordinary user's namespace
		if pid, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && pid > 1 {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	// What tidies up after a container by itself would make the directory again.
	for start := time.Now(); len(p.processes()) > 0 && time.Since(start) < waitLimit; time.Sleep(20 * time.Millisecond) {
		if time.Since(start) < waitLimit/2 {
			continue
		}
		for _, pid := range p.processes() {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	left, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(left)) {
		if point := strings.Fields(line)[4]; strings.HasPrefix(point, p.dir+"/") {
			unix.Unmount(point, unix.MNT_DETACH)
		}
	}
}

// processes are those with this podman's directory on their command line.
func (p *podman) processes() (pids []int) {
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range all {
		line, _ := os.ReadFile(file)
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file))); err == nil && strings.Contains(string(line), p.dir+"/") {
			pids = append(pids, pid)
		}
	}
	return pids
}

func (p *podman) command(args ...string) *program {
	words := slices.Concat(p.before, []string{"podman"}, p.args, args)
	return newProgram(p.t, time.Minute, words[0], words[1:]...)
}

func (p *podman) call(args ...string) result {
	p.t.Helper()
	return p.command(args...).run(p.t)
}

func (p *podman) must(args ...string) string {
	p.t.Helper()
	r := p.call(args...)
	require.Zero(p.t, r.code, "podman %v\n%s%s", args, r.out, r.err)
	return strings.TrimSpace(r.out)
}

// A box is a running container.
type box struct {
	p    *podman
	name string
	id   string // as podman ps shows it
}

// limits are what a container of tests needs in a machine that is a container itself.
var limits = []string{"--network=none", "--ulimit", "nofile=20000:20000", "--ulimit", "nproc=20000:20000"}

// run starts a container. Its main process ends by itself, should all else fail.
func (p *podman) run(name string, flags []string, image string, command ...string) *box {
	p.t.Helper()
	id := p.must(slices.Concat([]string{"run", "--detach", "--name", name}, limits, flags, []string{image}, command)...)
	return &box{p, name, id[:12]}
}

// box starts a container with a directory of the host at the same path, in which others can be run.
func (p *podman) box(name, dir string, flags ...string) *box {
	p.t.Helper()
	flags = append(flags, p.libs...)
	return p.run(name, append(flags, "--volume", dir+":"+dir+":rslave"), boxImage, "/bin/busybox", "sleep", "300")
}

// exec runs a command in the container.
func (b *box) exec(args ...string) result {
	b.p.t.Helper()
	return b.p.call(append([]string{"exec", b.name}, args...)...)
}

func (b *box) read(path string) string {
	b.p.t.Helper()
	r := b.exec("cat", path)
	require.Zero(b.p.t, r.code, "%s", r.err)
	return r.out
}

// client starts a client in the container.
func (b *box) client(dir string) *client {
	b.p.t.Helper()
	command := b.p.command("exec", "--interactive", "--workdir", dir, "--env", roleEnv+"=client",
		"--env", "GORACE=atexit_sleep_ms=0", b.name, selfBinary)
	return newClient(b.p.t, "/", func(cmd *exec.Cmd) {
		cmd.Path, cmd.Args, cmd.Env = command.Path, command.Args, command.Env
	})
}

// pidInside is the client's process id in its own pid namespace.
func (c *client) pidInside() int {
	c.t.Helper()
	stat := c.do("read /proc/self/stat")
	pid, err := strconv.Atoi(strings.Fields(stat)[0])
	require.NoError(c.t, err, stat)
	return pid
}

// innerPid is what the kernel says that a process of ours is called in its own pid namespace.
func innerPid(t testing.TB, pid int) int {
	t.Helper()
	for line := range strings.Lines(readFile(t, fmt.Sprintf("/proc/%d/status", pid))) {
		if numbers, ok := strings.CutPrefix(line, "NSpid:"); ok {
			fields := strings.Fields(numbers)
			n, err := strconv.Atoi(fields[len(fields)-1])
			require.NoError(t, err)
			return n
		}
	}
	t.Fatalf("process %d has no NSpid", pid)
	return 0
}

// TestContainersShareAMount: two containers and the host on one mount of the host.
func TestContainersShareAMount(t *testing.T) {
	m := newMount(t)
	p := newPodman(t)
	boxA, boxB := p.box("a", m.dir), p.box("b", m.dir)
	a, again, b, host := boxA.client(m.dir), boxA.client(m.dir), boxB.client(m.dir), newClient(t, m.dir)
	for _, c := range []*client{a, again, b, host} {
		require.Equal(t, "ok", c.do("open files/f"))
	}
	require.Equal(t, "ok", a.do("setlk files/f w 0 0"))
	require.Equal(t, "ok", a.do("mkdir tlock/timed"))
	require.Equal(t, "ok", a.do("open hold/held r"))
	inside := a.pidInside()
	outside := m.locksOn(t, "held", "files/f")[0].PID

	t.Run("respected", func(t *testing.T) {
		for _, c := range []*client{again, b, host} {
			require.Equal(t, "EAGAIN", c.do("setlk files/f w 0 0"))
			require.Equal(t, "EEXIST", c.do("mkdir tlock/timed"))
			require.Equal(t, "EAGAIN", c.do("open hold/held,wait=0 r"))
		}
	})
	t.Run("pids", func(t *testing.T) {
		require.Greater(t, inside, 1)
		require.NotEqual(t, outside, inside)
		require.Equal(t, innerPid(t, outside), inside, "the host sees the host's number")
		for _, tc := range []struct {
			who  *client
			want int
		}{{again, inside}, {b, 0}, {host, outside}} {
			require.Equal(t, fmt.Sprint("w 0 0 ", tc.want), tc.who.do("getlk files/f w 0 0"))
			for _, name := range []string{"tlock/timed/holder", "tlock/held/holder"} {
				require.Contains(t, tc.who.do("read %s", name), fmt.Sprintf(" pid %d ", tc.want))
			}
			require.Contains(t, tc.who.do("read tlock/held/status"), fmt.Sprintf("(pid %d, ", tc.want))
			require.Contains(t, tc.who.do("read tlock/held/json"), fmt.Sprintf(`"pid":%d,`, tc.want))
			require.Regexp(t, fmt.Sprintf(`flock|record +held +exclusive +0 +EOF +%d +root `, tc.want), tc.who.do("read view/locks"))
			require.Contains(t, tc.who.do("read view/locks.jsonl"), fmt.Sprintf(`"pid":%d,`, tc.want))
			require.Contains(t, tc.who.do("read view/files/f"), fmt.Sprintf("pid %d uid 0", tc.want))
		}
		require.Contains(t, strings.Fields(boxA.exec("ls", m.path("view/pid")).out), strconv.Itoa(inside))
		require.Contains(t, boxA.read(m.path("view/pid", strconv.Itoa(inside))), "path files/f")
		require.Empty(t, boxB.exec("ls", m.path("view/pid")).out, "b sees none of those who hold anything")
		require.Equal(t, []string{strconv.Itoa(outside)}, entries(t, m.path("view/pid")))
	})
	t.Run("alive for everybody", func(t *testing.T) {
		for _, c := range []*client{again, b, host} {
			require.Regexp(t, "alive yes$", c.do("read tlock/held/holder"))
		}
	})
	t.Run("containers", func(t *testing.T) {
		require.Equal(t, "ok", b.do("mkdir tlock/of-b"))
		for name, want := range map[string]string{"timed": boxA.id, "held": boxA.id, "of-b": boxB.id} {
			require.Equal(t, want, flatKeyed(t, readFile(t, m.path("tlock", name, "holder")))["container"])
			require.Contains(t, readFile(t, m.path("tlock", name, "status")), "in container "+want)
		}
		require.Contains(t, readFile(t, m.path("view/files/f")), " container "+boxA.id)
		require.Contains(t, readFile(t, m.path("view/locks.jsonl")), `"container":"`+boxA.id+`"`)
		require.Regexp(t, `COMMAND +CONTAINER +FOR`, readFile(t, m.path("view/locks")))
	})
	t.Run("waiters, graph and events", func(t *testing.T) {
		waits := again.begin("open hold/held,wait=30 r")
		eventually(t, waitLimit, "it waits", func() bool { return len(m.locksOn(t, "waiting", "tlock/held")) == 1 })
		inner := again.pidInside()
		require.Regexp(t, fmt.Sprintf(`^%d 0 \d+ `, inner), a.do("read tlock/held/waiters"))
		require.Regexp(t, `^0 0 \d+ `, b.do("read tlock/held/waiters"))
		require.Contains(t, a.do("read view/graph.dot"), fmt.Sprintf(`[label="%d `, inner))
		require.NotContains(t, b.do("read view/graph.dot"), fmt.Sprintf(`[label="%d `, inner))
		require.Contains(t, boxA.read(m.path("view/locks.jsonl")), fmt.Sprintf(`"blockers":[%d]`, inside))
		require.Contains(t, boxB.read(m.path("view/locks.jsonl")), `"blockers":[0]`)
		require.Contains(t, nextEvent(t, b, host), `"pid":0,`)
		require.Contains(t, nextEvent(t, again, a), fmt.Sprintf(`"pid":%d,`, inside))
		require.Equal(t, "ok", a.do("close hold/held"))
		require.Equal(t, "ok", await(t, "the hold", waits))
		require.Equal(t, "ok", again.do("close hold/held,wait=30"))
		require.Equal(t, "ok", a.do("open hold/held r"))
	})
	t.Run("killed", func(t *testing.T) {
		range1, hold := b.begin("setlkw files/f w 0 0"), b.begin("open hold/held r")
		eventually(t, waitLimit, "b waits", func() bool {
			return len(m.locksOn(t, "waiting", "files/f"))+len(m.locksOn(t, "waiting", "tlock/held")) == 2
		})
		p.must("kill", boxA.name)
		require.Equal(t, "ok", await(t, "the record lock of a", range1))
		require.Equal(t, "ok", await(t, "the hold of a", hold))
		require.Equal(t, "EEXIST", b.do("mkdir tlock/timed"), "a timed lock lives by its time")
		require.Regexp(t, "alive no$", b.do("read tlock/timed/holder"))
	})
}

// nextEvent is what a reader of view/events is told of what another client does.
func nextEvent(t testing.TB, reader, doer *client) (text string) {
	t.Helper()
	events := reader.begin("read view/events")
	eventually(t, waitLimit, "an event", func() bool {
		doer.do("mkdir tlock/event")
		doer.do("rmdir tlock/event")
		select {
		case text = <-events:
			return true
		default:
			return false
		}
	})
	return text
}

// TestConfinedClients: a container that may do nothing and whose users are others on the host can lock all the same.
func TestConfinedClients(t *testing.T) {
	m := newMount(t)
	p := newPodman(t)
	confined := p.box("confined", m.dir, "--read-only", "--cap-drop=all", "--security-opt=no-new-privileges",
		"--uidmap=0:100000:65536", "--gidmap=0:100000:65536", "--user=1000")
	c, host := confined.client(m.dir), newClient(t, m.dir)
	require.Contains(t, confined.exec("id").out, "uid=1000")

	require.Equal(t, "ok", c.do("mkdir tlock/x"))
	require.EqualValues(t, 101000, statOf(t, m.path("tlock/x")).Uid, "the host knows it by the mapped id")
	require.Equal(t, "ok", c.do("mkdir tlock/uid-101000.x"))
	require.Equal(t, "EPERM", c.do("mkdir tlock/uid-1000.x"))
	require.Contains(t, c.do("read tlock/x/holder"), fmt.Sprintf(" pid %d ", c.pidInside()))
	require.Equal(t, confined.id, flatKeyed(t, readFile(t, m.path("tlock/x/holder")))["container"])
	require.Equal(t, "ok", c.do("write tlock/x/timeout 5m"))
	require.Equal(t, "ok", c.do("rmdir tlock/x"))

	require.Equal(t, "ok", host.do("mkdir tlock/of-root"))
	require.Equal(t, "EEXIST", c.do("mkdir tlock/of-root"))
	require.Contains(t, []string{"EPERM", "EACCES"}, c.do("rmdir tlock/of-root"))

	require.Equal(t, "ok", host.do("open hold/h r"))
	waits := c.begin("open hold/h r")
	eventually(t, waitLimit, "it waits", func() bool { return len(m.locksOn(t, "waiting", "tlock/h")) == 1 })
	require.Equal(t, "ok", host.do("close hold/h"))
	require.Equal(t, "ok", await(t, "the hold", waits))

	require.Equal(t, "ok", c.do("open files/own"))
	require.Equal(t, "ok", c.do("flock files/own ex+nb"))
	require.Equal(t, "ok", host.do("open files/own r"), "O_CREAT would run into fs.protected_regular")
	require.Equal(t, "EAGAIN", host.do("flock files/own sh+nb"))
	p.must("kill", confined.name)
	eventually(t, waitLimit, "all is free", func() bool { return host.do("flock files/own sh+nb") == "ok" })
}

// sharedDir is a directory whose mounts propagate to whoever binds it, as /run is where systemd is.
func sharedDir(t testing.TB) string {
	t.Helper()
	dir := tempDir(t)
	require.NoError(t, unix.Mount("lockfs-test", dir, "tmpfs", 0, "mode=755"))
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	require.NoError(t, unix.Mount("", dir, "", unix.MS_SHARED|unix.MS_REC, ""))
	require.NoError(t, os.Mkdir(filepath.Join(dir, "locks"), 0o755))
	return dir
}

// buildLockfsImage follows docs/containers.md, with the static binary.
func (p *podman) buildLockfsImage() {
	p.t.Helper()
	binary, err := plainBinary()
	require.NoError(p.t, err)
	context := filepath.Join(p.dir, "bin")
	mustSh(p.t, `mkdir "$1" && cp "$2" "$1/lockfs"`, context, binary)
	p.must("build", "--quiet", "--tag", lockfsImage, "--file", "../packaging/container/Containerfile", context)
}

// serve starts lockfs in a container, to be mounted at dir/locks for everybody, and waits until the host can see it.
func (p *podman) serve(dir string, flags ...string) *box {
	p.t.Helper()
	state := filepath.Join(p.dir, "state")
	require.NoError(p.t, os.MkdirAll(state, 0o755))
	flags = append(flags, "--device", "/dev/fuse", "--cap-add", "SYS_ADMIN", "--security-opt", "apparmor=unconfined",
		"--volume", dir+":"+dir+":rshared", "--volume", state+":/var/lib/lockfs")
	server := p.run("lockfs", flags, lockfsImage, "mount", dir+"/locks")
	// Whatever becomes of the container, its mount must not stay.
	p.t.Cleanup(func() { unix.Unmount(dir+"/locks", unix.MNT_DETACH) })
	server.awaitServing(dir + "/locks")
	return server
}

func (b *box) awaitServing(locks string) {
	b.p.t.Helper()
	eventually(b.p.t, waitLimit, "the host sees the mount", func() bool {
		_, err := os.Stat(locks + "/README")
		return err == nil
	})
}

// TestLockfsInAContainer: the mount reaches the host and a sibling that was there before it, and is there again after
// its container was killed.
func TestLockfsInAContainer(t *testing.T) {
	dir, p := sharedDir(t), newPodman(t)
	p.buildLockfsImage()
	locks := dir + "/locks"
	boxS := p.box("sibling", dir)
	server := p.serve(dir, "--pid=host")

	host, sibling := newClient(t, locks), boxS.client(locks)
	require.Equal(t, "ok", host.do("open files/f"))
	require.Equal(t, "ok", sibling.do("open files/f"))
	require.Equal(t, "ok", sibling.do("flock files/f ex"))
	require.Equal(t, "EAGAIN", host.do("flock files/f sh+nb"))
	require.Equal(t, "ok", host.do("mkdir tlock/x+5m"))
	require.Equal(t, "EEXIST", sibling.do("mkdir tlock/x"))

	// With the host's pid namespace lockfs knows everybody.
	require.Equal(t, strconv.Itoa(host.pid()), flatKeyed(t, readFile(t, locks+"/tlock/x/holder"))["pid"])
	require.Contains(t, readFile(t, locks+"/view/files/f"), " container "+boxS.id)
	require.Contains(t, sibling.do("read view/files/f"), fmt.Sprintf(" pid %d ", sibling.pidInside()))
	health := server.exec("/lockfs", "ls", "--dir", locks)
	require.Zero(t, health.code, health.err)
	require.Contains(t, health.out, "tlock/x")

	p.must("kill", server.name)
	eventually(t, waitLimit, "the mount is dead", func() bool { return host.do("stat %s/README", locks) != "ok" })
	host.kill()
	sibling.kill()
	p.must("start", server.name)
	server.awaitServing(locks)
	require.Zero(t, boxS.exec("ls", locks+"/tlock/x").code, "the sibling sees the new mount, and the timed lock")

	p.must("stop", "--time", "20", server.name)
	_, left := mountedAt(locks)
	require.False(t, left, "a container that is stopped unmounts")
}

// TestCallersThatLockfsCannotSee: lockfs in a pid namespace of its own knows of callers outside only their users.
func TestCallersThatLockfsCannotSee(t *testing.T) {
	dir, p := sharedDir(t), newPodman(t)
	p.buildLockfsImage()
	locks := dir + "/locks"
	server := p.serve(dir)
	one, two := newClient(t, locks), newClient(t, locks)

	require.Equal(t, "ok", one.do("open files/f"))
	require.Equal(t, "ok", two.do("open files/f"))
	require.Equal(t, "ok", one.do("setlk files/f w 0 0"))
	require.Equal(t, "EAGAIN", two.do("setlk files/f w 0 0"))
	require.Equal(t, "w 0 0 0", two.do("getlk files/f w 0 0"), "its pid is not known")
	require.Equal(t, "ok", one.do("mkdir tlock/x+5m"))
	holder := flatKeyed(t, readFile(t, locks+"/tlock/x/holder"))
	assert.Equal(t, "0", holder["pid"])
	assert.Equal(t, "unknown", holder["alive"])

	t.Run("the numbers of lockfs are not shown outside", func(t *testing.T) {
		// Only the binary is in its container: it takes a hold itself, as process 1's child.
		run := p.command("exec", server.name, "/lockfs", "run", "--dir", locks, "own", "--", "/lockfs", "wait", "--dir", locks, "x")
		require.NoError(t, run.Start())
		eventually(t, waitLimit, "it holds", func() bool { _, err := os.Stat(locks + "/tlock/own"); return err == nil })
		assert.Equal(t, "0", flatKeyed(t, readFile(t, locks+"/tlock/own/holder"))["pid"])
		assert.Equal(t, "yes", flatKeyed(t, readFile(t, locks+"/tlock/own/holder"))["alive"])
		inside := server.exec("/lockfs", "holder", "--dir", locks, "own")
		require.Zero(t, inside.code, inside.err)
		assert.NotEqual(t, "0", flatKeyed(t, inside.out)["pid"])
		require.Equal(t, "ok", one.do("rmdir tlock/x"))
		require.Zero(t, run.ended(t, run.Wait()).code)
	})
	t.Run("master locks", func(t *testing.T) {
		// The dialect of Sys::Tlock, by one process.
		require.Equal(t, "ok", one.do("mkdir tlock/tlock_.label"))
		require.Equal(t, "EEXIST", two.do("mkdir tlock/tlock_.label"), "one of two programs gets it")
		// Others do not pass for the holder of the master lock, by no way in which that would not come.
		require.Equal(t, "EAGAIN", two.do("open take/tlock.label+5m,wait=0 r"))
		require.Equal(t, "EAGAIN", two.do("open hold/tlock.label,wait=0 r"))
		user := newClient(t, locks, func(cmd *exec.Cmd) {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1, Gid: 1}}
		})
		require.Equal(t, "EEXIST", user.do("mkdir tlock/tlock.label"))
		require.Equal(t, "ok", one.do("mkdir tlock/tlock.label"), "or Sys::Tlock would believe that it has the lock")
		require.Equal(t, "ok", one.do("rmdir tlock/tlock_.label"))
		require.Equal(t, "ok", one.do("rmdir tlock/tlock.label"))
	})
	t.Run("places in the queue", func(t *testing.T) {
		require.Equal(t, "ok", one.do("mkdir tlock/q"))
		first := startScript(t, newProgram(t, hangLimit, "python3", "testdata/waiter.py", "take", locks+"/take/q", "restart"))
		require.Equal(t, "ready", first.next("start"))
		waiting := func(n int) func() bool {
			return func() bool { return strings.Count(readFile(t, locks+"/tlock/q/waiters"), "\n") == n }
		}
		eventually(t, waitLimit, "the first waits", waiting(1))
		second := two.begin("open take/q r")
		eventually(t, waitLimit, "the second waits", waiting(2))
		require.NoError(t, first.p.Process.Signal(unix.SIGKILL))
		eventually(t, waitLimit, "the first is gone", waiting(1))
		third := newClient(t, locks)
		begun := third.begin("open take/q r")
		eventually(t, waitLimit, "the third waits", waiting(2))
		require.Equal(t, "ok", one.do("rmdir tlock/q"))
		require.Equal(t, "ok", await(t, "the second's turn", second), "the third does not inherit the first's place")
		select {
		case reply := <-begun:
			t.Fatalf("the third has it too: %s", reply)
		default:
		}
		require.Equal(t, "ok", two.do("close take/q"))
		require.Equal(t, "ok", await(t, "the third's turn", begun))
	})
}

// withDevice gives what it runs a /dev/fuse that everyone may open, as distributions have it.
const withDevice = `mount --bind "$0" /dev/fuse && exec "$@"`

// useDevice has podman run with such a device.
func (p *podman) useDevice() {
	p.t.Helper()
	device := filepath.Join(p.dir, "fuse")
	require.NoError(p.t, unix.Mknod(device, unix.S_IFCHR, int(unix.Mkdev(10, 229))))
	require.NoError(p.t, os.Chmod(device, 0o666))
	p.before = []string{"unshare", "--mount", "--propagation=private", "sh", "-c", withDevice, device}
}

// TestRootless: an ordinary user's container mounts for itself, in a user namespace and without fusermount.
func TestRootless(t *testing.T) {
	p := newPodman(t)
	p.useDevice()
	home := filepath.Join(p.dir, "home")
	require.NoError(t, os.Mkdir(home, 0o700))
	own := filepath.Join(p.dir, "own")
	for _, dir := range []string{own, own + "/locks"} {
		require.NoError(t, os.Mkdir(dir, 0o755))
	}
	user := &podman{t: t, dir: own, args: podmanFlags(own), before: append(p.before, "setpriv", "--reuid=1", "--regid=1",
		"--clear-groups", "--inh-caps=-all", "env", "HOME="+home, "XDG_RUNTIME_DIR="+home)}
	t.Cleanup(user.cleanup)
	mustSh(t, `chown -R 1:1 "$@"`, home, own)
	user.buildLockfsImage()

	locks := own + "/locks"
	server := user.run("lockfs", []string{"--device=/dev/fuse", "--cap-add=SYS_ADMIN", "--volume", locks + ":/locks"}, lockfsImage, "mount", "/locks")
	eventually(t, waitLimit, "it serves", func() bool { return server.exec("/lockfs", "ls", "--dir", "/locks").code == 0 })
	r := server.exec("/lockfs", "run", "--dir", "/locks", "x", "--", "/lockfs", "holder", "--dir", "/locks", "x")
	require.Zero(t, r.code, r.err)
	require.Equal(t, "0", flatKeyed(t, r.out)["uid"], "root of the namespace")
	require.Empty(t, entries(t, locks), "the host does not see the mount")
	user.must("stop", "--time", "20", server.name)
}

// docsSandbox runs a script where /run is a shared mount and what is left in the end is nothing: no process, no mount.
const docsSandbox = `
exec unshare --mount --propagation private --pid --fork --kill-child --mount-proc sh -ec '
	mount -t tmpfs none /run && mount --make-rshared /run && mount -t tmpfs none /var/lib
	exec sh -e "$1"' sh "$1"`

// docsPrelude stands in for what is different on the reader's machine: sudo, and how podman is set up.
const docsPrelude = `
sudo() { "$@"; }
make() { test "$*" = build; }
podman() {
	if [ "$1" = run ]; then shift; set -- run LIMITS "$@"; fi
	command podman FLAGS "$@"
}
trap 'podman rm --all --force --time 0 >/dev/null' EXIT
`

// TestContainersDoc types what docs/containers.md says.
func TestContainersDoc(t *testing.T) {
	p := newPodman(t)
	p.must("tag", boxImage, "busybox")
	packaging, err := filepath.Abs("../packaging")
	require.NoError(t, err)
	require.NoError(t, os.Symlink(packaging, filepath.Join(p.dir, "packaging")))
	binary, err := plainBinary()
	require.NoError(t, err)
	mustSh(t, `mkdir "$1" && cp "$2" "$1/lockfs"`, filepath.Join(p.dir, "bin"), binary)

	script := strings.NewReplacer("LIMITS", strings.Join(limits, " "), "FLAGS", strings.Join(p.args, " ")).Replace(docsPrelude)
	blocks := shellBlocks(readFile(t, "../docs/containers.md"))
	require.GreaterOrEqual(t, len(blocks), 8)
	script += strings.Join(blocks, "\n")
	file := filepath.Join(p.dir, "script")
	require.NoError(t, os.WriteFile(file, []byte(script), 0o644))
	run := newProgram(t, 2*waitLimit, "sh", "-c", docsSandbox, "sh", file)
	run.Dir = p.dir
	run.Env = append(run.Env, "PATH="+p.dir+"/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	r := run.run(t)
	require.Zero(t, r.code, "%s%s", r.out, r.err)
	for _, said := range []string{`nightly is held by root \(.*, in container [0-9a-f]{12}\)`, "mine now", `(?m)^uid 101000$`, "CLASS +STATE"} {
		require.Regexp(t, said, r.out)
	}
}

// shellBlocks are the texts between ```sh and ```.
func shellBlocks(doc string) (blocks []string) {
	for _, part := range strings.Split(doc, "```sh\n")[1:] {
		block, _, _ := strings.Cut(part, "```")
		blocks = append(blocks, block)
	}
	return blocks
}
