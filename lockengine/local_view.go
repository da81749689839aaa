package lockengine

// Test implements [Engine].
func (l *Local) Test(req *Request) (lock Lock, found bool) {
	l.look(func(c *core) { lock, found = c.test(req) })
	return lock, found
}

// TestOwn implements [Engine]. The request's mode does not matter.
func (l *Local) TestOwn(req *Request) (lock Lock, found bool) {
	l.look(func(c *core) { lock, found = c.testOwn(req) })
	return lock, found
}

// Get implements [Engine].
func (l *Local) Get(name string) (lock Lock, found bool) {
	l.look(func(c *core) { lock, found = c.get(name) })
	return lock, found
}

// List implements [Engine].
func (l *Local) List(after uint64, max int) (names []NameToken) {
	l.look(func(c *core) { names = c.names.byToken.list(after, max) })
	return names
}

// Events implements [Engine].
func (l *Local) Events(after uint64, max int) (events []Event, missed uint64) {
	l.look(func(c *core) { events, missed = c.log.after(after, max) })
	return events, missed
}

// OnEvents implements [Engine]. ready is called at once on this goroutine if
// there is an event already.
func (l *Local) OnEvents(after uint64, ready func()) (id WatchID) {
	l.look(func(c *core) {
		l.reader++
		id = outside | l.reader
		if !l.closed {
			l.readers[id] = reader{after, ready}
		}
	})
	return id
}

// Stats implements [Engine].
func (l *Local) Stats() (s Stats) {
	l.look(func(c *core) {
		s = c.statsNow()
		s.Unrecorded = len(l.record.owed)
	})
	return s
}

// Oldest returns when the lock of each class that is held longest was granted,
// and the time now; zero: none is held. Of the classes Record and Flock it looks
// at each lock, unless there are more than limit: then it returns zero, too.
func (l *Local) Oldest(limit int) (since [4]Instant, now Instant) {
	l.look(func(c *core) { since, now = c.oldest(limit), c.now })
	return since, now
}
