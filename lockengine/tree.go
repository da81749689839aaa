package lockengine

// seg is a range locked in one mode by one owner on one name, of the classes
// Record and Flock.
type seg struct {
	Range
	mode   Mode
	by     *holding
	handle *handle // nil: came through none
	party  *party  // nil: unknown
	who    Who
	since  Instant

	next *seg       // of the few in resource.excl or resource.shared
	mine links[seg] // in holding.segs
	hook hook[seg]  // in handle.segs

	born   uint64    // grows from one to the next
	ofCore hook[seg] // in core.segs
}

// several stands for two or more owners where one is told.
var several = new(owner)

// either joins two answers to "whose?": nobody (nil), one owner, or several.
func either(a, b *owner) *owner {
	switch {
	case a == nil || a == b:
		return b
	case b == nil:
		return a
	}
	return several
}

// segTree is the segments of one mode on one name, by start and owner. Those
// of one owner never overlap; exclusive ones never do. A few are a list, which
// takes no memory; more are a B+tree.
type segTree struct {
	few  *seg
	root *segNode // nil: there are few
}

const fewSegs = 8

func (t *segTree) empty() bool { return t.few == nil && t.root == nil }

// insert adds s. This, remove and owners do nothing but the most common case, of
// one segment at most, so that they are no calls.
func (t *segTree) insert(s *seg, p *segNodes) {
	if t.empty() {
		t.few = s
		return
	}
	t.insertMore(s, p)
}

func (t *segTree) insertMore(s *seg, p *segNodes) {
	if t.root != nil {
		t.root = p.insert(t.root, s)
		return
	}
	n, at := 1, &t.few
	for x := t.few; x != nil; x = x.next {
		if bySegStart(x, s) < 0 {
			at = &x.next
		}
		n++
	}
	s.next, *at = *at, s
	if n > fewSegs {
		t.grow(p)
	}
}

// grow makes the list a tree.
//
//go:noinline
func (t *segTree) grow(p *segNodes) {
	t.root = p.get(false)
	for t.few != nil {
		s := t.few
		t.few, s.next = s.next, nil
		t.root.put(t.root.n, s)
	}
}

// remove takes out s, which must be in the tree.
func (t *segTree) remove(s *seg, p *segNodes) {
	if t.few == s && s.next == nil {
		t.few = nil
		return
	}
	t.removeMore(s, p)
}

// removeMore makes a tree a list again only when it is much smaller, so that to
// lock and unlock does not make it one and then the other.
func (t *segTree) removeMore(s *seg, p *segNodes) {
	if t.root == nil {
		at := &t.few
		for *at != s {
			at = &(*at).next
		}
		*at, s.next = s.next, nil
		return
	}
	t.root = p.remove(t.root, s)
	if t.root.kids != nil || t.root.n > fewSegs/2 {
		return
	}
	at := &t.few
	for _, s := range t.root.seg[:t.root.n] {
		*at, at = s, &s.next
	}
	p.free(t.root)
	t.root = nil
}

// owners says whose segments overlap r: nobody's (nil), one owner's, or
// several. O(log n).
func (t *segTree) owners(r Range) *owner {
	if t.empty() {
		return nil
	}
	return t.ownersOfMore(r)
}

func (t *segTree) ownersOfMore(r Range) (sum *owner) {
	if t.root != nil {
		return t.root.owners(r, nil)
	}
	for s := t.few; s != nil && s.Start < r.End; s = s.next {
		if s.End > r.Start {
			sum = either(sum, s.by.owner)
		}
	}
	return sum
}

// overlapping yields, by start and owner, the segments that overlap r; but
// leaves out those of owners whom skip is true for.
func (t *segTree) overlapping(r Range, skip func(*owner) bool, yield func(*seg) bool) bool {
	if t.root != nil {
		return t.root.overlapping(r, skip, yield)
	}
	for s := t.few; s != nil && s.Start < r.End; s = s.next {
		if s.End > r.Start && !skip(s.by.owner) && !yield(s) {
			return false
		}
	}
	return true
}

// all yields the segments in order. The tree must not change meanwhile.
func (t *segTree) all(yield func(*seg) bool) {
	t.overlapping(Whole, func(*owner) bool { return false }, yield)
}

type segsOfOne struct{}

func (segsOfOne) links(s *seg) *links[seg] { return &s.mine }
func (segsOfOne) less(a, b *seg) bool      { return a.Start < b.Start }
func (segsOfOne) update(*seg)              {}

func (a Owner) less(b Owner) bool {
	if a.Session != b.Session {
		return a.Session < b.Session
	}
	return a.ID < b.ID
}

func (r Range) overlaps(o Range) bool { return r.Start < o.End && o.Start < r.End }

// common is the range where r and o overlap, which they must.
func (r Range) common(o Range) Range { return Range{max(r.Start, o.Start), min(r.End, o.End)} }

func (r Range) valid() bool { return r.Start < r.End && r.End <= MaxEnd }
