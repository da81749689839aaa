package enginetest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lockfs/lockengine"
)

func testOrder(t *testing.T, n New) {
	t.Run("across ranges", func(t *testing.T) {
		b := newBench(t, n)
		b.draw("WWWWWWWW")
		b.wait("a", record(2, exclusive, 6, 8))
		b.wait("b", record(3, shared, 0, 8))
		b.wait("c", record(4, exclusive, 0, 2))
		b.wait("d", record(5, shared, 3, 5))
		b.unlock(1)
		b.order("a", "c", "d")
		b.unlock(2)
		b.order()
		b.unlock(4)
		b.order("b")
	})
	t.Run("a grant that lets only a later one through", func(t *testing.T) {
		b := newBench(t, n)
		b.draw("WWWWW")
		b.wait("a", record(2, exclusive, 0, 2))
		b.wait("b", record(3, exclusive, 0, 4))
		b.wait("c", record(4, exclusive, 3, 5))
		b.wait("a again", record(2, exclusive, 0, 4))
		b.unlock(1)
		b.order("a", "c")
		b.drawn(".....", "WW...", ".....", "...WW")
	})
	t.Run("a grant that lets an earlier one through", func(t *testing.T) {
		b := newBench(t, n)
		b.draw("W...", ".WWW")
		b.wait("early", record(3, shared, 0, 2))
		b.wait("downgrade", record(1, shared, 0, 3))
		b.wait("beside", record(4, exclusive, 3, 4))
		b.wait("again", record(1, shared, 0, 2))
		b.unlock(2)
		b.order("downgrade", "early", "beside", "again")
	})
	t.Run("ten thousand for one byte", func(t *testing.T) {
		const many = 10_000
		b := newBench(t, n)
		b.try(record(1, exclusive, 5, 6))
		for i := uint64(2); i < many; i++ {
			b.wait(fmt.Sprint(i), record(i, exclusive, 5, 6))
		}
		for i := uint64(1); i < many-1; i++ {
			b.unlock(i)
			b.order(fmt.Sprint(i + 1))
		}
		require.Zero(t, b.Stats().Waiting[lockengine.Record])
	})
	t.Run("named", func(t *testing.T) {
		b := newBench(t, n)
		b.try(name(1, 0))
		b.wait("first", name(2, 0))
		id := b.wait("second", name(3, 0))
		b.wait("third", name(4, 0))
		waiting := b.Waiters(lockengine.Named, "backup")
		require.Len(t, waiting, 3)
		require.Equal(t, owner(3), waiting[1].Owner)
		l, _ := b.Get("backup")
		require.Equal(t, 3, l.Waiters)
		require.True(t, b.Cancel(id, false))
		b.release("backup", 0)
		b.release("backup", 0)
		b.order("first", "third")
	})
}

func testPlace(t *testing.T, n New) {
	for _, c := range []struct {
		name  string
		holds lockengine.Request
		first lockengine.Request
		other lockengine.Request
		free  func(*bench)
	}{
		{
			"record", record(1, exclusive, 0, 4), record(2, exclusive, 1, 3), record(3, exclusive, 1, 3),
			func(b *bench) {
				b.unlock(1)
			},
		},
		{
			"flock", flock(1, exclusive), flock(2, exclusive), flock(3, exclusive),
			func(b *bench) { b.unflock(1) },
		},
		{
			"named", name(1, 0), name(2, 0), name(3, 0),
			func(b *bench) { b.release("backup", 0) },
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, n)
			b.try(c.holds)
			id := b.wait("first", c.first)
			b.wait("other", c.other)

			require.True(t, b.Cancel(id, true))
			b.clock.Pass(lockengine.GhostTime - 1)
			require.Len(t, b.Snapshot().Waiting, 1, "a place kept is not seen")
			require.Equal(t, id, b.wait("first again", c.first), "the place is back")

			require.True(t, b.Cancel(id, true))
			b.clock.Pass(lockengine.GhostTime)
			late := b.wait("too late", c.first)
			require.Greater(t, late, id)

			require.True(t, b.Cancel(late, true))
			c.free(b)
			b.order("other")
		})
	}
	t.Run("not another's", func(t *testing.T) {
		b := newBench(t, n)
		b.draw("WWWW")
		id := b.wait("", record(2, exclusive, 1, 3))
		require.True(t, b.Cancel(id, true))
		for _, r := range []lockengine.Request{
			record(3, exclusive, 1, 3), record(2, shared, 1, 3), record(2, exclusive, 1, 4),
		} {
			require.Greater(t, b.wait("", r), id)
		}
		require.Equal(t, id, b.wait("", record(2, exclusive, 1, 3)))
	})
	for what, drop := range map[string]func(*bench){
		"handle": func(b *bench) { b.DropHandle(20) },
		"owner":  func(b *bench) { b.DropOwner("file", owner(2)) },
	} {
		t.Run("gone with its "+what, func(t *testing.T) {
			b := newBench(t, n)
			b.draw("WWWW")
			id := b.wait("", record(2, exclusive, 1, 3))
			require.True(t, b.Cancel(id, true))
			drop(b)
			require.Greater(t, b.wait("", record(2, exclusive, 1, 3)), id)
		})
	}
}

func testAcquire(t *testing.T, n New) {
	t.Run("at once", func(t *testing.T) {
		b := newBench(t, n)
		g, err := lockengine.Acquire(t.Context(), b, name(1, 0))
		require.NoError(t, err)
		require.NotZero(t, g.Token)
	})
	t.Run("after a wait", func(t *testing.T) {
		b := newBench(t, n)
		b.try(name(1, 0))
		got := make(chan lockengine.Grant)
		go func() {
			g, _ := lockengine.Acquire(t.Context(), b, name(2, 0))
			got <- g
		}()
		b.untilWaiting(1)
		b.release("backup", 0)
		l, _ := b.Get("backup")
		require.Equal(t, l.Token, (<-got).Token)
	})
	t.Run("until the context ends", func(t *testing.T) {
		b := newBench(t, n)
		b.try(name(1, 0))
		why := errors.New("no more patience")
		ctx, cancel := context.WithCancelCause(t.Context())
		got := make(chan error)
		go func() {
			_, err := lockengine.Acquire(ctx, b, name(2, 0))
			got <- err
		}()
		b.untilWaiting(1)
		cancel(why)
		err := <-got
		require.ErrorIs(t, err, lockengine.ErrCanceled)
		require.ErrorIs(t, err, why)
		require.Zero(t, b.Stats().Waiting[lockengine.Named])
		_, err = lockengine.Acquire(ctx, b, on("free", name(2, 0)))
		require.ErrorIs(t, err, lockengine.ErrCanceled)
		_, found := b.Get("free")
		require.False(t, found)
	})
	t.Run("grant against cancel", func(t *testing.T) {
		for range 200 {
			testRace(newBench(t, n))
		}
	})
}

// untilWaiting returns when so many named requests wait.
func (b *bench) untilWaiting(many int) {
	for b.Stats().Waiting[lockengine.Named] != many {
		time.Sleep(50 * time.Microsecond)
	}
}

// testRace lets a grant and the end of a context come at the same time:
// either Acquire says that it has the lock, or nobody has it.
func testRace(b *bench) {
	b.try(name(1, 0))
	ctx, cancel := context.WithCancel(b.t.Context())
	got := make(chan error)
	go func() {
		_, err := lockengine.Acquire(ctx, b, name(2, 0))
		got <- err
	}()
	b.untilWaiting(1)
	go cancel()
	b.release("backup", 0)
	err := <-got
	_, held := b.Get("backup")
	require.Equal(b.t, err == nil, held)
	if !held {
		require.ErrorIs(b.t, err, lockengine.ErrCanceled)
	}
}

func testClose(t *testing.T, n New) {
	b := newBench(t, n)
	b.try(name(1, 0))
	b.try(record(1, exclusive, 0, 1))
	b.wait("a", name(2, 0))
	b.wait("b", record(2, exclusive, 0, 1))
	require.NoError(t, b.Close())
	b.order("a: "+lockengine.ErrClosed.Error(), "b: "+lockengine.ErrClosed.Error())
	_, err := b.Try(new(name(2, 0)))
	require.ErrorIs(t, err, lockengine.ErrClosed)
	_, _, err = b.Wait(new(name(2, 0)), nil)
	require.ErrorIs(t, err, lockengine.ErrClosed)
	require.ErrorIs(t, b.Release("backup", 0, lockengine.Released), lockengine.ErrClosed)
	require.NoError(t, b.Close())
}
