package lockengine

import (
	"cmp"
	"slices"
)

// snapshotBuilder makes a Snapshot of a cut. It looks at nothing else, so that
// it needs no mutex.
type snapshotBuilder struct {
	cut   *cut
	out   Snapshot
	named int // how many of out.Locks are Named
	waits []waitCopy
	kinds map[ownerKey]OwnerKind
	// held is told of the Named locks, of which only those are kept then that
	// somebody waits for; nil: all are kept.
	held   func(*Lock)
	waited map[string]int // names that somebody waits for, see blockerIndex
}

// add takes copies of what is wanted; nil: of all. The Named ones come first.
func (b *snapshotBuilder) add(part *copies, wanted func(Class, string) bool) {
	for i := range part.waits {
		if req := &part.waits[i].req; wanted == nil || wanted(req.Class, req.Name) {
			b.waits = append(b.waits, part.waits[i])
			b.await(req)
		}
	}
	for i := range part.named {
		l := &part.named[i].Lock
		if wanted != nil && !wanted(Named, l.Name) {
			continue
		}
		if b.held != nil {
			b.held(l)
			if _, waited := b.waited[l.Name]; !waited {
				continue
			}
		}
		b.out.Locks = append(b.out.Locks, *l)
		b.named++
	}
	for i := range part.segs {
		if l := &part.segs[i]; wanted == nil || wanted(l.Class, l.Name) {
			b.out.Locks = append(b.out.Locks, *l)
		}
	}
	for i := range part.owners {
		if o := &part.owners[i]; o.kind != KindUnknown {
			b.kinds[o.ownerKey] = o.kind
		}
	}
}

// await notes which named locks a request waits for.
func (b *snapshotBuilder) await(req *Request) {
	if req.Class != Named {
		return
	}
	if b.waited == nil {
		b.waited = map[string]int{}
	}
	b.waited[req.Name], b.waited[req.Guard] = -1, -1
}

// held is how many locks there were.
func (h *stateHead) held() (n int) {
	for _, held := range h.stats.Held {
		n += held
	}
	return n
}

// snapshot is what was added, in order, with who is blocked by what.
func (b *snapshotBuilder) snapshot() Snapshot {
	b.out.Now = b.cut.head.now
	others := b.out.Locks[b.named:]
	for i := range others {
		l := &others[i]
		l.Kind = b.kinds[ownerKey{l.Class, l.Owner}]
	}
	slices.SortFunc(others, func(x, y Lock) int {
		return cmp.Or(cmp.Compare(x.Name, y.Name), cmp.Compare(x.Range.Start, y.Range.Start),
			compareOwners(x.Owner, y.Owner), cmp.Compare(x.Class, y.Class))
	})
	slices.SortFunc(b.waits, func(x, y waitCopy) int { return cmp.Compare(x.id, y.id) })
	b.waiting()
	return b.out
}

// each tells of what was added and not told of yet, in order.
func (b *snapshotBuilder) each(waits func(*Waiting, []*Lock)) {
	all := b.snapshot()
	for i := range all.Locks[b.named:] {
		b.held(&all.Locks[b.named+i])
	}
	for i := range all.Waiting {
		w := &all.Waiting[i]
		blockers := make([]*Lock, len(w.Blockers))
		for j, at := range w.Blockers {
			blockers[j] = &all.Locks[at]
		}
		w.Blockers = nil
		waits(w, blockers)
	}
}

func (b *snapshotBuilder) waiting() {
	if len(b.waits) == 0 {
		return
	}
	x := b.index()
	b.out.Waiting = make([]Waiting, len(b.waits))
	for i := range b.waits {
		w := &waiter{id: b.waits[i].id, since: b.waits[i].since, req: b.waits[i].req}
		b.out.Waiting[i] = w.waiting()
		if w.req.Class != Named {
			b.out.Waiting[i].Kind = b.kinds[ownerKey{w.req.Class, w.req.Owner}]
		}
		b.out.Waiting[i].Blockers = x.blockers(&w.req)
	}
}

// blockerIndex finds the locks that keep a request waiting.
type blockerIndex struct {
	named map[string]int // locks, by name; -1: not held
	held  []Lock
	core  *core        // of those locks that others wait for
	segs  map[*seg]int // locks, by their segment there
}

func (b *snapshotBuilder) index() blockerIndex {
	x := blockerIndex{named: b.waited, held: b.out.Locks, core: newCore(1), segs: map[*seg]int{}}
	for i := range b.waits {
		if req := &b.waits[i].req; req.Class != Named {
			x.core.resourceOf(req.Class, req.Name)
		}
	}
	for i := range x.held {
		x.add(i)
	}
	return x
}

// add adds a lock, if anybody waits for its name.
func (x *blockerIndex) add(i int) {
	l := &x.held[i]
	if l.Class == Named {
		if _, waited := x.named[l.Name]; waited {
			x.named[l.Name] = i
		}
		return
	}
	r := x.core.resource(l.Class, l.Name)
	if r == nil {
		return
	}
	s := &seg{Range: l.Range, mode: l.Mode, by: x.core.holding(r, x.core.ownerNamed(l.Class, l.Owner))}
	x.core.addSeg(s)
	x.segs[s] = i
}

// maxBlockers bounds how many blockers are told of one waiter: many who wait
// for many would need memory for each pair.
const maxBlockers = 256

func (x *blockerIndex) blockers(req *Request) (out []int) {
	if req.Class == Named {
		return x.blockerOf(req)
	}
	own := func(o *owner) bool { return o.key == req.Owner }
	x.core.resource(req.Class, req.Name).conflicts(req.Range, req.Mode, own, func(s *seg) bool {
		out = append(out, x.segs[s])
		return len(out) < maxBlockers
	})
	slices.Sort(out)
	return out
}

// blockerOf finds what core.blockerOf does.
func (x *blockerIndex) blockerOf(req *Request) []int {
	if i := x.named[req.Name]; i >= 0 {
		x.held[i].Waiters++
		return []int{i}
	}
	if i := x.named[req.Guard]; i >= 0 && req.Guard != "" && x.held[i].Owner != req.Owner {
		return []int{i}
	}
	return nil
}
