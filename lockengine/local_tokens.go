package lockengine

import "time"

// No token is given out twice, even if the end of the log is lost with the
// machine: tokens are reserved in blocks, by a record that is on disk before
// any of them is given out. After such a loss tokens go on behind the block.

// tokenBlock is the tokens reserved.
type tokenBlock struct {
	reserved uint64        // the last one that was asked for
	safe     uint64        // the last one of which it is known on disk
	pending  chan struct{} // closed when what was asked for is decided; nil: nothing was
	err      error         // of the last time
	refresh  *time.Timer   // asks for more before they are needed
}

// tokenSpan is how many tokens are reserved at once: as many as there are
// microseconds in an hour, since tokens follow the clock.
const tokenSpan = uint64(time.Hour / time.Microsecond)

// mayGive is how many tokens the command may give out.
func (l *Local) mayGive(cmd *command) uint64 {
	n := uint64(l.core.stats.Waiting[Named])
	if (cmd.op == opTry || cmd.op == opWait) && cmd.req.Class == Named {
		n++
	}
	return n
}

// reserve sees to it that n tokens are reserved, and some for later. It returns
// nil if they are, or how to wait for it, with the mutex unlocked meanwhile.
func (l *Local) reserve(n uint64, now Instant) (wait func() error) {
	t := &l.tokens
	last := l.core.names.lastToken(now) + n
	if t.pending == nil && (last > t.safe || last+tokenSpan/2 > t.reserved) {
		l.askTokens(last + tokenSpan)
	}
	if last <= t.safe {
		return nil
	}
	return l.waitTokens
}

// askTokens begins to reserve tokens up to last.
func (l *Local) askTokens(last uint64) {
	t := &l.tokens
	var e encoder
	e.byte(format)
	e.word(last)
	if t.err = l.record.append(recordTokens, e.buf); t.err != nil {
		return
	}
	t.reserved = max(t.reserved, last)
	done := make(chan struct{})
	t.pending = done
	l.record.log.Synced(l.record.pos, func(err error) {
		l.mu.Lock()
		if t.pending, t.err = nil, err; err == nil {
			t.safe = max(t.safe, last)
			l.refreshLater()
		}
		l.mu.Unlock()
		close(done)
	})
}

// refreshLater asks for more tokens in time, also when nobody takes any: so
// that nobody waits for it after a quiet hour, unless the machine slept.
func (l *Local) refreshLater() {
	if l.closed {
		return
	}
	if t := &l.tokens; t.refresh != nil {
		t.refresh.Reset(tokenRefresh)
	} else {
		t.refresh = time.AfterFunc(tokenRefresh, func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			if !l.closed && l.tokens.pending == nil {
				l.askTokens(l.core.names.lastToken(l.clock.Now()) + tokenSpan)
			}
		})
	}
}

// tokenRefresh is well before tokens run out that follow the clock.
const tokenRefresh = 30 * time.Minute

// waitTokens waits until it is decided what was asked for last.
func (l *Local) waitTokens() error {
	if done := l.tokens.pending; done != nil {
		l.mu.Unlock()
		<-done
		l.mu.Lock()
	}
	return l.tokens.err
}

// reserveFirst begins to reserve tokens, behind the one given too, and returns
// what time it is. It waits only if tokens may be given out at once, to those
// who wait for a lease that ran out meanwhile.
func (l *Local) reserveFirst(floor uint64) Instant {
	now := l.clock.Now()
	if l.record.log == nil {
		return now
	}
	l.askTokens(max(floor, l.core.names.lastToken(now)+uint64(l.core.stats.Waiting[Named])) + tokenSpan)
	if l.core.stats.Waiting[Named] > 0 && l.core.names.due(now.Boot) != nil {
		_ = l.waitTokens() // what ran out ends, whatever comes of it
	}
	return now
}
