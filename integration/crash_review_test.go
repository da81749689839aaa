package integration

import (
	"fmt"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestSnapshotsForgetNotesOfIntent: what was noted of requests is not carried from one process to the next for ever.
func TestSnapshotsForgetNotesOfIntent(t *testing.T) {
	m := newCrashMount(t)
	var sizes []int64
	for range 2 {
		for compactions := m.stat(t, "journal_compactions"); m.stat(t, "journal_compactions") == compactions; {
			for i := range 200 {
				name := m.path("tlock", fmt.Sprint("n", i))
				require.NoError(t, unix.Mkdir(name, 0o755))
				require.NoError(t, unix.Rmdir(name))
			}
		}
		sizes = append(sizes, m.stat(t, "journal_snapshot_bytes"))
		m.killWorker()
	}
	require.Less(t, sizes[1], sizes[0]+100_000, "nothing is held, now as before")
}

func (m *mount) stat(t testing.TB, key string) int64 { return parseInt(m.stats(t)[key]) }

// TestStoppedSupervisor: the worker waits for it no longer than once.
func TestStoppedSupervisor(t *testing.T) {
	m := newCrashMount(t)
	var deleted []*os.File
	for i := range 700 {
		f, err := os.Create(m.path("files", fmt.Sprint("f", i)))
		require.NoError(t, err)
		require.NoError(t, os.Remove(f.Name()))
		deleted = append(deleted, f)
	}
	require.NoError(t, m.cmd.Process.Signal(syscall.SIGSTOP))
	defer m.cmd.Process.Signal(syscall.SIGCONT)
	for _, f := range deleted {
		require.NoError(t, f.Close())
	}
	f, err := os.Create(m.path("files", "lock"))
	require.NoError(t, err)
	defer f.Close()
	begin := time.Now()
	const pairs = 20
	for range pairs {
		require.NoError(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
		require.NoError(t, unix.Flock(int(f.Fd()), unix.LOCK_UN))
	}
	require.Less(t, time.Since(begin), 10*time.Second, "each of %d locks waited", pairs)
}
