package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestSupervisorKilled: the worker serves on, says so, and ends the mount itself when it is told to.
func TestSupervisorKilled(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(unix.SignalName(sig), func(t *testing.T) {
			m := newCrashMount(t)
			s := newScene(t, m)
			s.play("a open f\nb open f\na setlk f w 0 0\nb setlkw f w 0 0 ...")
			require.NoError(t, unix.Mkdir(m.path("tlock/x"), 0o755))
			worker := m.worker()
			require.NotZero(t, worker, "lockfs mount has no child that serves")
			m.killSupervisor()
			m.awaitLog(`(?i)supervisor.* (gone|dead|died|killed)`)
			require.NotEqual(t, "Z", stateOf(worker), "the worker has ended too")

			require.Equal(t, "EEXIST", errnoName(unix.Mkdir(m.path("tlock/x"), 0o755)))
			require.NoError(t, unix.Rmdir(m.path("tlock/x")))
			s.play("b waits\na close f\nb gets ok\na open f\na setlk f w 0 1 = EAGAIN\nb kill\na setlk f w 0 1 = ok\na kill")

			require.NoError(t, syscall.Kill(worker, sig))
			awaitGone(t, worker)
			_, left := mountedAt(m.dir)
			require.False(t, left, "still mounted")
			require.Empty(t, entries(t, m.dir))
		})
	}
}

// awaitLog waits until lockfs mount and its worker have said something.
func (m *mount) awaitLog(pattern string) {
	m.t.Helper()
	eventually(m.t, waitLimit, "the log says "+pattern, func() bool { return assert.Regexp(quiet{}, pattern, m.stderr.String()) })
}

// quiet lets an assertion be asked without an error.
type quiet struct{}

func (quiet) Errorf(string, ...any) {}

// TestWorkerWithoutSupervisorKilled: that ends the mount, and the next one takes its place.
func TestWorkerWithoutSupervisorKilled(t *testing.T) {
	m := newCrashMount(t)
	require.NoError(t, unix.Mkdir(m.path("tlock/x+1h"), 0o755))
	token := readValue(t, m.path("tlock/x/token"))
	worker := m.worker()
	require.NotZero(t, worker, "lockfs mount has no child that serves")
	m.killSupervisor()
	require.NoError(t, syscall.Kill(worker, syscall.SIGKILL))
	awaitGone(t, worker)
	<-m.done
	require.Equal(t, token, readValue(t, m.remount().path("tlock/x/token")))
}

// TestOneWorker: the supervisor has one child, also after kills, and the pids of dead ones are not left as zombies.
func TestOneWorker(t *testing.T) {
	m := newCrashMount(t)
	for range 3 {
		m.killWorker()
		require.Equal(t, []int{m.worker()}, childrenOf(m.cmd.Process.Pid))
	}
}

// TestCrashLoop: when workers die at once, again and again, the mount is taken down with an error that says why.
func TestCrashLoop(t *testing.T) {
	for name, sig := range map[string]syscall.Signal{"killed before it serves": syscall.SIGKILL, "crashes": syscall.SIGABRT} {
		t.Run(name, func(t *testing.T) {
			m := newCrashMount(t)
			require.NoError(t, unix.Mkdir(m.path("tlock/x+1h"), 0o755))
			s := newScene(t, m)
			s.play("a open f\nb open f\na setlk f w 0 0\nb setlkw f w 0 0 ...")
			killed := m.killEachNew(sig, 30*time.Second)
			require.Equal(t, 3, m.waitExit(mountLimit), "exit code; %d workers were killed\n%s", killed, m.stderr)
			require.Regexp(t, `(?i)five|5`, m.stderr.String())
			require.NotEqual(t, "ok", await(t, "b's wait", s.blocked["b"]), "no lock is granted by going away")
			_, left := mountedAt(m.dir)
			require.False(t, left, "still mounted")
			require.Empty(t, entries(t, m.dir))
			require.Equal(t, []string{"x"}, entries(t, m.remount().path("tlock")), "the state is as it was")
		})
	}
}

// killEachNew kills each worker as soon as it is there, until there are no more, and returns how many.
func (m *mount) killEachNew(sig syscall.Signal, limit time.Duration) (killed int) {
	m.t.Helper()
	last, began := 0, time.Now()
	for time.Since(began) < limit {
		select {
		case <-m.done:
			return killed
		default:
		}
		if pid := m.worker(); pid != 0 && pid != last {
			last = pid
			killed++
			syscall.Kill(pid, sig)
		}
	}
	m.t.Fatalf("after %d dead workers in %v lockfs mount still starts more\n%s", killed, limit, m.stderr)
	return killed
}

// TestUpgradeUnderLoad: another build takes over while clients work, and nobody notices; a broken one does not.
func TestUpgradeUnderLoad(t *testing.T) {
	one, two := buildVersion(t, "one"), buildVersion(t, "two")
	base := tempDir(t)
	installed := filepath.Join(base, "lockfs")
	install(t, one, installed)
	m := mountAt(t, installed, filepath.Join(base, "mnt"), filepath.Join(base, "state"))
	l := startLoad(t, m, 3, loadPlan{})
	require.Contains(t, m.servedBy(), "one")

	install(t, two, installed)
	m.killWorker()
	require.Contains(t, m.servedBy(), "one", "a crash is no upgrade")
	l.board.noteKill()
	r := m.upgrade(two)
	require.Zero(t, r.code, "lockfs upgrade: %s", r.err)
	require.Contains(t, r.out+r.err, "one")
	require.Contains(t, r.out+r.err, "two")
	require.Contains(t, m.servedBy(), "two")
	m.awaitAnswer()

	install(t, one, installed)
	l.board.noteKill()
	require.NoError(t, m.cmd.Process.Signal(syscall.SIGHUP))
	first := m.versionOfFile(one)
	eventually(t, restartLimit, "the first build serves again", func() bool {
		out, err := exec.Command(fmt.Sprintf("/proc/%d/exe", m.worker()), "version").Output() // it may just be changing
		return err == nil && string(out) == first
	})
	m.awaitAnswer()

	for name, broken := range brokenPrograms(t) {
		install(t, broken, installed)
		l.board.noteKill()
		r := m.upgrade(two)
		require.Equal(t, 3, r.code, "lockfs upgrade to what is %s: %s%s", name, r.out, r.err)
		require.Contains(t, r.err, installed, "which program does not serve")
		m.awaitAnswer()
		require.Contains(t, m.servedBy(), "one", name)
	}
	l.finish(map[string]int{"record": 1, "ofd": 1, "flock": 1, "mkdir": 1, "take": 1, "hold": 1, "files": 1, "append": 1})
}

// upgrade runs lockfs upgrade, again if it came while a worker was being started.
func (m *mount) upgrade(binary string) (r result) {
	m.t.Helper()
	eventually(m.t, restartLimit, "an answer of lockfs upgrade", func() bool {
		r = newProgram(m.t, time.Minute, binary, "upgrade", m.dir).run(m.t)
		return r.code == 0 || !strings.Contains(r.err, "ask again")
	})
	return r
}

func buildVersion(t *testing.T, version string) string {
	t.Helper()
	path, err := buildLockfs("lockfs-"+version, raceEnabled, "-ldflags", "-X main.version="+version)
	require.NoError(t, err)
	return path
}

// install replaces a program as package managers do, also one that runs.
func install(t *testing.T, from, to string) {
	t.Helper()
	text, err := os.ReadFile(from)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(to+".new", text, 0o755))
	require.NoError(t, os.Rename(to+".new", to))
}

// brokenPrograms are programs that cannot serve, by what is wrong with them.
func brokenPrograms(t *testing.T) map[string]string {
	t.Helper()
	dir := tempDir(t)
	text, err := os.ReadFile("/bin/false")
	require.NoError(t, err)
	broken := make(map[string]string)
	for name, text := range map[string][]byte{"no program": []byte("\x7fELF, or not"), "a program that fails": text} {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, text, 0o755))
		broken[name] = path
	}
	return broken
}

// servedBy is what the program that the worker runs says of its version.
func (m *mount) servedBy() string {
	m.t.Helper()
	pid := m.worker()
	require.NotZero(m.t, pid, "no worker\n%s", m.stderr)
	return m.versionOfFile(fmt.Sprintf("/proc/%d/exe", pid))
}

func (m *mount) versionOfFile(path string) string {
	m.t.Helper()
	r := newProgram(m.t, time.Minute, path, "version").run(m.t)
	require.Zero(m.t, r.code, r.err)
	return r.out
}
