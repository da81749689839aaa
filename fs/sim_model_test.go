package fs

import (
	"fmt"
	"iter"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"lockfs/lockengine"
)

// simModel is what clients may see: who was told that it holds what. It knows
// nothing of how locks are granted. Of each byte and owner it has two bounds:
// what the owner is sure to hold, since it was told so and has not begun to give
// it back, and the most that it can hold.
type simModel struct {
	*sim
	owners    []*simOwner
	incs      []*simIncarnation
	ghosts    []*simOp // interrupted, their places kept for a moment
	arrivals  uint64
	lastToken uint64   // told before this step
	stepToken uint64   // told by now
	granted   []*simOp // in this step
	retaken   []*simOp // in this step they took the place back that they had
	inStep    bool
	// Waits that vanished, and that the server does not know to be over. What
	// their owners are it cannot ask any more, and takes them for processes.
	vanished []*simOp
	gaveBack bool // in this step somebody gave a lock back
	unknown  int  // opens that vanished, done or not: the server is not told, and keeps them
}

type askKind int

const (
	askOther askKind = iota
	askLookup
	askOpen
	askLock
	askUnlock
	askTest
	askFlush
	askRelease
	askMkdir
	askRmdir
	askTake
	askRead
	askRenew
	askAwait
)

// simOp is what is asked for, by one request or by several when it is made
// again after a signal.
type simOp struct {
	kind askKind
	text string
	task *simTask
	slow bool // may be answered in a later step than it is read

	unique      uint64 // of the request
	began       int64  // boot time
	step        int    // of the run
	reads       int    // how often it was read
	firstRead   int64  // boot time: not done before,
	lastRead    int64  // not done after
	blocked     bool   // it was waiting at the end of a step
	since       int64  // from then on
	arrival     uint64 // its place among those that wait; 0: none
	moved       bool   // its place is not known any more
	restarted   bool   // made again after a signal
	limbo       bool   // the server crashed, and nobody knows whether it was done
	limboAt     int64
	late        bool // it was in limbo when it was answered
	limboServed int  // sim.served by then

	// Of locks on files.
	class    lockengine.Class
	owner    uint64
	ofd      bool
	desc     *simDescription
	file     int
	mode     lockengine.Mode
	from, to int
	wait     bool
	cycle    bool                      // there was one when it was read
	before   [simBytes]lockengine.Mode // of its owner, when it was granted
	sure     [simBytes]lockengine.Mode // of what it asks for: what no other call of the owner has touched

	// Of named locks.
	name     string
	token    uint64
	timeout  time.Duration
	patience time.Duration
	bounded  bool
	try      bool
	inc      *simIncarnation // taken by it, read through it
	victim   *simIncarnation // of rmdir: what it has ended
}

func (op *simOp) String() string {
	who := ""
	if op.task != nil {
		who = fmt.Sprintf("%d/%d ", op.task.proc.pid, op.task.tid)
	}
	switch op.kind {
	case askLock, askUnlock, askTest:
		kind := op.class.String()
		if op.ofd {
			kind = "ofd"
		}
		verb := [...]string{askLock: "lock", askUnlock: "unlock", askTest: "test"}[op.kind]
		mode := [...]string{"", "shared", "exclusive"}[op.mode]
		return fmt.Sprintf("%s%s %s of %x on %d [%d-%d] %s wait=%v", who, kind, verb, op.owner, op.file, op.from, op.to, mode, op.wait)
	case askFlush:
		return fmt.Sprintf("%sFLUSH of %x on %d", who, op.owner, op.file)
	case askRelease:
		return fmt.Sprintf("RELEASE of %v", op.desc)
	case askRead, askRenew, askAwait:
		verb := map[askKind]string{askRead: "read token of", askRenew: "renew", askAwait: "await end of"}[op.kind]
		return fmt.Sprintf("%s%s %v", who, verb, op.inc)
	}
	return who + op.text
}

// waits: it may be unanswered for long.
func (op *simOp) waits() bool {
	return op.kind == askLock && op.wait || op.kind == askTake && !op.try || op.kind == askAwait
}

// simOwner is an owner of locks of one class on one file.
type simOwner struct {
	class   lockengine.Class
	id      uint64
	file    int
	process bool
	desc    *simDescription // nil: a process
	sure    [simBytes]lockengine.Mode
	most    [simBytes]lockengine.Mode
	rumour  [simBytes]lockengine.Mode // of calls that vanished, done or not
	vague   bool                      // one that unlocks has vanished
}

func (m *simModel) ownerOf(op *simOp) *simOwner {
	for _, o := range m.owners {
		if o.class == op.class && o.id == op.owner && o.file == op.file {
			return o
		}
	}
	o := &simOwner{class: op.class, id: op.owner, file: op.file, desc: op.desc, process: op.class == lockengine.Record && !op.ofd}
	m.owners = append(m.owners, o)
	return o
}

func conflict(a, b lockengine.Mode) bool {
	return a != 0 && b != 0 && (a == lockengine.Exclusive || b == lockengine.Exclusive)
}

// inFlight are the requests of which the answer has not come.
func (m *simModel) inFlight(yield func(*simOp) bool) {
	for _, list := range [][]*simRequest{m.kernel.sent, m.kernel.pending} {
		for _, r := range list {
			if !yield(r.op) {
				return
			}
		}
	}
}

// begin is when a request is made.
func (m *simModel) begin(op *simOp, unique uint64) {
	op.unique, op.reads, op.limbo, op.blocked = unique, 0, false, false
	op.began, op.step = m.now.Boot, m.steps
	if op.kind == askLock || op.kind == askUnlock {
		m.beginLock(op)
	}
	if op.kind == askRead {
		op.inc.asked = true
	}
}

// beginLock: from now on its owner is not sure to hold what the call may take
// from it, nor is any other call of the owner that is under way.
func (m *simModel) beginLock(op *simOp) {
	o := m.ownerOf(op)
	op.sure = op.modes()
	if op.kind == askUnlock {
		op.sure = [simBytes]lockengine.Mode{}
	}
	for other := range m.inFlight {
		if other != op && (other.kind == askLock || other.kind == askUnlock) && m.ownerOf(other) == o {
			op.lower(&other.sure)
			other.lower(&op.sure)
		}
	}
	op.lower(&o.sure)
}

// modes is the mode that the call asks for, by byte.
func (op *simOp) modes() (m [simBytes]lockengine.Mode) {
	for i := op.from; i <= op.to; i++ {
		m[i] = op.mode
	}
	return m
}

// lower takes from what is sure what the call may take away: flock(2) drops a
// lock before it asks for another mode, fcntl(2) replaces it.
func (op *simOp) lower(sure *[simBytes]lockengine.Mode) {
	for i := op.from; i <= op.to; i++ {
		switch {
		case op.kind == askUnlock, op.class == lockengine.Flock && sure[i] != op.mode:
			sure[i] = 0
		default:
			sure[i] = min(sure[i], op.mode)
		}
	}
}

// blocker is an owner that may hold what conflicts with the call. rumours: also
// one of which nobody was told.
func (m *simModel) blocker(op *simOp, rumours bool) *simOwner {
	return m.blockerBut(op, rumours, nil)
}

func (m *simModel) blockerBut(op *simOp, rumours bool, but *simOwner) *simOwner {
	for _, o := range m.owners {
		if o.class != op.class || o.file != op.file || o.id == op.owner || o == but {
			continue
		}
		if o.desc != nil && o.desc.released != 0 && o.desc.released < op.unique {
			continue // it was closed before this was asked
		}
		for i := op.from; i <= op.to; i++ {
			if conflict(op.mode, o.most[i]) || rumours && conflict(op.mode, o.rumour[i]) {
				return o
			}
		}
	}
	if !rumours {
		return nil
	}
	for other := range m.inFlight {
		if other.limbo && other.blocks(op) {
			return m.ownerOf(other)
		}
	}
	return nil
}

// read is when the server takes a request.
func (m *simModel) read(op *simOp) {
	if op.reads++; op.reads == 1 {
		op.firstRead = m.now.Boot
	}
	op.lastRead = m.now.Boot
	if op.kind == askLock && op.class == lockengine.Record && !op.ofd && m.closesCycle(op, true) {
		op.cycle = true
	}
	if op.reads > 1 || !op.waits() {
		return
	}
	i := slices.Index(m.ghosts, op)
	if i >= 0 {
		m.ghosts = slices.Delete(m.ghosts, i, i+1)
		m.retaken = append(m.retaken, op)
	} else {
		m.arrivals++
		op.arrival = m.arrivals
	}
	for _, g := range m.ghosts {
		if g.same(op) {
			g.moved, op.moved = true, true
		}
	}
}

// vanish is when a request is withdrawn before it was read, or read again.
func (m *simModel) vanish(op *simOp) {
	if !op.limbo {
		return
	}
	switch op.kind {
	case askLock:
		o := m.ownerOf(op)
		for i := op.from; i <= op.to; i++ {
			o.rumour[i] = max(o.rumour[i], op.mode)
		}
		m.vanished = append(m.vanished, op)
	case askUnlock:
		m.ownerOf(op).vague = true
	case askOpen:
		m.unknown++
	case askMkdir, askTake:
		m.rumour(op)
	case askRmdir:
		m.mayHaveEnded(op)
	case askRenew:
		op.inc.low, op.inc.high = min(op.inc.low, op.low()), max(op.inc.high, op.high())
	}
}

// reply is when the kernel gets an answer.
func (m *simModel) reply(op *simOp, errno syscall.Errno, body []byte) {
	switch op.kind {
	case askLock:
		m.locked(op, errno)
	case askUnlock:
		m.expect(op, errno, 0, syscall.EINTR)
		o := m.ownerOf(op)
		for i := op.from; i <= op.to; i++ {
			o.most[i] = 0
		}
	case askTest:
		m.tested(op, errno, body)
	case askFlush:
		m.ghosts = slices.DeleteFunc(m.ghosts, func(g *simOp) bool { return g.kind == askLock && g.owner == op.owner && g.file == op.file })
		m.dropped(func(o *simOwner) bool { return o.process && o.id == op.owner && o.file == op.file })
	case askRelease:
		m.dropped(func(o *simOwner) bool { return o.desc == op.desc })
		m.released(op.desc)
	case askMkdir:
		m.made(op, errno, body)
	case askRmdir:
		m.removed(op, errno)
	case askTake:
		m.taken(op, errno)
	case askRead:
		m.tokenRead(op, errno, body)
	case askRenew:
		m.renewed(op, errno)
	case askAwait:
		m.endTold(op, errno, body)
	}
	switch op.kind {
	case askUnlock, askFlush, askRelease:
		m.gaveBack = true
	}
	op.limbo, op.late = false, op.limbo
}

func (m *simModel) expect(op *simOp, errno syscall.Errno, may ...syscall.Errno) {
	if !slices.Contains(may, errno) {
		m.fail("%v failed with %v", op, errno)
	}
}

func (m *simModel) dropped(which func(*simOwner) bool) {
	m.owners = slices.DeleteFunc(m.owners, func(o *simOwner) bool { return which(o) })
}

func (m *simModel) locked(op *simOp, errno syscall.Errno) {
	o := m.ownerOf(op)
	flockLost := op.class == lockengine.Flock && errno != 0 && !op.blocked && !m.grantedTo(o) &&
		slices.ContainsFunc(o.most[:], func(h lockengine.Mode) bool { return h != op.mode })
	switch errno {
	case 0:
		m.lockGranted(op, o)
	case syscall.EAGAIN:
		if op.wait {
			m.fail("EAGAIN for a call that waits: %v", op)
		}
		if m.blocker(op, true) == nil {
			m.fail("refused though nothing conflicts: %v", op)
		}
	case syscall.EINTR:
		if op.reads > 0 && op.wait {
			m.keepPlace(op)
		}
	case syscall.EDEADLK:
		if op.class != lockengine.Record || op.ofd || !op.wait || !op.cycle && !m.closesCycle(op, true) {
			m.fail("EDEADLK without a cycle: %v", op)
		}
	default:
		m.fail("%v failed with %v", op, errno)
	}
	if flockLost {
		o.most = [simBytes]lockengine.Mode{}
	}
}

func (m *simModel) lockGranted(op *simOp, o *simOwner) {
	for _, other := range m.owners {
		if other == o || other.class != o.class || other.file != o.file {
			continue
		}
		for i := op.from; i <= op.to; i++ {
			if conflict(op.mode, other.sure[i]) {
				m.fail("granted though %x holds a lock that conflicts: %v", other.id, op)
			}
		}
	}
	op.before = o.most
	for i := op.from; i <= op.to; i++ {
		o.sure[i], o.most[i] = op.sure[i], op.mode
	}
	m.granted = append(m.granted, op)
}

// keepPlace is what a signal leaves: the same call has its place back if it is
// made again within a second. Where one owner left two like that, which one is
// which cannot be told from outside.
func (m *simModel) keepPlace(op *simOp) {
	m.ghosts = append(m.ghosts, op)
	op.restarted, op.since = true, m.now.Boot
	// A server that takes over reads a request before it goes on with the
	// interrupt that came before.
	for _, r := range m.kernel.sent {
		if !r.op.blocked && r.op.same(op) {
			r.op.moved, op.moved = true, true
		}
	}
}

func (op *simOp) same(o *simOp) bool {
	return op.kind == o.kind && op.class == o.class && op.file == o.file && op.name == o.name && op.mode == o.mode &&
		op.from == o.from && op.to == o.to && (op.kind == askTake && op.task.proc == o.task.proc || op.kind == askLock && op.owner == o.owner)
}

func (m *simModel) tested(op *simOp, errno syscall.Errno, body []byte) {
	if errno == syscall.EINTR {
		return
	}
	m.expect(op, errno, 0)
	lk := simBody[fuse.LkOut](m.sim, body).Lk
	if lk.Typ == syscall.F_UNLCK {
		for _, o := range m.owners {
			for i := op.from; o.class == op.class && o.file == op.file && o.id != op.owner && i <= op.to; i++ {
				if conflict(op.mode, o.sure[i]) {
					m.fail("%v found nothing, but %x holds byte %d", op, o.id, i)
				}
			}
		}
		return
	}
	found := *op
	found.from, found.to = int(min(lk.Start, simBytes-1)), int(min(lk.End, simBytes-1))
	if found.mode = lockengine.Exclusive; m.blocker(&found, true) == nil || found.from > op.to || found.to < op.from {
		m.fail("%v found a lock on [%d-%d] that nobody has", op, lk.Start, lk.End)
	}
}

// closesCycle reports whether a chain of processes, each of which waits for a
// lock of the next, leads from the call back to its owner.
func (m *simModel) closesCycle(op *simOp, rumours bool) bool {
	seen := map[uint64]bool{}
	var reach func(*simOp) bool
	reach = func(waiting *simOp) bool {
		for _, o := range m.owners {
			one := *waiting
			if o.id == waiting.owner || !m.holds(o, &one, rumours) {
				continue
			}
			if !o.process && !(rumours && slices.ContainsFunc(m.vanished, func(v *simOp) bool { return v.waitsAs(o) })) {
				continue
			}
			if o.id == op.owner {
				return true
			}
			if seen[o.id] {
				continue
			}
			seen[o.id] = true
			for _, r := range m.kernel.sent {
				if !r.op.ofd && r.op.waitsAs(o) && reach(r.op) {
					return true
				}
			}
			for _, v := range m.vanished {
				if rumours && v.waitsAs(o) && reach(v) {
					return true
				}
			}
		}
		return false
	}
	return reach(op)
}

// waitsAs reports whether the call waits for a record lock on behalf of o.
func (op *simOp) waitsAs(o *simOwner) bool {
	return op.kind == askLock && op.wait && op.class == lockengine.Record && op.owner == o.id
}

// holds reports whether an owner has what conflicts with the call.
func (m *simModel) holds(o *simOwner, op *simOp, rumours bool) bool {
	if o.class != op.class || o.file != op.file || o.vague && !rumours {
		return false
	}
	for i := op.from; i <= op.to; i++ {
		if conflict(op.mode, o.most[i]) || rumours && conflict(op.mode, o.rumour[i]) {
			return true
		}
	}
	return false
}

// closing is when a process begins to close a descriptor.
func (m *simModel) closing(p *simProc, d *simDescription) {
	for _, o := range m.owners {
		if o.process && o.id == p.owner && o.file == d.file {
			o.sure = [simBytes]lockengine.Mode{}
		}
	}
	// A call of another thread may be answered before or after.
	for op := range m.inFlight {
		if op.kind == askLock && op.file == d.file && op.owner == p.owner {
			op.sure = [simBytes]lockengine.Mode{}
		}
	}
}

// closed is when nobody has a description open any more.
func (m *simModel) closed(d *simDescription) {
	for _, o := range m.owners {
		if o.desc == d {
			o.sure = [simBytes]lockengine.Mode{}
		}
	}
	if d.inc != nil {
		d.inc.closing = true
	}
}

// beginStep is before the server does anything.
func (m *simModel) beginStep() {
	m.granted, m.retaken, m.lastToken, m.inStep = m.granted[:0], m.retaken[:0], m.stepToken, true
	m.gaveBack = false
	m.ghosts = slices.DeleteFunc(m.ghosts, func(op *simOp) bool { return m.now.Boot-op.since >= int64(lockengine.GhostTime) })
}

// crashed is after a step in which the server died: of what it had read it may
// have done anything or nothing.
func (m *simModel) crashed() {
	for _, op := range m.granted {
		if op.inc != nil {
			op.inc.shaky = true // see dropOrphans: it goes with its opener
		}
	}
	for _, r := range m.kernel.sent {
		r.op.setLimbo(m.sim)
		if r.interrupted {
			r.op.moved = true // its place may be kept since, for a second only
		}
		if r.op.kind == askTake && m.inStep && (r.op.bounded || r.op.timeout != 0) {
			// It may be decided, and over before it is told: then it waits anew.
			r.op.blocked, r.op.moved = false, true
		}
	}
	for _, op := range m.retaken {
		op.moved = true // or it did not: then its place is kept for a second only
	}
	m.inStep = false
	for _, r := range m.kernel.pending { // it was told to send them again
		if isResent(r.unique) {
			r.op.setLimbo(m.sim)
			r.op.moved = r.op.moved || r.interrupted
		}
	}
}

func (op *simOp) setLimbo(s *sim) {
	if !op.limbo {
		op.limbo, op.limboAt, op.limboServed = true, s.now.Boot, s.served
	}
}

// endStep is after a step that the server survived: whatever it was asked is
// answered, or there is a reason for it to wait.
func (m *simModel) endStep() {
	m.inStep = false
	for _, r := range m.kernel.sent {
		m.checkUnanswered(r.op)
	}
	for i, op := range m.granted {
		m.checkOrder(op, m.granted[:i])
	}
	for _, r := range m.kernel.sent {
		if r.op.waits() && !r.op.blocked {
			m.block(r.op)
		}
		r.op.limbo = false
	}
	m.vanished, m.retaken = nil, m.retaken[:0]
	m.forgetRumours()
}

// block is when a call is seen to wait. One to convert a flock has given back
// what it had.
func (m *simModel) block(op *simOp) {
	op.blocked, op.since = true, m.now.Boot
	if o := m.ownerOf(op); op.class == lockengine.Flock && !m.grantedTo(o) {
		o.most = [simBytes]lockengine.Mode{}
	}
}

// grantedTo reports whether a call of the owner got a lock in this step, before
// or after another one of its calls gave back.
func (m *simModel) grantedTo(o *simOwner) bool {
	return slices.ContainsFunc(m.granted, func(g *simOp) bool { return g.kind == askLock && m.ownerOf(g) == o })
}

func (m *simModel) checkUnanswered(op *simOp) {
	switch {
	case op.waits() && m.life.ringing():
	case op.slow && len(m.life.tasks) > 0:
	case !op.waits():
		m.fail("never answered: %v", op)
	case op.kind == askLock && m.blocker(op, true) == nil:
		m.fail("it waits though nothing conflicts: %v", op)
	case op.kind == askLock && op.class == lockengine.Record && !op.ofd && !op.blocked && op.reads == 1 && m.closesCycle(op, false):
		m.fail("it waits in a deadlock: %v", op)
	case op.kind == askTake:
		m.checkTaking(op)
	case op.kind == askAwait && (op.inc.gone || m.now.Boot >= m.high(op.inc)) && len(m.life.tasks) == 0:
		m.fail("it waits for the end of what has ended: %v", op)
	}
}

// checkOrder: who came before and waits still has been passed over only if
// another lock keeps it waiting, or one did that was granted before in the same
// step, and replaced by its owner since. A lock granted before a crash is told when what
// kept others waiting may be gone.
func (m *simModel) checkOrder(op *simOp, before []*simOp) {
	if !op.blocked || op.moved || op.late && m.gaveBack {
		return
	}
	for _, r := range m.kernel.sent {
		w := r.op
		if w.kind != op.kind || !w.blocked || w.moved || w.arrival > op.arrival || w == op {
			continue
		}
		switch op.kind {
		case askTake:
			if w.name == op.name && masterOf(w.name) == "" {
				m.fail("%v was granted before %v, which came earlier", op, w)
			}
		case askLock:
			if w.class == op.class && w.file == op.file && w.owner != op.owner && m.blockerBut(w, true, m.ownerOf(op)) == nil &&
				m.keptBy(w, op) && !slices.ContainsFunc(before, func(g *simOp) bool { return g.owner != op.owner && g.blocks(w) }) {
				m.fail("%v was granted before %v, which came earlier", op, w)
			}
		}
	}
}

// blocks reports whether the lock that the call asks for keeps w waiting.
func (op *simOp) blocks(w *simOp) bool {
	return op.kind == askLock && op.class == w.class && op.file == w.file && op.owner != w.owner &&
		op.from <= w.to && w.from <= op.to && conflict(op.mode, w.mode)
}

// keptBy reports whether only what op got keeps w waiting.
func (m *simModel) keptBy(w, op *simOp) bool {
	o := *m.ownerOf(op)
	o.most = op.before
	return !m.holds(&o, w, true)
}

// Named locks.

// simIncarnation is a named lock that somebody was told to have taken.
type simIncarnation struct {
	name      string
	token     uint64
	told      int // in which step of the server
	timeout   time.Duration
	low, high int64 // it ends by itself not before, not after
	desc      *simDescription
	taken     bool // by an open
	detached  bool // it does not go with its description any more
	asked     bool // somebody has begun to read its token
	closing   bool // its description is being closed
	gone      bool
	opener    *simProc
	shaky     bool // the server crashed when it told so
	forced    bool // somebody may have ended it
	unsure    int  // the step in which it was found to be over, for one reason or another; 0: it was not
}

// low is before which it does not end by itself, with what may have been done to
// renew it and was not told yet.
func (m *simModel) low(inc *simIncarnation) int64 {
	low := inc.low
	for op := range m.renewals(inc) {
		low = min(low, op.low())
	}
	return low
}

// high is after which it is not there any more.
func (m *simModel) high(inc *simIncarnation) int64 {
	high := inc.high
	for op := range m.renewals(inc) {
		high = max(high, op.high())
	}
	return high
}

// renewals are those that were read and not answered.
func (m *simModel) renewals(inc *simIncarnation) iter.Seq[*simOp] {
	return func(yield func(*simOp) bool) {
		for op := range m.inFlight {
			if op.kind == askRenew && op.inc == inc && op.reads > 0 && !yield(op) {
				return
			}
		}
	}
}

// low and high are when a lock ends that the call has renewed.
func (op *simOp) low() int64  { return op.firstRead + int64(op.timeout) }
func (op *simOp) high() int64 { return op.lastRead + int64(op.timeout) }

func (i *simIncarnation) String() string { return i.name + "@" + itoa(i.token) }
func (i *simIncarnation) hold() bool     { return i.timeout == 0 }

const simForever = int64(1) << 62

// lastBefore is the token of the name that was told last before the crash
// since which nobody knows of the call.
func (m *simModel) lastBefore(op *simOp) (last uint64) {
	for _, inc := range m.incs {
		if inc.name == op.name && inc.told <= op.limboServed {
			last = max(last, inc.token)
		}
	}
	return last
}

// lastOf is the incarnation that was told last.
func (m *simModel) lastOf(name string) *simIncarnation {
	for i := len(m.incs) - 1; i >= 0; i-- {
		if m.incs[i].name == name && m.incs[i].token != 0 {
			return m.incs[i]
		}
	}
	return nil
}

// sure: its holder can rely on it.
func (m *simModel) sure(inc *simIncarnation) bool {
	if inc.token == 0 || inc.gone || inc.closing && !inc.detached || inc.forced || m.now.Boot >= m.low(inc) || inc.shaky && inc.opener.dying {
		return false
	}
	for op := range m.inFlight {
		if op.kind == askRmdir && op.covers(inc) && (op.victim == nil || op.victim == inc) {
			return false
		}
	}
	return true
}

func (op *simOp) covers(inc *simIncarnation) bool {
	return op.name == inc.name && (op.token == 0 || op.token == inc.token)
}

// most: somebody may have it.
func (m *simModel) most(inc *simIncarnation, op *simOp) bool {
	if inc.desc != nil && !inc.detached && !inc.asked && inc.desc.released != 0 && inc.desc.released < op.unique {
		return false
	}
	return !inc.gone && m.now.Boot < m.high(inc)
}

// held returns an incarnation that may be what the call found.
func (m *simModel) held(op *simOp) *simIncarnation {
	for _, inc := range m.incs {
		if (inc.name == op.name || inc.name == masterOf(op.name) && inc.opener != op.task.proc) && inc != op.inc && m.most(inc, op) {
			return inc
		}
	}
	for other := range m.inFlight {
		if other != op && other.limbo && (other.kind == askMkdir || other.kind == askTake) && (other.name == op.name || other.name == masterOf(op.name)) {
			return &simIncarnation{name: op.name}
		}
	}
	return nil
}

// rumour is a lock that somebody may have taken who cannot be told any more.
func (m *simModel) rumour(op *simOp) {
	high := simForever
	if op.timeout != 0 {
		high = m.now.Boot + int64(op.timeout)
	}
	m.incs = append(m.incs, &simIncarnation{name: op.name, timeout: op.timeout, high: high, taken: op.kind == askTake})
}

// forgetRumours is after a step that the server survived. It has taken back
// what it gave to an open that vanished.
func (m *simModel) forgetRumours() {
	m.incs = slices.DeleteFunc(m.incs, func(i *simIncarnation) bool {
		return i.token == 0 && (i.taken || m.now.Boot >= i.high)
	})
	if n := len(m.incs) - 40; n > 0 {
		m.incs = slices.DeleteFunc(m.incs, func(i *simIncarnation) bool { n--; return n >= 0 && (i.gone || m.now.Boot >= m.high(i)) })
	}
}

func (m *simModel) mayHaveEnded(op *simOp) {
	for _, inc := range m.incs {
		if op.covers(inc) && !inc.gone {
			inc.forced = true
		}
	}
}

// took enters a lock that its taker is told of now.
func (m *simModel) took(op *simOp, token uint64) {
	last := m.lastToken
	if op.limbo {
		last = m.lastBefore(op) // it may have been granted before the crash, and only be told after others
	}
	if token <= last {
		m.fail("%v got token %d, but %d was told before", op, token, last)
	}
	m.stepToken = max(m.stepToken, token)
	late := false // others were told first that they have it since
	for _, inc := range m.incs {
		switch {
		case inc.name != op.name || inc.token == 0:
		case token < inc.token:
			late = true
		case !inc.gone:
			m.mustHaveEnded(inc, op)
		}
		if inc.name == op.name && inc.token == 0 && !inc.gone {
			// A release that is under way may have ended it, and nothing else.
			inc.gone, inc.unsure = true, m.steps
		}
		// What was granted earlier, by its token, may be told later after a crash.
		if inc.name == masterOf(op.name) && inc.token < token && inc.opener != op.task.proc && m.sure(inc) {
			m.fail("%v was granted while %v is held", op, inc)
		}
	}
	inc := &simIncarnation{name: op.name, token: token, timeout: op.timeout, low: simForever, high: simForever, taken: op.kind == askTake, opener: op.task.proc, told: m.served}
	if op.timeout != 0 {
		since := m.now.Boot
		if op.limbo {
			since = op.limboAt
		}
		inc.low, inc.high = since+int64(op.timeout), m.now.Boot+int64(op.timeout)
	}
	if op.task.proc.dying {
		inc.closing = inc.taken
	}
	if late {
		m.mustHaveEnded(inc, op)
	}
	op.inc = inc
	m.incs = append(m.incs, inc)
	m.granted = append(m.granted, op)
}

// mustHaveEnded finds the reason why inc is over, of which each call gives one.
func (m *simModel) mustHaveEnded(inc *simIncarnation, op *simOp) {
	if m.sure(inc) {
		m.fail("%v was granted while %v is held", op, inc)
	}
	inc.gone = true
	if m.now.Boot >= m.low(inc) || inc.forced || inc.shaky || inc.closing && !inc.detached {
		inc.unsure = m.steps
		return
	}
	var by *simOp // the one that came first: they are served in order, also when they are sent again
	for r := range m.inFlight {
		if r.kind == askRmdir && r.reads > 0 && r.covers(inc) && r.victim == nil &&
			(by == nil || r.unique < by.unique) {
			by = r
		}
	}
	if by == nil {
		m.fail("%v was granted while %v is held", op, inc)
	}
	by.victim = inc
}

func (m *simModel) made(op *simOp, errno syscall.Errno, body []byte) {
	m.expect(op, errno, 0, syscall.EEXIST)
	if errno != 0 {
		if m.held(op) == nil {
			m.fail("EEXIST though nobody has it: %v", op)
		}
		return
	}
	m.took(op, simBody[fuse.EntryOut](m.sim, body).NodeId&^synthetic>>tokenShift)
}

func (m *simModel) removed(op *simOp, errno syscall.Errno) {
	m.expect(op, errno, 0, syscall.ENOENT)
	if errno != 0 {
		for _, inc := range m.incs {
			if op.covers(inc) && op.victim == nil && m.sureBut(inc, op) {
				m.fail("ENOENT though %v is held: %v", inc, op)
			}
		}
		return
	}
	if op.victim != nil {
		return
	}
	var found *simIncarnation
	unsure := op.limbo
	for _, inc := range m.incs {
		unsure = unsure || op.covers(inc) && inc.unsure != 0 && inc.unsure >= op.step
		if op.covers(inc) && m.most(inc, &simOp{}) && (found == nil || inc.token != 0) {
			found = inc
		}
	}
	switch {
	case found != nil && unsure:
		found.forced = true
	case found != nil:
		found.gone = true
	case !unsure:
		m.fail("released what nobody has: %v", op)
	}
}

// sureBut is sure but for what this call, and no other, may have done.
func (m *simModel) sureBut(inc *simIncarnation, op *simOp) bool {
	return !op.limbo && m.sure(inc)
}

func (m *simModel) taken(op *simOp, errno syscall.Errno) {
	switch errno {
	case 0:
		m.took(op, m.tokenOf(op))
	case syscall.EAGAIN:
		if !op.try {
			m.fail("EAGAIN for an open that waits: %v", op)
		}
		if m.held(op) == nil {
			m.fail("refused though nobody has it: %v", op)
		}
	case syscall.ETIMEDOUT:
		if !op.bounded || op.try || m.now.Boot-op.began < int64(op.patience) {
			m.fail("it gave up too early: %v", op)
		}
	case syscall.EINTR:
		if op.reads > 0 {
			m.keepPlace(op)
		}
	default:
		m.fail("%v failed with %v", op, errno)
	}
}

// tokenOf is the token that a read of the new handle would give. Only the
// server knows the handle as yet.
func (m *simModel) tokenOf(op *simOp) uint64 {
	h := m.server.handles.get(handleNumber(op.unique))
	if h == nil || h.taking == nil {
		m.fail("no handle for %v", op)
	}
	return h.taking.token
}

func (m *simModel) checkTaking(op *simOp) {
	if m.held(op) == nil {
		m.fail("it waits though nobody has it: %v", op)
	}
	if op.bounded && op.blocked && m.now.Boot-op.since > int64(op.patience) {
		m.fail("it waits longer than it wanted: %v", op)
	}
}

func (m *simModel) tokenRead(op *simOp, errno syscall.Errno, body []byte) {
	switch {
	case errno == syscall.EINTR && op.reads == 0:
	case errno == syscall.EIO && op.inc.hold() && !m.sure(op.inc):
	case errno == syscall.EBADF && op.inc.shaky && op.inc.opener.dying: // see dropOrphans
	case errno == 0 && string(body) == itoa(op.inc.token)+"\n":
		op.inc.detached = op.inc.detached || !op.inc.hold()
	default:
		m.fail("%v: %v %q", op, errno, body)
	}
}

// released is when the server has closed a description.
func (m *simModel) released(d *simDescription) {
	if d.inc != nil && (d.inc.hold() || !d.inc.asked) {
		d.inc.gone = true
	}
}

func (m *simModel) renewed(op *simOp, errno syscall.Errno) {
	switch errno {
	case 0:
		op.inc.low, op.inc.high = op.low(), op.high()
	case syscall.ENOENT:
		if m.sure(op.inc) {
			m.fail("ENOENT though it is held: %v", op)
		}
	case syscall.EINTR:
	default:
		m.fail("%v: %v", op, errno)
	}
}

func (m *simModel) endTold(op *simOp, errno syscall.Errno, body []byte) {
	if errno == syscall.EINTR {
		return
	}
	m.expect(op, errno, 0)
	if m.sure(op.inc) {
		m.fail("told that it has ended: %v", op)
	}
	said := strings.TrimSuffix(string(body), "\n")
	if said == "expired" && m.now.Boot < m.low(op.inc) || said == "lost" ||
		said != "" && !slices.Contains(endNames[:], said+"\n") || said == "forced" && !op.inc.hold() {
		m.fail("told %q: %v", said, op)
	}
}
