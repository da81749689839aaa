package lockengine

import (
	"slices"
	"time"
)

// waiter is a request that waits.
type waiter struct {
	id    WaiterID
	born  uint64 // grows from one to the next
	req   Request
	since Instant
	group *group
	// tell is what the driver wants to call when the wait is over; it is no part
	// of the state, and nil after a restart.
	tell func(Grant, error)
	// owner is nil for Named, handle and party if unknown.
	owner  *owner
	handle *handle
	party  *party

	next    *waiter       // in the same bucket of core.waiters
	byID    links[waiter] // in group.queue
	byGroup links[waiter] // in owner.waits
	ofCore  hook[waiter]
	ofHand  hook[waiter]
	ofParty hook[waiter]
}

type waitersByID struct{}

func (waitersByID) links(w *waiter) *links[waiter] { return &w.byID }
func (waitersByID) less(a, b *waiter) bool         { return a.id < b.id }
func (waitersByID) update(*waiter)                 {}

type waitersByGroup struct{}

func (waitersByGroup) links(w *waiter) *links[waiter] { return &w.byGroup }
func (waitersByGroup) update(*waiter)                 {}
func (waitersByGroup) less(a, b *waiter) bool {
	if a.group != b.group {
		return a.group.number < b.group.number
	}
	return a.id < b.id
}

// waiterTable finds waiters by their IDs. It is a hash table through its elements,
// so that nothing is allocated to wait. IDs are counted up: the last digits spread
// them.
type waiterTable struct {
	buckets []*waiter // none, or a power of two of them
	n       int       // waiters there are

	// old is the buckets before the table grew, nil if the first moved of them are
	// all. It grows in steps, so that nobody is kept waiting by it.
	old   []*waiter
	moved int
}

const minBuckets = 64

func (t *waiterTable) bucket(id WaiterID) **waiter {
	if t.old != nil {
		if i := int(uint64(id) & uint64(len(t.old)-1)); i >= t.moved {
			return &t.old[i]
		}
	}
	return &t.buckets[uint64(id)&uint64(len(t.buckets)-1)]
}

// get returns a waiter, nil if it is not there.
func (t *waiterTable) get(id WaiterID) *waiter {
	if t.n == 0 {
		return nil
	}
	w := *t.bucket(id)
	for w != nil && w.id != id {
		w = w.next
	}
	return w
}

func (t *waiterTable) add(w *waiter) {
	if t.n >= len(t.buckets) || t.old != nil {
		t.grow()
	}
	t.n++
	at := t.bucket(w.id)
	w.next, *at = *at, w
}

// remove takes out w, which must be there. It reports whether the table has become
// much too large.
func (t *waiterTable) remove(w *waiter) (large bool) {
	t.n--
	at := t.bucket(w.id)
	for *at != w {
		at = &(*at).next
	}
	*at = w.next
	return t.n <= smallMap && len(t.buckets) >= largeMap
}

// grow takes a step of doubling the table, the first one if none is under way: to fill
// it takes as many waiters as there are steps.
//
//go:noinline
func (t *waiterTable) grow() {
	if t.old == nil {
		t.old, t.moved, t.buckets = t.buckets, 0, make([]*waiter, max(minBuckets, 2*len(t.buckets)))
	}
	if t.moved < len(t.old) {
		w := t.old[t.moved]
		t.old[t.moved] = nil
		for t.moved++; w != nil; {
			next, at := w.next, t.bucket(w.id)
			w.next, *at = *at, w
			w = next
		}
	}
	if t.moved == len(t.old) {
		t.old = nil
	}
}

// group is the requests that wait for the same range in the same mode on one
// resource, or for one named lock. What one of them conflicts with is the
// same for all, but for their own locks.
type group struct {
	Range
	mode   Mode
	res    *resource // nil: of a named lock
	name   *named
	queue  treap[waiter, waitersByID]
	n      int    // how many wait
	number uint64 // no other group of a file has it

	links  links[group]
	maxEnd uint64 // of the subtree in resource.groups

	key WaiterID // in the heap: who may be granted
	pos int      // in the heap, from 1; 0: not in it
}

type groupsByRange struct{}

func (groupsByRange) links(g *group) *links[group] { return &g.links }

func (groupsByRange) less(a, b *group) bool { return a.before(b.Range, b.mode) }

func (g *group) before(rng Range, mode Mode) bool {
	if g.Start != rng.Start {
		return g.Start < rng.Start
	}
	if g.End != rng.End {
		return g.End < rng.End
	}
	return g.mode < mode
}

func (groupsByRange) update(g *group) {
	g.maxEnd = g.End
	for _, c := range [2]*group{g.links.left, g.links.right} {
		if c != nil {
			g.maxEnd = max(g.maxEnd, c.maxEnd)
		}
	}
}

func groupsOverlapping(g *group, r Range, yield func(*group)) {
	if g == nil || g.maxEnd <= r.Start {
		return
	}
	groupsOverlapping(g.links.left, r, yield)
	if g.Start >= r.End {
		return
	}
	if g.End > r.Start {
		yield(g)
	}
	groupsOverlapping(g.links.right, r, yield)
}

// groupOf returns the group for a request on a resource, new if need be.
func (c *core) groupOf(r *resource, rng Range, mode Mode) *group {
	g := r.groups.seek(func(g *group) bool { return !g.before(rng, mode) })
	if g != nil && g.Range == rng && g.mode == mode {
		return g
	}
	g = c.pools.group.get()
	g.Range, g.mode, g.res = rng, mode, r
	g.maxEnd = g.End
	c.groups++
	g.number = c.groups
	r.groups.insert(g, &g.links, c)
	return g
}

func (c *core) freeGroup(g *group) {
	switch {
	case !g.queue.empty():
	case g.res == nil:
		n := g.name
		n.more.queue = nil
		c.pools.group.put(g)
		c.freeEntry(n)
	default:
		r := g.res
		r.groups.remove(g, &g.links)
		c.pools.group.put(g)
		c.freeResource(r)
	}
}

// eligible returns the earliest waiter of the group that conflicts with no
// lock held, nil if there is none. O(log n), but for a name whose guard is held.
func (c *core) eligible(g *group) *waiter {
	if g.res == nil {
		if g.name.held() {
			return nil
		}
		return c.unguardedOf(g)
	}
	switch b := g.res.blockers(g.Range, g.mode); b {
	case nil:
		return g.queue.first()
	case several:
		return nil
	default:
		return b.firstIn(g)
	}
}

// firstIn returns the owner's earliest waiter in the group.
func (o *owner) firstIn(g *group) *waiter {
	w := o.waits.seek(func(w *waiter) bool { return w.group.number >= g.number })
	if w == nil || w.group != g {
		return nil
	}
	return w
}

// enqueue makes the request wait, with its place before if one was kept.
func (c *core) enqueue(req *Request) *waiter {
	w := c.pools.waiter.get()
	w.req = *req
	p := c.placeOf(req)
	w.since = c.now
	if p != nil {
		w.id = p.id
	} else {
		c.nextWaiter++
		w.id = c.nextWaiter
	}
	if p != nil && req.Class != Named {
		w.since = p.since // the kernel goes on with the same call; an open is another one
	}
	c.link(w)
	if p != nil {
		c.forgetPlace(p) // not before: it may be what keeps the owner known
	}
	c.stats.Waiting[req.Class]++
	c.stats.Waited[req.Class]++
	return w
}

func (c *core) link(w *waiter) {
	c.waiters.add(w)
	c.births++
	w.born = c.births
	c.line.push(w, &w.ofCore)
	c.quota.count(w.req.Who.UID, 1)
	if w.req.Class == Named {
		c.linkNamed(w)
	} else {
		c.linkFile(w)
	}
	w.group.queue.insert(w, &w.byID, c)
	w.group.n++
	if w.handle != nil {
		w.handle.waits.push(w, &w.ofHand)
	}
	if p := w.party; p != nil {
		c.partyStuck(p, 1)
		p.waits.push(w, &w.ofParty)
	}
}

//go:noinline
func (c *core) linkNamed(w *waiter) {
	w.group = c.queueOf(c.entry(w.req.Name))
	if w.req.Guard != "" {
		c.guard(w)
	}
	w.handle, w.party = c.handleOf(w.req.Handle), c.partyOf(w.req.Who.PID)
}

func (c *core) linkFile(w *waiter) {
	r := c.resource(w.req.Class, w.req.Name)
	r.n++
	w.group = c.groupOf(r, w.req.Range, w.req.Mode)
	o := c.ownerOf(&w.req)
	w.owner = o
	c.ownerStuck(o, 1)
	o.waits.insert(w, &w.byGroup, c)
	if !o.came.with(&w.req) {
		c.cameWith(o, &w.req)
	}
	w.handle, w.party = o.came.handle, o.came.party
}

// shrinkWaiters makes the table of the few waiters there are anew.
//
//go:noinline
func (c *core) shrinkWaiters() {
	c.waiters = waiterTable{}
	for w := range c.line.all {
		c.waiters.add(w)
	}
	c.gave = true
}

// unlink takes a waiter out of everything.
func (c *core) unlink(w *waiter) {
	large := c.waiters.remove(w)
	c.cut.waiterGoes(w)
	c.line.remove(&w.ofCore)
	if large {
		c.shrinkWaiters()
	}
	c.quota.count(w.req.Who.UID, -1)
	c.stats.Waiting[w.req.Class]--
	w.group.queue.remove(w, &w.byID)
	w.group.n--
	if w.req.Class == Named && w.req.Guard != "" {
		c.dropGuard(w)
	}
	if o := w.owner; o != nil {
		w.group.res.n--
		o.waits.remove(w, &w.byGroup)
		c.ownerStuck(o, -1)
		c.freeOwner(o)
	}
	c.freeGroup(w.group)
	if w.handle != nil {
		w.handle.waits.remove(&w.ofHand)
		c.freeHandle(w.handle)
	}
	if p := w.party; p != nil {
		p.waits.remove(&w.ofParty)
		c.partyStuck(p, -1)
		c.freeParty(p)
	}
	c.pools.waiter.put(w)
}

// ownerStuck counts n more (or fewer) who hold and wait: before the owner's first
// wait, if it is that, or after the last one.
func (c *core) ownerStuck(o *owner, n int) {
	if o.class == Record && o.segs > 0 && o.waits.empty() {
		c.stuckOwners += n
	}
}

func (c *core) partyStuck(p *party, n int) {
	if p.held > 0 && p.waits.empty() {
		c.stuckParties += n
	}
}

// cancel ends a wait, without completing it.
func (c *core) cancel(id WaiterID, keepPlace bool) bool {
	w := c.waiters.get(id)
	if w == nil {
		return false
	}
	c.emitRequest(EventCanceled, &w.req).Waited = since(w.since, c.now)
	c.stats.Canceled[w.req.Class]++
	if keepPlace {
		c.keepPlace(w)
	}
	c.unlink(w)
	return true
}

// giveUp ends a wait and completes it with ErrCanceled.
func (c *core) giveUp(w *waiter) {
	c.complete(w).err = ErrCanceled
	c.cancel(w.id, false)
}

// complete says that a wait is over; the caller says how.
func (c *core) complete(w *waiter) *completion {
	c.done = append(c.done, completion{})
	d := &c.done[len(c.done)-1]
	d.waiter, d.tell = w.id, w.tell
	return d
}

// wake grants to those who wait what was given back, always to the earliest of
// all who conflict with no lock held. A grant can give back something too (a
// shared lock over an exclusive one of the same owner), so it goes on until
// nothing is left to grant.
func (c *core) wake() {
	if g := c.seedOnly(); g != nil {
		if w := c.eligible(g); w != nil {
			c.grantTo(w)
		}
	}
	for {
		c.seed()
		g := c.ready.pop()
		if g == nil {
			return
		}
		c.handOff(g)
	}
}

// seed puts the groups that may have become free to go on the heap.
func (c *core) seed() {
	for _, s := range c.shrunk {
		groupsOverlapping(s.res.groups.root, s.Range, c.consider)
	}
	c.shrunk = c.shrunk[:0]
}

// seedOnly returns the one group that may have become free to go, if there is but
// one that waits where something was given back: it need not go on the heap. nil: not so.
func (c *core) seedOnly() *group {
	if len(c.shrunk) != 1 || len(c.ready) > 0 {
		return nil
	}
	s := &c.shrunk[0]
	g := s.res.groups.root
	if g == nil || g.links.left != nil || g.links.right != nil || !g.overlaps(s.Range) {
		return nil
	}
	c.shrunk = c.shrunk[:0]
	return g
}

// consider puts the group on the heap, if one of its waiters can be granted.
func (c *core) consider(g *group) {
	w := c.eligible(g)
	switch {
	case w == nil:
	case g.pos == 0:
		g.key = w.id
		c.ready.push(g)
	case w.id < g.key:
		g.key = w.id
		c.ready.up(g.pos)
	}
}

// handOff grants the group's earliest waiter, unless grants since it came on
// the heap have changed who that is.
func (c *core) handOff(g *group) {
	w := c.eligible(g)
	if w == nil || w.id != g.key {
		c.consider(g)
		return
	}
	c.grantTo(w)
}

// grantTo grants a waiter that is eligible, and considers those behind it.
func (c *core) grantTo(w *waiter) {
	g := w.group
	last := g.n == 1 // then the group is gone with it
	c.grantWaiter(w)
	if !last {
		c.consider(g)
	}
}

func (c *core) grantWaiter(w *waiter) {
	waited := since(w.since, c.now)
	d := c.complete(w) // and to grant completes nothing else
	c.grant(w.group.res, w.owner, &w.req, waited, &d.grant)
	c.unlink(w)
}

func (c *core) waitersInOrder() []*waiter {
	ws := make([]*waiter, 0, c.waiters.n)
	for w := range c.line.all {
		ws = append(ws, w)
	}
	slices.SortFunc(ws, func(a, b *waiter) int { return int(int64(a.id) - int64(b.id)) })
	return ws
}

// since is how much time passed, by the clock that no one sets.
func since(from, to Instant) time.Duration { return time.Duration(to.Boot - from.Boot) }

// groupHeap is groups by the arrival of who may be granted, earliest first.
type groupHeap []*group

func (h *groupHeap) push(g *group) {
	*h = append(*h, g)
	g.pos = len(*h)
	h.up(g.pos)
}

func (h *groupHeap) pop() *group {
	n := len(*h)
	if n == 0 {
		return nil
	}
	g := (*h)[0]
	h.swap(1, n)
	(*h)[n-1] = nil
	*h = (*h)[:n-1]
	h.down(1)
	g.pos = 0
	return g
}

func (h groupHeap) up(i int) {
	for ; i > 1 && h[i-1].key < h[i/2-1].key; i /= 2 {
		h.swap(i, i/2)
	}
}

func (h groupHeap) down(i int) {
	for 2*i <= len(h) {
		child := 2 * i
		if child < len(h) && h[child].key < h[child-1].key {
			child++
		}
		if h[i-1].key <= h[child-1].key {
			return
		}
		h.swap(i, child)
		i = child
	}
}

func (h groupHeap) swap(i, j int) {
	h[i-1], h[j-1] = h[j-1], h[i-1]
	h[i-1].pos, h[j-1].pos = i, j
}
