package lockengine_test

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"lockfs/lockengine"
)

// Many goroutines lock few bytes, with patience that runs out at times. No
// byte ever has two writers, or a writer and a reader, and in the end nothing
// is left.
func TestStress(t *testing.T) {
	l, err := lockengine.NewLocal(lockengine.Config{})
	require.NoError(t, err)
	defer l.Close()
	stressAll(t, l)
	s := l.Stats()
	require.Zero(t, s.Held)
	require.Zero(t, s.Waiting)
	require.Empty(t, l.Names())
}

// The same with a log that is made short meanwhile: in the end it makes the
// same state.
func TestStressWithLog(t *testing.T) {
	m := &memLog{}
	l := start(t, nil, m, lockengine.Resumption{})
	timed := lockengine.Request{Class: lockengine.Named, Name: "x", Timeout: time.Hour}
	_, err := l.Try(&timed)
	require.NoError(t, err)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				m.checkpoint(l)
			}
		}
	}()
	stressAll(t, l)
	close(stop)
	<-stopped
	_, err = l.Try(&lockengine.Request{Class: lockengine.Named, Name: "y"})
	require.NoError(t, err)
	again := start(t, nil, m.copy(), sameMount)
	require.Equal(t, l.Snapshot().Locks, again.Snapshot().Locks)
	require.Len(t, again.Snapshot().Locks, 2)
	require.Equal(t, l.Stats().Events, again.Stats().Events)
}

func stressAll(t *testing.T, l *lockengine.Local) {
	var users [4]atomic.Int64 // readers, or -1 for a writer
	var all sync.WaitGroup
	for id := range uint64(16) {
		all.Go(func() { stress(t, l, id+1, &users) })
	}
	all.Wait()
}

func stress(t *testing.T, l *lockengine.Local, id uint64, users *[4]atomic.Int64) {
	rnd := rand.New(rand.NewPCG(id, 2))
	for range 500 {
		at := rnd.Uint64N(4)
		req := lockengine.Request{
			Class: lockengine.Record, Name: "file", Owner: lockengine.Owner{ID: id}, Handle: id,
			Mode: lockengine.Mode(1 + rnd.IntN(2)), Range: lockengine.Range{Start: at, End: at + 1},
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rnd.IntN(500))*time.Microsecond)
		_, err := lockengine.Acquire(ctx, l, req)
		cancel()
		if err != nil {
			assert.ErrorIs(t, err, lockengine.ErrCanceled)
			continue
		}
		use(t, &users[at], req.Mode)
		if rnd.IntN(2) == 0 {
			l.Unlock(&req)
		} else {
			l.DropHandle(id)
		}
	}
}

func use(t *testing.T, users *atomic.Int64, mode lockengine.Mode) {
	if mode == lockengine.Exclusive {
		assert.True(t, users.CompareAndSwap(0, -1), "a writer is alone")
		time.Sleep(time.Microsecond)
		users.Store(0)
		return
	}
	assert.Positive(t, users.Add(1), "no writer among readers")
	time.Sleep(time.Microsecond)
	users.Add(-1)
}
