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

	// Of the subtree in the resource's tree of this mode:
	maxEnd uint64 // the largest End
	sum    *owner // the one owner of all of it, or several

	tree links[seg] // in resource.excl or resource.shared
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
// of one owner never overlap; exclusive ones never do.
type segTree struct {
	treap[seg, segsByStart]
}

func (t *segTree) insert(s *seg, prio uint32) {
	s.maxEnd, s.sum = s.End, s.by.owner
	t.treap.insert(s, &s.tree, prio)
}

func (t *segTree) remove(s *seg) { t.treap.remove(s, &s.tree) }

type segsByStart struct{}

func (segsByStart) links(s *seg) *links[seg] { return &s.tree }

func (segsByStart) less(a, b *seg) bool {
	if a.Start != b.Start {
		return a.Start < b.Start
	}
	return a.by.owner.key.less(b.by.owner.key)
}

func (segsByStart) update(s *seg) {
	s.maxEnd, s.sum = s.End, s.by.owner
	for _, c := range [2]*seg{s.tree.left, s.tree.right} {
		if c != nil {
			s.maxEnd, s.sum = max(s.maxEnd, c.maxEnd), either(s.sum, c.sum)
		}
	}
}

func (s *seg) sumOf() *owner {
	if s == nil {
		return nil
	}
	return s.sum
}

// owners says whose segments overlap r: nobody's (nil), one owner's, or
// several. O(log n).
func (t *segTree) owners(r Range) *owner {
	sum := startingIn(t.root, r)
	if sum == several {
		return several
	}
	return reachingInto(t.root, r.Start, sum)
}

// startingIn says whose segments start within r, from the summaries of the
// subtrees between the paths to its two ends.
func startingIn(n *seg, r Range) *owner {
	for n != nil && (n.Start < r.Start || n.Start >= r.End) {
		if n.Start < r.Start {
			n = n.tree.right
		} else {
			n = n.tree.left
		}
	}
	if n == nil {
		return nil
	}
	return either(n.by.owner, either(startingFrom(n.tree.left, r.Start), startingBefore(n.tree.right, r.End)))
}

func startingFrom(n *seg, start uint64) (sum *owner) {
	for n != nil {
		if n.Start < start {
			n = n.tree.right
			continue
		}
		sum = either(sum, either(n.by.owner, n.tree.right.sumOf()))
		n = n.tree.left
	}
	return sum
}

func startingBefore(n *seg, end uint64) (sum *owner) {
	for n != nil {
		if n.Start >= end {
			n = n.tree.left
			continue
		}
		sum = either(sum, either(n.by.owner, n.tree.left.sumOf()))
		n = n.tree.right
	}
	return sum
}

// reachingInto adds to sum whose segments start before at and end after it. An
// owner has at most one of these, so the second hit at the latest ends it.
func reachingInto(n *seg, at uint64, sum *owner) *owner {
	if n == nil || n.maxEnd <= at || sum == several {
		return sum
	}
	sum = reachingInto(n.tree.left, at, sum)
	if n.Start >= at {
		return sum
	}
	if n.End > at {
		sum = either(sum, n.by.owner)
	}
	return reachingInto(n.tree.right, at, sum)
}

// overlapping yields, by start and owner, the segments that overlap r; but
// leaves out subtrees that are all of one owner whom skip is true for.
func overlapping(n *seg, r Range, skip func(*owner) bool, yield func(*seg) bool) bool {
	if n == nil || n.maxEnd <= r.Start || n.sum != several && skip(n.sum) {
		return true
	}
	if !overlapping(n.tree.left, r, skip, yield) {
		return false
	}
	if n.Start >= r.End {
		return true
	}
	if n.End > r.Start && !skip(n.by.owner) && !yield(n) {
		return false
	}
	return overlapping(n.tree.right, r, skip, yield)
}

type segsOfOne struct{}

func (segsOfOne) links(s *seg) *links[seg] { return &s.mine }
func (segsOfOne) less(a, b *seg) bool      { return a.Start < b.Start }
func (segsOfOne) update(*seg)              {}

type segsOfCore struct{}

func (segsOfCore) hook(s *seg) *hook[seg] { return &s.ofCore }

type segsOfHandle struct{}

func (segsOfHandle) hook(s *seg) *hook[seg] { return &s.hook }

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
