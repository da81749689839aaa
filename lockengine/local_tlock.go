package lockengine

import "time"

// Now is the engine's time.
func (l *Local) Now() Instant { return l.clock.Now() }

// GetToken implements [Engine].
func (l *Local) GetToken(token uint64) (lock Lock, found bool) {
	l.look(func(c *core) {
		if n := c.names.byToken.get(token); n != nil {
			lock, found = n.lock(), true
		}
	})
	return lock, found
}

// SetStart implements [Engine].
func (l *Local) SetStart(name string, token uint64, start int64, max time.Duration) error {
	return l.change(&command{op: opSetStart, req: &Request{Name: name}, token: token, second: start, max: int64(max)})
}

// SetSpan implements [Engine].
func (l *Local) SetSpan(name string, token uint64, span int64, max time.Duration) error {
	return l.change(&command{op: opSetSpan, req: &Request{Name: name}, token: token, second: span, max: int64(max)})
}

// SetHolder implements [Engine].
func (l *Local) SetHolder(name string, token uint64, uid, gid uint32) error {
	return l.change(&command{op: opSetHolder, req: &Request{Name: name, Who: Who{UID: uid, GID: gid}}, token: token})
}
