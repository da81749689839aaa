package fs

import (
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lockfs/lockengine"
)

// The table of parked requests does what a map would.
func TestParkingIsAMap(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var p parking
	want := map[uint64]*parked{}
	number := func() uint64 { return rnd.Uint64N(1000)*numberStep | rnd.Uint64N(2)*resentBit }
	for range 100_000 {
		unique := number()
		if r := want[unique]; r != nil {
			require.Same(t, r, p.find(unique))
			require.True(t, p.unpark(unique))
			delete(want, unique)
			require.Nil(t, r.next, "it keeps another alive")
		}
		require.Nil(t, p.find(unique))
		require.False(t, p.unpark(unique))
		if rnd.Uint64N(8) > 0 {
			want[unique] = &parked{unique: unique}
			p.park(want[unique])
		}
		require.Equal(t, len(want), p.n)
	}
	require.Greater(t, len(p.buckets), minBuckets)
	for unique, r := range want {
		require.Same(t, r, p.find(unique))
	}
}

// waitingEngine keeps requests waiting.
type waitingEngine struct {
	lockengine.Engine
	last    lockengine.WaiterID
	waiting map[lockengine.WaiterID]func(lockengine.Grant, error)
}

func (e *waitingEngine) Wait(_ *lockengine.Request, done func(lockengine.Grant, error)) (lockengine.Grant, lockengine.WaiterID, error) {
	e.last++
	e.waiting[e.last] = done
	return lockengine.Grant{}, e.last, nil
}

func (e *waitingEngine) Cancel(id lockengine.WaiterID, _ bool) bool {
	_, ok := e.waiting[id]
	delete(e.waiting, id)
	return ok
}

func (e *waitingEngine) grant(id lockengine.WaiterID) {
	done := e.waiting[id]
	delete(e.waiting, id)
	done(lockengine.Grant{}, nil)
}

// answers takes answers without data.
type answers struct {
	connection
	of map[uint64]int32
}

func (a *answers) answer(unique uint64, code int32) error {
	a.of[unique] = code
	return nil
}

func newWaiting() (*Server, *waitingEngine, *answers) {
	engine := &waitingEngine{waiting: map[lockengine.WaiterID]func(lockengine.Grant, error){}}
	out := &answers{of: map[uint64]int32{}}
	s := &Server{engine: engine, dev: device{out}}
	s.host.after = func(d time.Duration, f func()) stopper { return time.AfterFunc(d, f) }
	s.nextWait = s.newLockWait()
	return s, engine, out
}

func (s *Server) waitForTest(unique uint64) lockengine.WaiterID {
	w := s.waitFor(unique, nil)
	_, waiter, _ := s.engine.Wait(&s.lock, w.decide)
	w.park(waiter)
	return waiter
}

// What a request that is over waited in is used again, and then belongs to the
// new one alone.
func TestWaitsAreUsedAgain(t *testing.T) {
	s, engine, out := newWaiting()
	first := s.waitForTest(2)
	s.timeOut(2, time.Hour)
	used := s.parking.find(2)
	engine.grant(first)
	require.Equal(t, map[uint64]int32{2: 0}, out.of)

	s.waitForTest(4) // takes what was made meanwhile
	third := s.waitForTest(6)
	require.Same(t, used, s.parking.find(6))
	require.Nil(t, used.late, "of the first request")
	s.endWait(2, syscall.EINTR)
	require.Len(t, out.of, 1)
	s.endWait(6, syscall.EINTR)
	require.Equal(t, map[uint64]int32{2: 0, 6: -int32(syscall.EINTR)}, out.of)
	require.NotContains(t, engine.waiting, third)
	require.Equal(t, 1, s.parking.n)
}

// A lock that is handed over again and again allocates nothing in this package.
func TestHandOverDoesNotAllocate(t *testing.T) {
	s, engine, _ := newWaiting()
	unique := uint64(0)
	waiter := s.waitForTest(unique)
	require.Zero(t, testing.AllocsPerRun(1000, func() {
		unique += numberStep
		next := s.waitForTest(unique % 64)
		engine.grant(waiter)
		waiter = next
	}))
}
