package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// calmEnv set to "yes" runs the tests of crashes without the crashes of the worker. What fails then is the test's own
// fault, or an ordinary one of lockfs.
const calmEnv = "LOCKFS_TEST_CALM"

var calm = os.Getenv(calmEnv) == "yes"

// restartLimit is how long a worker may take to replace one that was killed, on a machine that is busy with the tests.
const restartLimit = 15 * time.Second

// crashLimit is how long a test of crashes may use a mount. A call that is never answered hangs until then.
const crashLimit = 75 * time.Second

// newCrashMount is newMount with crashLimit.
func newCrashMount(t testing.TB, flags ...string) *mount {
	t.Helper()
	m := newMount(t, flags...)
	watchdog := time.AfterFunc(crashLimit, func() {
		t.Errorf("the mount was still in use after %v: aborted", crashLimit)
		m.abort()
	})
	t.Cleanup(func() { watchdog.Stop() })
	return m
}

// worker is the pid of the process that serves: the supervisor's only child. 0 while there is none.
func (m *mount) worker() int {
	for _, pid := range childrenOf(m.cmd.Process.Pid) {
		if stateOf(pid) != "Z" {
			return pid
		}
	}
	return 0
}

// childrenOf lists the processes that a process started and has not waited for.
func childrenOf(pid int) (children []int) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, task := range tasks {
		text, _ := os.ReadFile(task) // the thread may have ended
		for _, child := range strings.Fields(string(text)) {
			children = append(children, int(parseInt(child)))
		}
	}
	return children
}

// stateOf is the letter of proc(5)'s stat, "Z" for a process that is gone.
func stateOf(pid int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "Z"
	}
	return strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))[0]
}

// killWorker kills the worker with SIGKILL and returns once another serves.
func (m *mount) killWorker() {
	m.t.Helper()
	m.awaitWorker(m.strikeWorker())
}

// strikeWorker kills the worker and returns the pid it had.
func (m *mount) strikeWorker() int {
	m.t.Helper()
	if calm {
		return 0
	}
	pid := m.worker()
	require.NotZero(m.t, pid, "lockfs mount (pid %d) has no child that serves\n%s", m.cmd.Process.Pid, m.stderr)
	require.NoError(m.t, syscall.Kill(pid, syscall.SIGKILL))
	return pid
}

// awaitWorker waits until another worker than this one answers.
func (m *mount) awaitWorker(old int) {
	m.t.Helper()
	if calm {
		return
	}
	eventually(m.t, restartLimit, fmt.Sprintf("another worker in place of %d", old), func() bool {
		select {
		case <-m.done:
			m.t.Fatalf("lockfs mount ended: %v\n%s", m.err, m.stderr)
		default:
		}
		pid := m.worker()
		return pid != 0 && pid != old
	})
	m.awaitAnswer()
}

// awaitAnswer waits until the mount answers a stat that the kernel cannot answer by itself.
func (m *mount) awaitAnswer() {
	m.t.Helper()
	answer := make(chan error, 1)
	go func() {
		var st unix.Stat_t
		answer <- unix.Stat(m.path("README"), &st)
	}()
	select {
	case err := <-answer:
		require.NoError(m.t, err, "stat of README\n%s", m.stderr)
	case <-time.After(restartLimit):
		m.t.Fatalf("no answer to a stat within %v of a kill -9 of the worker\n%s", restartLimit, m.stderr)
	}
}

// killSupervisor kills `lockfs mount` itself, and only it.
func (m *mount) killSupervisor() {
	m.t.Helper()
	require.NoError(m.t, m.cmd.Process.Signal(syscall.SIGKILL))
	eventually(m.t, waitLimit, "the supervisor is gone", func() bool { return stateOf(m.cmd.Process.Pid) == "Z" })
}

// remount starts the next `lockfs mount` on the same directory, state and flags, after a crash or an unmount.
func (m *mount) remount() *mount {
	m.t.Helper()
	return mountAt(m.t, m.binary, m.dir, m.state, m.flags...)
}

// stop ends the mount as an administrator would.
func (m *mount) stop() {
	m.t.Helper()
	require.NoError(m.t, m.cmd.Process.Signal(syscall.SIGTERM))
	require.Zero(m.t, m.waitExit(mountLimit), "%s", m.stderr)
	_, left := mountedAt(m.dir)
	require.False(m.t, left, "still mounted")
}

// awaitGone waits until a process has ended, whoever is to wait for it.
func awaitGone(t testing.TB, pid int) {
	t.Helper()
	eventually(t, mountLimit, fmt.Sprintf("process %d ends", pid), func() bool {
		return stateOf(pid) == "Z" || errors.Is(syscall.Kill(pid, 0), unix.ESRCH)
	})
}

// held are the lines of view/locks.jsonl of the locks that are held.
func (m *mount) held(t testing.TB) []lockLine { return m.inState(t, "held") }

// waiting are the lines of view/locks.jsonl of those who wait.
func (m *mount) waiting(t testing.TB) []lockLine { return m.inState(t, "waiting") }

func (m *mount) inState(t testing.TB, state string) (found []lockLine) {
	t.Helper()
	for _, lock := range m.locks(t) {
		if lock.State == state {
			found = append(found, lock)
		}
	}
	return found
}
