package lockengine

import (
	"runtime/debug"
	"sync"
)

// Local is the engine within this process: the core under one mutex, with a
// clock, callbacks, and readers of the event log. With a [Log] it can be
// started again where it was.
type Local struct {
	clock      Clock
	classify   func(Owner, Who) OwnerKind
	maxPerUser int
	limitRoot  bool
	boot       string
	syncGrants bool

	copying sync.Mutex // held while a copy of the state is made; taken before mu

	mu      sync.Mutex
	core    *core                           // GUARDED_BY(mu)
	watches map[WatchID]func(End)           // GUARDED_BY(mu)
	readers map[WatchID]reader              // GUARDED_BY(mu)
	reader  WatchID                         // GUARDED_BY(mu): the last one given out
	alarm   int64                           // GUARDED_BY(mu): when it is set for, by Boot; 0: not set
	closed  bool                            // GUARDED_BY(mu)
	rare    bool                            // GUARDED_BY(mu): see setRare
	expired func(name string, token uint64) // GUARDED_BY(mu); nil: nobody wants to know
	cycle   func(req Request, refused bool) // GUARDED_BY(mu); nil: nobody wants to know
	record  recorder                        // GUARDED_BY(mu)
	tokens  tokenBlock                      // GUARDED_BY(mu)
	held    heldBack                        // GUARDED_BY(mu)
	replay  replayed                        // GUARDED_BY(mu)
}

// reader waits for the first event after seq.
type reader struct {
	after uint64
	ready func()
}

// outside begins the numbers that the core knows nothing of: of readers of
// events, and of grants that are held back.
const outside = 1 << 63

var _ Engine = (*Local)(nil)

// NewLocal starts an engine with no locks. It fails only if there is no clock.
// Close it to stop its timer. If there is a Log, give it what that has to
// [Local.Replay], and then call [Local.Resume], before anything else.
func NewLocal(cfg Config) (*Local, error) {
	clock := cfg.Clock
	if clock == nil {
		var err error
		if clock, err = newSystemClock(); err != nil {
			return nil, err
		}
	}
	if cfg.EventLog <= 0 {
		cfg.EventLog = defaultEventLog
	}
	l := &Local{
		clock:      clock,
		maxPerUser: cfg.MaxPerUser,
		limitRoot:  cfg.LimitRoot,
		classify:   cfg.Classify,
		boot:       cfg.Boot,
		syncGrants: cfg.SyncGrants && cfg.Log != nil,
		core:       newCore(cfg.EventLog),
		watches:    map[WatchID]func(End){},
		readers:    map[WatchID]reader{},
		record:     recorder{log: cfg.Log, logger: cfg.Logger},
	}
	if cfg.Log == nil {
		l.limit()
	}
	l.setRare()
	return l, nil
}

// limit begins to bound what users have: not before the replay, which is of
// what was granted.
func (l *Local) limit() { l.core.quota.max, l.core.quota.root = l.maxPerUser, l.limitRoot }

// setRare is called when one of these changes: with any of them each command
// takes the long way of doRare.
func (l *Local) setRare() {
	l.rare = l.closed || l.record.log == nil || l.syncGrants || len(l.replay.byKey) > 0
}

// do applies one command, which comes to res, the zero result before, and tells
// whoever it concerns. What a lock costs is how much code it runs through here:
// so what most need not have is elsewhere, and apply is written out.
func (l *Local) do(cmd *command, res *result) {
	l.mu.Lock()
	now := l.clock.Now()
	if l.rare || l.core.stats.Waiting[Named] > 0 || cmd.op.grows() && (cmd.req.Class == Named || l.room(cmd) != nil) {
		l.doRare(cmd, res)
		return
	}
	change := l.core.apply(cmd, now, res)
	l.record.command(change, l.core.now)
	switch {
	case res.cycle != cycleNone || res.ask != nil:
		l.finish(cmd, res, now)
	case l.owes():
		l.tell()
	default:
		l.mu.Unlock()
	}
}

// doRare is do when there may be a claim, or no room, or tokens are to be
// reserved, or the engine is such that there is more to look after.
func (l *Local) doRare(cmd *command, res *result) {
	if cmd.op == opWait && l.claim(cmd, res) {
		l.mu.Unlock()
		return
	}
	var now Instant
	if now, res.err = l.ready(cmd); res.err != nil {
		l.mu.Unlock()
		return
	}
	l.apply(cmd, now, res)
	l.finish(cmd, res, now)
}

// finish is the end of do, for what is not over yet and what is told later.
func (l *Local) finish(cmd *command, res *result, now Instant) {
	for res.ask != nil {
		l.apply(&command{op: opClassify, kinds: l.answer(res.ask)}, now, new(result))
		*res = result{}
		l.apply(cmd, now, res)
	}
	switch {
	case res.waiter != 0 || !l.syncs(cmd, res.err):
	case cmd.op == opWait:
		res.grant, res.waiter = Grant{}, l.holdGrant(res.grant, cmd.tell)
	default:
		l.finishSynced(cmd, res)
		return
	}
	if res.cycle != cycleNone && l.cycle != nil {
		l.tell(tellCycle(l.cycle, *cmd.req, res.err != nil))
	} else {
		l.settle()
	}
}

// finishSynced is finish of what is told when it is on disk, to its caller.
func (l *Local) finishSynced(cmd *command, res *result) {
	synced := make(chan error, 1)
	l.hold(func(err error) { synced <- err })
	l.settle()
	if err := <-synced; err != nil {
		if cmd.op == opTry {
			l.lose(res.grant.Token)
		}
		*res = result{err: err}
	}
}

// ready says whether the command can be done, and when it is. The mutex may be
// unlocked for a while meanwhile.
func (l *Local) ready(cmd *command) (Instant, error) {
	for failed := false; ; {
		now := l.clock.Now()
		if l.closed {
			return now, ErrClosed
		}
		if l.record.log == nil || failed {
			return now, nil
		}
		if cmd.op.grows() {
			if err := l.room(cmd); err != nil {
				return now, err
			}
		}
		n := l.mayGive(cmd)
		if n == 0 {
			return now, nil
		}
		wait := l.reserve(n, now)
		if wait == nil {
			return now, nil
		}
		if err := wait(); err != nil {
			if cmd.op.grows() {
				return now, err
			}
			failed = true // what gives back is done all the same
		}
	}
}

// apply applies a command, which comes to res, and records it if it changed
// anything.
func (l *Local) apply(cmd *command, now Instant, res *result) {
	change := l.core.apply(cmd, now, res)
	l.record.command(change, l.core.now)
}

// look lets time pass, so that nothing that ended is seen, and then looks.
func (l *Local) look(f func(*core)) {
	l.mu.Lock()
	l.tick()
	f(l.core)
	l.settle()
}

func (l *Local) tick() {
	if now, err := l.ready(&tick); err == nil {
		l.apply(&tick, now, new(result))
	}
}

// settle ends every method but do, which has a shorter way: it sets the alarm,
// unlocks the mutex, and then calls back, in the order in which the core completed.
func (l *Local) settle() {
	if l.owes() {
		l.tell()
		return
	}
	l.mu.Unlock()
}

// owes says whether something is due, or may be later.
func (l *Local) owes() bool {
	return len(l.core.done)+len(l.readers) > 0 || l.core.gave || l.core.timed()
}

// tell is settle when something may be due, which is called after what is earlier.
func (l *Local) tell(earlier ...outcome) {
	if l.core.timed() {
		l.setAlarm()
	}
	if l.core.gave {
		l.core.gave = false
		go debug.FreeOSMemory()
	}
	if len(l.core.done) == 1 && len(l.readers)+len(earlier) == 0 && !l.syncGrants {
		if d := &l.core.done[0]; d.tell != nil { // as most are: nothing is allocated for it
			tell, grant, err := d.tell, d.grant, d.err
			d.tell, l.core.done = nil, l.core.done[:0]
			l.mu.Unlock()
			tell(grant, err)
			return
		}
	}
	due := l.due(nil)
	l.mu.Unlock()
	for i := range earlier {
		earlier[i].tell()
	}
	for i := range due {
		due[i].tell()
	}
}

// outcome is who is to be called back, and with what.
type outcome struct {
	wait  func(Grant, error)
	grant Grant
	err   error
	call  func()
}

func (o *outcome) tell() {
	switch {
	case o.wait != nil:
		o.wait(o.grant, o.err)
	case o.call != nil:
		o.call()
	}
}

// due appends who is to be called back: outcomes first, then readers of events.
func (l *Local) due(all []outcome) []outcome {
	for i := range l.core.done {
		all = append(all, l.outcome(&l.core.done[i]))
	}
	l.core.taken()
	for id, r := range l.readers {
		if l.core.log.last > r.after {
			all = append(all, outcome{call: r.ready})
			delete(l.readers, id)
		}
	}
	return all
}

// outcome is the callback for one completion, zero if it is for later.
func (l *Local) outcome(d *completion) outcome {
	switch {
	case d.waiter != 0:
		return l.waited(d)
	case d.name != "":
		if l.expired == nil {
			return outcome{}
		}
		expired, name, token := l.expired, d.name, d.grant.Token
		return outcome{call: func() { expired(name, token) }}
	}
	done, end := l.watches[d.watch], d.end
	if done == nil {
		l.replay.ended(*d)
		return outcome{}
	}
	delete(l.watches, d.watch)
	return outcome{call: func() { done(end) }}
}

// waited is the callback of a request that waited.
func (l *Local) waited(d *completion) outcome {
	if d.tell == nil {
		l.replay.decided(*d)
		return outcome{}
	}
	if l.syncGrants && d.grant.Expiry != (Instant{}) {
		l.holdGrant(d.grant, d.tell)
		return outcome{}
	}
	return outcome{wait: d.tell, grant: d.grant, err: d.err}
}

// setAlarm sets the alarm if something ends before it would ring. One that
// rings early does no harm, and is cheaper than setting it anew all the time.
func (l *Local) setAlarm() {
	d := l.core.deadline()
	if l.closed || d == 0 || l.alarm != 0 && l.alarm <= d {
		return
	}
	l.alarm = d
	l.clock.Alarm(d, l.ring)
}

func (l *Local) ring() {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return
	}
	l.alarm = 0 // if it rang a little early, it is set again
	l.tick()
	l.settle()
}

// Try implements [Engine].
func (l *Local) Try(req *Request) (Grant, error) {
	var res result
	l.do(&command{op: opTry, req: req}, &res)
	return res.grant, res.err
}

// Wait implements [Engine].
func (l *Local) Wait(req *Request, done func(Grant, error)) (Grant, WaiterID, error) {
	var res result
	l.do(&command{op: opWait, req: req, tell: done}, &res)
	return res.grant, res.waiter, res.err
}

func tellCycle(tell func(Request, bool), req Request, refused bool) outcome {
	return outcome{call: func() { tell(req, refused) }}
}

func (l *Local) answer(ask []question) []ownerKind {
	kinds := make([]ownerKind, len(ask))
	for i, q := range ask {
		kinds[i].owner = q.owner
		if l.classify != nil {
			kinds[i].kind = l.classify(q.owner, q.who)
		}
	}
	return kinds
}

// Cancel implements [Engine].
func (l *Local) Cancel(id WaiterID, keepPlace bool) bool {
	var res result
	l.do(&command{op: opCancel, waiter: id, keep: keepPlace}, &res)
	return res.ok
}

// Unlock implements [Engine].
func (l *Local) Unlock(req *Request) error {
	return l.change(&command{op: opUnlock, req: req})
}

// DropOwner implements [Engine].
func (l *Local) DropOwner(name string, owner Owner) {
	l.do(&command{op: opDropOwner, req: &Request{Name: name, Owner: owner}}, new(result))
}

// DropHandle implements [Engine].
func (l *Local) DropHandle(handle uint64) {
	l.do(&command{op: opDropHandle, req: &Request{Handle: handle}}, new(result))
}

// Release implements [Engine].
func (l *Local) Release(name string, token uint64, how End) error {
	return l.change(&command{op: opRelease, req: &Request{Name: name}, token: token, how: how})
}

// change is do of what only succeeds or fails.
func (l *Local) change(cmd *command) error {
	var res result
	l.do(cmd, &res)
	return res.err
}

// Close implements [Engine]. Locks and watches are forgotten without a word.
func (l *Local) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.apply(&command{op: opClose}, l.clock.Now(), new(result))
	l.closed = true
	l.setRare()
	if l.tokens.refresh != nil {
		l.tokens.refresh.Stop()
	}
	clear(l.watches)
	l.settle()
	return l.clock.Close()
}
