package fs

import (
	"math"
	"slices"
	"sync"
	"time"
)

// followers are the streams of events whose readers wait for the next one. The
// engine is asked once for all of them, and one goroutine wakes them, one after
// the other: what happens meanwhile is told to all in the next round. So the
// work of an event does not grow with their number, and each is woken at most
// once before it has read. Whose user has had his share is told later, and then
// of more at once.
//
// Concurrency: safe for use from any goroutine. A stream's mutex is taken before
// this one.
type followers struct {
	s     *Server
	turns turns

	mu      sync.Mutex
	waiting []follower // in the order in which they came
	asked   bool       // the engine will ring
	waking  bool       // a round is on: who comes waits for the next
	last    eventText  // which the next of a round asks for, too
}

type follower struct {
	stream *stream
	cursor uint64 // which it has read up to
}

// eventText is a part of view/events, from cursor on.
type eventText struct {
	cursor uint64
	max    int // events in it at most
	space  pidSpace
	text   string
	end    uint64
}

// wait has the stream woken once there is an event after cursor.
func (f *followers) wait(st *stream, cursor uint64) {
	f.mu.Lock()
	f.waiting = append(f.waiting, follower{st, cursor})
	waking, asked := f.waking, f.asked
	f.asked = f.asked || !waking
	f.mu.Unlock()
	switch {
	case waking:
	case !asked:
		f.s.engine.OnEvents(cursor, f.ring)
	case f.s.engine.Stats().Events > cursor: // the engine was asked for a later one
		f.ring()
	}
}

// forget takes back a wait.
func (f *followers) forget(st *stream) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.waiting = slices.DeleteFunc(f.waiting, func(w follower) bool { return w.stream == st })
}

// ring begins a round. It is called where locks are granted.
func (f *followers) ring() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = false
	if !f.waking && len(f.waiting) > 0 {
		f.waking = true
		f.s.host.spawn(f.wake)
	}
}

// wake wakes all that wait now, and begins the next wait.
func (f *followers) wake() {
	f.mu.Lock()
	round := f.waiting
	f.waiting = nil
	f.mu.Unlock()
	for _, w := range round {
		f.turns.run(f.turns.add(w.stream.h.uid, func() { f.tell(w.stream) }))
	}
	f.mu.Lock()
	f.waking = false
	f.asked = len(f.waiting) > 0
	ask, first := f.asked, uint64(math.MaxUint64)
	for _, w := range f.waiting {
		first = min(first, w.cursor)
	}
	f.mu.Unlock()
	if ask {
		f.s.engine.OnEvents(first, f.ring)
	}
}

// wakeCost is what it costs that a reader is woken, besides his text: his
// thread's time, and that of his next READ.
const wakeCost = 50 * time.Microsecond

func (f *followers) tell(st *stream) {
	st.wake()
	f.s.shares.charge(st.h.uid, wakeCost)
}

// text is up to max events after cursor as lines, and where they end. Those who
// may see the same are given the same text.
func (f *followers) text(cursor uint64, max int, to reader) (string, uint64) {
	shared := f.s.showsAllTokens(to.uid)
	f.mu.Lock()
	last := f.last
	f.mu.Unlock()
	if shared && last.text != "" && last.cursor == cursor && last.max == max && last.space == to.space {
		return last.text, last.end
	}
	events, missed := f.s.engine.Events(cursor, max)
	text, end := f.s.eventLines(events, missed, to), cursor+missed+uint64(len(events))
	if shared {
		f.mu.Lock()
		f.last = eventText{cursor, max, to.space, text, end}
		f.mu.Unlock()
	}
	return text, end
}
