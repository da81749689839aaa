package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestKilledUnderLoad kills the worker at any moment while eight processes do everything that clients do: no call
// fails, no lock is lost, granted twice, or left behind.
func TestKilledUnderLoad(t *testing.T) {
	const kills, processes = 100, 8
	m := newCrashMount(t)
	events := m.events(t)
	l := startLoad(t, m, processes, loadPlan{})
	k := &killer{m: m, board: l.board, r: rand.New(rand.NewPCG(1, uint64(time.Now().UnixNano())))}
	for k.kills < kills && !l.broken() {
		k.kill()
	}
	t.Logf("%d kills in %v, %d of them of workers that had not answered yet; the longest silence was %v",
		k.kills, time.Since(l.began).Round(time.Millisecond), k.early, k.silence.Round(time.Millisecond))
	l.finish(leastProgress)
	events.requireNoHoles(t)
}

// leastProgress is how many rounds of each job all loaders together have to have done, so that the test cannot pass by
// doing nothing. A machine that does nothing else does many times as much.
var leastProgress = map[string]int{
	"record": 20, "ofd": 20, "flock": 20, "mkdir": 8, "own": 4, "brief": 8, "take": 8, "hold": 10,
	"files": 6, "append": 50, "readdir": 6, "look": 4,
}

// A killer kills workers, each at a random moment of its life.
type killer struct {
	m     *mount
	board *board
	r     *rand.Rand

	kills, early, inRow int
	silence             time.Duration
}

// maxEarlyInRow is how many workers are killed one after the other before they have answered once: with more the
// supervisor may take it for a worker that cannot run.
const maxEarlyInRow = 2

// kill lets the worker live for up to 150 ms, kills it, and waits until the next answers, or is just there.
func (k *killer) kill() {
	k.m.t.Helper()
	time.Sleep(time.Duration(k.r.IntN(150_000)) * time.Microsecond)
	k.board.noteKill()
	began := time.Now()
	old := k.m.strikeWorker()
	k.kills++
	for k.inRow < maxEarlyInRow && k.r.IntN(6) == 0 && !calm {
		eventually(k.m.t, restartLimit, "another worker", func() bool { pid := k.m.worker(); return pid != 0 && pid != old })
		time.Sleep(time.Duration(k.r.IntN(10_000)) * time.Microsecond)
		k.board.noteKill()
		old = k.m.strikeWorker()
		k.kills, k.early, k.inRow = k.kills+1, k.early+1, k.inRow+1
	}
	k.m.awaitWorker(old)
	k.inRow = 0
	k.silence = max(k.silence, time.Since(began))
}

// A load is several loaders on one mount.
type load struct {
	t       *testing.T
	m       *mount
	board   *board
	began   time.Time
	loaders []*loaderProc

	mu       sync.Mutex
	failures []string
}

type loaderProc struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	report chan loadReport
	done   chan struct{} // closed when it has been waited for
	err    error
}

// startLoad starts n loaders. The plan's mount and board are filled in.
func startLoad(t *testing.T, m *mount, n int, plan loadPlan) *load {
	t.Helper()
	prepareLoad(t, m, n)
	plan.Mount = m.dir
	plan.Board = filepath.Join(sharedMemory(t), "board")
	board, err := createBoard(plan.Board)
	require.NoError(t, err)
	l := &load{t: t, m: m, board: board, began: time.Now()}
	for id := 1; id <= n; id++ {
		l.add(id, plan)
	}
	return l
}

// sharedMemory is a directory on a tmpfs that is no part of any mount of lockfs.
func sharedMemory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "lockfs-test-")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func prepareLoad(t *testing.T, m *mount, n int) {
	t.Helper()
	dir := filepath.Join(m.state, "files/load") // directly, since that is faster
	require.NoError(t, os.MkdirAll(dir+"/many", 0o755))
	for i := range manyFiles {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "many", manyName(i)), nil, 0o644))
	}
	require.NoError(t, os.WriteFile(dir+"/log", nil, 0o644))
	for id := 1; id <= n; id++ {
		require.NoError(t, os.MkdirAll(fmt.Sprintf("%s/own%d", dir, id), 0o755))
	}
}

func (l *load) add(id int, plan loadPlan) {
	l.t.Helper()
	text, err := json.Marshal(plan)
	require.NoError(l.t, err)
	p := &loaderProc{cmd: role("loader", string(text), strconv.Itoa(id)), report: make(chan loadReport, 1), done: make(chan struct{})}
	p.cmd.Env = append(p.cmd.Env, "GODEBUG=asyncpreemptoff=1") // fewer signals, which interrupt waits
	p.cmd.Stdout = &lineWriter{line: func(line string) { l.told(p, line) }}
	p.in, err = p.cmd.StdinPipe()
	require.NoError(l.t, err)
	require.NoError(l.t, p.cmd.Start())
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	l.t.Cleanup(func() { l.destroy(p) })
	l.loaders = append(l.loaders, p)
}

// destroy kills a loader that has not ended.
func (l *load) destroy(p *loaderProc) {
	syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	awaitEnd(l.t, p.cmd.Process.Pid, func() { <-p.done })
}

func (l *load) told(p *loaderProc, line string) {
	if text, ok := strings.CutPrefix(line, "rest "); ok {
		var report loadReport
		if err := json.Unmarshal([]byte(text), &report); err != nil {
			l.t.Errorf("a loader's report: %v in %q", err, line)
		}
		p.report <- report
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failures = append(l.failures, line)
}

// broken says that there were so many failures that more of them tell nothing new.
func (l *load) broken() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.failures) > 3*maxLoadFailures
}

// rest lets all loaders come to rest, with nothing but the locks that they report.
func (l *load) rest() (total loadReport) {
	l.t.Helper()
	total.Counts = make(map[string]int)
	for _, p := range l.loaders {
		fmt.Fprintln(p.in, "rest")
	}
	limit := time.After(2 * waitLimit)
	for i, p := range l.loaders {
		select {
		case report := <-p.report:
			total.Kept = append(total.Kept, report.Kept...)
			for what, n := range report.Counts {
				total.Counts[what] += n
			}
		case <-p.done:
			l.t.Errorf("loader %d ended: %v", i+1, p.err)
		case <-limit:
			l.t.Fatalf("loader %d (pid %d) did not come to rest within %v: %s", i+1, p.cmd.Process.Pid, 2*waitLimit, hangsIn(p.cmd.Process.Pid))
		}
	}
	return total
}

// hangsIn says what the threads of a process wait for, where the kernel tells.
func hangsIn(pid int) string {
	var where []string
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/wchan", pid))
	for _, task := range tasks {
		if text, _ := os.ReadFile(task); strings.Contains(string(text), "fuse") || strings.Contains(string(text), "request") {
			where = append(where, string(text))
		}
	}
	return fmt.Sprintf("%d of %d threads wait for an answer %v", len(where), len(tasks), where)
}

// end ends all loaders.
func (l *load) end() {
	l.t.Helper()
	for i, p := range l.loaders {
		p.in.Close()
		select {
		case <-p.done:
			assert.NoError(l.t, p.err, "loader %d", i+1)
		case <-time.After(waitLimit):
			l.t.Errorf("loader %d (pid %d) did not end within %v: %s", i+1, p.cmd.Process.Pid, waitLimit, hangsIn(p.cmd.Process.Pid))
		}
	}
}

// finish ends the load and checks all that can be checked.
func (l *load) finish(least map[string]int) {
	l.t.Helper()
	defer l.requireNoFailures() // also after FailNow
	total := l.rest()
	lost, leaked := compareLocks(total.Kept, l.m.locks(l.t))
	assert.Empty(l.t, lost, "held by a loader, and not in view/locks.jsonl")
	assert.Empty(l.t, leaked, "in view/locks.jsonl, and no loader's")
	l.requireLog(total.Counts["append"])
	l.end()
	assert.Empty(l.t, entries(l.t, l.m.path("tlock")), "left after all clients have ended")
	eventually(l.t, waitLimit, "view/locks.jsonl is empty", func() bool { return len(l.m.locks(l.t)) == 0 })
	l.t.Logf("rounds: %v", total.Counts)
	for what, n := range least {
		assert.GreaterOrEqual(l.t, total.Counts[what], n, "too little progress of %s", what)
	}
}

func (l *load) requireNoFailures() {
	l.t.Helper()
	if failures := l.failed(); len(failures) > 0 {
		l.t.Errorf("%d calls of clients failed:\n%s", len(failures), strings.Join(failures, "\n"))
	}
}

func (l *load) failed() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.failures)
}

// compareLocks says which locks are kept and not seen, and which are seen and not kept.
func compareLocks(kept, seen []lockLine) (lost, leaked []string) {
	key := func(lock lockLine) string { return lock.State + " " + lock.brief() }
	count := make(map[string]int)
	for _, lock := range seen {
		count[key(lock)]++
	}
	for _, lock := range kept {
		if count[key(lock)]--; count[key(lock)] < 0 {
			lost = append(lost, key(lock))
		}
	}
	for what, n := range count {
		if n > 0 {
			leaked = append(leaked, what)
		}
	}
	return lost, leaked
}

// requireLog checks that each line that a loader appended is there once.
func (l *load) requireLog(n int) {
	l.t.Helper()
	next := make(map[string]int)
	text := readFile(l.t, l.m.path("files/load/log"))
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if !assert.Len(l.t, fields, 2, "a line of files/load/log: %q", line) {
			return
		}
		if want := fmt.Sprintf("%08d", next[fields[0]]); !assert.Equal(l.t, want, fields[1], "the next line of loader %s in files/load/log", fields[0]) {
			return
		}
		next[fields[0]]++
	}
	assert.Equal(l.t, n, strings.Count(text, "\n"), "lines of files/load/log")
}

// requireNoHoles checks that the stream told every event once, or said how many it passed over.
func (s *eventStream) requireNoHoles(t *testing.T) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	require.NotEmpty(t, s.events)
	last, missed, gaps := uint64(0), uint64(0), 0
	for i, e := range s.events {
		if e.Event == "gap" {
			missed, gaps = e.Missed, gaps+1
			continue
		}
		if i > 0 && last+missed+1 != e.Seq {
			t.Errorf("after event %d and a gap of %d came %s", last, missed, e.raw)
			return
		}
		last, missed = e.Seq, 0
	}
	t.Logf("%d events, %d gaps", len(s.events), gaps)
}

// TestLoadSeesFaults shows that the load notices what it is there to notice: locks that do not exclude, locks that are
// lost, and locks that are left behind.
func TestLoadSeesFaults(t *testing.T) {
	t.Run("overlaps", func(t *testing.T) {
		for _, job := range []string{"record", "ofd", "flock", "mkdir", "take", "hold"} {
			t.Run(job, func(t *testing.T) {
				t.Parallel()
				m := newCrashMount(t)
				l := startLoad(t, m, 3, loadPlan{Jobs: []string{job}, Apart: true})
				eventually(t, waitLimit, "an overlap is seen", func() bool {
					return slices.ContainsFunc(l.failed(), func(line string) bool { return strings.Contains(line, overlapped) })
				})
				l.rest()
				l.end()
			})
		}
	})
	t.Run("lost and leaked", func(t *testing.T) {
		m := newCrashMount(t)
		l := startLoad(t, m, 1, loadPlan{Jobs: []string{"look"}})
		c := newClient(t, m.path("tlock"))
		require.Equal(t, "ok", c.do("mkdir leaked"))
		// It takes this one when it has seen the one before in the view.
		eventually(t, waitLimit, "the loader's locks", func() bool { return slices.Contains(entries(t, m.path("tlock")), "kept-hold-1") })
		require.NoError(t, unix.Rmdir(m.path("tlock/kept-mkdir-1")))
		eventually(t, waitLimit, "the loader misses its lock", func() bool {
			return slices.ContainsFunc(l.failed(), func(line string) bool { return strings.Contains(line, "LOST") })
		})
		total := l.rest()
		lost, leaked := compareLocks(total.Kept, m.locks(t))
		require.Len(t, lost, 1)
		require.Contains(t, lost[0], "tlock/kept-mkdir-1")
		require.Len(t, leaked, 1)
		require.Contains(t, leaked[0], "tlock/leaked")
		l.end()
		require.NoError(t, unix.Rmdir(m.path("tlock/leaked")))
	})
}
