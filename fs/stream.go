package fs

import (
	"bytes"
	"encoding/json"
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
	// next returns text there is now; "" if there is none yet. end tells that
	// there will be no more.
	next func() (text string, end bool)
	// arm calls wake once, when next may have more. disarm takes that back.
	arm    func(wake func())
	disarm func()

	mu      sync.Mutex
	rest    string // text not read yet
	ended   bool
	armed   bool
	readers []streamReader
	polls   map[uint64]bool // kernel poll handles to notify
}

type streamReader struct {
	unique uint64
	size   int
}

// fill makes rest hold text if there is any. GUARDED_BY(mu)
func (st *stream) fill() {
	if st.rest == "" && !st.ended {
		st.rest, st.ended = st.next()
	}
}

func (st *stream) ready() bool { return st.rest != "" || st.ended }

// read answers a READ, at once or when there is something to read.
func (st *stream) read(unique uint64, size int, nonblock bool) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.fill()
	switch {
	case st.ready():
		st.s.dev.reply(unique, st.cut(size))
	case nonblock:
		st.s.dev.replyError(unique, syscall.EAGAIN)
	default:
		st.readers = append(st.readers, streamReader{unique, size})
		st.s.parking.add(unique, func(bool) bool { return true })
		st.rearm()
	}
}

func (st *stream) cut(size int) []byte {
	n := min(size, len(st.rest))
	out := []byte(st.rest[:n])
	st.rest = st.rest[n:]
	return out
}

// rearm asks to be woken if anybody waits. GUARDED_BY(mu)
func (st *stream) rearm() {
	if !st.armed && len(st.readers)+len(st.polls) > 0 {
		st.armed = true
		st.arm(func() { go st.wake() }) // not on the goroutine that grants locks
	}
}

// wake answers the readers in order, as far as there is text, and the pollers.
func (st *stream) wake() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.armed = false
	for len(st.readers) > 0 {
		if st.fill(); !st.ready() {
			break
		}
		r := st.readers[0]
		st.readers = st.readers[1:]
		// One that was interrupted is answered already.
		if st.s.parking.take(r.unique) {
			st.s.dev.reply(r.unique, st.cut(r.size))
		}
	}
	if st.fill(); st.ready() {
		for kh := range st.polls {
			st.s.dev.notifyPoll(kh)
		}
		clear(st.polls)
	}
	st.rearm()
}

// poll reports whether a read would not wait, and else notifies kh when so.
func (st *stream) poll(kh uint64, schedule bool) bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.fill(); st.ready() {
		return true
	}
	if schedule {
		if st.polls == nil {
			st.polls = map[uint64]bool{}
		}
		st.polls[kh] = true
		st.rearm()
	}
	return false
}

func (st *stream) close() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.disarm()
	clear(st.polls)
}

// newEventStream follows the events from now on.
func newEventStream(s *Server, _ node) (*stream, error) {
	cursor := s.engine.Stats().Events
	var watch lockengine.WatchID
	const batch = 256
	return &stream{s: s,
		next: func() (string, bool) {
			events, missed := s.engine.Events(cursor, batch)
			cursor += missed + uint64(len(events))
			return s.eventLines(events, missed), false
		},
		arm:    func(wake func()) { watch = s.engine.OnEvents(cursor, wake) },
		disarm: func() { s.engine.Unwatch(watch) },
	}, nil
}

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

func (s *Server) eventLines(events []lockengine.Event, missed uint64) string {
	if len(events) == 0 && missed == 0 {
		return ""
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if missed > 0 {
		_ = enc.Encode(gapJSON{"gap", missed}) // a bytes.Buffer takes everything
	}
	d := s.describer(s.now())
	for i := range events {
		_ = enc.Encode(d.event(&events[i]))
	}
	return b.String()
}

func (d *describer) event(e *lockengine.Event) eventJSON {
	j := eventJSON{
		Seq: e.Seq, At: seconds(e.At.Wall), Event: eventNames[e.Kind], Class: classNames[e.Class],
		Path: d.path(e.Class, e.Name), PID: e.Who.PID, UID: e.Who.UID, Token: e.Token, Kind: metaValue(e.Meta, "kind"),
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
func newWaitStream(s *Server, n node) (*stream, error) {
	l, err := s.lockOf(n)
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	var end lockengine.End
	var wake func()
	id, err := s.engine.Watch(l.Name, l.Token, func(e lockengine.End) {
		mu.Lock()
		defer mu.Unlock()
		if end = e; wake != nil {
			wake()
		}
	})
	if err != nil {
		return nil, err
	}
	return &stream{s: s,
		next: func() (string, bool) {
			mu.Lock()
			defer mu.Unlock()
			if end == 0 {
				return "", false
			}
			return endNames[end], true
		},
		arm: func(w func()) {
			mu.Lock()
			defer mu.Unlock()
			if wake = w; end != 0 {
				wake()
			}
		},
		disarm: func() { s.engine.Unwatch(id) },
	}, nil
}

// now is the engine's time.
func (s *Server) now() lockengine.Instant { return s.cfg.Now() }
