package lockengine

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// What a tree of many segments answers is what one comes to who looks at each
// of them, whatever order they come and go in.
func TestSegTree(t *testing.T) {
	for name, fill := range map[string]func(rnd *rand.Rand, i int) Range{
		"scattered":  func(rnd *rand.Rand, _ int) Range { return at(rnd.Uint64N(1<<20), 1+rnd.Uint64N(50)) },
		"ascending":  func(_ *rand.Rand, i int) Range { return at(uint64(i)*10, 5) },
		"descending": func(_ *rand.Rand, i int) Range { return at(1<<30-uint64(i)*10, 5) },
		"long":       func(rnd *rand.Rand, _ int) Range { return at(rnd.Uint64N(1000), 1+rnd.Uint64N(1<<20)) },
		"same":       func(*rand.Rand, int) Range { return at(0, 10) },
	} {
		for _, owners := range []int{1, 2, 5000} {
			t.Run(fmt.Sprint(name, "/", owners), func(t *testing.T) {
				x := newSegTreeTest(owners)
				for i := range 5000 {
					x.insert(fill(x.rnd, i))
					x.sometimes(t)
				}
				for range 5 {
					for range 1000 {
						x.remove(x.rnd.IntN)
						x.sometimes(t)
					}
					for i := range 1000 {
						x.insert(fill(x.rnd, 5000+i))
						x.sometimes(t)
					}
				}
				first, last := func(int) int { return 0 }, func(n int) int { return n - 1 }
				for _, which := range []func(int) int{x.rnd.IntN, first, last} {
					for range len(x.segs) / 3 {
						x.remove(which)
						x.sometimes(t)
					}
				}
				for len(x.segs) > 0 {
					x.remove(x.rnd.IntN)
					x.sometimes(t)
				}
				require.True(t, x.tree.empty())
				x.check(t)
			})
		}
	}
}

func at(start, n uint64) Range { return Range{start, start + n} }

// segTreeTest is a tree, and a sorted list of what is in it.
type segTreeTest struct {
	rnd      *rand.Rand
	holdings []*holding
	nodes    segNodes
	tree     segTree
	segs     []*seg
	turn     int
}

func newSegTreeTest(owners int) *segTreeTest {
	x := &segTreeTest{rnd: rand.New(rand.NewPCG(uint64(owners), 3))}
	for i := range owners {
		x.holdings = append(x.holdings, &holding{owner: &owner{key: Owner{1, uint64(i)}}})
	}
	return x
}

// insert adds the range for an owner who has none that overlaps, if there is one.
func (x *segTreeTest) insert(r Range) {
	s := &seg{Range: r, by: x.holdings[x.rnd.IntN(len(x.holdings))]}
	own := func(o *seg) bool { return o.by == s.by && o.overlaps(r) }
	if slices.ContainsFunc(x.segs, own) {
		return
	}
	i, _ := slices.BinarySearchFunc(x.segs, s, bySegStart)
	x.segs = slices.Insert(x.segs, i, s)
	x.tree.insert(s, &x.nodes)
}

// remove takes out the one of n that which says, if there is one.
func (x *segTreeTest) remove(which func(n int) int) {
	if n := len(x.segs); n > 0 {
		i := which(n)
		x.tree.remove(x.segs[i], &x.nodes)
		x.segs = slices.Delete(x.segs, i, i+1)
	}
}

// sometimes checks, more often when there are few.
func (x *segTreeTest) sometimes(t *testing.T) {
	if x.turn++; x.turn%97 == 0 || len(x.segs) < 50 {
		x.check(t)
	}
}

func (x *segTreeTest) check(t *testing.T) {
	k := checker{}
	k.segTree(&x.tree)
	require.Empty(t, k.wrong)
	var all []*seg
	for s := range x.tree.all {
		all = append(all, s)
	}
	require.True(t, slices.Equal(x.segs, all), "not what was inserted, in order")
	for range 8 {
		x.look(t, x.place())
	}
}

// place is a range near one of the tree's, or anywhere.
func (x *segTreeTest) place() Range {
	if len(x.segs) == 0 || x.rnd.IntN(8) == 0 {
		return at(x.rnd.Uint64N(1<<20), 1+x.rnd.Uint64N(1<<20))
	}
	near := x.segs[x.rnd.IntN(len(x.segs))]
	return at(near.Start+x.rnd.Uint64N(12), 1+x.rnd.Uint64N(1000))
}

func (x *segTreeTest) look(t *testing.T, r Range) {
	me := x.holdings[x.rnd.IntN(len(x.holdings))].owner
	var owners *owner
	var others, got []*seg
	for _, s := range x.segs {
		if s.overlaps(r) {
			owners = either(owners, s.by.owner)
			if s.by.owner != me {
				others = append(others, s)
			}
		}
	}
	require.Same(t, owners, x.tree.owners(r), "owners of %v", r)
	x.tree.overlapping(r, func(o *owner) bool { return o == me }, func(s *seg) bool {
		got = append(got, s)
		return true
	})
	require.True(t, slices.Equal(others, got), "overlapping %v", r)
}

// Of one file with many small ranges, of a few owners, each byte is held by
// whom it should be.
func TestManyRanges(t *testing.T) {
	const size, owners = 6000, 6
	rnd := rand.New(rand.NewPCG(1, 5))
	c := newCore(10)
	var held [owners][size]Mode
	blocked := func(me int, r Range, mode Mode) bool {
		for o := range held {
			for _, m := range held[o][r.Start:r.End] {
				if o != me && m != 0 && (m == Exclusive || mode == Exclusive) {
					return true
				}
			}
		}
		return false
	}
	for i := range 40_000 {
		me, mode := rnd.IntN(owners), Shared+Mode(rnd.IntN(2))
		r := at(rnd.Uint64N(size-16), 1+rnd.Uint64N(6))
		cmd := command{op: opTry, req: &Request{Class: Record, Name: "f", Owner: Owner{1, uint64(me)}, Mode: mode, Range: r}}
		want := error(nil)
		switch unlock := rnd.IntN(16) < 2+i/2000%8; {
		case unlock:
			cmd.op, mode = opUnlock, 0
		case blocked(me, r, mode):
			want = ErrHeld
		}
		require.Equal(t, want, apply(c, cmd, Instant{}).err)
		for b := r.Start; b < r.End && want == nil; b++ {
			held[me][b] = mode
		}
		if i%1000 == 999 {
			k := checker{core: c}
			k.segTree(&c.resources[Record]["f"].excl)
			k.segTree(&c.resources[Record]["f"].shared)
			require.Empty(t, k.wrong)
			var got [owners][size]Mode
			for _, s := range c.segsInOrder() {
				for b := s.Start; b < s.End; b++ {
					got[s.by.owner.key.ID][b] = s.mode
				}
			}
			require.True(t, held == got, "not what was locked")
		}
	}
}

// Whether few or many hold something on a file, and as their number grows and
// falls, each holds what it locked, and is forgotten when it holds nothing.
func TestManyOwners(t *testing.T) {
	const owners = 300
	rnd := rand.New(rand.NewPCG(1, 6))
	c := newCore(10)
	var held [2][owners]bool
	for i := range 20_000 {
		file, me := rnd.IntN(2), rnd.IntN(owners)
		req := Request{Class: Record, Name: fmt.Sprint(file), Owner: Owner{1, uint64(me)}, Mode: Shared, Range: Whole}
		lock := rnd.IntN(16) < 4+i/1000%2*10
		held[file][me] = lock
		cmd := command{op: opUnlock, req: &req}
		if lock {
			cmd.op = opTry
		}
		require.NoError(t, apply(c, cmd, Instant{}).err)
		if i%100 != 99 {
			continue
		}
		require.NoError(t, c.checkInvariants())
		for file := range held {
			for o, want := range held[file] {
				h := c.find(&Request{Class: Record, Name: fmt.Sprint(file), Owner: Owner{1, uint64(o)}})
				require.Equal(t, want, h != nil, "owner %d of file %d", o, file)
			}
		}
	}
	c.apply(&command{op: opResume, fresh: true}, Instant{}, new(result))
	require.NoError(t, c.checkInvariants())
	require.True(t, c.empty())
	for i := range 2 * lotSize {
		cmd := command{op: opTry, req: &Request{Class: Record, Name: fmt.Sprint("other ", i), Mode: Shared, Range: Whole}}
		for cmd.op = range opUnlock + 1 {
			apply(c, cmd, Instant{})
		}
	}
	require.NoError(t, c.checkInvariants())
	require.Nil(t, c.resource(Record, "0"), "still parked")
}

// Waiters are found, and no others, while their table grows and when many went.
func TestWaiterTable(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 7))
	var table waiterTable
	waiting := map[WaiterID]*waiter{}
	for id := WaiterID(1); id <= 20_000; id++ {
		w := &waiter{id: id}
		waiting[id] = w
		table.add(w)
		if other := WaiterID(rnd.Uint64N(uint64(id)) + 1); id%3 == 0 && waiting[other] != nil {
			table.remove(waiting[other])
			delete(waiting, other)
		}
		for range 10 {
			some := WaiterID(rnd.Uint64N(uint64(id) + 2))
			require.True(t, table.get(some) == waiting[some], "waiter %d of %d", some, id)
		}
	}
	require.Equal(t, len(waiting), table.n)
	for id, w := range waiting {
		require.True(t, table.get(id) == w, "waiter %d", id)
		table.remove(w)
		require.Nil(t, table.get(id))
	}
	require.Zero(t, table.n)
}

// A waiter is found at once, among however many: no bucket has more than a few.
func TestWaiterTableIsFlat(t *testing.T) {
	var table waiterTable
	for id := WaiterID(1); id <= 20_000; id++ {
		table.add(&waiter{id: id})
		n := 0
		for w := *table.bucket(id); w != nil; w = w.next {
			n++
		}
		require.LessOrEqual(t, n, 2, "waiters in the bucket of waiter %d", id)
	}
}

// When of many who held something on a file few are left, the map that found them
// is not as large as it was.
func TestManyHoldersGo(t *testing.T) {
	const n = 2 * largeMap
	c := newCore(10)
	req := func(i int) *Request {
		return &Request{Class: Flock, Name: "f", Owner: Owner{1, uint64(i)}, Mode: Shared}
	}
	for i := range n {
		require.NoError(t, apply(c, command{op: opTry, req: req(i)}, Instant{}).err)
	}
	for i := range n - 1 {
		require.NoError(t, apply(c, command{op: opUnlock, req: req(i)}, Instant{}).err)
	}
	r := c.resource(Flock, "f")
	require.LessOrEqual(t, r.holdings.most, smallMap)
	require.True(t, c.gave, "the memory is given back")
	require.NotNil(t, c.find(req(n-1)))
	require.NoError(t, c.checkInvariants())
}
