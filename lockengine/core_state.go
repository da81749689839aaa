package lockengine

import (
	"errors"
	"maps"
	"slices"
	"time"
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

// stateDecoder makes a core of chunks.
type stateDecoder struct {
	decoder
	core     *core
	reserved uint64
	last     uint64 // number of the last event
	texts    []string
	began    bool
	at       tag // of the entry before; they come in the order of their tags
	ended    bool
}

var (
	errOrder = errors.New("state out of order")
	errState = errors.New("state that cannot be")
)

// chunk takes the next chunk. At the last one it returns the core.
func (d *stateDecoder) chunk(chunk []byte) (*core, error) {
	d.decoder = decoder{buf: chunk}
	if d.byte() != format {
		return nil, errVersion
	}
	flags := d.byte()
	if d.began != (flags&chunkFirst == 0) {
		return nil, errOrder
	}
	d.began = true
	for len(d.buf) > 0 && d.err == nil {
		d.entry(tag(d.byte()))
	}
	if d.err == nil && d.ended != (flags&chunkLast != 0) {
		d.err = errOrder
	}
	if d.err != nil || !d.ended {
		return nil, d.err
	}
	return d.core, nil
}

// check fails if what was read cannot be, or could not be read.
func (d *stateDecoder) check(ok bool) bool {
	if d.err == nil && !ok {
		d.fail(errState)
	}
	return d.err == nil
}

func (d *stateDecoder) entry(t tag) {
	if t != tagText || d.at == 0 {
		if t < d.at || (t == tagHead) != (d.at == 0) {
			d.fail(errOrder)
		}
		d.at = t
	}
	switch t {
	case tagHead:
		d.head()
	case tagText:
		d.texts = append(d.texts, d.str())
	case tagEnded:
		d.endedName()
	case tagNamed:
		d.named()
	case tagSeg:
		d.seg()
	case tagWaiter:
		d.waiter()
	case tagPlace:
		d.place()
	case tagOwner:
		d.ownerFacts()
	case tagEvent:
		d.event()
	case tagEnd:
		d.end()
	default:
		d.fail(errVersion)
	}
}

func (d *stateDecoder) head() {
	c := d.core
	c.now, c.known = d.instant(), d.int()
	c.boot = d.str()
	c.names.last = d.num()
	d.reserved = d.num()
	c.nextWaiter = WaiterID(d.num())
	c.lastWatch = WatchID(d.num())
	d.last = d.num()
	d.makeRoom(d.num(), d.num(), d.num())
}

// makeRoom makes maps of the size that they will have if that many locks are
// of as many owners; bounded, as it may be wrong.
func (d *stateDecoder) makeRoom(names, record, flock uint64) {
	size := func(n uint64) int { return int(min(n, 1<<14)) }
	c := d.core
	c.names.byName = make(map[string]*named, size(names))
	c.owners[Record] = make(map[Owner]*owner, size(record))
	c.owners[Flock] = make(map[Owner]*owner, size(flock))
	c.handles = make(map[uint64]*handle, size(record+flock))
	c.parties = make(map[int32]*party, size(record+flock))
}

func (d *stateDecoder) endedName() {
	name, at := d.str(), d.int()
	known, start := d.bool(), d.int()
	t := &d.core.names
	if n := len(t.endedFIFO); !d.check(n == 0 || t.endedFIFO[n-1].at <= at) {
		return
	}
	t.endedFIFO = append(t.endedFIFO, endedName{name, at})
	if known {
		t.ended[name] = ended{start, at}
	}
}

func (d *stateDecoder) named() {
	c := d.core
	n := &named{name: d.str(), meta: d.str(), owner: d.owner(), who: d.who(), kind: OwnerKind(d.byte())}
	n.token, n.key = d.num(), d.num()
	n.since, n.expiry = d.instant(), d.instant()
	n.timeout, n.start = time.Duration(d.int()), d.int()
	all := c.names.byToken.entries
	inOrder := len(all) == 0 || all[len(all)-1].token < n.token
	lease := n.timeout > 0 || n.timeout == 0 && n.expiry == Instant{}
	if !d.check(n.name != "" && c.names.byName[n.name] == nil && n.held() && inOrder && n.token <= c.names.last && lease) {
		return
	}
	c.names.byName[n.name] = n
	if d.bool() {
		c.addNamed(n, nil)
		return
	}
	n.ext().note, n.more.prevStart = d.str(), d.int()
	c.addNamed(n, c.handleOf(d.num()))
	for last := WatchID(0); ; {
		id := WatchID(d.num())
		if id == 0 || !d.check(id > last && id <= c.lastWatch && c.watches[id] == nil) {
			return
		}
		c.watchNamed(n, id)
		last = id
	}
}

func (d *stateDecoder) seg() {
	c := d.core
	class, mode, _ := d.kinds()
	i, owner, rng := d.num(), d.owner(), d.rng()
	handle, who, since := d.num(), d.who(), d.instant()
	req := Request{Class: class, Mode: mode, Owner: owner, Range: rng}
	if i > 0 && i <= uint64(len(d.texts)) {
		req.Name = d.texts[i-1]
	}
	if !d.check(class != Named && normalize(&req) == nil && !c.blocked(&req)) {
		return
	}
	h := c.holding(c.resourceOf(class, req.Name), c.ownerNamed(class, owner))
	if !d.check(h.roomFor(req.Range, mode)) {
		return
	}
	s := c.pools.seg.get()
	*s = seg{Range: req.Range, mode: mode, by: h, who: who, since: since}
	s.handle, s.party = c.handleOf(handle), c.partyOf(who.PID)
	c.addSeg(s)
}

// roomFor says whether the owner's segments leave room for another one: none
// overlaps it, and none that touches it has its mode.
func (h *holding) roomFor(rng Range, mode Mode) bool {
	for s := h.touching(rng.Start); s != nil && s.Start <= rng.End; s = h.after(s.End) {
		if s.mode == mode || s.overlaps(rng) {
			return false
		}
	}
	return true
}

func (d *stateDecoder) waiter() {
	c := d.core
	w := &waiter{id: WaiterID(d.num()), since: d.instant(), req: d.request()}
	valid := d.err == nil && normalize(&w.req) == nil && c.blocked(&w.req)
	if d.check(valid && w.id != 0 && w.id <= c.nextWaiter && c.waiters[w.id] == nil) {
		c.link(w)
		c.stats.Waiting[w.req.Class]++
	}
}

func (d *stateDecoder) place() {
	c := d.core
	p := &place{id: WaiterID(d.num()), since: d.instant(), due: d.int()}
	k := &p.key
	k.class, k.mode, _ = d.kinds()
	k.name, k.owner, k.rng, k.handle = d.str(), d.owner(), d.rng(), d.num()
	handle := d.num()
	req := Request{Class: k.class, Mode: k.mode, Name: k.name, Range: k.rng}
	tail := c.places.queue.tail
	inOrder := p.due > c.now.Boot && (tail == nil || tail.due <= p.due)
	if !d.check(normalize(&req) == nil && inOrder && p.id != 0 && p.id <= c.nextWaiter && c.waiters[p.id] == nil) {
		return
	}
	if p.handle = c.handleOf(handle); k.class != Named {
		p.owner = c.ownerNamed(k.class, k.owner)
	}
	c.addPlace(p)
}

func (d *stateDecoder) ownerFacts() {
	class, _, kind := d.kinds()
	key := d.owner()
	told, assumed, handle := d.bool(), d.bool(), d.num()
	if !d.check(class == Record || class == Flock) {
		return
	}
	o := d.core.owners[class][key]
	if d.check(o != nil) {
		o.kind, o.told, o.assumed, o.handle = kind, told, assumed, handle
	}
}

func (d *stateDecoder) event() {
	v := Event{Seq: d.num(), At: d.instant(), Kind: EventKind(d.byte())}
	v.Class, v.Mode, _ = d.kinds()
	v.Name, v.Range, v.Owner, v.Who = d.str(), d.rng(), d.owner(), d.who()
	v.Token, v.Waited, v.Held = d.num(), time.Duration(d.int()), time.Duration(d.int())
	v.Refused, v.Meta = d.bool(), d.str()
	l := &d.core.log
	if l.last == 0 && v.Seq > 0 {
		l.base, l.last = v.Seq-1, v.Seq-1
	}
	if d.check(v.Seq == l.last+1) {
		*l.next() = v
	}
}

func (d *stateDecoder) end() {
	c := d.core
	c.rand = d.word()
	for _, n := range c.stats.counters() {
		*n = d.num()
	}
	d.ended = d.check(len(d.buf) == 0 && c.log.last == d.last && c.rand != 0)
}
