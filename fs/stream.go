package fs

import (
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"syscall"

	"lockfs/lockengine"
)

// stream is what an open view/events or tlock/NAME/wait reads from: text that
// comes with time. Reads wait for it, and poll(2) tells of it.
//
// Concurrency: safe for use from any goroutine.
type stream struct {
	s *Server
	h *handle
	// next returns about size bytes of text that there is after cursor, "" if
	// there is none yet, and where that ends.
	next func(cursor uint64, size int) (text string, to uint64, end bool)
	// more reports whether there is text after cursor, if to make it takes time:
	// then only wake does. nil: it takes none.
	more func(cursor uint64) bool
	// start begins a new stream, resume goes on with one of a process before.
	start  func() error
	resume func()
	// arm calls wake once, when next may have more. disarm takes that back.
	arm    func(cursor uint64, wake func())
	disarm func()
	watch  lockWatch // of a wait: what tells of the end
	space  pidSpace  // the reader's

	mu       sync.Mutex
	at       position
	before   position // of the last read: where it began,
	lastRead uint64   // and its request
	armed    bool
	closed   bool
	readers  []streamReader
	polls    map[uint64]bool // kernel poll handles to notify
}

// lockWatch is a watch on the end of a lock.
type lockWatch = lockengine.WatchID

// position is how far a stream was read.
type position struct {
	cursor uint64
	rest   string // text from before cursor that is not read yet
	ended  bool
}

func (p *position) encode(e *encoder) {
	e.uint(p.cursor)
	e.text(p.rest)
	e.bool(p.ended)
}

func (p *position) decode(d *decoder) { p.cursor, p.rest, p.ended = d.uint(), d.text(), d.bool() }

type streamReader struct {
	unique uint64
	size   int
}

// fill makes rest hold text if there is any. GUARDED_BY(mu)
func (st *stream) fill(size int) {
	if st.at.rest == "" && !st.at.ended {
		st.at.rest, st.at.cursor, st.at.ended = st.next(st.at.cursor, size)
	}
}

func (st *stream) ready() bool { return st.at.rest != "" || st.at.ended }

// available reports whether there is anything that may be read now, made or
// not. GUARDED_BY(mu)
func (st *stream) available() bool {
	if st.more == nil {
		st.fill(0)
	}
	return st.ready() || st.more != nil && st.more(st.at.cursor) && st.s.shares.wait(st.h.uid) <= 0
}

// read answers a READ, at once or when there is something to read.
func (st *stream) read(unique uint64, size int, nonblock bool) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if requestID(unique) == st.lastRead {
		st.at = st.before // sent again: its answer was lost
	}
	switch {
	case (st.more == nil || st.ready()) && st.answer(unique, size):
	case nonblock && st.available() && st.answerAtOnce(unique, size):
	case nonblock:
		st.s.dev.replyError(unique, syscall.EAGAIN)
	default:
		st.readers = append(st.readers, streamReader{unique, size})
		st.s.parking.add(unique, func() bool { return st.giveUp(unique) })
		st.rearm()
	}
}

// giveUp forgets a READ that waits, and reports whether it did: if not, it has
// its answer.
func (st *stream) giveUp(unique uint64) bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	i := slices.IndexFunc(st.readers, func(r streamReader) bool { return r.unique == unique })
	if i < 0 {
		return false
	}
	st.readers = slices.Delete(st.readers, i, i+1)
	return true
}

// answer answers a READ if there is something to read. It is recorded first
// how far that was read, and from where, since both can be lost: the answer
// and we. GUARDED_BY(mu)
func (st *stream) answer(unique uint64, size int) bool {
	before := st.at
	if st.fill(size); !st.ready() {
		return false
	}
	if st.h.node.row.once {
		before = st.at // nobody else knows it any more
	}
	text := st.cut(size)
	st.before, st.lastRead = before, requestID(unique)
	st.s.saveHandle(st.h)
	frame := st.s.buffer() // not a new one: many readers of much text would keep the collector busy
	n := sizeofOutHeader + copy(frame[sizeofOutHeader:], text)
	putOutHeader(frame[:], n, 0, unique)
	st.s.dev.write(frame[:n])
	st.s.host.buffers.Put(frame)
	return true
}

// answerAtOnce answers a READ that does not wait for its turn, so it gets but a
// few events. GUARDED_BY(mu)
func (st *stream) answerAtOnce(unique uint64, size int) (answered bool) {
	st.s.shares.take(st.h.uid, func() { answered = st.answer(unique, min(size, 16*typicalEvent)) })
	return answered
}

func (st *stream) cut(size int) string {
	n := min(size, len(st.at.rest), maxWrite)
	text := st.at.rest[:n]
	st.at.rest = st.at.rest[n:]
	return text
}

// rearm asks to be woken if anybody waits. GUARDED_BY(mu)
func (st *stream) rearm() {
	if !st.armed && len(st.readers)+len(st.polls) > 0 {
		st.armed = true
		st.arm(st.at.cursor, func() { st.s.host.spawn(st.wake) }) // not on the goroutine that grants locks
	}
}

// wake answers the readers in order, as far as there is text, and the pollers.
func (st *stream) wake() {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.closed {
		return
	}
	st.armed = false
	for len(st.readers) > 0 {
		r := st.readers[0]
		if st.fill(r.size); !st.ready() {
			break
		}
		st.readers = st.readers[1:]
		// One that was interrupted is answered already.
		if st.s.parking.take(r.unique) {
			st.answer(r.unique, r.size)
		}
	}
	if len(st.polls) > 0 && st.available() {
		st.notify()
	}
	st.rearm()
}

// notify wakes all pollers. GUARDED_BY(mu)
func (st *stream) notify() {
	for kh := range st.polls {
		st.s.dev.notifyPoll(kh)
	}
	clear(st.polls)
}

// poll reports whether a read would not wait, and else notifies kh when so.
func (st *stream) poll(kh uint64, schedule bool) bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.available() {
		return true
	}
	if schedule && !st.polls[kh] {
		st.addPoll(kh)
		st.s.saveHandle(st.h)
		st.rearm()
	}
	return false
}

func (st *stream) addPoll(kh uint64) {
	if st.polls == nil {
		st.polls = map[uint64]bool{}
	}
	st.polls[kh] = true
}

// keepEnd records what there is to read, of which the engine will not tell a
// successor again.
func (st *stream) keepEnd() {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.closed {
		return
	}
	st.fill(0)
	st.s.saveHandle(st.h)
}

// goOn continues a stream of a process before this one. Whoever polled is
// woken, to poll again.
func (st *stream) goOn() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.resume()
	st.notify()
}

func (st *stream) close() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.closed = true
	st.disarm()
	clear(st.polls)
}

// newEventStream follows the events from its start on.
func newEventStream(s *Server, _ node) *stream {
	st := &stream{s: s}
	st.next = func(cursor uint64, size int) (string, uint64, bool) {
		text, to := s.events.text(cursor, max(1, min(256, size/typicalEvent)), reader{st.h.uid, st.space})
		return text, to, false
	}
	st.more = func(cursor uint64) bool { return s.engine.Stats().Events > cursor }
	st.start = func() error {
		st.at.cursor = s.engine.Stats().Events
		return nil
	}
	st.resume = func() {}
	st.arm = func(cursor uint64, _ func()) { s.events.wait(st, cursor) }
	st.disarm = func() { s.events.forget(st) }
	return st
}

// typicalEvent is the length of a line of view/events, in bytes.
const typicalEvent = 256

var eventNames = [...]string{
	lockengine.EventGranted: "granted", lockengine.EventReleased: "released", lockengine.EventWaiting: "waiting",
	lockengine.EventCanceled: "canceled", lockengine.EventRefused: "refused", lockengine.EventRenewed: "renewed",
	lockengine.EventExpired: "expired", lockengine.EventForced: "forced", lockengine.EventLost: "lost",
	lockengine.EventDeadlock: "deadlock",
}

// eventJSON is a line of view/events.
type eventJSON struct {
	Seq     uint64    `json:"seq"`
	At      seconds   `json:"at"`
	Event   string    `json:"event"`
	Class   string    `json:"class"`
	Mode    string    `json:"mode,omitempty"`
	Path    string    `json:"path"`
	Start   *uint64   `json:"start,omitempty"`
	End     *lastByte `json:"end,omitempty"`
	PID     int32     `json:"pid"`
	UID     uint32    `json:"uid"`
	Token   uint64    `json:"token,omitempty"`
	Kind    string    `json:"kind,omitempty"`
	Waited  *seconds  `json:"waited,omitempty"`
	Held    *seconds  `json:"held,omitempty"`
	Refused *bool     `json:"refused,omitempty"`
}

type gapJSON struct {
	Event  string `json:"event"`
	Missed uint64 `json:"missed"`
}

func (s *Server) eventLines(events []lockengine.Event, missed uint64, r reader) string {
	if len(events) == 0 && missed == 0 {
		return ""
	}
	var b strings.Builder
	b.Grow((len(events) + 1) * typicalEvent)
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if missed > 0 {
		_ = enc.Encode(gapJSON{"gap", missed}) // a strings.Builder takes everything
	}
	d := s.describer(s.now(), r)
	for i := range events {
		j := d.event(&events[i])
		if !s.showsToken(r.uid, j.UID) {
			j.Token = 0
		}
		_ = enc.Encode(j)
	}
	return b.String()
}

func (d *describer) event(e *lockengine.Event) eventJSON {
	j := eventJSON{
		Seq: e.Seq, At: seconds(e.At.Wall), Event: eventNames[e.Kind], Class: e.Class.String(),
		Path: d.path(e.Class, e.Name), PID: d.space.pid(e.Who.PID, e.At), UID: e.Who.UID, Token: e.Token, Kind: metaValue(e.Meta, "kind"),
	}
	if e.Mode != 0 {
		j.Mode = modeNames[e.Mode]
	}
	if e.Class == lockengine.Record {
		j.Start, j.End = ptr(e.Range.Start), ptr(lastByte(e.Range.End))
	}
	switch e.Kind {
	case lockengine.EventGranted:
		j.Waited = ptr(seconds(e.Waited))
	case lockengine.EventReleased, lockengine.EventExpired, lockengine.EventForced, lockengine.EventLost:
		j.Held = ptr(seconds(e.Held))
	case lockengine.EventDeadlock:
		j.Refused = &e.Refused
	}
	return j
}

var endNames = [...]string{
	lockengine.Released: "released\n", lockengine.Expired: "expired\n",
	lockengine.Forced: "forced\n", lockengine.Lost: "lost\n",
}

// newWaitStream says once how the lock ended. It watches from the open on, so
// that an end before the first read is not missed.
func newWaitStream(s *Server, n node) *stream {
	st := &stream{s: s}
	var mu sync.Mutex
	var end lockengine.End
	var wake func()
	ended := func(e lockengine.End) {
		mu.Lock()
		defer mu.Unlock()
		if end = e; wake != nil {
			wake()
		} else if s.host.journal != nil {
			s.host.spawn(st.keepEnd)
		}
	}
	st.next = func(cursor uint64, _ int) (string, uint64, bool) {
		mu.Lock()
		defer mu.Unlock()
		if end == 0 {
			return "", cursor, false
		}
		return endNames[end], cursor + 1, true
	}
	st.start = func() error {
		l, err := s.lockOf(n)
		if err != nil {
			return err
		}
		st.watch, err = s.engine.Watch(l.Name, l.Token, ended)
		return err
	}
	st.resume = func() {
		if !st.at.ended && !s.keeper().Rewatch(st.watch, ended) {
			ended(s.endOf(n.token))
		}
	}
	st.arm = func(_ uint64, w func()) {
		mu.Lock()
		defer mu.Unlock()
		if wake = w; end != 0 {
			wake()
		}
	}
	st.disarm = func() { s.engine.Unwatch(st.watch) }
	return st
}

// endOf is how a lock ended that was watched, as far as the event log reaches.
func (s *Server) endOf(token uint64) lockengine.End {
	var end lockengine.End
	for after := uint64(0); end == 0; {
		events, missed := s.engine.Events(after, 512)
		for i := range events {
			if e := &events[i]; e.Token == token && endOfEvent[e.Kind] != 0 {
				end = endOfEvent[e.Kind]
			}
		}
		if after += missed + uint64(len(events)); len(events) == 0 {
			return lockengine.Lost
		}
	}
	return end
}

var endOfEvent = map[lockengine.EventKind]lockengine.End{
	lockengine.EventReleased: lockengine.Released, lockengine.EventExpired: lockengine.Expired,
	lockengine.EventForced: lockengine.Forced, lockengine.EventLost: lockengine.Lost,
}

// now is the engine's time.
func (s *Server) now() lockengine.Instant { return s.cfg.Now() }
