package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

const (
	benchRounds = 9    // interleaved; medians are compared
	benchPairs  = 5000 // lock and unlock, in each round
)

// BenchmarkJournalCost compares what a lock and its unlock cost with the journal and without, side by side.
// Client and server share one CPU, where runs agree within a few percent.
func BenchmarkJournalCost(b *testing.B) {
	binary, err := plainBinary()
	require.NoError(b, err)
	with, without := benchMount(b, binary), benchMount(b, binary, "--no-journal")
	for _, kind := range []string{"posix", "ofd", "flock"} {
		b.Run(kind, func(b *testing.B) {
			var on, off []time.Duration
			for b.Loop() {
				on, off = on[:0], off[:0]
				for range benchRounds {
					on = append(on, with.pairs(kind))
					off = append(off, without.pairs(kind))
				}
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(middle(on))/1e3, "us/pair")
			b.ReportMetric(float64(middle(off))/1e3, "us/pair-off")
			b.ReportMetric(float64(middle(on))/float64(middle(off)), "on/off")
		})
	}
}

// middle is the median.
func middle(d []time.Duration) time.Duration { return slices.Sorted(slices.Values(d))[len(d)/2] }

const benchCPU = 1

func benchMount(b *testing.B, binary string, flags ...string) *mount {
	base := tempDir(b)
	m := mountAt(b, binary, filepath.Join(base, "mnt"), filepath.Join(base, "state"), flags...)
	for _, pid := range append(childrenOf(m.cmd.Process.Pid), m.cmd.Process.Pid) {
		pin(b, pid)
	}
	require.NoError(b, os.WriteFile(m.path("files", "f"), []byte("x"), 0o666))
	return m
}

// pin keeps all threads of a process on benchCPU.
func pin(b *testing.B, pid int) {
	var set unix.CPUSet
	set.Set(benchCPU)
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	require.NoError(b, err)
	for _, task := range tasks {
		tid, err := strconv.Atoi(task.Name())
		require.NoError(b, err)
		require.NoError(b, unix.SchedSetaffinity(tid, &set))
	}
}

// pairs has another process lock and unlock, and returns the time for one pair.
func (m *mount) pairs(kind string) time.Duration {
	m.t.Helper()
	cmd := exec.Command(selfBinary, kind, m.path("files", "f"), strconv.Itoa(benchPairs))
	cmd.Env = append(os.Environ(), roleEnv+"=pairs")
	out, err := cmd.CombinedOutput()
	require.NoError(m.t, err, string(out))
	ns, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
	require.NoError(m.t, err)
	return time.Duration(ns)
}

// pairsMain locks and unlocks a file so many times and prints the nanoseconds that each took.
func pairsMain() error {
	kind, n := os.Args[1], int(parseInt(os.Args[3]))
	var set unix.CPUSet
	set.Set(benchCPU)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return err
	}
	fd, err := unix.Open(os.Args[2], unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	call := func(lock bool) error {
		switch kind {
		case "flock":
			if lock {
				return unix.Flock(fd, unix.LOCK_EX)
			}
			return unix.Flock(fd, unix.LOCK_UN)
		case "ofd":
			return fcntlLock(fd, ofdSetlk, benchRange(lock))
		}
		return fcntlLock(fd, unix.F_SETLK, benchRange(lock))
	}
	for _, rounds := range []int{n / 10, n} { // the first to warm up
		begin := time.Now()
		for range rounds {
			if err := call(true); err != nil {
				return err
			}
			if err := call(false); err != nil {
				return err
			}
		}
		if rounds == n {
			fmt.Println(int64(time.Since(begin)) / int64(n))
		}
	}
	return nil
}

func benchRange(lock bool) *unix.Flock_t {
	if lock {
		return &unix.Flock_t{Type: unix.F_WRLCK, Len: 1}
	}
	return &unix.Flock_t{Type: unix.F_UNLCK, Len: 1}
}
