package lockengine

import "time"

// Renew implements [Engine]. Token 0 renews whatever its token. The lock's
// Timeout is then the one given here, also with extend.
func (l *Local) Renew(name string, token uint64, timeout time.Duration, extend bool, max time.Duration) (Grant, error) {
	cmd := command{
		op: opRenew, token: token, extend: extend, max: int64(max),
		req: &Request{Name: name, Timeout: timeout},
	}
	var res result
	l.do(&cmd, &res)
	return res.grant, res.err
}

// SetNote implements [Engine]. Token 0 sets it whatever its token.
func (l *Local) SetNote(name string, token uint64, note string) error {
	return l.change(&command{op: opSetNote, req: &Request{Name: name}, token: token, note: note})
}

// Watch implements [Engine]. Token 0 watches the one held now.
func (l *Local) Watch(name string, token uint64, done func(End)) (WatchID, error) {
	l.mu.Lock()
	cmd := command{op: opWatch, req: &Request{Name: name}, token: token}
	now, err := l.ready(&cmd)
	if err != nil {
		l.mu.Unlock()
		return 0, err
	}
	cmd.watch = l.core.lastWatch + 1
	var res result
	l.apply(&cmd, now, &res)
	if res.err != nil {
		cmd.watch = 0
	} else {
		l.watches[cmd.watch] = done
	}
	l.settle()
	return cmd.watch, res.err
}

// Unwatch implements [Engine].
func (l *Local) Unwatch(id WatchID) bool {
	l.mu.Lock()
	if _, reading := l.readers[id]; reading {
		delete(l.readers, id)
		l.mu.Unlock()
		return true
	}
	cmd := command{op: opUnwatch, watch: id}
	now, err := l.ready(&cmd)
	if err != nil {
		l.mu.Unlock()
		return false
	}
	var res result
	l.apply(&cmd, now, &res)
	if res.ok {
		delete(l.watches, id)
	}
	l.settle()
	return res.ok
}

// Detach implements [Engine].
func (l *Local) Detach(name string, token uint64) error {
	return l.change(&command{op: opDetach, req: &Request{Name: name}, token: token})
}

// OnDeadlock has done called for each request that closes a cycle: refused with
// ErrDeadlock, or waiting in one that is only possible.
func (l *Local) OnDeadlock(done func(req Request, refused bool)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cycle = done
}

// OnExpired has done called for each lease that runs out from now on.
func (l *Local) OnExpired(done func(name string, token uint64)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.expired = done
}
