package enginetest

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lockfs/lockengine"
)

// guarded asks for a name for which another must be free, or the same owner's.
func guarded(n uint64) lockengine.Request {
	r := name(n, time.Minute)
	r.Guard = "master"
	return r
}

func master(n uint64) lockengine.Request {
	r := name(n, 10*time.Second)
	r.Name = "master"
	return r
}

func testGuard(t *testing.T, n New) {
	t.Run("only its holder takes what it guards", func(t *testing.T) {
		b := newBench(t, n)
		b.try(master(1))
		b.held(guarded(2))
		b.try(guarded(1))
		b.release("backup", 0)
		b.release("master", 0)
		b.try(guarded(2))
	})
	t.Run("its end lets the first in line have it", func(t *testing.T) {
		b := newBench(t, n)
		b.try(master(1))
		b.wait("second", guarded(2))
		b.wait("third", guarded(3))
		s := b.Snapshot()
		require.Equal(t, []int{0}, s.Waiting[0].Blockers, "the guard is what blocks")
		require.Empty(t, b.granted)
		b.release("master", 0)
		require.Equal(t, []string{"second"}, b.granted)
		b.release("backup", 0)
		require.Equal(t, []string{"second", "third"}, b.granted)
	})
	t.Run("its holder goes past who waits", func(t *testing.T) {
		b := newBench(t, n)
		b.try(master(1))
		b.wait("second", guarded(2))
		b.try(guarded(1))
		b.release("master", 0)
		require.Empty(t, b.granted)
		b.release("backup", 0)
		require.Equal(t, []string{"second"}, b.granted)
	})
	t.Run("it expires", func(t *testing.T) {
		b := newBench(t, n)
		b.try(master(1))
		b.wait("second", guarded(2))
		b.clock.Pass(10 * time.Second)
		require.Equal(t, []string{"second"}, b.granted)
	})
	t.Run("held again by another while the name is free", func(t *testing.T) {
		b := newBench(t, n)
		b.try(master(1))
		b.try(guarded(1))
		b.wait("second", guarded(2))
		b.release("backup", 0)
		require.Empty(t, b.granted, "the guard is still held")
		b.release("master", 0)
		require.Equal(t, []string{"second"}, b.granted)
	})
	t.Run("a canceled wait leaves nothing", func(t *testing.T) {
		b := newBench(t, n)
		b.try(master(1))
		_, id, err := b.Wait(new(guarded(2)), func(lockengine.Grant, error) { t.Error("granted after all") })
		require.NoError(t, err)
		require.True(t, b.Cancel(id, false))
		b.release("master", 0)
		require.Empty(t, b.Waiters(lockengine.Named, "backup"))
		require.Empty(t, b.List(0, 10))
		b.try(guarded(3))
	})
}

func testTimes(t *testing.T, n New) {
	// The clock's wall time may be between two seconds, as it mostly is.
	begin := func(t *testing.T) (*bench, lockengine.Grant, int64) {
		b := newBench(t, n)
		b.clock.Pass(300 * time.Millisecond)
		g := b.try(name(1, time.Minute))
		return b, g, b.clock.Now().Wall / int64(time.Second)
	}
	lock := func(b *bench) lockengine.Lock {
		l, found := b.Get("backup")
		require.True(b.t, found)
		return l
	}
	t.Run("a span counts from the start", func(t *testing.T) {
		b, g, start := begin(t)
		require.NoError(t, b.SetSpan("backup", g.Token, 100, 0))
		l := lock(b)
		require.Equal(t, (start+100)*int64(time.Second), l.Expiry.Wall)
		require.Equal(t, 100*time.Second, l.Timeout, "as it was asked for")
		b.clock.Pass(time.Duration(l.Expiry.Wall-b.clock.Now().Wall) - 1)
		lock(b)
		b.clock.Pass(1)
		_, found := b.Get("backup")
		require.False(t, found)
	})
	t.Run("a start moves the expiry", func(t *testing.T) {
		b, g, start := begin(t)
		require.NoError(t, b.SetStart("backup", g.Token, start-20, 0))
		l := lock(b)
		require.Equal(t, start-20, l.Start)
		require.Equal(t, g.Expiry.Wall-20*int64(time.Second), l.Expiry.Wall)
		require.Equal(t, g.Expiry.Boot-20*int64(time.Second), l.Expiry.Boot)
	})
	t.Run("never past the bound", func(t *testing.T) {
		b, g, start := begin(t)
		before := lock(b)
		require.ErrorIs(t, b.SetSpan("backup", g.Token, 101, 100*time.Second), lockengine.ErrInvalid)
		require.ErrorIs(t, b.SetStart("backup", g.Token, start+41, 100*time.Second), lockengine.ErrInvalid)
		require.ErrorIs(t, b.SetSpan("backup", g.Token, 1<<62, 0), lockengine.ErrInvalid)
		require.ErrorIs(t, b.SetStart("backup", g.Token, -1, 0), lockengine.ErrInvalid)
		require.Equal(t, before, lock(b))
	})
	t.Run("a span that is over ends it", func(t *testing.T) {
		b, g, _ := begin(t)
		require.NoError(t, b.SetSpan("backup", g.Token, 0, 0))
		_, found := b.Get("backup")
		require.False(t, found)
	})
	t.Run("not of a hold, nor of another", func(t *testing.T) {
		b := newBench(t, n)
		g := b.try(name(1, 0))
		require.ErrorIs(t, b.SetSpan("backup", g.Token, 10, 0), lockengine.ErrInvalid)
		require.ErrorIs(t, b.SetStart("backup", g.Token, 10, 0), lockengine.ErrInvalid)
		require.ErrorIs(t, b.SetSpan("backup", g.Token+1, 10, 0), lockengine.ErrNotHeld)
		require.ErrorIs(t, b.SetHolder("backup", g.Token+1, 1, 1), lockengine.ErrNotHeld)
	})
	t.Run("holder and token", func(t *testing.T) {
		b, g, _ := begin(t)
		require.NoError(t, b.SetHolder("backup", g.Token, 7, 8))
		l, found := b.GetToken(g.Token)
		require.True(t, found)
		require.Equal(t, uint32(7), l.Who.UID)
		require.Equal(t, uint32(8), l.Who.GID)
		for _, other := range []uint64{0, 1, g.Token - 1, g.Token + 1, 1<<64 - 1} {
			_, found = b.GetToken(other)
			require.False(t, found, "%d", other)
		}
	})
}
