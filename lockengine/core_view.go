package lockengine

import (
	"cmp"
	"slices"
)

// What is in this file only looks. What it returns are copies.

func (s *seg) lock() Lock {
	h := s.by
	l := Lock{
		Class: h.res.class, Name: h.res.name, Owner: h.owner.key, Kind: h.owner.kind,
		Mode: s.mode, Range: s.Range, Who: s.who, Since: s.since,
	}
	if s.handle != nil {
		l.Handle = s.handle.id
	}
	return l
}

func (n *named) lock() Lock {
	l := Lock{
		Class: Named, Name: n.name, Owner: n.owner, Kind: n.kind, Mode: Exclusive, Range: Whole,
		Who: n.who, Since: n.since, Token: n.token, Timeout: n.timeout, Expiry: n.expiry,
		Start: n.start, Meta: n.meta,
	}
	m := n.more
	if m == nil {
		return l
	}
	l.PrevStart, l.Note = m.prevStart, m.note
	if m.handle != nil {
		l.Handle = m.handle.id
	}
	if m.queue != nil {
		l.Waiters = m.queue.n
	}
	return l
}

func (w *waiter) waiting() Waiting {
	out := Waiting{
		ID: w.id, Class: w.req.Class, Name: w.req.Name, Owner: w.req.Owner, Kind: w.req.Kind,
		Mode: w.req.Mode, Range: w.req.Range, Handle: w.req.Handle, Who: w.req.Who,
		Since: w.since, Meta: w.req.Meta,
	}
	if w.owner != nil {
		out.Kind = w.owner.kind
	}
	return out
}

// test returns the conflicting lock with the lowest start, then owner.
func (c *core) test(req *Request) (Lock, bool) {
	if !normalize(req) {
		return Lock{}, false
	}
	if req.Class == Named {
		return c.get(req.Name)
	}
	r := c.resources[req.Class][req.Name]
	if r == nil {
		return Lock{}, false
	}
	own := func(o *owner) bool { return o.key == req.Owner }
	s := r.excl.firstOverlapping(req.Range, own)
	if req.Mode == Exclusive {
		if other := r.shared.firstOverlapping(req.Range, own); s == nil || other != nil && bySegStart(other, s) < 0 {
			s = other
		}
	}
	if s == nil {
		return Lock{}, false
	}
	return s.lock(), true
}

func (t *segTree) firstOverlapping(rng Range, skip func(*owner) bool) (first *seg) {
	t.overlapping(rng, skip, func(s *seg) bool {
		first = s
		return false
	})
	return first
}

// testOwn returns the owner's own lock with the lowest start in the range.
func (c *core) testOwn(req *Request) (Lock, bool) {
	if req.Mode == 0 {
		req.Mode = Shared // it is of no matter here
	}
	if !normalize(req) {
		return Lock{}, false
	}
	if req.Class == Named {
		n := c.lookup(req.Name, 0)
		if n == nil || n.owner != req.Owner {
			return Lock{}, false
		}
		return n.lock(), true
	}
	h := c.find(req)
	if h == nil {
		return Lock{}, false
	}
	s := h.touching(req.Range.Start + 1)
	if s == nil || s.Start >= req.Range.End {
		return Lock{}, false
	}
	return s.lock(), true
}

func (c *core) get(name string) (Lock, bool) {
	n := c.lookup(name, 0)
	if n == nil {
		return Lock{}, false
	}
	return n.lock(), true
}

func (c *core) waitersOf(class Class, name string) (out []Waiting) {
	switch class {
	case Named:
		if n := c.names.byName[name]; n != nil && n.more != nil && n.more.queue != nil {
			out = n.more.queue.appendTo(out)
		}
	case Record, Flock:
		if r := c.resources[class][name]; r != nil {
			out = r.appendWaiting(out)
		}
	}
	return out
}

func (g *group) appendTo(out []Waiting) []Waiting {
	for w := range g.queue.all {
		out = append(out, w.waiting())
	}
	return out
}

// waitersOn is how many wait for the name.
func (c *core) waitersOn(class Class, name string) int {
	if class != Named {
		return c.locksOn(name)
	}
	if n := c.names.byName[name]; n != nil && n.more != nil && n.more.queue != nil {
		return n.more.queue.n
	}
	return 0
}

// locksOn is how many locks and waiters of the classes Record and Flock there
// are on the name.
func (c *core) locksOn(name string) (n int) {
	for _, class := range fileClasses {
		if r := c.resources[class][name]; r != nil {
			n += r.n
		}
	}
	return n
}

// appendWaiting appends who waits here, in order of arrival.
func (r *resource) appendWaiting(out []Waiting) []Waiting {
	from := len(out)
	for g := range r.groups.all {
		out = g.appendTo(out)
	}
	slices.SortFunc(out[from:], byArrival)
	return out
}

func byArrival(a, b Waiting) int { return cmp.Compare(a.ID, b.ID) }

// appendSegs appends the segments held here, by start and owner.
func (r *resource) appendSegs(out []*seg) []*seg {
	from := len(out)
	for s := range r.excl.all {
		out = append(out, s)
	}
	for s := range r.shared.all {
		out = append(out, s)
	}
	if !r.excl.empty() && !r.shared.empty() {
		slices.SortFunc(out[from:], bySegStart)
	}
	return out
}

func bySegStart(a, b *seg) int {
	if a.Start != b.Start {
		return cmp.Compare(a.Start, b.Start)
	}
	return compareOwners(a.by.owner.key, b.by.owner.key)
}

func compareOwners(a, b Owner) int {
	return cmp.Or(cmp.Compare(a.Session, b.Session), cmp.Compare(a.ID, b.ID))
}

// locksOf returns the locks and the waiters of the classes Record and Flock.
func (c *core) locksOf(name string) (locks []Lock, waiting []Waiting) {
	for _, class := range fileClasses {
		r := c.resources[class][name]
		if r == nil {
			continue
		}
		for _, s := range r.appendSegs(nil) {
			locks = append(locks, s.lock())
		}
		waiting = r.appendWaiting(waiting)
	}
	slices.SortStableFunc(locks, func(a, b Lock) int {
		return cmp.Or(cmp.Compare(a.Range.Start, b.Range.Start), compareOwners(a.Owner, b.Owner))
	})
	slices.SortFunc(waiting, byArrival)
	return locks, waiting
}

// resourceNames returns the names with locks or waiters of the classes Record
// and Flock, sorted.
func (c *core) resourceNames() []string {
	names := make([]string, 0, len(c.resources[Record])+len(c.resources[Flock]))
	for _, class := range fileClasses {
		for name, r := range c.resources[class] {
			if !r.idle() {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// segsInOrder returns all segments by name, start and owner.
func (c *core) segsInOrder() (out []*seg) {
	for _, name := range c.resourceNames() {
		from := len(out)
		for _, class := range fileClasses {
			if r := c.resources[class][name]; r != nil {
				out = r.appendSegs(out)
			}
		}
		if c.resources[Flock][name] != nil {
			slices.SortStableFunc(out[from:], bySegStart)
		}
	}
	return out
}

// oldest returns when the lock of each class that is held longest was granted;
// zero: none is held, or more than limit, which would take long to look at.
func (c *core) oldest(limit int) (since [4]Instant) {
	if first := c.names.byToken.list(0, 1); len(first) > 0 { // tokens grow from grant to grant
		since[Named] = c.lookup(first[0].Name, 0).since
	}
	for _, class := range fileClasses {
		if c.stats.Held[class] > limit {
			continue
		}
		for _, r := range c.resources[class] {
			for _, tree := range []*segTree{&r.excl, &r.shared} {
				for s := range tree.all {
					if since[class] == (Instant{}) || s.since.Boot < since[class].Boot {
						since[class] = s.since
					}
				}
			}
		}
	}
	return since
}

func (c *core) statsNow() Stats {
	s := c.stats
	s.Events, s.LastToken = c.log.last, c.names.last
	return s
}
