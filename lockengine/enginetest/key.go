package enginetest

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lockfs/lockengine"
)

// A request made again with its key is answered again, as long as its lock is
// held, and no other one is.
func testKey(t *testing.T, n New) {
	b := newBench(t, n)
	keyed := func(owner, key uint64) lockengine.Request {
		r := name(owner, time.Minute)
		r.Key = key
		return r
	}
	g := b.try(keyed(1, 7))
	b.clock.Pass(time.Second)
	require.Equal(t, g, b.try(keyed(1, 7)))
	again, id, err := b.Wait(new(keyed(1, 7)), nil)
	require.NoError(t, err)
	require.Zero(t, id)
	require.Equal(t, g, again)
	b.held(keyed(1, 8))
	b.held(keyed(2, 7))
	b.held(keyed(1, 0))
	b.wait("second", keyed(2, 9))
	require.NoError(t, b.Release("backup", g.Token, lockengine.Released))
	b.order("second")
	b.held(keyed(1, 7))
	require.Greater(t, b.try(keyed(2, 9)).Token, g.Token)
	require.NoError(t, b.Release("backup", 0, lockengine.Released))
	plain := b.try(name(1, time.Minute))
	b.held(name(1, time.Minute))
	require.NoError(t, b.Release("backup", plain.Token, lockengine.Released))
}

// A lock that was detached does not go with its handle.
func testDetach(t *testing.T, n New) {
	b := newBench(t, n)
	r := name(1, time.Minute)
	r.Handle = 10
	g := b.try(r)
	other := b.try(on("other", r))
	require.ErrorIs(t, b.Detach("backup", g.Token+9), lockengine.ErrNotHeld)
	require.ErrorIs(t, b.Detach("nothing", 0), lockengine.ErrNotHeld)
	require.NoError(t, b.Detach("backup", g.Token))
	require.NoError(t, b.Detach("backup", g.Token))
	lock, _ := b.Get("backup")
	require.Zero(t, lock.Handle)
	b.DropHandle(10)
	_, held := b.Get("backup")
	require.True(t, held)
	_, held = b.GetToken(other.Token)
	require.False(t, held)
}
