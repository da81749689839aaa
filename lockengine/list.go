package lockengine

// hook ties an element into one list. It is zero as long as that is in none.
type hook[T any] struct {
	of         *T
	prev, next *hook[T]
}

// after returns the element after this one, nil if it is the last.
func (k *hook[T]) after() *T { return k.next.element() }

// element returns whose hook it is, nil if k is nil.
func (k *hook[T]) element() *T {
	if k == nil {
		return nil
	}
	return k.of
}

// list is a doubly linked list through its elements, oldest first: nothing is
// allocated to append, and to remove is O(1).
type list[T any] struct {
	head, tail *hook[T]
}

func (l *list[T]) empty() bool { return l.head == nil }

// first returns the oldest element, nil if there is none.
func (l *list[T]) first() *T { return l.head.element() }

// push appends x, with k its hook of this list.
func (l *list[T]) push(x *T, k *hook[T]) {
	k.of, k.prev = x, l.tail
	if l.tail == nil {
		l.head = k
	} else {
		l.tail.next = k
	}
	l.tail = k
}

// remove takes out the element whose hook k is, which must be in the list.
func (l *list[T]) remove(k *hook[T]) {
	before, after := &l.head, &l.tail
	if k.prev != nil {
		before = &k.prev.next
	}
	if k.next != nil {
		after = &k.next.prev
	}
	*before, *after = k.next, k.prev
	*k = hook[T]{}
}

// all yields the elements, oldest first. The one yielded may be removed
// meanwhile, no other.
func (l *list[T]) all(yield func(*T) bool) {
	for k := l.head; k != nil; {
		next := k.next
		if !yield(k.of) {
			return
		}
		k = next
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
