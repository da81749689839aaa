package lockengine

import (
	"errors"
	"time"
)

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
	if d.format(); d.err != nil {
		return nil, d.err
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
	_, start := d.bool(), d.int() // of an older version: false if the name ended again
	t := &d.core.names
	if n := len(t.endedFIFO); !d.check(n == 0 || t.endedFIFO[n-1].at <= at) {
		return
	}
	t.remember(endedName{name, at, start})
}

func (d *stateDecoder) named() {
	c := d.core
	n := &named{name: d.str(), meta: c.metas.sameBytes(d.bytes()), owner: d.owner(), who: d.who(), kind: OwnerKind(d.byte())}
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
	if !d.check(class != Named && normalize(&req) && !c.blocked(&req)) {
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
	valid := d.err == nil && normalize(&w.req) && c.blocked(&w.req)
	if d.check(valid && w.id != 0 && w.id <= c.nextWaiter && c.waiters.get(w.id) == nil) {
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
	last := c.places.queue.tail.element()
	inOrder := p.due > c.now.Boot && (last == nil || last.due <= p.due)
	if !d.check(normalize(&req) && inOrder && p.id != 0 && p.id <= c.nextWaiter && c.waiters.get(p.id) == nil) {
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
