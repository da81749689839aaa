package lockengine

import (
	"maps"
	"slices"
)

// The whole state is a sequence of entries: a head, what there is of each
// kind, and an end. They come in chunks; an entry is in one chunk. Lists are
// written in their order, trees and maps in that of their keys, so that equal
// states have equal bytes; the shapes of trees are not part of the state.

// tag begins an entry.
type tag uint8

const (
	tagHead tag = iota + 1
	tagText
	tagEnded
	tagNamed
	tagSeg
	tagWaiter
	tagPlace
	tagOwner
	tagEvent
	tagEnd
)

// A chunk begins with the format and these flags.
const (
	chunkFirst = 1 << iota
	chunkLast
)

const (
	chunkHead = 2       // bytes
	chunkMax  = 1 << 20 // bytes, but for an entry that is larger by itself
	// eventsKept is how many of the last events are part of the state.
	eventsKept = 512
)

// stateEncoder cuts what is encoded into chunks.
type stateEncoder struct {
	encoder
	add   func(chunk []byte) // keeps it
	entry int                // where the last entry begins
	texts map[string]uint64  // from 1, by text, of those that may come often
}

// encode gives the whole state, and the reserved token that goes with it, to
// add in chunks that it can keep.
func (c *core) encode(reserved uint64, add func(chunk []byte)) {
	e := stateEncoder{add: add, texts: map[string]uint64{}}
	e.buf = append(e.buf, format, chunkFirst)
	e.head(c, reserved)
	e.ended(&c.names)
	for _, entry := range c.names.byToken.entries {
		if entry.named != nil {
			e.named(entry.named)
		}
	}
	for s := range c.segsByHandle {
		e.seg(s)
	}
	for w := range c.line.all {
		e.waiter(w)
	}
	for p := range c.places.queue.all {
		e.place(p)
	}
	for _, o := range c.ownersInOrder() {
		e.ownerFacts(o)
	}
	e.events(&c.log)
	e.end(c)
}

// begin begins an entry.
func (e *stateEncoder) begin(t tag) {
	e.cut()
	e.entry = len(e.buf)
	e.byte(byte(t))
}

// cut gives the chunk away, but for the last entry, if that made it too large.
func (e *stateEncoder) cut() {
	if len(e.buf) <= chunkMax || e.entry <= chunkHead {
		return
	}
	next := append(make([]byte, 0, chunkMax), format, 0)
	next = append(next, e.buf[e.entry:]...)
	e.add(e.buf[:e.entry:e.entry])
	e.buf, e.entry = next, chunkHead
}

// text writes the number of a text that may come often, and before that, once,
// the text.
func (e *stateEncoder) text(s string) uint64 {
	n := e.texts[s]
	if n == 0 {
		n = uint64(len(e.texts) + 1)
		e.texts[s] = n
		e.begin(tagText)
		e.str(s)
	}
	return n
}

func (e *stateEncoder) head(c *core, reserved uint64) {
	e.begin(tagHead)
	e.instant(c.now)
	e.int(c.known)
	e.str(c.boot)
	e.num(c.names.last)
	e.num(reserved)
	e.num(uint64(c.nextWaiter))
	e.num(uint64(c.lastWatch))
	e.num(c.log.last)
	for _, held := range c.stats.Held[Named:] {
		e.num(uint64(held))
	}
}

func (e *stateEncoder) ended(t *namedTable) {
	for _, end := range t.endedFIFO {
		e.begin(tagEnded)
		e.str(end.name)
		e.int(end.at)
		last, known := t.ended[end.name]
		e.bool(known && last.at == end.at)
		e.int(last.start)
	}
}

func (e *stateEncoder) named(n *named) {
	e.begin(tagNamed)
	e.str(n.name)
	e.str(n.meta)
	e.owner(n.owner)
	e.who(n.who)
	e.byte(byte(n.kind))
	e.num(n.token)
	e.num(n.key)
	e.instant(n.since)
	e.instant(n.expiry)
	e.int(int64(n.timeout))
	e.int(n.start)
	m := n.more
	plain := m == nil || m.note == "" && m.prevStart == 0 && m.handle == nil && m.watches.empty()
	e.bool(plain)
	if plain {
		return
	}
	e.str(m.note)
	e.int(m.prevStart)
	e.handle(m.handle)
	for w := range m.watches.all {
		e.num(uint64(w.id))
	}
	e.num(0)
}

func (e *stateEncoder) handle(h *handle) {
	if h == nil {
		e.num(0)
		return
	}
	e.num(h.id)
}

func (e *stateEncoder) seg(s *seg) {
	name := e.text(s.by.res.name)
	e.begin(tagSeg)
	e.kinds(s.by.res.class, s.mode, 0)
	e.num(name)
	e.owner(s.by.owner.key)
	e.rng(s.Range)
	e.handle(s.handle)
	e.who(s.who)
	e.instant(s.since)
}

// segsByHandle yields all segments: by handle, in the order in which they came
// through it, then those that came through none, by name, owner and start.
func (c *core) segsByHandle(yield func(*seg) bool) {
	for _, id := range slices.Sorted(maps.Keys(c.handles)) {
		for s := range c.handles[id].segs.all {
			if !yield(s) {
				return
			}
		}
	}
	for _, class := range []Class{Record, Flock} {
		for _, name := range slices.Sorted(maps.Keys(c.resources[class])) {
			for h := range c.resources[class][name].holdings.all {
				for s := range h.segs.all {
					if s.handle == nil && !yield(s) {
						return
					}
				}
			}
		}
	}
}

func (e *stateEncoder) waiter(w *waiter) {
	e.begin(tagWaiter)
	e.num(uint64(w.id))
	e.instant(w.since)
	e.request(&w.req)
}

func (e *stateEncoder) place(p *place) {
	e.begin(tagPlace)
	e.num(uint64(p.id))
	e.instant(p.since)
	e.int(p.due)
	e.kinds(p.key.class, p.key.mode, 0)
	e.str(p.key.name)
	e.owner(p.key.owner)
	e.rng(p.key.rng)
	e.num(p.key.handle)
	e.handle(p.handle)
}

func (e *stateEncoder) ownerFacts(o *owner) {
	e.begin(tagOwner)
	e.kinds(o.class, 0, o.kind)
	e.owner(o.key)
	e.bool(o.told)
	e.bool(o.assumed)
	e.num(o.handle)
}

// ownersInOrder returns the owners that are not idle.
func (c *core) ownersInOrder() (out []*owner) {
	for _, class := range []Class{Record, Flock} {
		from := len(out)
		for _, o := range c.owners[class] {
			if !o.idle() {
				out = append(out, o)
			}
		}
		slices.SortFunc(out[from:], func(a, b *owner) int { return compareOwners(a.key, b.key) })
	}
	return out
}

func (e *stateEncoder) events(l *eventLog) {
	from := l.oldest()
	if l.last > eventsKept {
		from = max(from, l.last-eventsKept+1)
	}
	for seq := from; seq <= l.last; seq++ {
		e.event(l.at(seq))
	}
}

func (e *stateEncoder) event(v *Event) {
	e.begin(tagEvent)
	e.num(v.Seq)
	e.instant(v.At)
	e.byte(byte(v.Kind))
	e.kinds(v.Class, v.Mode, 0)
	e.str(v.Name)
	e.rng(v.Range)
	e.owner(v.Owner)
	e.who(v.Who)
	e.num(v.Token)
	e.int(int64(v.Waited))
	e.int(int64(v.Held))
	e.bool(v.Refused)
	e.str(v.Meta)
}

// end writes what the entries before it change when they are read, and the
// last chunk.
func (e *stateEncoder) end(c *core) {
	e.begin(tagEnd)
	e.word(c.rand)
	for _, n := range c.stats.counters() {
		e.num(*n)
	}
	e.cut()
	e.buf[1] |= chunkLast
	e.add(e.buf)
}

// counters are those that are not told by the rest of the state.
func (s *Stats) counters() (all []*uint64) {
	for _, a := range []*[4]uint64{&s.Granted, &s.Released, &s.Refused, &s.Waited, &s.Canceled} {
		for i := range a {
			all = append(all, &a[i])
		}
	}
	return append(all, &s.Deadlocks, &s.Possible, &s.Expired, &s.Forced)
}
