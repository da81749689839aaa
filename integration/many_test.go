package integration

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
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

// pythonCrowd forks $2 processes that wait for one byte of $1 with F_SETLKW.
const pythonCrowd = `
import fcntl, os, sys
for _ in range(int(sys.argv[2])):
    if os.fork() == 0:
        f = open(sys.argv[1], "r+")
        fcntl.lockf(f, fcntl.LOCK_EX, 1, 0)
        os._exit(0)
sys.stdin.read()
`

// TestManyWaiters: 10,000 OFD waiters and 1,000 POSIX waiters on one byte cost nobody else anything, and leave nothing
// when they are killed.
func TestManyWaiters(t *testing.T) {
	const crowds, each, processes = 5, 2000, 1000
	binary, err := plainBinary()
	require.NoError(t, err)
	base := tempDir(t)
	m := mountAt(t, binary, filepath.Join(base, "mnt"), filepath.Join(base, "state"))
	s := newScene(t, m)
	s.play("a open f\na setlk f w 0 0")
	statBefore, mkdirBefore := measureStat(t, m), measureMkdir(t, m)

	var groups []int
	for range crowds {
		groups = append(groups, startCrowd(t, s.dir+"/f", each))
	}
	python := newProgram(t, 2*hangLimit, "python3", "-c", pythonCrowd, s.dir+"/f", strconv.Itoa(processes))
	_, err = python.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, python.Start())
	groups = append(groups, python.Process.Pid)
	t.Cleanup(func() { killGroups(groups) })
	start := time.Now()
	eventually(t, 2*time.Minute, "all wait", func() bool {
		return m.stats(t)["waiting_record"] == strconv.Itoa(crowds*each+processes)
	})
	t.Logf("%d waiters after %v", crowds*each+processes, time.Since(start).Round(time.Millisecond))

	statNow, mkdirNow, rss := measureStat(t, m), measureMkdir(t, m), residentMB(t, m)
	t.Logf("stat %v, before %v; mkdir and rmdir %v, before %v; resident %d MB",
		statNow, statBefore, mkdirNow, mkdirBefore, rss)
	assert.LessOrEqual(t, statNow, 2*statBefore+time.Millisecond)
	assert.LessOrEqual(t, mkdirNow, 2*mkdirBefore+time.Millisecond)
	assert.Less(t, rss, 200)
	look := time.Now()
	assert.Len(t, m.locksOn(t, "waiting", "files"), crowds*each+processes)
	t.Logf("reading all of them in view/locks.jsonl took %v", time.Since(look).Round(time.Millisecond))
	assert.Less(t, time.Since(look), 10*time.Second)

	killGroups(groups)
	python.Wait()
	eventually(t, time.Minute, "no waiter is left", func() bool { return m.stats(t)["waiting_record"] == "0" })
	require.Len(t, m.locks(t), 1, "only the holder is left")
	s.play("a kill\nb open f\nb setlk f w 0 0 = ok\nb close f")
	require.Empty(t, m.locks(t))
}

// startCrowd starts a process with n threads that wait, each with a description of its own, and returns its group.
func startCrowd(t *testing.T, file string, n int) int {
	t.Helper()
	cmd := role("crowd", file, strconv.Itoa(n))
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd.Process.Pid
}

func crowdMain() error {
	file, n := os.Args[1], int(parseInt(os.Args[2]))
	debug.SetMaxThreads(n + 1000)
	if err := raiseFileLimit(); err != nil {
		return err
	}
	failed := make(chan error)
	for range n {
		go func() {
			fd, err := unix.Open(file, unix.O_RDWR|unix.O_CLOEXEC, 0)
			if err == nil {
				err = fcntlLock(fd, ofdSetlkw, &unix.Flock_t{Type: unix.F_WRLCK, Len: 1})
			}
			failed <- fmt.Errorf("a wait that should not end ended: %w", err)
		}()
	}
	return <-failed
}

func raiseFileLimit() error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	limit.Cur = limit.Max
	return unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
}

func killGroups(groups []int) {
	for _, group := range groups {
		syscall.Kill(-group, syscall.SIGKILL)
	}
}

// median runs f n times and returns the median of its times.
func median(n int, f func()) time.Duration {
	times := make([]time.Duration, n)
	for i := range times {
		start := time.Now()
		f()
		times[i] = time.Since(start)
	}
	slices.Sort(times)
	return times[n/2]
}

func measureStat(t *testing.T, m *mount) time.Duration {
	t.Helper()
	return median(500, func() {
		var st unix.Stat_t
		require.NoError(t, unix.Stat(m.path("README"), &st))
	})
}

func measureMkdir(t *testing.T, m *mount) time.Duration {
	t.Helper()
	path := m.path("tlock/measured")
	return median(500, func() {
		require.NoError(t, unix.Mkdir(path, 0o755))
		require.NoError(t, unix.Rmdir(path))
	})
}

// residentMB sums the resident memory of the daemon's processes.
func residentMB(t *testing.T, m *mount) int {
	t.Helper()
	pids, err := filepath.Glob("/proc/[0-9]*")
	require.NoError(t, err)
	kb := 0
	for _, dir := range pids {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		if group, err := unix.Getpgid(pid); err == nil && group == m.cmd.Process.Pid {
			kb += residentKB(dir)
		}
	}
	require.NotZero(t, kb)
	return kb / 1024
}

func residentKB(procDir string) int {
	status, err := os.Open(procDir + "/status")
	if err != nil {
		return 0 // it has ended
	}
	defer status.Close()
	for in := bufio.NewScanner(status); in.Scan(); {
		if fields := strings.Fields(in.Text()); len(fields) == 3 && fields[0] == "VmRSS:" {
			kb, _ := strconv.Atoi(fields[1])
			return kb
		}
	}
	return 0
}
