package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"lockfs/lockengine"
	"lockfs/lockengine/journal"
)

// How many named locks are held at once. A million takes minutes, so only where
// there is time: with LOCKFS_LONG set.
const (
	fewNames     = 10_000
	millionNames = 1_000_000
)

// TestManyNames: a mount that holds many named locks serves as one that holds
// none, lists them quickly, keeps them in little memory, and gives that back.
// Meanwhile nobody waits for who looks at all of them, or for the journal.
func TestManyNames(t *testing.T) {
	n, limit := fewNames, 2*time.Minute
	if os.Getenv("LOCKFS_LONG") != "" {
		n, limit = millionNames, 20*time.Minute
	}
	binary, err := plainBinary()
	require.NoError(t, err)
	base := tempDir(t)
	start := time.Now()
	keepNames(t, filepath.Join(base, "state"), n)
	t.Logf("%d kept in %v", n, time.Since(start).Round(time.Millisecond))
	empty := mountAt(t, binary, filepath.Join(base, "empty"), filepath.Join(base, "state-empty"))
	m := mountAt(t, binary, filepath.Join(base, "mnt"), filepath.Join(base, "state"))
	empty.watchdog.Reset(limit)
	m.watchdog.Reset(limit)
	measureMkdir(t, m)
	measureMkdir(t, empty) // what the first ones need is no part of the count
	require.Equal(t, strconv.Itoa(n), m.stats(t)["held_named"])
	const fixed = 16 << 10 // KB that grow once: buffers, the log of events, what the heap has in hand
	before, held := statusKB(t, empty, anonymous), 0
	eventually(t, time.Minute, "they take at most 400 bytes each", func() bool {
		held = statusKB(t, m, anonymous)
		return held-before <= fixed+n*400/1024
	})
	perLock := float64(held-before) * 1024 / float64(n)
	t.Logf("%d KB without, %d KB with them: %.0f bytes each", before, held, perLock)

	start = time.Now()
	listed := strings.Count(mustSh(t, "ls -f "+m.path("tlock")), "\n")
	rate := float64(listed) / time.Since(start).Seconds()
	t.Logf("listed at %.0f names a second", rate)
	assert.GreaterOrEqual(t, listed, n)

	var with, without []time.Duration
	for range 9 {
		with = append(with, measureMkdir(t, m))
		without = append(without, measureMkdir(t, empty))
	}
	slices.Sort(with)
	slices.Sort(without)
	ratio := float64(with[4]) / float64(without[4])
	t.Logf("mkdir and rmdir %v, on an empty mount %v: %.2f", with[4], without[4], ratio)

	quiet, _ := worstMkdir(t, m, func() { time.Sleep(time.Second) })
	looking, took := worstMkdir(t, m, func() { // by a program of its own: to keep so much would make this one busy
		seen, err := strconv.Atoi(strings.TrimSpace(mustSh(t, "grep -c ' tlock/lock-' "+m.path("view/locks"))))
		require.NoError(t, err)
		require.Equal(t, n, seen)
	})
	t.Logf("longest mkdir and rmdir: %v; while all are looked at, for %v: %v", quiet, took, looking)
	t.Logf("journal: %s compactions", m.stats(t)["journal_compactions"])

	start = time.Now()
	releaseNames(t, m, n)
	require.Equal(t, "0", m.stats(t)["held_named"])
	t.Logf("released in %v", time.Since(start).Round(time.Millisecond))
	assert.GreaterOrEqual(t, rate, 100_000.0, "names a second")
	assert.LessOrEqual(t, ratio, 2.0, "mkdir and rmdir, to that on an empty mount")
	assert.LessOrEqual(t, looking, quiet+took/2+50*time.Millisecond, "a mkdir waits for who looks at all")
	left := 0
	eventually(t, 30*time.Second, "memory is given back", func() bool {
		left = statusKB(t, m, anonymous)
		return left <= before+(held-before)/10+fixed // the runtime's notes of memory that was there once stay
	})
	most := statusKB(t, m, peak)
	t.Logf("%d KB when all are released; with the program and the journal %d KB, on an empty mount %d KB; at most %d KB",
		left, statusKB(t, m, resident), statusKB(t, empty, resident), most)
	assert.LessOrEqual(t, most, 64<<10+n*3/4, "to look at all of them takes too much memory")
}

// keepNames makes the state of a mount that ended with n named locks held.
func keepNames(t *testing.T, state string, n int) {
	t.Helper()
	kept, err := journal.Open(filepath.Join(state, "journal"), journal.Options{})
	require.NoError(t, err)
	_, err = kept.Replay(func(uint8, []byte) error { return nil })
	require.NoError(t, err)
	engine, err := lockengine.NewLocal(lockengine.Config{})
	require.NoError(t, err)
	for i := range n {
		_, err := engine.Try(&lockengine.Request{
			Class: lockengine.Named, Name: lockName(i), Timeout: time.Hour, Who: lockengine.Who{PID: 1},
			Meta: "kind mkdir\ncommand " + strings.Repeat("x", 150) + "\n",
		})
		require.NoError(t, err)
	}
	c, err := kept.Compact()
	require.NoError(t, err)
	require.NoError(t, engine.Checkpoint(c.Switch, func(chunk []byte) error { return c.Add(2, chunk) }))
	require.NoError(t, c.Commit())
	require.NoError(t, engine.Close())
	require.NoError(t, kept.Close())
}

func lockName(i int) string { return fmt.Sprintf("lock-%07d", i) }

// releaseNames releases the locks that keepNames took, one by one: the kernel lets one rmdir at a time into a directory,
// and several that wait for it only take longer.
func releaseNames(t *testing.T, m *mount, n int) {
	t.Helper()
	tlock, err := unix.Open(m.path("tlock"), unix.O_PATH|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(tlock)
	for i := range n {
		if err := unix.Unlinkat(tlock, lockName(i), unix.AT_REMOVEDIR); err != nil {
			t.Fatalf("release %s: %v", lockName(i), err)
		}
	}
}

// worstMkdir is the longest that a mkdir and its rmdir took while f ran, and how
// long that was.
func worstMkdir(t *testing.T, m *mount, f func()) (worst, took time.Duration) {
	t.Helper()
	done := make(chan time.Duration)
	start := time.Now()
	go func() {
		f()
		done <- time.Since(start)
	}()
	for path := m.path("tlock/measured"); ; {
		begin := time.Now()
		require.NoError(t, unix.Mkdir(path, 0o755))
		require.NoError(t, unix.Rmdir(path))
		worst = max(worst, time.Since(begin))
		select {
		case took := <-done:
			return worst, took
		default:
		}
	}
}

// Lines of proc_pid_status(5).
const (
	anonymous = "RssAnon:" // memory that is not of files
	resident  = "VmRSS:"
	peak      = "VmHWM:" // the most that was resident
)

// statusKB is a size of the process that serves, in KB.
func statusKB(t *testing.T, m *mount, key string) int {
	t.Helper()
	for line := range strings.Lines(readFile(t, fmt.Sprintf("/proc/%d/status", m.worker()))) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == key {
			kb, err := strconv.Atoi(fields[1])
			require.NoError(t, err)
			return kb
		}
	}
	t.Fatalf("the worker has no %s", key)
	return 0
}
