package lockengine

// links ties an element into one treap. An element can be in several treaps
// at once with one links each: nothing is allocated to insert it.
type links[T any] struct {
	left, right *T
	prio        uint32
}

// order is what a treap must know of its elements. It is a type without
// state, so that a treap is one pointer.
type order[T any] interface {
	links(*T) *links[T]
	less(a, b *T) bool
	// update computes the summary of the element's subtree from its children.
	update(*T)
}

// treap is an ordered set, balanced by random priorities (Seidel and Aragon,
// "Randomized search trees", 1996): O(log n) expected for all it does.
type treap[T any, O order[T]] struct{ root *T }

func (t *treap[T, O]) empty() bool { return t.root == nil }

// insert adds x, with l its links of this treap: who calls knows them, the treap
// would have to ask. The summary of x must be that of x alone. The first element
// has the lowest priority of all.
func (t *treap[T, O]) insert(x *T, l *links[T], c *core) {
	if t.root == nil {
		t.root = x
		return
	}
	t.insertMore(x, l, c)
}

//go:noinline
func (t *treap[T, O]) insertMore(x *T, l *links[T], c *core) {
	l.prio = c.prio()
	t.root = insertAt[T, O](t.root, x)
}

func insertAt[T any, O order[T]](n, x *T) *T {
	var o O
	lx := o.links(x)
	if n == nil {
		return x
	}
	ln := o.links(n)
	if lx.prio > ln.prio {
		lx.left, lx.right = split[T, O](n, x)
		o.update(x)
		return x
	}
	if o.less(x, n) {
		ln.left = insertAt[T, O](ln.left, x)
	} else {
		ln.right = insertAt[T, O](ln.right, x)
	}
	o.update(n)
	return n
}

// split parts the subtree n into what is less than x and the rest.
func split[T any, O order[T]](n, x *T) (low, high *T) {
	if n == nil {
		return nil, nil
	}
	var o O
	ln := o.links(n)
	if o.less(n, x) {
		ln.right, high = split[T, O](ln.right, x)
		low = n
	} else {
		low, ln.left = split[T, O](ln.left, x)
		high = n
	}
	o.update(n)
	return low, high
}

// remove takes out x, which must be in the treap, with l its links of this treap.
func (t *treap[T, O]) remove(x *T, l *links[T]) {
	if t.root == x && l.left == l.right { // which are none
		t.root = nil
		return
	}
	t.removeMore(x)
}

//go:noinline
func (t *treap[T, O]) removeMore(x *T) { t.root = removeAt[T, O](t.root, x) }

func removeAt[T any, O order[T]](n, x *T) *T {
	var o O
	ln := o.links(n)
	if n == x {
		low, high := ln.left, ln.right
		*ln = links[T]{}
		return join[T, O](low, high)
	}
	if o.less(x, n) {
		ln.left = removeAt[T, O](ln.left, x)
	} else {
		ln.right = removeAt[T, O](ln.right, x)
	}
	o.update(n)
	return n
}

// join makes one subtree of two of which all of low comes before all of high.
func join[T any, O order[T]](low, high *T) *T {
	if low == nil {
		return high
	}
	if high == nil {
		return low
	}
	var o O
	ll, lh := o.links(low), o.links(high)
	if ll.prio > lh.prio {
		ll.right = join[T, O](ll.right, high)
		o.update(low)
		return low
	}
	lh.left = join[T, O](low, lh.left)
	o.update(high)
	return high
}

// first returns the lowest element, nil if there is none.
func (t *treap[T, O]) first() *T {
	var o O
	n := t.root
	if n == nil {
		return nil
	}
	for o.links(n).left != nil {
		n = o.links(n).left
	}
	return n
}

// seek returns the lowest element that is reached, nil if none is. reached
// must be monotone: true for all that comes after one it is true for.
func (t *treap[T, O]) seek(reached func(*T) bool) *T {
	var o O
	var found *T
	for n := t.root; n != nil; {
		if reached(n) {
			found, n = n, o.links(n).left
		} else {
			n = o.links(n).right
		}
	}
	return found
}

// all yields the elements in order. The treap must not change meanwhile.
func (t *treap[T, O]) all(yield func(*T) bool) { walk[T, O](t.root, yield) }

func walk[T any, O order[T]](n *T, yield func(*T) bool) bool {
	if n == nil {
		return true
	}
	var o O
	return walk[T, O](o.links(n).left, yield) && yield(n) && walk[T, O](o.links(n).right, yield)
}
