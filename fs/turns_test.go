package fs

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// turnsTest are turns with a clock that stands still but when a job takes time.
type turnsTest struct {
	turns
	clock   atomic.Int64
	timers  []turnsTimer
	spawned []func()
}

type turnsTimer struct {
	at   int64
	ring func()
}

func newTurnsTest(most int) *turnsTest {
	t := &turnsTest{}
	t.turns = turns{
		most:   most,
		shares: &shares{now: t.clock.Load, exempt: func(uid uint32) bool { return uid == 0 }},
		spawn:  func(f func()) { t.spawned = append(t.spawned, f) },
		after: func(d time.Duration, f func()) stopper {
			t.timers = append(t.timers, turnsTimer{t.clock.Load() + int64(d), f})
			return nil
		},
	}
	return t
}

// pass lets time pass until the next timer, rings it, and runs what that spawns.
func (t *turnsTest) pass() {
	next := t.timers[0]
	t.timers = t.timers[1:]
	t.clock.Store(max(t.clock.Load(), next.at))
	next.ring()
	for len(t.spawned) > 0 {
		f := t.spawned[0]
		t.spawned = t.spawned[1:]
		f()
	}
}

func (t *turnsTest) do(uid uint32, job func()) { t.run(t.add(uid, job)) }

// Users take turns, however many jobs one of them has, and no more jobs run
// at once than may.
func TestUsersTakeTurns(t *testing.T) {
	const most = 2
	r := newTurnsTest(most)
	var order []uint32
	job := func(uid uint32) func() { return func() { order = append(order, uid) } }
	var first []*turn
	for range most {
		first = append(first, r.add(1, job(1)))
		require.NotNil(t, first[len(first)-1])
	}
	for _, uid := range []uint32{1, 1, 1, 2, 3, 2, 3, 3} {
		require.Nil(t, r.add(uid, job(uid)))
	}
	for _, f := range first {
		r.run(f)
	}
	require.Equal(t, []uint32{1, 1, 2, 3, 1, 2, 3, 1, 3}, order[:9])
	require.Zero(t, r.running)
	require.Empty(t, r.queues)

	r.do(1, job(1))
	require.Len(t, order, 11, "it begins again")
	require.Zero(t, r.running)
}

func TestTurnsAreFew(t *testing.T) {
	const most = 3
	r := newTurnsTest(most)
	var wg sync.WaitGroup
	var running, highest, done atomic.Int64
	job := func() {
		if n := running.Add(1); n > highest.Load() {
			highest.Store(n)
		}
		running.Add(-1)
		done.Add(1)
	}
	for i := range uint32(500) {
		if first := r.add(i%7, job); first != nil {
			wg.Go(func() { r.run(first) })
		}
	}
	wg.Wait()
	require.EqualValues(t, 500, done.Load())
	require.LessOrEqual(t, highest.Load(), int64(most))
	require.Zero(t, r.running)
}

// Who takes much gets a fifth of the time, after a little at once; others and
// root get theirs meanwhile.
func TestShareOfTheTime(t *testing.T) {
	const took = 10 * time.Millisecond
	r := newTurnsTest(1)
	var done [3]int
	job := func(uid uint32) func() {
		return func() {
			done[uid]++
			r.clock.Add(int64(took))
		}
	}
	const jobs = 100
	for range jobs {
		r.do(2, job(2))
	}
	atOnce := done[2]
	require.InDelta(t, shareAtOnce/took, atOnce, float64(shareAtOnce/took)/3)
	require.Len(t, r.timers, 1, "one timer, however many wait")

	began := r.clock.Load()
	for range jobs {
		r.do(0, job(0))
	}
	require.Equal(t, jobs, done[0], "root has no limit")
	r.do(1, job(1))
	require.Equal(t, 1, done[1], "another user is not asked to wait")

	for done[2] < jobs {
		require.Len(t, r.timers, 1)
		r.pass()
	}
	fair := time.Duration(jobs-atOnce) * price(took)
	require.InEpsilon(t, fair, time.Duration(r.clock.Load()-began), 0.2)
	require.Empty(t, r.timers)
	require.Empty(t, r.queues)

	r.clock.Add(int64(price(took) * jobs))
	r.do(1, job(1))
	require.Len(t, r.shares.even, 1, "who is even is forgotten")
}

// What waits when all is over is never done.
func TestTurnsAreDropped(t *testing.T) {
	r := newTurnsTest(1)
	r.shares.charge(1, time.Hour)
	r.do(1, func() { t.Error("it was dropped") })
	r.drop()
	r.pass()
	r.do(2, func() { t.Error("it came too late") })
}
