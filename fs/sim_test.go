package fs

import (
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// run makes a run and returns what was wrong, "" if nothing was.
func (s *sim) run(steps int) (wrong string) {
	defer func() {
		simBuffers.Put(s.in[0])
		simBuffers.Put(s.in[1])
		if s.server != nil && s.life != nil {
			_ = s.server.files.Close()
		}
		if v := recover(); v != nil {
			f, ok := v.(simFailure)
			if !ok {
				f.what = fmt.Sprintf("panic: %v\n%s", v, debug.Stack())
			}
			shown := traceShown
			if *simSeed != 0 {
				shown = traceLength
			}
			wrong = fmt.Sprintf("%s\n%s", strings.Join(s.trace[max(0, len(s.trace)-shown):], "\n"), f.what)
		}
	}()
	s.mount()
	for range steps {
		s.step()
	}
	s.drain()
	return ""
}

func simDir(t testing.TB) string {
	dir := t.TempDir()
	for i := range simFiles {
		if err := os.WriteFile(filepath.Join(dir, simFileName(i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

var simSeed = flag.Uint64("seed", 0, "make this run of TestSimulation only, and show all of it")

// simSteps is how long a run is, but for the end of its processes.
const simSteps = 600

// simTooLong is how long no run takes, on any machine: most take some
// hundredths of a second. But a machine with much else to do has stopped one for
// more than a minute.
const simTooLong = 5 * time.Minute

// simulate makes a run, and says how to repeat it if something was wrong.
func simulate(t *testing.T, seed uint64, dir string) *sim {
	t.Helper()
	s, wrong := runSeed(seed, dir, *simSeed == 0)
	if wrong != "" && s.quiet { // once more, for its trace
		if again, traced := runSeed(seed, dir, false); traced != "" {
			s, wrong = again, traced
		}
	}
	if wrong != "" {
		t.Fatalf("%s\n\nstep %d of seed %d. To repeat it: go test ./fs -run TestSimulation$ -seed=%d", wrong, s.steps, seed, seed)
	}
	return s
}

func runSeed(seed uint64, dir string, quiet bool) (s *sim, wrong string) {
	s = newSim(seed, dir)
	s.quiet = quiet
	defer time.AfterFunc(simTooLong, func() {
		debug.SetTraceback("all")
		panic(fmt.Sprintf("seed %d does not end", seed))
	}).Stop()
	return s, s.run(simSteps)
}

// Seeds that found a fault once. The first ones did before a crash lost requests
// that were read ahead.
var (
	simFirstSeeds = []uint64{269264653211974, 11705731360595, 173005550785027, 11084781116252, 253029772585459}
	simSeeds      = append(slices.Clone(simFirstSeeds), 34132053643822, 144360726286830, 271238976567797, 162358758682304, 101844692620530, 183881430003799)
)

// Whatever clients do, and whenever the server crashes, they see what was
// promised.
func TestSimulation(t *testing.T) {
	// There is one goroutine at a time; waking threads for the short ones, of
	// which each sync is one, takes a third of the time.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	dir := simDir(t)
	if *simSeed != 0 {
		simulate(t, *simSeed, dir)
		return
	}
	for _, seed := range simSeeds {
		simulate(t, seed, dir)
	}
	// The same seeds each time: one that fails is a fault to look for, and none of
	// whoever changed something else. Others are tried for as long as is asked.
	long, soak := simDuration(t)
	first, most := uint64(1), 2000
	if soak {
		first, most = rand.Uint64()>>16, math.MaxInt
	}
	began := time.Now()
	seeds, steps := 0, 0
	for seed := first; seeds < most && time.Since(began) < long && !t.Failed(); seed++ {
		steps += simulate(t, seed, dir).steps
		seeds++
	}
	t.Logf("%d seeds, %d steps in %v", seeds, steps, time.Since(began).Round(time.Second))
}

// simDuration is for how long to try seeds, and whether somebody asked for it.
func simDuration(t *testing.T) (long time.Duration, soak bool) {
	text := os.Getenv("LOCKFS_SIM_SECONDS")
	if text == "" {
		return time.Minute, false
	}
	seconds, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("LOCKFS_SIM_SECONDS is %q, want a number", text)
	}
	return time.Duration(seconds) * time.Second, true
}

// A seed gives the same run each time, or it could not be repeated.
func TestSimulationRepeats(t *testing.T) {
	dir := simDir(t)
	for seed := range uint64(10) {
		first, wrong := runSeed(seed, dir, false)
		if wrong != "" {
			t.Fatal(wrong)
		}
		if second, _ := runSeed(seed, dir, false); first.sum() != second.sum() {
			t.Fatalf("two runs of seed %d differ", seed)
		}
	}
}
