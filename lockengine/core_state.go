package lockengine

import (
	"cmp"
	"slices"
)

// The whole state is a sequence of entries: a head, what there is of each
// kind, and an end. They come in chunks; an entry is in one chunk. Lists are
// written in their order, so that equal states have equal bytes; the shapes of
// trees are not part of the state.

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
	add   func(chunk []byte) error // can keep it
	err   error                    // the first one of add
	entry int                      // where the last entry begins
	texts map[string]uint64        // from 1, by text, of those that may come often
	// owners are written when all that they have is.
	owners []ownerCopy
}

func newStateEncoder(add func(chunk []byte) error) *stateEncoder {
	e := &stateEncoder{add: add, texts: map[string]uint64{}}
	e.buf = append(e.buf, format, chunkFirst)
	return e
}

// copies writes what a cut copied. All that it copies comes between its head
// and what is told of its owners.
func (e *stateEncoder) copies(some *copies) {
	for _, end := range some.ended {
		e.ended(end)
	}
	for i := range some.named {
		e.named(&some.named[i])
	}
	for i := range some.segs {
		e.seg(&some.segs[i])
	}
	for i := range some.waits {
		e.waiter(&some.waits[i])
	}
	for i := range some.places {
		e.place(&some.places[i])
	}
	e.owners = append(e.owners, some.owners...)
}

// rest writes what comes when all else of a cut is written, and the last chunk.
func (e *stateEncoder) rest(k *cut) {
	slices.SortFunc(e.owners, func(a, b ownerCopy) int {
		return cmp.Or(cmp.Compare(a.class, b.class), compareOwners(a.owner, b.owner))
	})
	for i := range e.owners {
		e.ownerFacts(&e.owners[i])
	}
	for i := range k.events {
		e.event(&k.events[i])
	}
	e.end(&k.head)
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
	e.give(e.buf[:e.entry:e.entry])
	e.buf, e.entry = next, chunkHead
}

// give gives a chunk away, unless one before it was not taken.
func (e *stateEncoder) give(chunk []byte) {
	if e.err == nil {
		e.err = e.add(chunk)
	}
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

func (e *stateEncoder) head(h *stateHead) {
	e.begin(tagHead)
	e.instant(h.now)
	e.int(h.known)
	e.str(h.boot)
	e.num(h.token)
	e.num(h.reserved)
	e.num(uint64(h.nextWaiter))
	e.num(uint64(h.lastWatch))
	e.num(h.event)
	for _, held := range h.stats.Held[Named:] {
		e.num(uint64(held))
	}
}

func (e *stateEncoder) ended(end endedName) {
	e.begin(tagEnded)
	e.str(end.name)
	e.int(end.at)
	e.bool(true)
	e.int(end.start)
}

func (e *stateEncoder) named(n *namedCopy) {
	e.begin(tagNamed)
	e.str(n.Name)
	e.str(n.Meta)
	e.owner(n.Owner)
	e.who(n.Who)
	e.byte(byte(n.Kind))
	e.num(n.Token)
	e.num(n.key)
	e.instant(n.Since)
	e.instant(n.Expiry)
	e.int(int64(n.Timeout))
	e.int(n.Start)
	plain := n.Note == "" && n.PrevStart == 0 && n.Handle == 0 && len(n.watches) == 0
	e.bool(plain)
	if plain {
		return
	}
	e.str(n.Note)
	e.int(n.PrevStart)
	e.num(n.Handle)
	for _, id := range n.watches {
		e.num(uint64(id))
	}
	e.num(0)
}

func (e *stateEncoder) seg(s *Lock) {
	name := e.text(s.Name)
	e.begin(tagSeg)
	e.kinds(s.Class, s.Mode, 0)
	e.num(name)
	e.owner(s.Owner)
	e.rng(s.Range)
	e.num(s.Handle)
	e.who(s.Who)
	e.instant(s.Since)
}

func (e *stateEncoder) waiter(w *waitCopy) {
	e.begin(tagWaiter)
	e.num(uint64(w.id))
	e.instant(w.since)
	e.request(&w.req)
}

func (e *stateEncoder) place(p *placeCopy) {
	e.begin(tagPlace)
	e.num(uint64(p.id))
	e.instant(p.since)
	e.int(p.due)
	e.kinds(p.key.class, p.key.mode, 0)
	e.str(p.key.name)
	e.owner(p.key.owner)
	e.rng(p.key.rng)
	e.num(p.key.handle)
	e.num(p.handle)
}

func (e *stateEncoder) ownerFacts(o *ownerCopy) {
	e.begin(tagOwner)
	e.kinds(o.class, 0, o.kind)
	e.owner(o.owner)
	e.bool(o.told)
	e.bool(o.assumed)
	e.num(o.handle)
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
func (e *stateEncoder) end(h *stateHead) {
	e.begin(tagEnd)
	e.word(h.rand)
	for _, n := range h.stats.counters() {
		e.num(*n)
	}
	e.cut()
	e.buf[1] |= chunkLast
	e.give(e.buf)
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
