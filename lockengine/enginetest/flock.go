package enginetest

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func (b *bench) unflock(n uint64) {
	b.Unlock(new(flock(n, 0)))
}

func testFlock(t *testing.T, n New) {
	t.Run("shared and exclusive", func(t *testing.T) {
		b := newBench(t, n)
		b.try(flock(1, shared))
		b.try(flock(2, shared))
		b.held(flock(3, exclusive))
		b.wait("writer", flock(3, exclusive))
		b.unflock(1)
		b.order()
		b.unflock(2)
		b.order("writer")
		b.held(flock(1, shared))
	})
	t.Run("same mode again", func(t *testing.T) {
		b := newBench(t, n)
		first := b.try(flock(1, exclusive))
		b.clock.Pass(1000)
		require.Equal(t, first.Since, b.try(flock(1, exclusive)).Since)
		locks, _ := b.Locks("file")
		require.Len(t, locks, 1)
	})
	t.Run("conversion drops first", func(t *testing.T) {
		b := newBench(t, n)
		b.try(flock(1, exclusive))
		b.wait("writer", flock(2, exclusive))
		b.held(flock(1, shared))
		b.order("writer")
		locks, _ := b.Locks("file")
		require.Len(t, locks, 1)
		require.Equal(t, owner(2), locks[0].Owner)
	})
	t.Run("conversion that fails has lost it", func(t *testing.T) {
		b := newBench(t, n)
		b.try(flock(1, shared))
		b.try(flock(2, shared))
		b.held(flock(1, exclusive))
		b.try(flock(2, exclusive))
	})
	t.Run("conversion", func(t *testing.T) {
		b := newBench(t, n)
		b.try(flock(1, exclusive))
		b.wait("reader", flock(2, shared))
		b.try(flock(1, shared))
		b.order("reader")
		l, found := b.Test(new(flock(3, exclusive)))
		require.True(t, found)
		require.Equal(t, owner(1), l.Owner)
	})
}
