package lockengine

import (
	"errors"
	"fmt"
	"maps"
	"slices"
)

// replayed is what is known from a log and not claimed yet.
type replayed struct {
	state  *stateDecoder // of a state that is being read
	byID   map[WaiterID]*claim
	byKey  map[uint64]*claim
	endOf  map[WatchID]End // of watches that nobody has claimed
	closed bool            // nothing more is claimed
	told   told            // of the last command
}

// claim is a request that waited when the engine was started again.
type claim struct {
	id      WaiterID
	req     Request
	decided bool // then grant or err
	grant   Grant
	err     error
}

// ended keeps the end of a watch for who claims it.
func (r *replayed) ended(d completion) {
	if r.closed {
		return
	}
	if r.endOf == nil {
		r.endOf = map[WatchID]End{}
	}
	r.endOf[d.watch] = d.end
}

// decided keeps an outcome for who claims it.
func (r *replayed) decided(d completion) {
	if c := r.byID[d.waiter]; c != nil {
		c.decided, c.grant, c.err = true, d.grant, d.err
	}
}

// Replay takes a record of an earlier engine. Call it with all that the log
// has of the kinds 1 to 9, in order, before [Local.Resume]. It fails if the
// record cannot be understood; then this engine is of no use. data can be used
// again by the caller.
func (l *Local) Replay(kind uint8, data []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var err error
	switch {
	case kind == recordState:
		err = l.replayState(data)
	case l.replay.state != nil:
		err = errOrder
	case kind == recordCommand:
		err = l.replayCommand(data)
	case kind == recordTokens:
		err = l.replayTokens(data)
	default:
		err = errVersion
	}
	if err != nil {
		return fmt.Errorf("replay of locks: a record of kind %d: %w", kind, err)
	}
	return nil
}

func (l *Local) replayCommand(data []byte) error {
	r := decoder{buf: data}
	cmd, at := r.command(&l.replay.told)
	if err := r.end(); err != nil {
		return err
	}
	l.core.apply(&cmd, at, new(result))
	for _, d := range l.core.done {
		if d.waiter == 0 && d.name == "" {
			l.replay.ended(d)
		}
	}
	l.core.taken()
	return nil
}

func (l *Local) replayState(chunk []byte) error {
	if l.replay.state == nil {
		l.replay.state = &stateDecoder{core: newCore(l.core.log.bound)}
	}
	core, err := l.replay.state.chunk(chunk)
	if core == nil || err != nil {
		return err
	}
	l.core, l.tokens.reserved = core, l.replay.state.reserved
	l.replay = replayed{}
	return nil
}

func (l *Local) replayTokens(data []byte) error {
	r := decoder{buf: data}
	r.format()
	last := r.word()
	if err := r.end(); err != nil {
		return err
	}
	l.tokens.reserved = max(l.tokens.reserved, last)
	return nil
}

// Resumption says what is known of a restart. The zero value is a fresh mount
// after an orderly end.
type Resumption struct {
	// Same: the clients are still there, and go on as if nothing had happened.
	// Otherwise only timed locks stay. (In another boot nobody is still there.)
	Same bool
	// Lost: the end of the log may be lost, since the machine went down.
	Lost bool
}

// Resume ends the replay, and time goes on. If the clients are the same, they
// claim what they wait for: Wait with the Key of a request that waits still
// goes on with that, with the same WaiterID, or returns what it came to since;
// [Local.Rewatch] does it for a watch. Before the first, [Local.Expect] says
// which will. When all have, call [Local.Claimed].
// With a Log it must be called, also if there was nothing to replay.
func (l *Local) Resume(r Resumption) error {
	l.mu.Lock()
	if l.replay.state != nil {
		l.mu.Unlock()
		return errors.New("replay of locks: the end of the state is missing")
	}
	same := r.Same && l.boot == l.core.boot
	if same {
		l.expectClaims()
	}
	cmd := command{op: opResume, fresh: !same, boot: l.boot}
	if r.Lost {
		cmd.token = l.tokens.reserved
	}
	l.apply(&cmd, l.reserveFirst(cmd.token), new(result))
	l.core.gave = l.core.gave || len(l.core.names.byName) >= largeMap // what it took to read them
	l.limit()
	l.settle()
	if !same {
		l.Claimed()
	}
	return nil
}

func (l *Local) expectClaims() {
	l.replay.byID = map[WaiterID]*claim{}
	l.replay.byKey = map[uint64]*claim{}
	for w := range l.core.line.all {
		c := &claim{id: w.id, req: w.req}
		l.replay.byID[w.id] = c
		if w.req.Key != 0 {
			l.replay.byKey[w.req.Key] = c
		}
	}
	l.setRare()
}

// claim reports whether the request has waited since before the restart: then
// it goes on with that, and res is what it came to. It is claimed once.
func (l *Local) claim(cmd *command, res *result) bool {
	req := cmd.req
	c := l.replay.byKey[req.Key]
	if c == nil || l.closed || c.req.Class != req.Class || c.req.Name != req.Name || c.req.Owner != req.Owner {
		return false
	}
	delete(l.replay.byKey, req.Key)
	delete(l.replay.byID, c.id)
	w := l.core.waiters.get(c.id)
	switch {
	case c.decided && l.syncGrants && c.grant.Expiry != Instant{}:
		res.waiter = l.holdGrant(c.grant, cmd.tell)
	case c.decided:
		res.grant, res.err = c.grant, c.err
	case w == nil:
		return false // it was canceled
	default:
		w.tell, res.waiter = cmd.tell, c.id
	}
	return true
}

// Rewatch gives a watch of before the restart its callback again, and reports
// whether there is such a watch. If the lock ended meanwhile, done is called
// before it returns.
func (l *Local) Rewatch(id WatchID, done func(End)) bool {
	l.mu.Lock()
	if end, ended := l.replay.endOf[id]; ended {
		delete(l.replay.endOf, id)
		l.mu.Unlock()
		done(end)
		return true
	}
	defer l.mu.Unlock()
	if l.closed || l.core.watches[id] == nil {
		return false
	}
	l.watches[id] = done
	return true
}

// Expect says which requests will be claimed, by their keys: the waits of all
// others end now, before anything is given back that they could be granted.
// What an owner gets in a wait of which nobody knows cannot be taken back
// exactly: a lock in another mode that it had before would go with it.
func (l *Local) Expect(keys map[uint64]bool) {
	for _, id := range l.unexpected(keys) {
		l.Cancel(id, false)
	}
}

func (l *Local) unexpected(keys map[uint64]bool) (ids []WaiterID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, w := range l.core.waitersInOrder() {
		if !keys[w.req.Key] {
			ids = append(ids, w.id)
		}
	}
	return ids
}

// Claimed says that no more claims come: what nobody claimed is canceled, or
// given back if it was granted since.
func (l *Local) Claimed() {
	l.mu.Lock()
	now, err := l.ready(&tick)
	if err != nil {
		l.mu.Unlock()
		return
	}
	l.apply(&tick, now, new(result))
	calls := l.due(nil) // outcomes up to now go to the claims; there are no more at this instant
	for _, cmd := range l.unclaimed() {
		l.apply(&cmd, now, new(result))
	}
	l.replay = replayed{closed: true}
	l.setRare()
	l.tell(calls...)
}

// unclaimed are the commands that end what nobody claimed. Waits come first,
// so that none of them is granted what goes.
func (l *Local) unclaimed() (cmds []command) {
	for _, w := range l.core.waitersInOrder() {
		if w.tell == nil {
			cmds = append(cmds, command{op: opCancel, waiter: w.id})
		}
	}
	for _, id := range slices.Sorted(maps.Keys(l.core.watches)) {
		if l.watches[id] == nil {
			cmds = append(cmds, command{op: opUnwatch, watch: id})
		}
	}
	for _, id := range slices.Sorted(maps.Keys(l.replay.byID)) {
		if c := l.replay.byID[id]; c.decided && c.err == nil {
			cmds = append(cmds, c.undo())
		}
	}
	return cmds
}

// undo is the command that gives back what was granted.
func (c *claim) undo() command {
	if c.req.Class == Named {
		return command{op: opRelease, req: &Request{Name: c.req.Name}, token: c.grant.Token, how: Lost}
	}
	return command{op: opUnlock, req: &c.req}
}

// NamedHandles lists the handles with which named locks go, in order.
func (l *Local) NamedHandles() (ids []uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, h := range l.core.handles {
		if !h.names.empty() {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// WaitsSince is when a request that waits began to.
func (l *Local) WaitsSince(id WaiterID) (since Instant, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.core.waiters.get(id)
	if w == nil {
		return Instant{}, false
	}
	return w.since, true
}
