package lockengine

import "container/heap"

// cut is a copy of the state as of one instant, made step by step while the
// state goes on. Whatever changes or goes before its turn has come is copied
// first; what is new since then is left out.
//
// Everything has a number that tells its turn: a named lock its token, all else
// when it came, and things are copied in the order of their numbers. So a number
// tells of each thing whether it is to be copied, and whether it was already.
type cut struct {
	core   *core
	number uint64 // of this cut
	whole  bool   // with what is of use only to a successor

	// As of the instant:
	head   stateHead
	events []Event // the last ones

	endedAt, endedLeft int // names that ended: how many are copied, and are not

	named  copying[named, namedCopy, namedOfCut]
	segs   copying[seg, Lock, segOfCut]
	waits  copying[waiter, waitCopy, waitOfCut]
	places copying[place, placeCopy, placeOfCut]

	ready copies // what was copied and not taken yet
}

// copies are things copied, in their order.
type copies struct {
	ended  []endedName
	named  []namedCopy
	segs   []Lock // but for Kind, which is their owner's
	waits  []waitCopy
	places []placeCopy
	owners []ownerCopy // of all of these, in no order
}

// stateHead is what there is but once.
type stateHead struct {
	now        Instant
	known      int64
	boot       string
	token      uint64 // the last one
	reserved   uint64
	nextWaiter WaiterID
	lastWatch  WatchID
	event      uint64 // number of the last one
	rand       uint64
	stats      Stats
}

type namedCopy struct {
	Lock
	key     uint64
	watches []WatchID
}

type waitCopy struct {
	id    WaiterID
	since Instant
	req   Request
}

type placeCopy struct {
	key    placeKey
	id     WaiterID
	since  Instant
	due    int64
	handle uint64
}

type ownerKey struct {
	class Class
	owner Owner
}

type ownerCopy struct {
	ownerKey
	ownerFacts
	assumed bool
}

// startCut starts a cut as of now, whole with what is of use only to a
// successor. There is one at a time. If it is not whole, waiters come first: who
// makes a view knows then which locks they wait for.
func (c *core) startCut(whole bool) *cut {
	c.cuts++
	k := &cut{
		core: c, number: c.cuts, whole: whole,
		head: stateHead{
			now: c.now, known: c.known, boot: c.boot, token: c.names.last, nextWaiter: c.nextWaiter,
			lastWatch: c.lastWatch, event: c.log.last, rand: c.rand, stats: c.stats,
		},
	}
	k.named.start(k, k.firstNamed(0), c.names.last)
	k.segs.start(k, c.segs.first(), c.births)
	k.waits.start(k, c.line.first(), c.births)
	if whole {
		k.endedLeft = len(c.names.endedFIFO)
		k.places.start(k, c.places.queue.first(), c.births)
		k.events = c.log.lastOnes(eventsKept)
	}
	c.cut = k
	return k
}

// step copies up to n things, and reports whether that was not all. When it was
// all, the cut has ended.
func (k *cut) step(n int) (more bool) {
	n = k.stepEnded(n)
	if !k.whole {
		n = k.waits.step(n, &k.ready.waits)
	}
	n = k.named.step(n, &k.ready.named)
	n = k.segs.step(n, &k.ready.segs)
	n = k.waits.step(n, &k.ready.waits)
	n = k.places.step(n, &k.ready.places)
	if n > 0 {
		k.end()
	}
	return n == 0
}

// end gives the cut up, or ends it: then nothing is copied any more.
func (k *cut) end() {
	if k.core.cut == k {
		k.core.cut = nil
	}
}

// rest copies all that is left.
func (k *cut) rest() {
	for k.step(1 << 20) {
	}
}

// take returns what was copied since it was last taken. What it returned
// before, empty, is used again.
func (k *cut) take(used *copies) copies {
	out := k.ready
	k.ready = copies{used.ended[:0], used.named[:0], used.segs[:0], used.waits[:0], used.places[:0], used.owners[:0]}
	return out
}

func (k *cut) stepEnded(n int) int {
	m := min(n, k.endedLeft)
	if m == 0 {
		return n
	}
	k.ready.ended = append(k.ready.ended, k.core.names.endedFIFO[k.endedAt:k.endedAt+m]...)
	k.endedAt += m
	k.endedLeft -= m
	return n - m
}

// Each of these is told before it happens.

// endedGoes: the first of the names that ended is forgotten.
func (k *cut) endedGoes() {
	switch {
	case k == nil:
	case k.endedAt > 0:
		k.endedAt--
	case k.endedLeft > 0:
		k.stepEnded(1)
		k.endedAt--
	}
}

func (k *cut) namedChanges(n *named) {
	if k != nil {
		k.named.changes(n)
	}
}

func (k *cut) namedGoes(n *named) {
	if k != nil {
		k.named.goes(n)
	}
}

func (k *cut) segChanges(s *seg) {
	if k != nil {
		k.segs.changes(s)
	}
}

func (k *cut) segGoes(s *seg) {
	if k != nil {
		k.segs.goes(s)
	}
}

func (k *cut) waiterGoes(w *waiter) {
	if k != nil {
		k.waits.goes(w)
	}
}

func (k *cut) placeGoes(p *place) {
	if k != nil {
		k.places.goes(p)
	}
}

// ownerChanges: what is known of an owner changes. It is copied with the first
// of what it has, or here. One that has nothing is no part of the state, and
// what it comes to have is new.
func (k *cut) ownerChanges(o *owner) {
	if k == nil || o == nil || o.copied == k.number {
		return
	}
	o.copied = k.number
	if !o.idle() {
		facts := ownerFacts{o.kind, o.told, o.handle}
		k.ready.owners = append(k.ready.owners, ownerCopy{ownerKey{o.class, o.key}, facts, o.assumed})
	}
}

// copied tells a cut of things of one kind: where in one the number is, which
// comes next, and how to copy it.
type copied[T, C any] interface {
	number(*T) uint64
	next(*cut, *T) *T
	copy(*cut, *T) C
}

// copying copies things of one kind in the order of their numbers.
type copying[T, C any, H copied[T, C]] struct {
	cut         *cut
	next        *T     // of those that are there now, the first one not copied; nil: none
	done, until uint64 // all up to done are copied, what comes after until is new
	early       map[uint64]C
	turns       numberHeap // of early
}

func (p *copying[T, C, H]) start(k *cut, first *T, until uint64) {
	p.cut, p.next, p.until = k, first, until
}

// changes copies x now if its turn is still to come.
func (p *copying[T, C, H]) changes(x *T) {
	var h H
	n := h.number(x)
	if n <= p.done || n > p.until {
		return
	}
	if _, is := p.early[n]; is {
		return
	}
	if p.early == nil {
		p.early = map[uint64]C{}
	}
	p.early[n] = h.copy(p.cut, x)
	heap.Push(&p.turns, n)
}

func (p *copying[T, C, H]) goes(x *T) {
	var h H
	p.changes(x)
	if p.next == x {
		p.next = h.next(p.cut, x)
	}
}

// step appends up to n copies to out, and returns how many more there could
// have been.
func (p *copying[T, C, H]) step(n int, out *[]C) int {
	var h H
	for ; n > 0; n-- {
		turn := p.until + 1
		if p.next != nil {
			turn = min(turn, h.number(p.next))
		}
		switch {
		case len(p.turns) > 0 && p.turns[0] <= turn:
			turn = heap.Pop(&p.turns).(uint64)
			*out = append(*out, p.early[turn])
			delete(p.early, turn)
		case turn > p.until:
			p.done, p.next = p.until, nil
			return n
		default:
			*out = append(*out, h.copy(p.cut, p.next))
		}
		if p.done = turn; p.next != nil && h.number(p.next) == turn {
			p.next = h.next(p.cut, p.next)
		}
	}
	return 0
}

type (
	namedOfCut struct{}
	segOfCut   struct{}
	waitOfCut  struct{}
	placeOfCut struct{}
)

func (namedOfCut) number(n *named) uint64          { return n.token }
func (namedOfCut) next(k *cut, n *named) *named    { return k.firstNamed(n.token) }
func (namedOfCut) copy(_ *cut, n *named) namedCopy { return n.copy() }

// firstNamed is the first lock with a token after this one.
func (k *cut) firstNamed(after uint64) *named {
	x := &k.core.names.byToken
	for _, e := range x.entries[x.after(after):] {
		if e.named != nil {
			return e.named
		}
	}
	return nil
}

func (n *named) copy() namedCopy {
	out := namedCopy{Lock: n.lock(), key: n.key}
	out.Waiters = 0 // they are copied, and counted, by themselves
	if n.more != nil {
		for w := range n.more.watches.all {
			out.watches = append(out.watches, w.id)
		}
	}
	return out
}

func (segOfCut) number(s *seg) uint64     { return s.born }
func (segOfCut) next(_ *cut, s *seg) *seg { return s.ofCore.after() }

func (segOfCut) copy(k *cut, s *seg) Lock {
	k.ownerChanges(s.by.owner)
	return s.lock()
}

func (waitOfCut) number(w *waiter) uint64        { return w.born }
func (waitOfCut) next(_ *cut, w *waiter) *waiter { return w.ofCore.after() }

func (waitOfCut) copy(k *cut, w *waiter) waitCopy {
	k.ownerChanges(w.owner)
	return waitCopy{w.id, w.since, w.req}
}

func (placeOfCut) number(p *place) uint64       { return p.born }
func (placeOfCut) next(_ *cut, p *place) *place { return p.inTable.after() }

func (placeOfCut) copy(k *cut, p *place) placeCopy {
	k.ownerChanges(p.owner)
	out := placeCopy{key: p.key, id: p.id, since: p.since, due: p.due}
	if p.handle != nil {
		out.handle = p.handle.id
	}
	return out
}

// numberHeap is numbers, the lowest first.
type numberHeap []uint64

func (h numberHeap) Len() int           { return len(h) }
func (h numberHeap) Less(i, j int) bool { return h[i] < h[j] }
func (h numberHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *numberHeap) Push(n any)        { *h = append(*h, n.(uint64)) }

func (h *numberHeap) Pop() any {
	n := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return n
}
