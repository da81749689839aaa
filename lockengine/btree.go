package lockengine

import "slices"

// segNode is a node of a B+tree (Comer, "The Ubiquitous B-Tree", 1979) of
// segments, by start and owner. An entry of a leaf is a segment, one of an inner
// node all the segments below a child. What is looked at together is side by
// side: to look at many entries takes few cache lines.
//
// INVARIANT: a node but the root has at least minFill entries, if it is not the
// last of its level; what comes after the entries is zero.
type segNode struct {
	n     int
	kids  *segKids // nil: a leaf
	start [fanout]uint64
	end   [fanout]uint64 // the largest
	sum   [fanout]*owner // the one owner of all of it, or several
	seg   [fanout]*seg   // the first
}

type segKids [fanout]*segNode

const (
	fanout  = 31 // a node has 1 KB then
	minFill = fanout / 4
	// Two neighbours are made one if that leaves room to insert.
	joinFill = fanout * 3 / 4
	// spareNodes is how many unused ones are kept: a lock and its unlock need few.
	spareNodes = 64
)

// find returns how many entries do not come after this start and owner.
func (n *segNode) find(start uint64, key *Owner) int {
	i := 0
	for i < n.n && n.start[i] < start {
		i++
	}
	same := i
	for same < n.n && n.start[same] == start {
		same++
	}
	for i < same {
		m := (i + same) / 2
		if key.less(n.seg[m].by.owner.key) {
			same = m
		} else {
			i = m + 1
		}
	}
	return i
}

// put makes s the entry i of a leaf that has room.
func (n *segNode) put(i int, s *seg) {
	n.open(i, 1)
	n.start[i], n.end[i], n.sum[i], n.seg[i] = s.Start, s.End, s.by.owner, s
}

// tell makes the entry i what there is below its child.
func (n *segNode) tell(i int) {
	k := n.kids[i]
	n.start[i], n.end[i], n.sum[i], n.seg[i] = k.start[0], slices.Max(k.end[:k.n]), k.whose(), k.seg[0]
}

// whose returns the owner of all there is, or several.
func (n *segNode) whose() (sum *owner) {
	for _, o := range n.sum[:n.n] {
		if sum = either(sum, o); sum == several {
			break
		}
	}
	return sum
}

// move copies m entries of from, from i on, to n, from at on. They may be the same.
func (n *segNode) move(at int, from *segNode, i, m int) {
	copy(n.start[at:at+m], from.start[i:])
	copy(n.end[at:at+m], from.end[i:])
	copy(n.sum[at:at+m], from.sum[i:])
	copy(n.seg[at:at+m], from.seg[i:])
	if n.kids != nil {
		copy(n.kids[at:at+m], from.kids[i:])
	}
}

// open makes room for m entries from i on.
func (n *segNode) open(i, m int) {
	n.move(i+m, n, i, n.n-i)
	n.n += m
}

// drop takes out m entries from i on.
func (n *segNode) drop(i, m int) {
	n.move(i, n, i+m, n.n-i-m)
	n.n -= m
	clear(n.start[n.n : n.n+m])
	clear(n.end[n.n : n.n+m])
	clear(n.sum[n.n : n.n+m])
	clear(n.seg[n.n : n.n+m])
	if n.kids != nil {
		clear(n.kids[n.n : n.n+m])
	}
}

// owners adds to sum whose segments overlap r.
//
// An owner has at most one segment that reaches into r from before, and what is
// all within r need not be looked into: so there are at most two children with
// some to be found, and one without, on each level.
func (n *segNode) owners(r Range, sum *owner) *owner {
	for i := 0; i < n.n && n.start[i] < r.End; i++ {
		if n.end[i] <= r.Start || n.sum[i] == sum {
			continue
		}
		if n.kids == nil || n.start[i] >= r.Start && i+1 < n.n && n.start[i+1] < r.End {
			sum = either(sum, n.sum[i])
		} else {
			sum = n.kids[i].owners(r, sum)
		}
		if sum == several {
			break
		}
	}
	return sum
}

// overlapping is segTree.overlapping; it does not look at children that are all
// of one owner whom skip is true for.
func (n *segNode) overlapping(r Range, skip func(*owner) bool, yield func(*seg) bool) bool {
	for i := 0; i < n.n && n.start[i] < r.End; i++ {
		if n.end[i] <= r.Start || n.sum[i] != several && skip(n.sum[i]) {
			continue
		}
		if n.kids == nil {
			if !yield(n.seg[i]) {
				return false
			}
		} else if !n.kids[i].overlapping(r, skip, yield) {
			return false
		}
	}
	return true
}

// segNodes is where nodes come from, and go to.
type segNodes struct {
	node pool[segNode]
	kids pool[segKids]
}

func (p *segNodes) get(inner bool) *segNode {
	n := p.node.get()
	if inner {
		n.kids = p.kids.get()
	}
	return n
}

func (p *segNodes) free(n *segNode) {
	if len(p.node.free) == spareNodes {
		return
	}
	if n.kids != nil {
		p.kids.put(n.kids)
	}
	p.node.put(n)
}

// insert adds s below the root and returns the root. What is full on the way is
// split first, so that there is room for what a split below adds.
func (p *segNodes) insert(root *segNode, s *seg) *segNode {
	if root.n == fanout {
		above := p.get(true)
		above.n, above.kids[0] = 1, root
		above.tell(0)
		root = above
	}
	n, o, last := root, s.by.owner, true
	for n.kids != nil {
		before := n.find(s.Start, &o.key)
		i := max(before-1, 0)
		if k := n.kids[i]; k.n == fanout {
			p.split(n, i, last && i == n.n-1 && bySegStart(k.seg[fanout-1], s) < 0)
			if bySegStart(n.seg[i+1], s) < 0 {
				i++
			}
		}
		last = last && i == n.n-1
		n.end[i], n.sum[i] = max(n.end[i], s.End), either(n.sum[i], o)
		if before == 0 {
			n.start[i], n.seg[i] = s.Start, s
		}
		n = n.kids[i]
	}
	n.put(n.find(s.Start, &o.key), s)
	return root
}

// split makes two of the child i, which is full. They are halves; but at the end
// of the tree the first stays all but full, as much comes in order.
func (p *segNodes) split(n *segNode, i int, atEnd bool) {
	n.open(i+1, 1)
	n.kids[i+1] = p.get(n.kids[i].kids != nil)
	if atEnd {
		p.share(n, i, fanout-1)
	} else {
		p.share(n, i, fanout/2)
	}
}

// share moves entries between the child i and the next, so that it has want of
// them. Without any, the next goes.
func (p *segNodes) share(n *segNode, i, want int) {
	l, r := n.kids[i], n.kids[i+1]
	if m := want - l.n; m > 0 {
		l.move(l.n, r, 0, m)
		l.n += m
		r.drop(0, m)
	} else {
		r.open(0, -m)
		r.move(0, l, want, -m)
		l.drop(want, -m)
	}
	n.tell(i)
	if r.n > 0 {
		n.tell(i + 1)
		return
	}
	p.free(r)
	n.drop(i+1, 1)
}

// remove takes out s, which must be below the root, and returns the root.
func (p *segNodes) remove(root *segNode, s *seg) *segNode {
	p.removeBelow(root, s)
	for root.kids != nil && root.n == 1 {
		above := root
		root = root.kids[0]
		p.free(above)
	}
	return root
}

func (p *segNodes) removeBelow(n *segNode, s *seg) {
	i := n.find(s.Start, &s.by.owner.key) - 1
	if n.kids == nil {
		n.drop(i, 1)
		return
	}
	k := n.kids[i]
	p.removeBelow(k, s)
	switch {
	case k.n < minFill && n.n > 1:
		p.mend(n, min(i, n.n-2))
	case k.n == 0:
		p.free(k)
		n.drop(i, 1)
	case n.seg[i] == s || n.end[i] == s.End:
		n.tell(i)
	case n.sum[i] == several:
		n.sum[i] = k.whose()
	}
}

// mend makes one of the child i and the next, or gives them as much each.
func (p *segNodes) mend(n *segNode, i int) {
	all := n.kids[i].n + n.kids[i+1].n
	if all <= joinFill {
		p.share(n, i, all)
	} else {
		p.share(n, i, all/2)
	}
}
