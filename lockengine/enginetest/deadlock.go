package enginetest

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"lockfs/lockengine"
)

const (
	process     = lockengine.KindProcess
	description = lockengine.KindDescription
)

func (b *bench) deadlock(r lockengine.Request) {
	b.t.Helper()
	_, _, err := b.Wait(&r, func(lockengine.Grant, error) { b.t.Error("refused, and yet called back") })
	require.ErrorIs(b.t, err, lockengine.ErrDeadlock)
}

// ring makes owners 1 to n of these kinds hold a file each and all but the
// last wait for the next one's. It returns the request that closes the cycle.
func (b *bench) ring(kinds ...lockengine.OwnerKind) lockengine.Request {
	b.t.Helper()
	n := len(kinds)
	at := func(owner, file int) lockengine.Request {
		return on(fmt.Sprint(file%n), as(kinds[owner], record(uint64(owner+1), exclusive, 0, 1)))
	}
	for i := range n {
		b.try(at(i, i))
	}
	for i := range n - 1 {
		b.wait(fmt.Sprint(i), at(i, i+1))
	}
	return at(n-1, n)
}

func testDeadlock(t *testing.T, n New) {
	for _, length := range []int{2, 3, 11, 100} {
		t.Run(fmt.Sprintf("cycle of %d", length), func(t *testing.T) {
			b := newBench(t, n)
			kinds := make([]lockengine.OwnerKind, length)
			for i := range kinds {
				kinds[i] = process
			}
			b.deadlock(b.ring(kinds...))
			require.EqualValues(t, 1, b.Stats().Deadlocks)
			require.Equal(t, length-1, b.Stats().Waiting[lockengine.Record], "nothing else changed")
		})
	}
	t.Run("through a description", func(t *testing.T) {
		b := newBench(t, n)
		b.wait("last", b.ring(process, description, process))
		require.EqualValues(t, 1, b.Stats().Possible)
		require.Zero(t, b.Stats().Deadlocks)
	})
	t.Run("of a description", func(t *testing.T) {
		b := newBench(t, n)
		b.wait("last", b.ring(process, process, description))
		require.EqualValues(t, 1, b.Stats().Possible)
	})
	t.Run("a way around a description", func(t *testing.T) {
		b := newBench(t, n)
		b.try(on("shared", as(description, record(1, shared, 0, 1))))
		b.try(on("shared", as(process, record(2, shared, 0, 1))))
		b.try(on("mine", as(process, record(3, exclusive, 0, 1))))
		b.wait("1", on("mine", as(description, record(1, exclusive, 0, 1))))
		b.wait("2", on("mine", as(process, record(2, exclusive, 0, 1))))
		b.deadlock(on("shared", as(process, record(3, exclusive, 0, 1))))
	})
	t.Run("unknown counts as a process", func(t *testing.T) {
		b := newBench(t, n)
		b.deadlock(b.ring(0, 0, 0))
	})
	t.Run("upgrades", func(t *testing.T) {
		b := newBench(t, n)
		b.draw("r", "r")
		b.wait("first", record(1, exclusive, 0, 1))
		b.deadlock(record(2, exclusive, 0, 1))
		b.unlock(2)
		b.order("first")
	})
	t.Run("one of several blockers", func(t *testing.T) {
		b := newBench(t, n)
		b.draw("r.", "r.", "r.", ".W")
		b.wait("3", record(3, exclusive, 1, 2))
		b.deadlock(record(4, exclusive, 0, 1))
	})
	t.Run("another thread's wait", func(t *testing.T) {
		b := newBench(t, n)
		b.draw("W..", ".W.", "..W")
		b.wait("2", record(2, exclusive, 2, 3))
		b.wait("2 again", record(2, exclusive, 0, 1))
		b.deadlock(record(1, exclusive, 1, 2))
	})
	t.Run("no cycle", func(t *testing.T) {
		b := newBench(t, n)
		b.draw("W..", ".W.", "..W")
		b.wait("1", record(1, exclusive, 1, 2))
		b.wait("3", record(3, exclusive, 0, 2))
		b.wait("4", record(4, exclusive, 0, 3))
		require.Zero(t, b.Stats().Possible)
	})
	t.Run("not by what was given up", func(t *testing.T) {
		b := newBench(t, n)
		b.draw("W.", ".W")
		id := b.wait("1", record(1, exclusive, 1, 2))
		require.True(t, b.Cancel(id, true))
		b.wait("2", record(2, exclusive, 0, 1))
		b.deadlock(record(1, exclusive, 1, 2))
	})
	t.Run("other classes are no edges", func(t *testing.T) {
		b := newBench(t, n)
		b.try(flock(1, exclusive))
		b.try(record(2, exclusive, 0, 1))
		b.wait("1", record(1, exclusive, 0, 1))
		b.wait("2", flock(2, exclusive))
	})
}

func testPossible(t *testing.T, n New) {
	for _, c := range []struct {
		name            string
		first, second   lockengine.Request
		first2, second2 lockengine.Request
		possible        bool
	}{
		{
			"record and flock", by(1, record(1, exclusive, 0, 1)), by(2, flock(2, exclusive)),
			by(1, flock(3, exclusive)), by(2, record(4, exclusive, 0, 1)), true,
		},
		{
			"flock and a hold", by(1, flock(1, exclusive)), by(2, name(2, 0)),
			by(1, name(3, 0)), by(2, flock(4, exclusive)), true,
		},
		{
			"a lease is nobody's", by(1, flock(1, exclusive)), by(2, name(2, 1e9)),
			by(1, name(3, 0)), by(2, flock(4, exclusive)), false,
		},
		{
			"unknown processes", by(0, record(1, exclusive, 0, 1)), by(0, flock(2, exclusive)),
			by(0, flock(3, exclusive)), by(0, record(4, exclusive, 0, 1)), false,
		},
		{
			"no way back", by(1, record(1, exclusive, 0, 1)), by(2, flock(2, exclusive)),
			by(1, flock(3, exclusive)), by(3, record(4, exclusive, 0, 1)), false,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, n)
			b.try(c.first)
			b.try(c.second)
			b.wait("first", c.first2)
			require.Zero(t, b.Stats().Possible)
			b.wait("second", c.second2)
			want := uint64(0)
			if c.possible {
				want = 1
			}
			require.Equal(t, want, b.Stats().Possible)
			events, _ := b.Events(0, 100)
			last := events[len(events)-1]
			require.Equal(t, c.possible, last.Kind == lockengine.EventDeadlock)
			require.False(t, last.Refused)
		})
	}
	t.Run("a thread for itself", func(t *testing.T) {
		b := newBench(t, n)
		b.try(by(1, flock(1, exclusive)))
		b.wait("", by(1, flock(2, exclusive)))
		require.EqualValues(t, 1, b.Stats().Possible)
	})
	t.Run("a thread for itself, whose owner is of two processes", func(t *testing.T) {
		b := newBench(t, n)
		b.try(by(2, record(1, exclusive, 0, 1)))
		b.try(by(1, record(1, exclusive, 2, 3)))
		b.try(by(1, record(2, exclusive, 4, 5)))
		b.wait("", by(1, record(1, exclusive, 4, 5)))
		require.EqualValues(t, 1, b.Stats().Possible)
	})
}
