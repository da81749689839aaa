package lockengine

import "sync"

// Local is the engine within this process: the core under one mutex, with a
// clock, callbacks, and readers of the event log.
type Local struct {
	clock    Clock
	classify func(Owner, Who) OwnerKind

	mu      sync.Mutex
	core    *core                           // GUARDED_BY(mu)
	waiting map[WaiterID]func(Grant, error) // GUARDED_BY(mu)
	watches map[WatchID]func(End)           // GUARDED_BY(mu)
	readers map[WatchID]reader              // GUARDED_BY(mu)
	watch   WatchID                         // GUARDED_BY(mu): the last one given out
	alarm   int64                           // GUARDED_BY(mu): when it is set for, by Boot; 0: not set
	closed  bool                            // GUARDED_BY(mu)
}

// reader waits for the first event after seq.
type reader struct {
	after uint64
	ready func()
}

var _ Engine = (*Local)(nil)

// NewLocal starts an engine with no locks. It fails only if there is no clock.
// Close it to stop its timer.
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
	return &Local{
		clock:    clock,
		classify: cfg.Classify,
		core:     newCore(cfg.EventLog),
		waiting:  map[WaiterID]func(Grant, error){},
		watches:  map[WatchID]func(End){},
		readers:  map[WatchID]reader{},
	}, nil
}

// do applies one command and tells whoever it concerns.
func (l *Local) do(cmd *command) result {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return result{err: ErrClosed}
	}
	res := l.core.apply(cmd, l.clock.Now())
	l.settle()
	return res
}

// look lets time pass, so that nothing that ended is seen, and then looks.
func (l *Local) look(f func(*core)) {
	l.mu.Lock()
	if !l.closed {
		l.core.apply(&command{op: opTick}, l.clock.Now())
	}
	f(l.core)
	l.settle()
}

// settle ends every method: it sets the alarm, unlocks the mutex, and then
// calls back, in the order in which the core completed.
func (l *Local) settle() {
	l.setAlarm()
	calls := l.calls()
	l.mu.Unlock()
	for _, call := range calls {
		call()
	}
}

// calls are the callbacks due: outcomes first, then readers of events.
func (l *Local) calls() (calls []func()) {
	if len(l.core.done) == 0 && len(l.readers) == 0 {
		return nil
	}
	for i := range l.core.done {
		calls = append(calls, l.call(l.core.done[i]))
	}
	clear(l.core.done)
	l.core.done = l.core.done[:0]
	for id, r := range l.readers {
		if l.core.log.last > r.after {
			calls = append(calls, r.ready)
			delete(l.readers, id)
		}
	}
	return calls
}

func (l *Local) call(d completion) func() {
	if d.waiter != 0 {
		done := l.waiting[d.waiter]
		delete(l.waiting, d.waiter)
		return func() { done(d.grant, d.err) }
	}
	done := l.watches[d.watch]
	delete(l.watches, d.watch)
	return func() { done(d.end) }
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
	l.core.apply(&command{op: opTick}, l.clock.Now())
	l.settle()
}

// Try implements [Engine].
func (l *Local) Try(req Request) (Grant, error) {
	res := l.do(&command{op: opTry, req: req})
	return res.grant, res.err
}

// Wait implements [Engine].
func (l *Local) Wait(req Request, done func(Grant, error)) (Grant, WaiterID, error) {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return Grant{}, 0, ErrClosed
	}
	cmd := command{op: opWait, req: req}
	now := l.clock.Now()
	res := l.core.apply(&cmd, now)
	for res.ask != nil {
		l.core.apply(&command{op: opClassify, kinds: l.answer(res.ask)}, now)
		res = l.core.apply(&cmd, now)
	}
	if res.waiter != 0 {
		l.waiting[res.waiter] = done
	}
	l.settle()
	return res.grant, res.waiter, res.err
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
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return false
	}
	res := l.core.apply(&command{op: opCancel, waiter: id, keep: keepPlace}, l.clock.Now())
	if res.ok {
		delete(l.waiting, id)
	}
	l.settle()
	return res.ok
}

// Unlock implements [Engine].
func (l *Local) Unlock(class Class, name string, owner Owner, rng Range) {
	l.do(&command{op: opUnlock, req: Request{Class: class, Name: name, Owner: owner, Range: rng}})
}

// DropOwner implements [Engine].
func (l *Local) DropOwner(name string, owner Owner) {
	l.do(&command{op: opDropOwner, req: Request{Name: name, Owner: owner}})
}

// DropHandle implements [Engine].
func (l *Local) DropHandle(handle uint64) {
	l.do(&command{op: opDropHandle, req: Request{Handle: handle}})
}

// Release implements [Engine].
func (l *Local) Release(name string, token uint64, how End) error {
	return l.do(&command{op: opRelease, req: Request{Name: name}, token: token, how: how}).err
}

// Close implements [Engine]. Locks and watches are forgotten without a word.
func (l *Local) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.core.apply(&command{op: opClose}, l.clock.Now())
	l.closed = true
	clear(l.watches)
	l.settle()
	return l.clock.Close()
}
