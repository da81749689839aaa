// Bench measures what locks cost, side by side: of the kernel (tmpfs), of a
// lock server on libfuse, of servers that only say yes, and of lockfs. NOTES.md
// says how to read what it writes.
//
//	bench [-rows PATTERN] [-starts N] [-rounds N] [-round D] [-steady D] [-out DIR]
//	bench [-rows PATTERN] [-steady D] -profile FILE
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A row is one thing that is measured, by the client's row of that name.
type row struct {
	name, label string
	client      string
	number      int // of clients, or of ranges that others hold
	without     []string
	growth      bool // it says how costs grow: measured once, in rounds on one CPU
}

var (
	noTree  = []string{tmpfs}       // it has directories and files, but no take/, hold/ or view/
	noLocks = []string{stock, noop} // who waits there is not handed anything
)

var rows = []row{
	{name: "setlk", label: "F_SETLK and unlock", client: "setlk"},
	{name: "ofd", label: "F_OFD_SETLK and unlock", client: "ofd"},
	{name: "flock", label: "flock and unlock", client: "flock"},
	{name: "getlk", label: "F_GETLK", client: "getlk"},
	{name: "handover", label: "hand-over to a process that waits", client: "handover", without: noLocks},
	{name: "handed", label: "from that unlock to the return of who waited", client: "handed", without: noLocks},
	{name: "clients8", label: "F_SETLK and unlock, 8 clients", client: "clients", number: 8},
	{name: "ranges10", label: "F_SETLK and unlock, 10 ranges held", client: "ranges", number: 10, growth: true},
	{name: "ranges100", label: "F_SETLK and unlock, 100 ranges held", client: "ranges", number: 100, growth: true},
	{name: "ranges1000", label: "F_SETLK and unlock, 1,000 ranges held", client: "ranges", number: 1000, growth: true},
	{name: "ranges2000", label: "F_SETLK and unlock, 2,000 ranges held", client: "ranges", number: 2000, growth: true},
	{name: "ranges10000", label: "F_SETLK and unlock, 10,000 ranges held", client: "ranges", number: 10000},
	{name: "mkdir", label: "mkdir and rmdir in tlock/", client: "mkdir"},
	{name: "take", label: "take/NAME, read, close, rmdir", client: "take", without: noTree},
	{name: "hold", label: "hold/NAME, close", client: "hold", without: noTree},
	{name: "open", label: "open, F_SETLK, close", client: "open"},
	{name: "statfile", label: "stat of a file", client: "statfile"},
	{name: "statlock", label: "stat of a lock", client: "statlock"},
	{name: "view", label: "read view/locks, one lock", client: "view", without: noTree},
}

// A series is how rows are measured: where client and servers run, and for how
// long at once.
type series struct {
	name, title string
	cpus        []int
	starts      int
	rounds      int // of each start
	length      time.Duration
}

// A measurement is one row in one series.
type measurement struct {
	row     row
	series  series
	samples map[string][]sample // of each peer, by rounds
}

// A sample is so many operations in so long.
type sample struct {
	n    int64
	took time.Duration
}

func (s sample) perOp() float64 { return float64(s.took) / float64(s.n) }

// config is what the flags say.
type config struct {
	rows          *regexp.Regexp
	starts        int
	rounds        int
	round, steady time.Duration
	out           string
	profile       string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	var c config
	pattern := flag.String("rows", "", "measure only the rows that this pattern matches, and write no files")
	flag.IntVar(&c.starts, "starts", 5, "how often the servers are started")
	flag.IntVar(&c.rounds, "rounds", 7, "how often each row is measured then")
	flag.DurationVar(&c.round, "round", 30*time.Millisecond, "how long")
	flag.DurationVar(&c.steady, "steady", 3*time.Second, "how long once more, without pause; 0: not")
	flag.StringVar(&c.out, "out", "", "where to write table.md, bench.txt and chart.svg")
	flag.StringVar(&c.profile, "profile", "", "measure nothing, but write to this file where lockfs spends its time, for go build -pgo")
	flag.Parse()
	var err error
	if c.rows, err = regexp.Compile(*pattern); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("it mounts filesystems: run it as root")
	}
	work, err := os.MkdirTemp("", "lockfs-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	building, cancel := context.WithTimeout(ctx, buildLimit)
	defer cancel()
	if c.profile != "" {
		return writeProfile(ctx, building, work, c)
	}
	built, err := build(building, work)
	if err != nil {
		return err
	}
	restore := comeFirst()
	m, err := measureAll(ctx, built, c)
	restore()
	if err != nil {
		return err
	}
	host := thisMachine(ctx)
	fmt.Print(table(host, m))
	if c.out == "" || *pattern != "" {
		return nil
	}
	return write(c.out, host, m)
}

// comeFirst has this session run before all else that wants the same CPUs; what
// it returns undoes that. Where the kernel groups processes by sessions, their
// own priorities count only among themselves (sched(7), autogroup). A
// machine that does not allow it is measured as it is.
func comeFirst() (restore func()) {
	const group = "/proc/self/autogroup"
	text, _ := os.ReadFile(group)
	_, before, ok := strings.Cut(strings.TrimSpace(string(text)), " nice ")
	if !ok {
		return func() {}
	}
	_ = os.WriteFile(group, []byte("-10"), 0)
	return func() { _ = os.WriteFile(group, []byte(before), 0) }
}

// plan is the series that this machine can have. Of each two CPUs the last ones
// are taken: the first has more interrupts.
func plan(c config, cpus []int) []series {
	one := cpus[len(cpus)-1:]
	all := []series{{name: "one", title: "Client and servers on one CPU", cpus: one, starts: c.starts, rounds: c.rounds, length: c.round}}
	if len(cpus) > 1 {
		all = append(all, series{name: "two", title: "Client and servers on two CPUs, as the kernel places them",
			cpus: cpus[len(cpus)-2:], starts: c.starts, rounds: c.rounds, length: c.round})
	}
	if c.steady > 0 {
		all = append(all, series{name: "steady", title: fmt.Sprintf("One CPU, steady load: once, for %v without pause", c.steady),
			cpus: one, starts: 1, rounds: 1, length: c.steady})
	}
	return all
}

// ownCPUs are those that this process may run on.
func ownCPUs() ([]int, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, err
	}
	var cpus []int
	for i := range len(set) * 64 {
		if set.IsSet(i) {
			cpus = append(cpus, i)
		}
	}
	return cpus, nil
}

func measureAll(ctx context.Context, b binaries, c config) ([]measurement, error) {
	cpus, err := ownCPUs()
	if err != nil {
		return nil, err
	}
	var all []measurement
	for _, s := range plan(c, cpus) {
		m, err := measureSeries(ctx, b, c, s, peers)
		if err != nil {
			return nil, err
		}
		all = append(all, m...)
	}
	return all, nil
}

// measureSeries measures each row on servers that are started several times: in
// which pages of memory one happens to be makes it up to 3 % faster or slower than
// the same program started again.
func measureSeries(ctx context.Context, b binaries, c config, s series, peers []peer) ([]measurement, error) {
	var all []measurement
	for _, r := range rows {
		if c.rows.MatchString(r.name) && (!r.growth || s.name == "one") {
			all = append(all, measurement{row: r, series: s, samples: map[string][]sample{}})
		}
	}
	for start := range s.starts {
		fmt.Fprintf(os.Stderr, "%s: start %d of %d\n", s.title, start+1, s.starts)
		if err := measureStart(ctx, b, all, peers); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// measureStart adds to measurements of one series what fresh servers take.
func measureStart(ctx context.Context, b binaries, all []measurement, peers []peer) error {
	if len(all) == 0 {
		return nil
	}
	mounts, err := mountAll(b, all[0].series.cpus, peers)
	defer mounts.end()
	for i := 0; i < len(all) && err == nil; i++ {
		err = measure(ctx, b, mounts, &all[i])
	}
	return err
}

// writeProfile has lockfs, the last of the peers, write down where it spends its time with each row.
func writeProfile(ctx, building context.Context, work string, c config) error {
	path, err := filepath.Abs(c.profile)
	if err != nil {
		return err
	}
	built, err := build(building, work, "-tags", "lockfs_profile")
	if err != nil {
		return err
	}
	cpus, err := ownCPUs()
	if err != nil {
		return err
	}
	if err := os.Setenv("LOCKFS_PROFILE", path); err != nil {
		return err
	}
	s := series{name: "profile", title: "Profile", cpus: cpus[len(cpus)-1:], starts: 1, rounds: 1, length: c.steady}
	_, err = measureSeries(ctx, built, c, s, peers[len(peers)-1:])
	return err
}

// pinned runs f, and the processes that it starts, on some CPUs.
func pinned(cpus []int, f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return err
	}
	for _, cpu := range cpus {
		set.Set(cpu)
	}
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return err
	}
	defer func() { _ = unix.SchedSetaffinity(0, &before) }() // it was allowed before
	return f()
}
