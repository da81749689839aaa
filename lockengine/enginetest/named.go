package enginetest

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lockfs/lockengine"
)

func (b *bench) release(name string, token uint64) {
	b.t.Helper()
	require.NoError(b.t, b.Release(name, token, lockengine.Released))
}

func testNamed(t *testing.T, n New) {
	t.Run("against its own owner too", func(t *testing.T) {
		b := newBench(t, n)
		b.try(name(1, 0))
		b.held(name(1, 0))
		_, found := b.Test(new(name(1, 0)))
		require.True(t, found)
	})
	t.Run("release", func(t *testing.T) {
		b := newBench(t, n)
		g := b.try(name(1, time.Minute))
		require.ErrorIs(t, b.Release("backup", g.Token+1, lockengine.Released), lockengine.ErrNotHeld)
		require.ErrorIs(t, b.Release("other", 0, lockengine.Released), lockengine.ErrNotHeld)
		b.release("backup", g.Token)
		require.ErrorIs(t, b.Release("backup", g.Token, lockengine.Released), lockengine.ErrNotHeld)
		b.try(name(2, time.Minute))
		b.release("backup", 0)
	})
	t.Run("tokens only grow", func(t *testing.T) {
		b := newBench(t, n)
		last := uint64(0)
		for _, step := range []time.Duration{0, 0, time.Hour, -time.Hour, 0, time.Microsecond, -24 * time.Hour} {
			b.clock.Step(step)
			g := b.try(name(1, 0))
			require.Greater(t, g.Token, last)
			require.GreaterOrEqual(t, g.Token, uint64(b.clock.Now().Wall/1000))
			last = g.Token
			b.release("backup", g.Token)
		}
		require.Equal(t, last, b.Stats().LastToken)
	})
	t.Run("what is kept", func(t *testing.T) {
		b := newBench(t, n)
		r := by(42, name(1, 90*time.Second))
		r.Meta, r.Handle = "about", 7
		g := b.try(r)
		require.NoError(t, b.SetNote("backup", g.Token, "for the night"))
		require.ErrorIs(t, b.SetNote("backup", g.Token+1, ""), lockengine.ErrNotHeld)
		got, found := b.Get("backup")
		require.True(t, found)
		require.Equal(t, lockengine.Lock{
			Class: lockengine.Named, Name: "backup", Owner: owner(1), Mode: exclusive, Range: lockengine.Whole,
			Handle: 7, Who: r.Who, Since: g.Since, Token: g.Token, Timeout: 90 * time.Second, Expiry: g.Expiry,
			Start: b.clock.Now().Wall / int64(time.Second), Note: "for the night", Meta: "about",
		}, got)
	})
	t.Run("start before", func(t *testing.T) {
		b := newBench(t, n)
		b.try(name(1, 0))
		first, _ := b.Get("backup")
		require.Zero(t, first.PrevStart)
		b.release("backup", 0)
		b.clock.Pass(2 * time.Second)
		b.try(name(1, 0))
		second, _ := b.Get("backup")
		require.Equal(t, first.Start, second.PrevStart)
		b.release("backup", 0)
		b.clock.Pass(2*time.Second + 1)
		b.try(name(1, 0))
		third, _ := b.Get("backup")
		require.Zero(t, third.PrevStart)
	})
	t.Run("list", func(t *testing.T) {
		b := newBench(t, n)
		var all []lockengine.NameToken
		for _, s := range []string{"c", "a", "b", "d"} {
			all = append(all, lockengine.NameToken{Name: s, Token: b.try(on(s, name(1, 0))).Token})
		}
		require.Equal(t, all, b.List(0, 10))
		require.Equal(t, all[:2], b.List(0, 2))
		b.release("b", 0)
		require.Equal(t, all[3:], b.List(all[1].Token, 10))
		require.Equal(t, all[1:2], b.List(all[0].Token, 1))
		require.Empty(t, b.List(all[3].Token, 10))
	})
}

func testLease(t *testing.T, n New) {
	t.Run("expires", func(t *testing.T) {
		b := newBench(t, n)
		g := b.try(name(1, time.Minute))
		require.Equal(t, g.Since.Boot+int64(time.Minute), g.Expiry.Boot)
		require.Equal(t, g.Since.Wall+int64(time.Minute), g.Expiry.Wall)
		b.clock.Pass(time.Minute - 1)
		b.held(name(2, 0))
		b.clock.Pass(1)
		_, found := b.Get("backup")
		require.False(t, found)
		require.EqualValues(t, 1, b.Stats().Expired)
	})
	t.Run("is not seen though the alarm is late", func(t *testing.T) {
		b := newBench(t, n)
		b.try(name(1, time.Minute))
		b.clock.Skip(time.Minute)
		_, found := b.Get("backup")
		require.False(t, found)
		require.Empty(t, b.List(0, 10))
		b.try(name(2, 0))
	})
	t.Run("hands over by itself", func(t *testing.T) {
		b := newBench(t, n)
		b.try(name(1, time.Minute))
		b.clock.Pass(time.Second)
		b.wait("next", name(2, time.Minute))
		b.clock.Pass(59 * time.Second)
		b.order("next")
		l, _ := b.Get("backup")
		require.Equal(t, b.clock.Now().Boot+int64(time.Minute), l.Expiry.Boot, "the lease starts at the grant")
	})
	t.Run("again and again", func(t *testing.T) {
		b := newBench(t, n)
		b.try(name(1, time.Minute))
		b.wait("second", name(2, time.Minute))
		b.wait("third", name(3, time.Minute))
		b.wait("fourth", name(4, time.Minute))
		b.clock.Pass(3 * time.Minute)
		b.order("second", "third", "fourth")
	})
	t.Run("a hold has none", func(t *testing.T) {
		b := newBench(t, n)
		require.Zero(t, b.try(name(1, 0)).Expiry)
		b.clock.Pass(1e6 * time.Hour)
		b.held(name(2, 0))
		_, err := b.Renew("backup", 0, time.Second, false, 0)
		require.ErrorIs(t, err, lockengine.ErrInvalid)
	})
	t.Run("steps of the wall clock", func(t *testing.T) {
		for _, step := range []time.Duration{-time.Hour, time.Hour} {
			b := newBench(t, n)
			b.try(name(1, time.Minute))
			b.clock.Step(step)
			b.clock.Pass(time.Minute - 1)
			b.held(name(2, 0))
			b.clock.Pass(1)
			b.try(name(2, 0))
		}
	})
	for _, c := range []struct {
		name    string
		timeout time.Duration
		extend  bool
		max     time.Duration
		left    time.Duration // 0: refused
	}{
		{"from now", 30 * time.Second, false, 0, 30 * time.Second},
		{"extend", 30 * time.Second, true, 0, 80 * time.Second},
		{"up to the maximum", 30 * time.Second, true, 80 * time.Second, 80 * time.Second},
		{"over the maximum", 30 * time.Second, true, 80*time.Second - 1, 0},
		{"nothing", 0, false, 0, 0},
		{"negative", -time.Second, true, 0, 0},
		{"too long to be told", 1<<63 - 1, true, 0, 0},
	} {
		t.Run("renew "+c.name, func(t *testing.T) { testRenew(newBench(t, n), c.timeout, c.extend, c.max, c.left) })
	}
}

// testRenew renews a lease of a minute after ten seconds and a step of the
// wall clock.
func testRenew(b *bench, timeout time.Duration, extend bool, limit, left time.Duration) {
	g := b.try(name(1, time.Minute))
	b.clock.Pass(10 * time.Second)
	b.clock.Step(time.Hour)
	now := b.clock.Now()
	_, err := b.Renew("backup", g.Token+1, timeout, extend, limit)
	require.ErrorIs(b.t, err, lockengine.ErrNotHeld)
	r, err := b.Renew("backup", g.Token, timeout, extend, limit)
	if left == 0 {
		require.ErrorIs(b.t, err, lockengine.ErrInvalid)
		b.clock.Pass(50*time.Second - 1)
		b.held(name(2, 0))
		b.clock.Pass(1)
		b.try(name(2, 0))
		return
	}
	require.NoError(b.t, err)
	want := lockengine.Instant{Boot: now.Boot + int64(left), Wall: now.Wall + int64(left)}
	require.Equal(b.t, lockengine.Grant{Token: g.Token, Since: g.Since, Expiry: want}, r)
	b.clock.Pass(left - 1)
	b.held(name(2, 0))
	b.clock.Pass(1)
	b.try(name(2, 0))
}

func testWatch(t *testing.T, n New) {
	for _, c := range []struct {
		name string
		how  lockengine.End
		end  func(*bench)
	}{
		{"released", lockengine.Released, func(b *bench) { b.release("backup", 0) }},
		{"forced", lockengine.Forced, func(b *bench) { b.Release("backup", 0, lockengine.Forced) }},
		{"lost", lockengine.Lost, func(b *bench) { b.Release("backup", 0, lockengine.Lost) }},
		{"expired", lockengine.Expired, func(b *bench) { b.clock.Pass(time.Minute) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, n)
			g := b.try(name(1, time.Minute))
			var ends []lockengine.End
			watch := func() lockengine.WatchID {
				id, err := b.Watch("backup", g.Token, func(e lockengine.End) { ends = append(ends, e) })
				require.NoError(t, err)
				return id
			}
			watch()
			not := watch()
			watch()
			require.True(t, b.Unwatch(not))
			require.False(t, b.Unwatch(not))
			b.wait("next", name(2, 0))
			c.end(b)
			require.Equal(t, []lockengine.End{c.how, c.how}, ends)
			b.order("next")
			_, err := b.Watch("backup", g.Token, nil)
			require.ErrorIs(t, err, lockengine.ErrNotHeld)
			b.release("backup", 0)
			require.Len(t, ends, 2, "the next incarnation is not watched")
		})
	}
}
