package fs

import (
	"bytes"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"lockfs/fs/files"
	"lockfs/lockengine"
	"lockfs/lockengine/journal"
)

// A simulation runs the server and its engine, as they are, against a kernel,
// processes, a clock and a journal that do nothing but what a seed decides. All
// is on one goroutine, so that a seed gives the same run each time.
//
// Left out is what is slow by nature: changes of the backing files, and grants
// that wait for the disk (Config.Durable).

// sim is one run.
type sim struct {
	seed   uint64
	rng    *rand.Rand
	now    lockengine.Instant
	dir    string // behind files/
	kernel *simKernel
	model  *simModel
	log    []simRecord
	life   *simLife // of the server that runs now; nil: it is down
	server *Server
	syncs  sync.WaitGroup // syncs of the log that go on
	in     [2]*[bufferSize]byte

	nodes   []uint64 // of the files
	procs   []*simProc
	late    []*simRequest // RELEASEs that will be queued
	lastTID int32
	steps   int
	served  int  // how often the server did something
	calm    bool // no more calls, signals or crashes
	weights simWeights

	quiet  bool     // no trace is kept, which costs a good part of the time
	trace  []string // the last steps
	digest io.Writer
	sum    func() uint64
}

type simRecord struct {
	kind uint8
	data []byte
}

// simFailure is what a run panics with when something is wrong.
type simFailure struct{ what string }

// A failure shows the last lines of the trace, or most of it if the seed was
// given.
const (
	traceShown  = 150
	traceLength = 3000
)

// simServed bounds how often the server does something in a run. Those of
// simSteps steps take less than a tenth of that.
const simServed = 20_000

func newSim(seed uint64, dir string) *sim {
	s := &sim{
		seed: seed,
		rng:  rand.New(rand.NewPCG(seed, 0)),
		dir:  dir,
		now:  lockengine.Instant{Boot: int64(time.Hour), Wall: 1_700_000_000 * int64(time.Second)},
	}
	h := fnv.New64a()
	s.digest, s.sum = h, h.Sum64
	s.in = [2]*[bufferSize]byte{simBuffers.Get().(*[bufferSize]byte), simBuffers.Get().(*[bufferSize]byte)}
	s.kernel = &simKernel{sim: s, uses: map[uint64]int{}}
	s.model = &simModel{sim: s}
	s.weights = s.drawWeights()
	return s
}

// simBuffers are a megabyte each: all runs share them. Those of tasks that a
// crash ended are lost.
var simBuffers simPool

type simPool []any

func (p *simPool) Put(b any) { *p = append(*p, b) }

func (p *simPool) Get() any {
	n := len(*p)
	if n == 0 {
		return new([bufferSize]byte)
	}
	b := (*p)[n-1]
	*p = (*p)[:n-1]
	return b
}

func (s *sim) n(n int) int              { return s.rng.IntN(n) }
func (s *sim) chance(percent int) bool  { return s.n(100) < percent }
func itoa(n uint64) string              { return strconv.FormatUint(n, 10) }
func simPick[T any](s *sim, from []T) T { return from[s.n(len(from))] }
func (s *sim) fail(f string, a ...any)  { panic(simFailure{fmt.Sprintf(f, a...)}) }

// note adds a line to the trace.
func (s *sim) note(format string, a ...any) {
	if s.quiet {
		return
	}
	line := fmt.Sprintf(format, a...)
	_, _ = io.WriteString(s.digest, line+"\n") // a hash takes everything
	if len(s.trace) == 2*traceLength {
		s.trace = slices.Delete(s.trace, 0, traceLength)
	}
	s.trace = append(s.trace, line)
}

// simLife is what one process of the server has around it. It ends at a crash,
// after so many of its acts: records appended and frames sent. Nothing that the
// server does after that counts.
type simLife struct {
	*sim
	acts   int // left; negative: no end in sight
	over   bool
	alarm  int64
	fire   func()
	timers []*simTimer
	tasks  []func() // handed to goroutines
}

var (
	_ connection       = (*simLife)(nil)
	_ recordLog        = (*simLife)(nil)
	_ lockengine.Log   = (*simLife)(nil)
	_ lockengine.Clock = (*simLife)(nil)
)

// act reports whether the process lives to do it.
func (l *simLife) act() bool {
	if l.acts == 0 && !l.over {
		l.over = true
		l.note("CRASH")
	}
	l.acts--
	return !l.over
}

func (l *simLife) read(buf []byte) (int, error) {
	if l.over || l.kernel.idle() {
		return 0, nil
	}
	return l.kernel.read(buf), nil
}

func (l *simLife) send(frame []byte) error {
	if !l.act() {
		return syscall.ENODEV
	}
	return l.kernel.write(frame)
}

func (l *simLife) answer(unique uint64, code int32) error {
	frame := make([]byte, sizeofOutHeader)
	putOutHeader(frame, len(frame), code, unique)
	return l.send(frame)
}

func (l *simLife) answerAndRead(a *lockAnswer, buf []byte) (int, error) {
	_ = l.answer(a.unique, a.code)
	return l.read(buf)
}

func (l *simLife) answerAll(held []lockAnswer) {
	for _, a := range held {
		_ = l.answer(a.unique, a.code)
	}
}

func (l *simLife) answersMany() bool { return true }

// tryRead: clients die while a server takes over, too.
func (l *simLife) tryRead(buf []byte) (int, error) {
	if !l.over && !l.calm && !l.server.held.may && l.chance(l.weights.killInGap) {
		l.killOne()
	}
	if l.over || l.kernel.idle() {
		return 0, syscall.EAGAIN
	}
	return l.read(buf)
}

func (l *simLife) Register(int) (int32, error) { return 0, syscall.EPERM }
func (l *simLife) Unregister(int32)            {}

func (l *simLife) Room(int, int) error { return nil }

func (l *simLife) Append(kind uint8, data []byte) (uint64, error) {
	if l.act() {
		l.log = append(l.sim.log, simRecord{kind, bytes.Clone(data)})
	}
	return uint64(len(l.log)), nil
}

// Synced calls back from another goroutine, which has ended before the step has.
func (l *simLife) Synced(_ uint64, done func(error)) { l.syncs.Go(func() { done(nil) }) }

func (l *simLife) Replay(apply func(kind uint8, data []byte) error) (journal.Report, error) {
	found := l.log
	for _, r := range found {
		if err := apply(r.kind, r.data); err != nil {
			return journal.Report{}, err
		}
	}
	return journal.Report{Records: len(found), Fresh: len(found) == 0, SameBoot: true}, nil
}

func (l *simLife) Full() <-chan struct{}                 { return nil }
func (l *simLife) Compact() (*journal.Compaction, error) { return nil, syscall.ENOSYS }
func (l *simLife) Stats() journal.Stats                  { return journal.Stats{} }

func (l *simLife) Now() lockengine.Instant       { return l.now }
func (l *simLife) Alarm(boot int64, fire func()) { l.alarm, l.fire = boot, fire }
func (l *simLife) Close() error                  { return nil }
func (l *simLife) spawn(f func())                { l.tasks = append(l.tasks, f) }
func (l *simLife) living(pid int32) bool {
	return slices.ContainsFunc(l.procs, func(p *simProc) bool { return p.pid == pid && !p.dying })
}
func (l *simLife) asker(tid int32, _ int64) asker { return asker{l.processOf(tid), "pid 0\n"} }

// space is the same of all: the simulated processes are in one namespace.
func (l *simLife) space(int32) pidSpace { return pidSpace{} }

// after starts a timer, which rings when time passes next.
func (l *simLife) after(d time.Duration, f func()) stopper {
	t := &simTimer{life: l, at: l.now.Boot + int64(d), ring: f}
	l.timers = append(l.timers, t)
	return t
}

type simTimer struct {
	life *simLife
	at   int64
	ring func()
}

func (t *simTimer) Stop() bool {
	before := len(t.life.timers)
	t.life.timers = slices.DeleteFunc(t.life.timers, func(o *simTimer) bool { return o == t })
	return len(t.life.timers) < before
}

// ringing reports whether something rings that was not heard yet.
func (l *simLife) ringing() bool {
	return l.alarm != 0 && l.alarm <= l.now.Boot ||
		slices.ContainsFunc(l.timers, func(t *simTimer) bool { return t.at <= l.now.Boot })
}

// due takes out what rings next, if it does by the time given.
func (l *simLife) due(by int64) (ring func(), at int64) {
	at = by + 1
	if l.alarm != 0 && l.alarm < at {
		at, ring = l.alarm, l.fire
	}
	var first *simTimer
	for _, t := range l.timers {
		if t.at < at {
			first, at, ring = t, t.at, t.ring
		}
	}
	switch {
	case first != nil:
		first.Stop()
	case ring != nil:
		l.alarm = 0
	}
	return ring, at
}

// died ends the server's process.
func (s *sim) died() {
	s.model.crashed()
	s.life = nil
	_ = s.server.files.Close()
}

// pass lets time pass, for the server too if it runs. late: what rings does so
// only at the end.
func (s *sim) pass(d time.Duration, late bool) {
	end := s.now.Boot + int64(d)
	s.note("%v pass, late %v", d, late)
	if late {
		s.goTo(end)
	}
	for s.life != nil {
		ring, at := s.life.due(end)
		if ring == nil {
			break
		}
		s.goTo(max(at, s.now.Boot))
		s.note("ring")
		s.serve(ring)
	}
	s.goTo(end)
}

func (s *sim) goTo(boot int64) {
	s.now.Wall += boot - s.now.Boot
	s.now.Boot = boot
}

// serve has the server do something, checks what came of it, and ends its
// process if it crashed.
func (s *sim) serve(f func()) {
	l := s.life
	if s.served++; s.served > simServed {
		s.fail("it comes to no rest")
	}
	if s.calm {
		l.acts = -1
	}
	s.model.beginStep()
	f()
	s.syncs.Wait()
	if !l.over && l.acts >= 0 {
		l.over = true
		s.note("CRASH afterwards")
	}
	if l.over {
		s.died()
		return
	}
	s.model.endStep()
	if s.chance(1) {
		s.checkReplay()
	}
}

// start starts a process of the server, which goes on where the one before was.
func (s *sim) start() {
	l := &simLife{sim: s, acts: -1}
	s.life = l
	if !s.calm && s.chance(s.weights.crashAgain) {
		l.acts = s.n(30)
	}
	s.note("start on %d records", len(s.log))
	s.serve(func() {
		engine, err := lockengine.NewLocal(lockengine.Config{Clock: l, Log: l, Boot: "boot", Classify: s.classify})
		if err != nil {
			s.fail("no engine: %v", err)
		}
		s.server, err = newServer(Config{
			Engine: engine, Now: engine.Now, Session: 1, Files: s.dir, DefaultTimeout: simTimeout, MaxTimeout: 24 * time.Hour,
			ViewMode: 0o555, Instance: "mount",
		}, host{conn: l, journal: l, spawn: l.spawn, after: l.after, buffers: &simBuffers, alive: l.living, asker: l.asker, space: l.space})
		if err != nil {
			s.fail("no server: %v", err)
		}
		if s.server.resumed {
			s.server.takeOver()
		}
	})
}

const simTimeout = masterTimeout

// request has the server take one request, and more as long as many ask.
func (s *sim) request() {
	s.serve(func() {
		s.server.held.may = true
		defer s.server.answerHeld()
		for more := true; more; more = s.server.held.many {
			n, err := s.server.next(s.in[0][:])
			if err != nil || n == 0 {
				return
			}
			if !s.server.dispatch(s.in[0], n, s.in[1], nil) {
				s.in[0] = simBuffers.Get().(*[bufferSize]byte)
			}
		}
	})
}

// snapshot replaces the log by a snapshot, as [Server.snapshot] does.
func (s *sim) snapshot() {
	var state []simRecord
	at := 0
	add := func(kind uint8, data []byte) error {
		state = append(state, simRecord{kind, bytes.Clone(data)})
		return nil
	}
	if err := s.server.addState(func() { at = len(s.log) }, add); err != nil {
		s.fail("no snapshot: %v", err)
	}
	if s.life.over { // what it left is no snapshot
		s.died()
		return
	}
	s.note("snapshot of %d records", at)
	s.log = append(state, s.log[at:]...)
}

// mount has the kernel send what it does first.
func (s *sim) mount() {
	s.calm = true
	s.start()
	init := &simRequest{op: &simOp{kind: askOther, text: "INIT"}, done: func(errno syscall.Errno, _ []byte) {
		if errno != 0 {
			s.fail("INIT: %v", errno)
		}
	}}
	init.frame = simFrame(opInit, 0, fuse.InitIn{Major: 7, Minor: 41, MaxReadAhead: 1 << 17, Flags: 1<<10 | 1<<1}, "")
	s.kernel.queue(init)
	for i := range simFiles {
		r := &simRequest{op: &simOp{kind: askOther, text: "LOOKUP of a file"}, done: func(errno syscall.Errno, body []byte) {
			if errno != 0 {
				s.fail("file not found: %v", errno)
			}
			s.nodes = append(s.nodes, simBody[fuse.EntryOut](s, body).NodeId)
		}}
		r.frame = simFrame(opLookup, files.Root, fuse.InHeader{}, simFileName(i)+"\x00")
		s.kernel.queue(r)
	}
	for !s.kernel.idle() {
		s.request()
	}
	s.calm = false
}

// step does one thing that the seed decides.
func (s *sim) step() {
	s.steps++
	if s.life == nil {
		s.stepDown()
		return
	}
	if s.life.ringing() {
		s.pass(0, false)
		return
	}
	w := &s.weights
	if s.chance(w.crashIn) {
		s.life.acts = s.n(6)
	}
	at := s.n(w.server + w.call + w.signal + w.kill + w.pass + w.step + w.crash + w.snapshot + 12)
	for _, choice := range []struct {
		share int
		do    func()
	}{
		{w.server, s.serveOne}, {w.call, s.call}, {w.signal, s.interrupt}, {w.kill, s.killOne}, {w.pass, s.passSome},
		{w.step, s.stepWall}, {w.crash, s.crash}, {w.snapshot, s.snapshot}, {10, s.background}, {2, s.kernel.shrink},
	} {
		if at -= choice.share; at < 0 {
			choice.do()
			break
		}
	}
	if s.life != nil {
		s.life.acts = -1
	}
}

// stepDown is a step while the server is down.
func (s *sim) stepDown() {
	switch at := s.n(s.weights.down + 5); at {
	case 0:
		s.interrupt()
	case 1:
		s.killOne()
	case 2:
		s.passSome()
	case 3:
		s.background()
	case 4:
		s.start()
	default:
		s.call()
	}
}

func (s *sim) serveOne() {
	if !s.kernel.idle() {
		s.request()
	}
}

// background goes on with what a goroutine was started for, or queues a
// RELEASE that is late.
func (s *sim) background() {
	if len(s.late) > 0 && (s.life == nil || s.chance(50)) {
		s.queueLate(s.n(len(s.late)))
		return
	}
	if s.life != nil && len(s.life.tasks) > 0 {
		i := s.n(len(s.life.tasks))
		task := s.life.tasks[i]
		s.life.tasks = slices.Delete(s.life.tasks, i, i+1)
		s.note("goroutine")
		s.serve(task)
	}
}

func (s *sim) passSome() {
	spans := []time.Duration{time.Millisecond, 300 * time.Millisecond, time.Second, 3 * time.Second, 30 * time.Second}
	s.pass(time.Duration(s.rng.Int64N(int64(simPick(s, spans)))), s.chance(30))
}

func (s *sim) stepWall() {
	d := time.Duration(s.n(3)-1) * time.Hour
	s.note("wall clock steps by %v", d)
	s.now.Wall += int64(d)
}

// readAhead is how many requests are read at a crash and not come to.
func (s *sim) readAhead() int {
	if slices.Contains(simFirstSeeds, s.seed) {
		return 0
	}
	return s.n(4)
}

// crash ends the server between two steps. Other threads of it may have read
// requests that they did not come to.
func (s *sim) crash() {
	for n := s.readAhead(); n > 0; n-- {
		if len(s.kernel.pending) > 0 && len(s.kernel.interrupts)+len(s.kernel.forgets) == 0 {
			s.kernel.read(s.in[0][:])
		}
	}
	s.life.over = true
	s.note("CRASH between two requests")
	s.died()
}

// drain ends all processes, and sees that nothing is left of them.
func (s *sim) drain() {
	s.calm = true
	if s.life == nil {
		s.start()
	}
	for len(s.procs) > 0 || len(s.late) > 0 || !s.kernel.idle() || len(s.life.tasks) > 0 {
		s.drainStep()
	}
	s.pass(48*time.Hour, false)
	if left := s.kernel.sent; len(left) > 0 {
		s.fail("%d requests are left, the first is %v", len(left), left[0])
	}
	if n := s.server.handles.count() + s.server.files.NumHandles(); n > s.model.unknown {
		for _, h := range s.server.handles.all() {
			s.note("left: handle #%d %+v", h.fh&^synthetic/numberStep, h.taking)
		}
		s.fail("%d handles are left", n)
	}
	if snap := s.server.engine.Snapshot(); len(snap.Locks)+len(snap.Waiting) > 0 {
		s.fail("left at the end: %+v %+v", snap.Locks, snap.Waiting)
	}
	_ = s.server.files.Close()
	s.life = nil
}

func (s *sim) drainStep() {
	switch {
	case slices.ContainsFunc(s.procs, func(p *simProc) bool { return !p.dying }):
		s.killOne()
	case !s.kernel.idle():
		s.request()
	case len(s.late) > 0 || len(s.life.tasks) > 0:
		s.background()
	case len(s.procs) > 0 && len(s.kernel.sent) > 0:
		s.fail("process %d does not end", s.procs[0].pid)
	}
}

func simFileName(i int) string { return "file" + strconv.Itoa(i) }

// checkReplay sees that who reads the log comes to the same state.
func (s *sim) checkReplay() {
	l := &simLife{sim: s, over: true}
	engine, err := lockengine.NewLocal(lockengine.Config{Clock: l, Log: l, Boot: "boot"})
	if err != nil {
		s.fail("no engine: %v", err)
	}
	for _, r := range s.log {
		if r.kind < recInstance {
			if err := engine.Replay(r.kind, r.data); err != nil {
				s.fail("replay: %v", err)
			}
		}
	}
	live, replayed := s.server.engine.Snapshot(), engine.Snapshot()
	live.Now, replayed.Now = lockengine.Instant{}, lockengine.Instant{}
	if !reflect.DeepEqual(live, replayed) {
		s.fail("the log leads to another state than this:\n%+v\nbut:\n%+v", live, replayed)
	}
}
