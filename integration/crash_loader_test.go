package integration

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A loader is a process of a load: it does, in threads of its own, everything that clients do on a mount, and checks
// every answer. It prints a line `fail …` for each answer that is not the expected one.
type loader struct {
	loadPlan
	id    uint64
	board *board
	done  atomic.Bool

	mu       sync.Mutex
	counts   map[string]int
	failures int
}

// A loadPlan says what the loaders of a load do.
type loadPlan struct {
	Mount string   // the directory
	Board string   // its file
	Jobs  []string // by name, all if empty
	// Apart gives each loader locks of its own while they go on sharing cells, as if locks did not exclude.
	Apart bool
}

// A loadReport is what a loader tells when it rests.
type loadReport struct {
	Counts map[string]int
	Kept   []lockLine // the locks that it holds
}

// A loadJob is one kind of work. A round leaves nothing behind, also when it fails. Rounds that cost lockfs much have
// long pauses, up to the one given, so that the others get on too.
type loadJob struct {
	name  string
	pause time.Duration
	round func(*loader, *rand.Rand) error
}

var loadJobs = []loadJob{
	{"record", 4 * time.Millisecond, recordLocks.round},
	{"ofd", 4 * time.Millisecond, ofdLocks.round},
	{"flock", 4 * time.Millisecond, flockRound},
	{"mkdir", 8 * time.Millisecond, mkdirRound},
	{"own", 8 * time.Millisecond, ownNameRound},
	{"brief", 4 * time.Millisecond, briefRound},
	{"take", 8 * time.Millisecond, takeRound},
	{"hold", 8 * time.Millisecond, holdRound},
	{"files", 600 * time.Millisecond, filesRound},
	{"append", 20 * time.Millisecond, appendRound},
	{"readdir", 1500 * time.Millisecond, readdirRound},
	{"look", 400 * time.Millisecond, lookRound},
}

// maxLoadFailures is after how many a loader gives up.
const maxLoadFailures = 10

// loaderMain takes the arguments PLAN ID. It works until it reads the line "rest", then reports, and ends with its
// standard input.
func loaderMain() error {
	l := &loader{counts: make(map[string]int)}
	if err := json.Unmarshal([]byte(os.Args[1]), &l.loadPlan); err != nil {
		return err
	}
	l.id = uint64(parseInt(os.Args[2]))
	var err error
	if l.board, err = openBoard(l.Board); err != nil {
		return err
	}
	if err := unix.Chdir(l.ownDir()); err != nil {
		return err
	}
	kept, err := l.keep()
	if err != nil {
		l.fail("keep", err)
	}
	defer kept.release(l)
	work := l.start()
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() && in.Text() != "rest" {
	}
	l.done.Store(true)
	work.Wait()
	report, err := json.Marshal(loadReport{l.counts, kept.lines})
	fmt.Printf("rest %s\n", report)
	for in.Scan() {
	}
	return err
}

func (l *loader) start() *sync.WaitGroup {
	var work sync.WaitGroup
	for i, job := range loadJobs {
		if len(l.Jobs) == 0 || slices.Contains(l.Jobs, job.name) {
			r := rand.New(rand.NewPCG(l.id, uint64(i)))
			work.Go(func() { l.work(job, r) })
		}
	}
	return &work
}

func (l *loader) work(job loadJob, r *rand.Rand) {
	for !l.done.Load() {
		if err := job.round(l, r); err != nil {
			l.fail(job.name, err)
		} else {
			l.count(job.name)
		}
		time.Sleep(time.Duration(r.Int64N(int64(job.pause))))
	}
}

func (l *loader) fail(job string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Printf("fail loader %d (pid %d) %s, %s: %s\n", l.id, os.Getpid(), job, l.board.sinceKill(),
		strings.ReplaceAll(err.Error(), "\n", "; "))
	if l.failures++; l.failures == maxLoadFailures {
		l.done.Store(true)
	}
}

func (l *loader) count(what string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts[what]++
}

func (l *loader) path(elem ...string) string {
	return filepath.Join(append([]string{l.Mount}, elem...)...)
}

// ownDir is where a loader's own files are, its working directory.
func (l *loader) ownDir() string { return l.path("files/load", fmt.Sprint("own", l.id)) }

// between is the name of something that all loaders lock.
func (l *loader) between(name string) string {
	if l.Apart {
		return fmt.Sprintf("%s-%d", name, l.id)
	}
	return name
}

// failed names the call in its error.
func failed(op, path string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %s: %s", op, path, errnoName(err))
}

// again calls f until it is not interrupted: Go's runtime signals its own threads.
func again(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// claims are the cells that a job of a loader is in.
type claims struct {
	l     *loader
	first int // cell of the board
	in    map[int]lockMode
}

func (l *loader) claims(first int) *claims { return &claims{l, first, make(map[int]lockMode)} }

// set changes how it is in a cell; 0 leaves it.
func (c *claims) set(i int, to lockMode) error {
	from, cell := c.in[i], c.l.board.cell(c.first+i)
	var err error
	switch {
	case from == to:
		return nil
	case from == 0:
		if err = cell.enter(c.l.id, to); err != nil {
			return c.named(i, err)
		}
	case to == 0:
		err = cell.leave(c.l.id, from)
	case to == exclusive:
		err = cell.upgrade(c.l.id)
	default:
		err = cell.downgrade(c.l.id)
	}
	if c.in[i] = to; to == 0 {
		delete(c.in, i)
	}
	return c.named(i, err)
}

func (c *claims) named(i int, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("cell %d: %w", c.first+i, err)
}

// clear leaves all cells.
func (c *claims) clear() error {
	var errs []error
	for i := range c.in {
		errs = append(errs, c.set(i, 0))
	}
	return errors.Join(errs...)
}

// last is the highest cell, -1 if there is none.
func (c *claims) last() int {
	last := -1
	for i := range c.in {
		last = max(last, i)
	}
	return last
}

// requireSeen checks that view/locks.jsonl has a lock that this process holds.
func (l *loader) requireSeen(want lockLine) error {
	path := l.path("view/locks.jsonl")
	text, err := os.ReadFile(path)
	if err != nil {
		return failed("read", path, err)
	}
	want.PID = os.Getpid()
	mine := fmt.Sprintf(`"pid":%d,`, want.PID)
	var seen []string
	for line := range strings.Lines(string(text)) {
		if !strings.Contains(line, mine) {
			continue
		}
		var lock lockLine
		if err := json.Unmarshal([]byte(line), &lock); err != nil {
			return fmt.Errorf("%s: %w in %q", path, err, line)
		}
		if want.within(lock) {
			return nil
		}
		seen = append(seen, strings.TrimSpace(line))
	}
	return fmt.Errorf("LOST: %s is not in %s, only %s", want.brief(), path, strings.Join(seen, " "))
}

// within says whether a lock is one that is seen or a part of it.
func (want lockLine) within(seen lockLine) bool {
	if seen.State != "held" || seen.Class != want.Class || seen.PID != want.PID || seen.Path != want.Path ||
		want.Token != 0 && seen.Token != want.Token || want.Mode != "" && seen.Mode != want.Mode {
		return false
	}
	return want.Start == nil || *seen.Start <= *want.Start && (seen.End == nil || want.End != nil && *seen.End >= *want.End)
}

func (l lockLine) brief() string {
	text := fmt.Sprintf("%s %s of pid %d on %s", l.Class, l.Mode, l.PID, l.Path)
	if l.Token != 0 {
		text += fmt.Sprint(" token ", l.Token)
	}
	if l.Start != nil {
		text += fmt.Sprint(" from ", *l.Start)
	}
	if l.End != nil {
		text += fmt.Sprint(" to ", *l.End)
	}
	return text
}

// keeping is what a loader holds from its start to its end: one lock of each kind.
type keeping struct {
	lines []lockLine
	fds   []int
	names []string
}

func (l *loader) keep() (*keeping, error) {
	k := new(keeping)
	file := func(kind string) string { return fmt.Sprintf("files/load/own%d/kept-%s", l.id, kind) }
	name := func(kind string) string { return fmt.Sprintf("kept-%s-%d", kind, l.id) }
	err := errors.Join(
		k.lock(l, file("record"), "record", func(fd int) error {
			return fcntlLock(fd, unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: 100, Len: 10})
		}),
		k.lock(l, file("ofd"), "record", func(fd int) error {
			return fcntlLock(fd, ofdSetlk, &unix.Flock_t{Type: unix.F_RDLCK, Start: 7, Len: 0})
		}),
		k.lock(l, file("flock"), "flock", func(fd int) error { return unix.Flock(fd, unix.LOCK_SH) }),
		k.named(l, name("mkdir"), func(name string) error {
			return failed("mkdir", name, unix.Mkdir(l.path("tlock", name+"+1h"), 0o755))
		}),
		k.named(l, name("hold"), func(name string) error {
			fd, err := openAgain(l.path("hold", name), unix.O_RDONLY|unix.O_CLOEXEC)
			k.fds = append(k.fds, fd)
			return failed("open", "hold/"+name, err)
		}),
	)
	return k, err
}

// lock adds a lock on a file. What is kept is named as view/locks.jsonl will show it.
func (k *keeping) lock(l *loader, file, class string, lock func(fd int) error) error {
	fd, err := unix.Open(l.path(file), unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return failed("open", file, err)
	}
	k.fds = append(k.fds, fd)
	if err := again(func() error { return lock(fd) }); err != nil {
		return failed("lock", file, err)
	}
	return k.add(l, class, file)
}

func (k *keeping) named(l *loader, name string, take func(string) error) error {
	if err := take(name); err != nil {
		return err
	}
	k.names = append(k.names, name)
	return k.add(l, "named", "tlock/"+name)
}

// add remembers a lock with all that the view says of it now.
func (k *keeping) add(l *loader, class, path string) error {
	text, err := os.ReadFile(l.path("view/locks.jsonl"))
	if err != nil {
		return failed("read", "view/locks.jsonl", err)
	}
	for line := range strings.Lines(string(text)) {
		var lock lockLine
		if err := json.Unmarshal([]byte(line), &lock); err != nil {
			return err
		}
		if lock.Path == path && lock.Class == class && lock.PID == os.Getpid() {
			k.lines = append(k.lines, lock)
			return nil
		}
	}
	return fmt.Errorf("LOST: just taken: %s %s", class, path)
}

// release gives the names back; the rest goes with the process.
func (k *keeping) release(l *loader) {
	for _, fd := range k.fds {
		unix.Close(fd)
	}
	for i, name := range k.names {
		if name := l.path("tlock", name); i == 0 {
			if err := unix.Rmdir(name); err != nil {
				l.fail("keep", failed("rmdir", name, err))
			}
		}
	}
}

// readToken reads a fencing token from a file or, if fd is not negative, from an open one.
func readToken(path string, fd int) (uint64, error) {
	var err error
	if fd < 0 {
		if fd, err = openAgain(path, unix.O_RDONLY|unix.O_CLOEXEC); err != nil {
			return 0, failed("open", path, err)
		}
		defer unix.Close(fd)
	}
	buf := make([]byte, 64)
	n := 0
	err = again(func() error { n, err = unix.Read(fd, buf); return err })
	if err != nil {
		return 0, failed("read", path, err)
	}
	token, err := strconv.ParseUint(strings.TrimSuffix(string(buf[:n]), "\n"), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read %s: %q is no token", path, buf[:n])
	}
	return token, nil
}
