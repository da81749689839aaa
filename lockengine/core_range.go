package lockengine

import "maps"

// resource is one name with locks or waiters of the classes Record and Flock.
// A flock lock is a segment that covers the whole.
type resource struct {
	class    Class
	parked   bool // in the lot
	name     string
	excl     segTree
	shared   segTree
	holdings holdings
	groups   treap[group, groupsByRange]
	n        int // segments and waiters
}

// holding is the segments of one owner on one resource: disjoint, and none
// touches another of its mode.
type holding struct {
	res   *resource
	owner *owner
	segs  treap[seg, segsOfOne]
	n     int32    // segments
	many  bool     // there were more than fewSegs since there was none
	next  *holding // of the few in resource.holdings
}

// insert adds a segment. A few are a treap of which each element has but a right
// child, and the lowest priority: the list of them, which is quick to change.
func (h *holding) insert(s *seg, c *core) {
	if h.n++; h.n > fewSegs || h.many {
		h.insertMany(s, c)
		return
	}
	at := &h.segs.root
	for *at != nil && (*at).Start < s.Start {
		at = &(*at).mine.right
	}
	s.mine.right, *at = *at, s
}

//go:noinline
func (h *holding) insertMany(s *seg, c *core) {
	h.many = true
	if h.n > fewSegs {
		s.mine.prio = c.prio()
	}
	h.segs.root = insertAt[seg, segsOfOne](h.segs.root, s)
}

// remove takes out s, which must be one of its segments.
func (h *holding) remove(s *seg) {
	h.n--
	if h.many {
		h.segs.removeMore(s)
		h.many = h.n > 0
		return
	}
	at := &h.segs.root
	for *at != s {
		at = &(*at).mine.right
	}
	*at, s.mine.right = s.mine.right, nil
}

// holdings are those on one resource, in no order. A few are a list, and stay
// there when they are empty: the owner's next lock, or another owner, finds them
// so (an owner that was forgotten may be another one now). More are in a map.
type holdings struct {
	few  *holding
	more map[*owner]*holding // nil: there never were more
	most int                 // in more since it was made
}

const fewHoldings = 8

// of returns the owner's holding, nil if there is none.
func (t *holdings) of(o *owner) *holding {
	h := t.few
	for h != nil && h.owner != o {
		h = h.next
	}
	if h == nil && t.more != nil {
		h = t.more[o]
	}
	return h
}

// newHolding makes one that is empty the owner's, or a new one.
func (c *core) newHolding(r *resource, o *owner) *holding {
	n := 0
	for h := r.holdings.few; h != nil; h = h.next {
		if h.segs.empty() {
			h.owner = o
			return h
		}
		n++
	}
	h := c.pools.holding.get()
	h.res, h.owner = r, o
	if t := &r.holdings; n < fewHoldings {
		h.next, t.few = t.few, h
	} else {
		if t.more == nil {
			t.more = map[*owner]*holding{}
		}
		t.more[o] = h
		t.most = max(t.most, len(t.more))
	}
	return h
}

// dropMore takes a holding that is empty out of the map, if it is in it. A map that
// was large is made anew when few are left: it would keep its memory.
func (c *core) dropMore(h *holding) {
	t := &h.res.holdings
	if t.more[h.owner] == nil {
		return
	}
	delete(t.more, h.owner)
	if n := len(t.more); t.most >= largeMap && n <= smallMap {
		more := make(map[*owner]*holding, n)
		maps.Copy(more, t.more)
		t.more, t.most, c.gave = more, n, true
	}
	c.pools.holding.put(h)
}

// dropFew forgets the holdings of an idle resource, which are all empty.
func (c *core) dropFew(r *resource) {
	for h := r.holdings.few; h != nil; {
		next := h.next
		c.pools.holding.put(h)
		h = next
	}
	r.holdings.few = nil
}

// shrink is where a resource has less locked than before.
type shrink struct {
	res *resource
	Range
}

func (r *resource) tree(m Mode) *segTree {
	if m == Exclusive {
		return &r.excl
	}
	return &r.shared
}

// blockers says whose locks conflict with a request for this range and mode
// by an owner that has none: nobody's (nil), one owner's, or several. For an
// owner that has some, its own do not count: it can be granted if the answer
// is nobody or itself.
func (r *resource) blockers(rng Range, mode Mode) *owner {
	b := r.excl.owners(rng)
	if mode == Shared || b == several {
		return b
	}
	return either(b, r.shared.owners(rng))
}

// conflicts yields the segments that conflict with a request, by mode, start
// and owner, but for those of owners whom skip is true for.
func (r *resource) conflicts(rng Range, mode Mode, skip func(*owner) bool, yield func(*seg) bool) {
	if r.excl.overlapping(rng, skip, yield) && mode == Exclusive {
		r.shared.overlapping(rng, skip, yield)
	}
}

// touching returns the owner's first segment that ends at or after at.
func (h *holding) touching(at uint64) *seg {
	if s := h.segs.root; h.n == 1 {
		if s.End < at {
			return nil
		}
		return s
	}
	return h.segs.seek(func(s *seg) bool { return s.End >= at })
}

// after returns the owner's first segment that starts at or after at.
func (h *holding) after(at uint64) *seg {
	return h.segs.seek(func(s *seg) bool { return s.Start >= at })
}

// resource returns the resource of this name, nil if there is none. The one
// found last is at hand: one request looks it up several times, and the next
// is often for the same.
func (c *core) resource(class Class, name string) *resource {
	if r := c.lastFound; r.class == class && r.name == name {
		return r
	}
	return c.lookupResource(class, name)
}

//go:noinline
func (c *core) lookupResource(class Class, name string) *resource {
	if class != Record && class != Flock {
		return nil
	}
	r := c.resources[class][name]
	if r != nil {
		c.lastFound = r
	}
	return r
}

// resourceOf returns the resource of this name, new if need be.
func (c *core) resourceOf(class Class, name string) *resource {
	r := c.resource(class, name)
	if r == nil {
		r = c.newResource(class, name)
	}
	return r
}

//go:noinline
func (c *core) newResource(class Class, name string) *resource {
	r := c.pools.resource.get()
	r.class, r.name = class, name
	c.resources[class][name] = r
	return r
}

func (r *resource) idle() bool { return r.n == 0 }

// freeResource forgets a resource if it is idle.
func (c *core) freeResource(r *resource) {
	if !r.parked && r.idle() {
		c.parkResource(r)
	}
}

func (c *core) parkResource(r *resource) {
	r.parked = true
	if old := c.lots.resource.park(r); old != nil {
		old.parked = false
		if old.idle() {
			m := &c.resources[old.class]
			*m = without(&c.shrinking, mapResources+int(old.class), *m, old.name)
			c.dropFew(old)
			c.pools.resource.put(old)
		}
	}
}

// take gives the request its range, which conflicts with nothing held by
// others: it replaces what the owner holds there, and merges with what it
// touches of the same mode. A merged segment is the newest one's in all else.
func (c *core) take(r *resource, o *owner, req *Request) {
	h := c.holding(r, o)
	merged := req.Range
	if !h.segs.empty() {
		merged = c.clear(h, req.Range, req.Mode)
	}
	if !o.came.with(req) {
		c.cameWith(o, req) // not before: what makes room may forget a handle
	}
	s := c.pools.seg.get()
	s.Range, s.mode, s.by, s.handle, s.party = merged, req.Mode, h, o.came.handle, o.came.party
	s.who, s.since = req.Who, c.now
	c.addSeg(s)
}

// holding returns the owner's, new if need be.
func (c *core) holding(r *resource, o *owner) *holding {
	if h := r.holdings.of(o); h != nil {
		return h
	}
	return c.newHolding(r, o)
}

// clear makes room for a new segment of the owner and returns the range that
// it is to have, which is larger by what it merges with.
func (c *core) clear(h *holding, rng Range, mode Mode) Range {
	merged := rng
	for s := h.touching(rng.Start); s != nil && s.Start <= rng.End; {
		next := h.after(s.End)
		switch {
		case s.mode == mode:
			merged = Range{min(merged.Start, s.Start), max(merged.End, s.End)}
			c.removeSeg(s)
		case s.overlaps(rng):
			if s.mode == Exclusive && !h.res.groups.empty() {
				c.shrinks(h.res, s.common(rng))
			}
			c.carve(s, rng)
		}
		s = next
	}
	return merged
}

// carve takes rng out of a segment that it overlaps; what lies before and after
// stays. The piece after comes first, as it keeps handle and party in use.
func (c *core) carve(s *seg, rng Range) {
	if s.End > rng.End {
		c.addPiece(s, Range{rng.End, s.End})
	}
	if s.Start >= rng.Start {
		c.removeSeg(s)
		return
	}
	c.cut.segChanges(s)
	t := s.by.res.tree(s.mode)
	t.remove(s, &c.pools.nodes)
	s.End = rng.Start
	t.insert(s, &c.pools.nodes)
}

func (c *core) addPiece(of *seg, rng Range) {
	s := c.pools.seg.get()
	*s = seg{Range: rng, mode: of.mode, by: of.by, handle: of.handle, party: of.party, who: of.who, since: of.since}
	c.addSeg(s)
}

func (c *core) addSeg(s *seg) {
	h := s.by
	c.births++
	s.born = c.births
	c.segs.push(s, &s.ofCore)
	h.res.n++
	h.res.tree(s.mode).insert(s, &c.pools.nodes)
	h.insert(s, c)
	if s.handle != nil {
		s.handle.segs.push(s, &s.hook)
	}
	c.partyHolds(s.party, 1)
	c.ownerHolds(h.owner, 1)
	c.stats.Held[h.res.class]++
	c.quota.count(s.who.UID, 1)
}

// removeSeg takes a segment out of everything. The holding stays, though it
// may be empty: see freeHolding.
func (c *core) removeSeg(s *seg) {
	h := s.by
	c.cut.segGoes(s)
	c.segs.remove(&s.ofCore)
	h.res.n--
	h.res.tree(s.mode).remove(s, &c.pools.nodes)
	h.remove(s)
	if s.handle != nil {
		s.handle.segs.remove(&s.hook)
		c.freeHandle(s.handle)
	}
	c.partyHolds(s.party, -1)
	c.ownerHolds(h.owner, -1)
	c.stats.Held[h.res.class]--
	c.quota.count(s.who.UID, -1)
	c.pools.seg.put(s)
}

func (c *core) freeHolding(h *holding) {
	if !h.segs.empty() {
		return
	}
	r, o := h.res, h.owner
	if r.holdings.more != nil {
		c.dropMore(h)
	}
	c.freeOwner(o)
	c.freeResource(r)
}

// shrinks notes that less is locked in rng, for wake. It is told if any wait here.
//
//go:noinline
func (c *core) shrinks(r *resource, rng Range) { c.shrunk = append(c.shrunk, shrink{r, rng}) }

// giveBack releases what rng covers of a segment.
func (c *core) giveBack(s *seg, rng Range) {
	r, gone := s.by.res, s.common(rng)
	e := c.emit(EventReleased)
	e.Class, e.Name, e.Mode, e.Range, e.Owner, e.Who = r.class, r.name, s.mode, gone, s.by.owner.key, s.who
	e.Held = since(s.since, c.now)
	c.stats.Released[r.class]++
	if !r.groups.empty() {
		c.shrinks(r, gone)
	}
	if gone == s.Range {
		c.removeSeg(s)
		return
	}
	c.carve(s, rng)
}

// giveBackAll releases what rng covers of all the owner holds here.
func (c *core) giveBackAll(h *holding, rng Range) {
	for s := h.touching(rng.Start + 1); s != nil && s.Start < rng.End; {
		end := s.End
		c.giveBack(s, rng)
		switch {
		case h.segs.empty():
			c.freeHolding(h)
			return
		case end >= rng.End:
			return
		}
		s = h.after(end)
	}
}

func (c *core) unlock(req *Request, res *result) {
	rng := req.Range
	if req.Class == Flock {
		rng = Whole
	}
	h := c.find(req)
	if h == nil || rng.Start >= rng.End || c.unlocksNothing() {
		return
	}
	if c.quota.tight() && c.splitsOverQuota(h, rng) {
		c.refuseQuota(res)
		return
	}
	c.giveBackAll(h, rng)
}

// find returns what the owner holds on the name, nil if nothing.
func (c *core) find(req *Request) *holding {
	r := c.resource(req.Class, req.Name)
	if r == nil {
		return nil
	}
	o := c.owner(req.Class, req.Owner)
	if o == nil {
		return nil
	}
	h := r.holdings.of(o)
	if h == nil || h.segs.empty() {
		return nil
	}
	return h
}

func (c *core) dropOwner(name string, key Owner) {
	o := c.owner(Record, key)
	if o == nil || o.idle() {
		return
	}
	c.learnProcess(o)
	for p := range o.places.all {
		if p.key.name == name {
			c.changes++
			c.forgetPlace(p)
		}
	}
	if r := c.resource(Record, name); r != nil {
		if h := r.holdings.of(o); h != nil {
			c.giveBackAll(h, Whole)
		}
	}
}

// dropHandle ends waits before it gives anything back, so that none of them
// is granted what goes.
func (c *core) dropHandle(id uint64) {
	h := c.handles[id]
	for h != nil && !h.idle() {
		switch {
		case !h.waits.empty():
			c.giveUp(h.waits.first())
		case !h.places.empty():
			c.changes++
			c.forgetPlace(h.places.first())
		case !h.segs.empty():
			c.dropSeg(h.segs.first())
		default:
			c.endNamed(h.names.first(), Released)
		}
	}
}

func (c *core) dropSeg(s *seg) {
	h, id := s.by, s.handle.id
	if h.owner.handle == id {
		c.cut.ownerChanges(h.owner)
		h.owner.handle = 0
	}
	c.giveBack(s, s.Range)
	c.freeHolding(h)
}
