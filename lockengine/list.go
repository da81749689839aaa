package lockengine

// hook ties an element into one list.
type hook[T any] struct{ prev, next *T }

// hooked tells a list where in an element its hook is. It has no state.
type hooked[T any] interface{ hook(*T) *hook[T] }

// list is a doubly linked list through its elements, oldest first: nothing is
// allocated to append, and to remove is O(1).
type list[T any, H hooked[T]] struct {
	head, tail *T
}

func (l *list[T, H]) empty() bool { return l.head == nil }

// push appends x, with k its hook of this list: who calls knows it, the list would
// have to ask.
func (l *list[T, H]) push(x *T, k *hook[T]) {
	var h H
	k.prev = l.tail
	if l.tail == nil {
		l.head = x
	} else {
		h.hook(l.tail).next = x
	}
	l.tail = x
}

// remove takes out x, which must be in the list, with k its hook of this list.
func (l *list[T, H]) remove(x *T, k *hook[T]) {
	var h H
	before, after := &l.head, &l.tail
	if k.prev != nil {
		before = &h.hook(k.prev).next
	}
	if k.next != nil {
		after = &h.hook(k.next).prev
	}
	*before, *after = k.next, k.prev
	k.prev, k.next = nil, nil
}

// all yields the elements, oldest first. The one yielded may be removed
// meanwhile, no other.
func (l *list[T, H]) all(yield func(*T) bool) {
	var h H
	for x := l.head; x != nil; {
		next := h.hook(x).next
		if !yield(x) {
			return
		}
		x = next
	}
}

// pool keeps up to poolMax unused T for reuse, so that locking and unlocking
// again and again allocates nothing. What is in it is zero.
type pool[T any] struct{ free []*T }

const poolMax = 4096

func (p *pool[T]) get() *T {
	n := len(p.free)
	if n == 0 {
		return new(T)
	}
	x := p.free[n-1]
	p.free = p.free[:n-1]
	return x
}

func (p *pool[T]) put(x *T) {
	var zero T
	*x = zero
	if len(p.free) < poolMax {
		p.free = append(p.free, x)
	}
}

// lot parks what has become idle for a while before it is forgotten: who locks
// and unlocks again and again is then found where it was, which saves most of
// the cost of an uncontended lock.
type lot[T any] struct {
	parked [lotSize]*T
	at     int
}

const lotSize = 64

// park takes in x and returns whose place it took, nil if that was empty.
func (l *lot[T]) park(x *T) *T {
	l.at = (l.at + 1) % lotSize
	old := l.parked[l.at]
	l.parked[l.at] = x
	return old
}
