package lockengine

import "fmt"

// heldBack is what is told only when it is on disk, in order.
type heldBack struct {
	queue   []heldCall
	syncing bool     // one sync at a time: what comes meanwhile shares the next
	last    WaiterID // number of the last grant held back
}

type heldCall struct {
	pos  uint64 // of the record that must be on disk
	err  error  // there is none
	tell func(error)
}

// syncs says whether what the command came to is told only when it is on disk.
func (l *Local) syncs(cmd *command, err error) bool {
	if !l.syncGrants || err != nil {
		return false
	}
	switch cmd.op {
	case opTry, opWait:
		return cmd.req.Class == Named && cmd.req.Timeout > 0
	case opRenew, opSetStart, opSetSpan:
		return true
	}
	return false
}

// hold calls tell when all that is recorded by now is on disk, or cannot be.
func (l *Local) hold(tell func(error)) {
	call := heldCall{pos: l.record.pos, tell: tell}
	if len(l.record.owed) > 0 {
		call.err = ErrNoSpace
	}
	l.held.queue = append(l.held.queue, call)
	l.sync()
}

// holdGrant holds back a grant, and returns a number for it, which can not be
// canceled.
func (l *Local) holdGrant(g Grant, done func(Grant, error)) WaiterID {
	l.hold(func(err error) {
		if err != nil {
			l.lose(g.Token)
			g = Grant{}
		}
		done(g, err)
	})
	l.held.last++
	return outside | l.held.last
}

// sync begins to sync what is held back, unless that is going on.
func (l *Local) sync() {
	h := &l.held
	if h.syncing || len(h.queue) == 0 {
		return
	}
	h.syncing = true
	pos := h.queue[len(h.queue)-1].pos
	l.record.log.Synced(pos, func(err error) { go l.synced(pos, err) })
}

// synced tells what was held back up to pos.
func (l *Local) synced(pos uint64, err error) {
	if err != nil {
		err = fmt.Errorf("not on disk: %w", err)
	}
	l.mu.Lock()
	h := &l.held
	n := 0
	for n < len(h.queue) && h.queue[n].pos <= pos {
		n++
	}
	calls := h.queue[:n:n]
	if h.queue = h.queue[n:]; len(h.queue) == 0 {
		h.queue = nil
	}
	l.mu.Unlock()
	for _, call := range calls {
		if call.err == nil {
			call.err = err
		}
		call.tell(call.err)
	}
	l.mu.Lock()
	h.syncing = false
	l.sync()
	l.mu.Unlock()
}

// lose releases a lock of which nobody was told; 0: none.
func (l *Local) lose(token uint64) {
	if token == 0 {
		return
	}
	if lock, held := l.GetToken(token); held {
		_ = l.Release(lock.Name, token, Lost) // it may have ended just now
	}
}
