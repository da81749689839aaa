package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

const (
	benchRounds = 101  // interleaved: what disturbs them comes and goes more slowly
	benchPairs  = 1000 // lock and unlock, in each round
)

// BenchmarkJournalCost compares what a lock and its unlock cost with the journal and without, side by side.
// Client and server share one CPU, where runs agree within a few percent; cpu is the time that both spent on it, which
// other load changes less.
func BenchmarkJournalCost(b *testing.B) {
	binary, err := plainBinary()
	require.NoError(b, err)
	compareMounts(b, benchMount(b, binary), benchMount(b, binary, "--no-journal"))
}

// BenchmarkMetricsCost does the same with metrics and without.
func BenchmarkMetricsCost(b *testing.B) {
	binary, err := plainBinary()
	require.NoError(b, err)
	compareMounts(b, benchMount(b, binary, "--http", freePort(b)), benchMount(b, binary))
}

// compareMounts tells what locks cost on one mount, and how many times that of another that is.
func compareMounts(b *testing.B, with, without *mount) {
	for _, kind := range []string{"posix", "ofd", "flock"} {
		b.Run(kind, func(b *testing.B) {
			var on, off []benchCost
			for b.Loop() {
				on, off = on[:0], off[:0]
				for i := range benchRounds {
					if i%2 == 0 {
						on = append(on, with.pairs(kind))
						off = append(off, without.pairs(kind))
					} else {
						off = append(off, without.pairs(kind))
						on = append(on, with.pairs(kind))
					}
				}
			}
			b.ReportMetric(0, "ns/op")
			wall, cpu := benchCost.wallTime, benchCost.cpuTime
			b.ReportMetric(middle(on, wall)/1e3, "us/pair")
			b.ReportMetric(ratio(on, off, wall), "on/off")
			b.ReportMetric(middle(on, cpu)/1e3, "us-cpu/pair")
			b.ReportMetric(ratio(on, off, cpu), "cpu-on/off")
		})
	}
}

// benchCost is what one of many equal things took.
type benchCost struct{ wall, cpu float64 } // nanoseconds

func (c benchCost) wallTime() float64 { return c.wall }
func (c benchCost) cpuTime() float64  { return c.cpu }

// middle is the median.
func middle(costs []benchCost, of func(benchCost) float64) float64 {
	var all []float64
	for _, c := range costs {
		all = append(all, of(c))
	}
	return middleOf(all)
}

func middleOf(all []float64) float64 {
	slices.Sort(all)
	return all[len(all)/2]
}

// ratio is the median of the ratios of what was measured side by side.
func ratio(a, b []benchCost, of func(benchCost) float64) float64 {
	var all []float64
	for i := range a {
		all = append(all, of(a[i])/of(b[i]))
	}
	return middleOf(all)
}

// benchCPU is the last CPU that this process may use: the first has more interrupts than the others.
var benchCPU = func() (last int) {
	var set unix.CPUSet
	_ = unix.SchedGetaffinity(0, &set) // it cannot fail for so large a set
	for cpu := range 8 * int(unsafe.Sizeof(set)) {
		if set.IsSet(cpu) {
			last = cpu
		}
	}
	return last
}()

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
func pin(t testing.TB, pid int) {
	var set unix.CPUSet
	set.Set(benchCPU)
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	require.NoError(t, err)
	for _, task := range tasks {
		tid, err := strconv.Atoi(task.Name())
		require.NoError(t, err)
		require.NoError(t, unix.SchedSetaffinity(tid, &set))
	}
}

// pairs has another process lock and unlock, and returns the cost of one pair.
func (m *mount) pairs(kind string) benchCost {
	m.t.Helper()
	worker := m.worker()
	before := cpuTime(m.t, worker)
	cmd := exec.Command(selfBinary, kind, m.path("files", "f"), strconv.Itoa(benchPairs))
	cmd.Env = append(os.Environ(), roleEnv+"=pairs")
	out, err := cmd.CombinedOutput()
	require.NoError(m.t, err, string(out))
	var wall, cpu int64
	_, err = fmt.Sscan(string(out), &wall, &cpu)
	require.NoError(m.t, err)
	cpu += cpuTime(m.t, worker) - before
	return benchCost{float64(wall) / benchPairs, float64(cpu) / benchPairs}
}

// cpuTime is how long a process has run, in nanoseconds (clock_getcpuclockid(3)).
func cpuTime(t testing.TB, pid int) int64 {
	t.Helper()
	const processCPU = 2
	var ts unix.Timespec
	require.NoError(t, unix.ClockGettime(int32(^pid<<3|processCPU), &ts))
	return ts.Nano()
}

// pairsMain locks and unlocks a file so many times and prints the nanoseconds that it took, by the clock and of the CPU.
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
	begin, used := time.Now(), ownCPU()
	for range n {
		if err := call(true); err != nil {
			return err
		}
		if err := call(false); err != nil {
			return err
		}
	}
	fmt.Println(int64(time.Since(begin)), ownCPU()-used)
	return nil
}

func ownCPU() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &ts) // it cannot fail
	return ts.Nano()
}

func benchRange(lock bool) *unix.Flock_t {
	if lock {
		return &unix.Flock_t{Type: unix.F_WRLCK, Len: 1}
	}
	return &unix.Flock_t{Type: unix.F_UNLCK, Len: 1}
}
