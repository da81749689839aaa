package lockengine_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"lockfs/lockengine"
	"lockfs/lockengine/enginetest"
)

// startSync starts an engine that tells grants when they are on disk, of which
// the first tokens are reserved, with a log that syncs when it is told to.
func startSync(t *testing.T) (*lockengine.Local, *memLog, *enginetest.Clock) {
	clock, m := enginetest.NewClock(), &memLog{}
	l := start(t, clock, m, lockengine.Resumption{}, func(c *lockengine.Config) { c.SyncGrants = true })
	_, err := l.Try(new(named("reserves", 1, 0)))
	require.NoError(t, err)
	m.set(func() { m.slow, m.syncs = true, 0 })
	return l, m, clock
}

// async calls f, and returns what it will return.
func async(f func() error) chan error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	return done
}

// A change that is held back is made and recorded before, but told after the
// sync.
func TestSyncGrants(t *testing.T) { synctest.Test(t, syncGrants) }

func syncGrants(t *testing.T) {
	l, m, _ := startSync(t)
	for _, c := range []struct {
		what   string
		change func() error
	}{
		{"try", func() error { _, err := l.Try(new(named("x", 1, time.Minute))); return err }},
		{"again", func() error { _, err := l.Try(new(named("x", 1, time.Minute))); return err }},
		{"renew", func() error { _, err := l.Renew("x", 0, time.Minute, false, 0); return err }},
		{"start", func() error { return l.SetStart("x", 0, 1_700_000_000, 0) }},
		{"span", func() error { return l.SetSpan("x", 0, 60, 0) }},
	} {
		told := async(c.change)
		synctest.Wait()
		_, held := l.Get("x")
		require.True(t, held, c.what)
		require.Empty(t, told, c.what)
		require.Equal(t, 1, m.sync(nil))
		require.NoError(t, <-told, c.what)
	}
}

// What has no timeout is told at once.
func TestOnlyLeasesSync(t *testing.T) {
	l, m, _ := startSync(t)
	_, err := l.Try(new(named("hold", 1, 0)))
	require.NoError(t, err)
	_, err = l.Try(new(byteOf(1, 0)))
	require.NoError(t, err)
	_, done := wait(t, l, byteOf(2, 0))
	_, held := wait(t, l, named("hold", 2, 0))
	l.DropHandle(10)
	require.NoError(t, (<-done).err)
	require.NoError(t, l.Release("hold", 0, lockengine.Released))
	require.NoError(t, (<-held).err)
	require.Zero(t, m.syncs)
}

// A wait that is granted, at once or later, is told after the sync, in order,
// and can not be canceled any more.
func TestSyncOfWaits(t *testing.T) { synctest.Test(t, syncOfWaits) }

func syncOfWaits(t *testing.T) {
	l, m, _ := startSync(t)
	var order []string
	told := make(chan struct{}, 3)
	tell := func(what string) func(lockengine.Grant, error) {
		return func(g lockengine.Grant, err error) {
			require.NoError(t, err)
			require.NotZero(t, g.Token)
			order = append(order, what)
			told <- struct{}{}
		}
	}
	g, id, err := l.Wait(new(named("x", 1, time.Minute)), tell("at once"))
	require.NoError(t, err)
	require.Zero(t, g)
	require.NotZero(t, id)
	require.False(t, l.Cancel(id, false))
	_, second, err := l.Wait(new(named("x", 2, time.Minute)), tell("second"))
	require.NoError(t, err)
	_, _, err = l.Wait(new(named("x", 3, time.Minute)), tell("third"))
	require.NoError(t, err)
	require.NoError(t, l.Release("x", 0, lockengine.Released))
	require.NoError(t, l.Release("x", 0, lockengine.Released))
	require.False(t, l.Cancel(second, false))
	require.Empty(t, told)
	require.Equal(t, 1, m.sync(nil))
	<-told
	require.Equal(t, []string{"at once"}, order)
	synctest.Wait()
	require.Equal(t, 1, m.sync(nil))
	<-told
	<-told
	require.Equal(t, []string{"at once", "second", "third"}, order)
}

// All that are taken while one sync goes on share the next.
func TestSyncIsShared(t *testing.T) { synctest.Test(t, syncIsShared) }

func syncIsShared(t *testing.T) {
	l, m, _ := startSync(t)
	const n = 50
	first := async(func() error { _, err := l.Try(new(named("first", 1, time.Minute))); return err })
	synctest.Wait()
	var rest []chan error
	for i := range n {
		rest = append(rest, async(func() error {
			_, err := l.Try(new(named(string(rune('A'+i)), uint64(i+2), time.Minute)))
			return err
		}))
	}
	synctest.Wait()
	require.Equal(t, 1, m.sync(nil))
	require.NoError(t, <-first)
	synctest.Wait()
	for _, told := range rest {
		require.Empty(t, told)
	}
	require.Equal(t, 1, m.sync(nil))
	for _, told := range rest {
		require.NoError(t, <-told)
	}
	require.Equal(t, 2, m.syncs)
}

// A grant that cannot be brought to disk is taken back.
func TestSyncFails(t *testing.T) { synctest.Test(t, syncFails) }

func syncFails(t *testing.T) {
	l, m, _ := startSync(t)
	taken := async(func() error { _, err := l.Try(new(named("x", 1, time.Minute))); return err })
	synctest.Wait()
	m.sync(errFull)
	require.ErrorIs(t, <-taken, errFull)
	_, held := l.Get("x")
	require.False(t, held)

	_, done := wait(t, l, named("x", 2, time.Minute))
	synctest.Wait()
	m.sync(errFull)
	o := <-done
	require.ErrorIs(t, o.err, errFull)
	require.Zero(t, o.grant)
	_, held = l.Get("x")
	require.False(t, held)
}

// A grant that was claimed is held back like any other.
func TestSyncOfClaim(t *testing.T) { synctest.Test(t, syncOfClaim) }

func syncOfClaim(t *testing.T) {
	clock, m := enginetest.NewClock(), &memLog{}
	syncs := func(c *lockengine.Config) { c.SyncGrants = true }
	l := start(t, clock, m, lockengine.Resumption{})
	_, err := l.Try(new(named("x", 1, 0)))
	require.NoError(t, err)
	wait(t, l, named("x", 2, time.Minute))
	l = start(t, clock, m, sameMount, syncs)
	require.NoError(t, l.Release("x", 0, lockengine.Released))
	m.set(func() { m.slow = true })
	id, done := wait(t, l, named("x", 2, time.Minute))
	require.False(t, l.Cancel(id, false))
	require.Empty(t, done)
	synctest.Wait()
	m.sync(nil)
	require.NotZero(t, (<-done).grant.Token)
}
