package lockengine

// eventLog keeps the last events in a ring that is small at first, for those who do
// little, and then has its bound and is written round and round.
type eventLog struct {
	bound int
	ring  []Event
	slot  int    // in the ring, of the next event
	base  uint64 // how many events came before the first one ever in the ring
	last  uint64 // Seq of the last event
}

const (
	defaultEventLog = 8192
	firstEventLog   = 64
)

// next is the slot of the event to write now, whose number is last then.
func (l *eventLog) next() *Event {
	if l.slot == len(l.ring) {
		l.turn()
	}
	l.slot++
	l.last++
	return &l.ring[l.slot-1]
}

// at is the slot of the event with this number.
func (l *eventLog) at(seq uint64) *Event { return &l.ring[(seq-1-l.base)%uint64(len(l.ring))] }

// turn goes on at the beginning of the ring, once that has its bound. Until then
// nothing is overwritten, so events stay where they are. It grows but once: to grow in
// steps took some 5 ms of the first 100 in which locks were taken.
//
//go:noinline
func (l *eventLog) turn() {
	if len(l.ring) == l.bound {
		l.slot = 0
		return
	}
	size := l.bound
	if len(l.ring) == 0 {
		size = min(firstEventLog, l.bound)
	}
	ring := make([]Event, size)
	copy(ring, l.ring)
	l.ring = ring
}

// oldest is the Seq of the first event still kept.
func (l *eventLog) oldest() uint64 {
	if n := uint64(len(l.ring)); l.last-l.base > n {
		return l.last - n + 1
	}
	return l.base + 1
}

// after returns up to max events that come after seq, and how many of them
// are no longer kept.
func (l *eventLog) after(seq uint64, limit int) (events []Event, missed uint64) {
	from := seq + 1
	if oldest := l.oldest(); from < oldest {
		missed, from = oldest-from, oldest
	}
	if from > l.last || limit <= 0 {
		return nil, missed
	}
	n := min(uint64(limit), l.last-from+1)
	events = make([]Event, 0, n)
	for s := from; s < from+n; s++ {
		events = append(events, *l.at(s))
	}
	return events, missed
}

// lastOnes returns up to limit of the last events.
func (l *eventLog) lastOnes(limit uint64) []Event {
	events, _ := l.after(max(l.last, limit)-limit, int(limit))
	return events
}

// emit appends an event and returns it for what it is about, and what only some
// kinds have. One field after the other is set: as a whole it would be built on
// the stack and copied. None is read: no cache has what was written so long ago.
func (c *core) emit(kind EventKind) *Event {
	c.changes++
	e := c.log.next()
	e.Seq, e.At, e.Kind = c.log.last, c.now, kind
	e.Token, e.Waited, e.Held, e.Refused, e.Meta = 0, 0, 0, false, ""
	return e
}

func (c *core) emitRequest(kind EventKind, req *Request) *Event {
	e := c.emit(kind)
	e.Class, e.Name, e.Mode, e.Range, e.Owner, e.Who = req.Class, req.Name, req.Mode, req.Range, req.Owner, req.Who
	if req.Class == Named {
		e.Meta = req.Meta
	}
	return e
}
