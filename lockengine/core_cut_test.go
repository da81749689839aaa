package lockengine

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// Whatever happens while a cut is made, it is the state at its start: as
// bytes, and as a snapshot, of which a second, simple one is made at once.
func TestCut(t *testing.T) {
	rounds := 60
	if testing.Short() {
		rounds = 20
	}
	late := 0 // changes of things whose turn had not come
	for seed := range uint64(rounds) {
		s := newScript(t, seed)
		for range 10 {
			for range s.rnd.IntN(100) {
				s.do()
			}
			want, state := s.live.snapshot(), stateOf(s.live)
			whole := s.rnd.IntN(2) == 0
			k := s.live.startCut(whole)
			var parts []copies
			for more := true; more; {
				for range s.rnd.IntN(4) {
					s.do()
				}
				late += len(k.named.early) + len(k.segs.early) + len(k.waits.early) + len(k.places.early)
				more = k.step(1 + s.rnd.IntN(3))
				parts = append(parts, k.take(&copies{}))
			}
			require.Nil(t, s.live.cut)
			if whole {
				require.Equal(t, state, encoded(k, parts...))
			} else {
				requireEach(t, want, k, parts)
			}
			b := snapshotBuilder{cut: k, kinds: map[ownerKey]OwnerKind{}}
			for i := range parts {
				b.add(&parts[i], nil)
			}
			require.Equal(t, want, b.snapshot())
			s.one(command{op: opTick}, nil) // what was moved to the past has ended
			require.NoError(t, s.live.checkInvariants())
		}
	}
	require.Greater(t, late, rounds)
}

// requireEach demands that a cut tells of the same locks and waiters as a snapshot when they are not kept.
func requireEach(t *testing.T, want Snapshot, k *cut, parts []copies) {
	t.Helper()
	var locks []Lock
	b := snapshotBuilder{cut: k, kinds: map[ownerKey]OwnerKind{}, held: func(l *Lock) { locks = append(locks, *l) }}
	for i := range parts {
		b.add(&parts[i], nil)
	}
	var waiting []Waiting
	var blockers [][]Lock
	b.each(func(w *Waiting, by []*Lock) {
		waiting = append(waiting, *w)
		blockers = append(blockers, nil)
		for _, l := range by {
			blockers[len(blockers)-1] = append(blockers[len(blockers)-1], *l)
		}
	})
	require.Len(t, locks, len(want.Locks))
	for i, l := range want.Locks {
		require.Zero(t, locks[i].Waiters)
		l.Waiters = 0
		require.Equal(t, l, locks[i])
	}
	require.Len(t, waiting, len(want.Waiting))
	for i, w := range want.Waiting {
		require.Len(t, blockers[i], len(w.Blockers))
		for j, at := range w.Blockers {
			blocker, l := blockers[i][j], want.Locks[at]
			blocker.Waiters, l.Waiters = 0, 0
			require.Equal(t, l, blocker)
		}
		w.Blockers = nil
		require.Equal(t, w, waiting[i])
	}
}

// A cut never copies more at once than it is told to, also of what was copied
// early.
func TestCutStep(t *testing.T) {
	l := newBenchLocal(t)
	fillBench(l, 1000)
	k := l.core.startCut(true)
	k.step(10)
	for i := range uint64(1000) {
		l.DropHandle(i + 1)
	}
	n := 0
	for more := true; more; {
		more = k.step(7)
		part := k.take(&copies{})
		got := len(part.ended) + len(part.named) + len(part.segs) + len(part.waits) + len(part.places)
		require.LessOrEqual(t, got, 10+7)
		n += got
	}
	require.Equal(t, 2000, n)
}

// snapshot copies everything, with who is blocked by what.
func (c *core) snapshot() Snapshot {
	s := Snapshot{Now: c.now}
	n := 0
	for _, held := range c.stats.Held {
		n += held
	}
	if n > 0 {
		s.Locks = make([]Lock, 0, n)
	}
	byName, named := map[string]int{}, c.stats.Waiting[Named] > 0
	for _, e := range c.names.byToken.entries {
		if e.named != nil {
			if named {
				byName[e.named.name] = len(s.Locks)
			}
			s.Locks = append(s.Locks, e.named.lock())
		}
	}
	bySeg, others := map[*seg]int{}, c.stats.Waiting[Record]+c.stats.Waiting[Flock] > 0
	for _, seg := range c.segsInOrder() {
		if others {
			bySeg[seg] = len(s.Locks)
		}
		s.Locks = append(s.Locks, seg.lock())
	}
	for _, w := range c.waitersInOrder() {
		out := w.waiting()
		if w.req.Class == Named {
			if n := c.blockerOf(&w.req); n != nil {
				out.Blockers = []int{byName[n.name]}
			}
		} else {
			out.Blockers = w.blockers(bySeg)
		}
		s.Waiting = append(s.Waiting, out)
	}
	return s
}

func (w *waiter) blockers(index map[*seg]int) (out []int) {
	own := func(o *owner) bool { return o == w.owner }
	w.group.res.conflicts(w.req.Range, w.req.Mode, own, func(s *seg) bool {
		out = append(out, index[s])
		return len(out) < maxBlockers
	})
	slices.Sort(out)
	return out
}
