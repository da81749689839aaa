package lockengine_test

import (
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lockfs/lockengine"
	"lockfs/lockengine/enginetest"
)

// limited is an engine with a bound, and its log.
func limited(t *testing.T, max int) (*lockengine.Local, *enginetest.Clock, *memLog) {
	clock, m := enginetest.NewClock(), &memLog{}
	return start(t, clock, m, lockengine.Resumption{}, bound(max)), clock, m
}

func bound(max int) func(*lockengine.Config) {
	return func(cfg *lockengine.Config) { cfg.MaxPerUser = max }
}

// by has the request made by a user; each is an owner of his own, too.
func by(uid uint32, req lockengine.Request) lockengine.Request {
	req.Who.UID, req.Owner = uid, lockengine.Owner{Session: 1, ID: uint64(uid)}
	return req
}

func part(uid uint32, mode lockengine.Mode, start, end uint64) lockengine.Request {
	return by(uid, lockengine.Request{
		Class: lockengine.Record, Name: "file", Mode: mode, Range: lockengine.Range{Start: start, End: end}, Handle: uint64(uid),
	})
}

func flockOf(uid uint32, mode lockengine.Mode) lockengine.Request {
	return by(uid, lockengine.Request{Class: lockengine.Flock, Name: "file", Mode: mode, Handle: uint64(uid)})
}

func try(t *testing.T, l *lockengine.Local, reqs ...lockengine.Request) {
	t.Helper()
	for _, req := range reqs {
		_, err := l.Try(&req)
		require.NoError(t, err)
	}
}

// refused demands that neither call is granted the request, and that nothing changes.
func refused(t *testing.T, l *lockengine.Local, req lockengine.Request) {
	t.Helper()
	before, events := l.Snapshot(), l.Stats().Events
	_, err := l.Try(&req)
	require.ErrorIs(t, err, lockengine.ErrQuota)
	_, id, err := l.Wait(&req, none)
	require.ErrorIs(t, err, lockengine.ErrQuota)
	require.Zero(t, id)
	require.Equal(t, before, l.Snapshot())
	require.Equal(t, events, l.Stats().Events)
}

const (
	shared    = lockengine.Shared
	exclusive = lockengine.Exclusive
)

// A user has the number of locks and waits that the bound says, of all classes
// together, and no other user has fewer for it.
func TestQuota(t *testing.T) {
	l, _, _ := limited(t, 4)
	try(t, l, by(7, named("a", 0, time.Minute)), part(7, exclusive, 0, 1), flockOf(7, exclusive), by(8, named("b", 0, 0)))
	id, _ := wait(t, l, by(7, named("b", 0, time.Minute)))

	refused(t, l, by(7, named("c", 0, time.Minute)))
	refused(t, l, part(7, exclusive, 5, 6))
	_, _, err := l.Wait(new(by(7, named("b", 0, 0))), none)
	require.ErrorIs(t, err, lockengine.ErrQuota, "a wait too many")
	_, err = l.Try(new(by(7, named("b", 0, 0))))
	require.ErrorIs(t, err, lockengine.ErrHeld, "what is held is held, whoever asks")
	require.EqualValues(t, 5, l.Stats().OverQuota)
	try(t, l, by(8, named("c", 0, 0)))

	require.True(t, l.Cancel(id, false))
	try(t, l, by(7, named("d", 0, 0)))
	refused(t, l, by(7, named("e", 0, 0)))
	require.NoError(t, l.Release("a", 0, lockengine.Forced))
	try(t, l, by(7, named("e", 0, 0)))
	l.DropHandle(7)
	try(t, l, by(7, named("f", 0, 0)), by(7, named("g", 0, 0)))
	refused(t, l, by(7, named("h", 0, 0)))
}

// What runs out makes room at that moment.
func TestQuotaExpiry(t *testing.T) {
	l, clock, _ := limited(t, 1)
	try(t, l, by(7, named("a", 0, time.Second)))
	clock.Pass(time.Second - 1)
	refused(t, l, by(7, named("b", 0, 0)))
	clock.Pass(1)
	try(t, l, by(7, named("b", 0, 0)))
}

// Who has all he may have can still change it, but not into more.
func TestQuotaReplaces(t *testing.T) {
	l, _, _ := limited(t, 3)
	try(t, l, part(7, shared, 0, 10), by(7, named("a", 0, time.Minute)), flockOf(7, shared))
	try(t, l, part(7, exclusive, 0, 10), part(7, shared, 0, 10), part(7, shared, 5, 20), flockOf(7, exclusive), flockOf(7, shared))
	_, err := l.Renew("a", 0, time.Hour, false, 0)
	require.NoError(t, err)
	refused(t, l, part(7, exclusive, 0, 5))
	refused(t, l, part(7, exclusive, 5, 10))
	refused(t, l, part(7, shared, 30, 40))

	try(t, l, flockOf(8, shared))
	_, id, err := l.Wait(new(flockOf(7, exclusive)), none)
	require.NoError(t, err, "it waits in the place of the one it was")
	require.NotZero(t, id)
	refused(t, l, by(7, named("b", 0, 0)))
	require.True(t, l.Cancel(id, false))
	try(t, l, part(7, exclusive, 0, 5))
	refused(t, l, by(7, named("b", 0, 0)))
}

// Only a hole in a lock makes more of less.
func TestQuotaUnlock(t *testing.T) {
	l, _, _ := limited(t, 2)
	unlock := func(start, end uint64) error {
		return l.Unlock(new(part(7, 0, start, end)))
	}
	try(t, l, part(7, shared, 0, 100))
	require.NoError(t, unlock(40, 60))
	before := l.Snapshot()
	require.ErrorIs(t, unlock(10, 20), lockengine.ErrQuota)
	require.Equal(t, before, l.Snapshot())
	require.NoError(t, unlock(0, 10))
	require.NoError(t, unlock(90, 200))
	require.NoError(t, unlock(35, 65))
	require.ErrorIs(t, unlock(70, 80), lockengine.ErrQuota)
	require.NoError(t, unlock(5, 70), "one goes, one is cut")
	require.NoError(t, unlock(75, 80))
	require.ErrorIs(t, unlock(72, 73), lockengine.ErrQuota)
	require.NoError(t, unlock(0, lockengine.MaxEnd))
	require.Empty(t, l.Snapshot().Locks)
}

// The pieces of a lock belong to whom it belonged to, whoever cuts it.
func TestQuotaOfAnother(t *testing.T) {
	l, _, _ := limited(t, 1)
	try(t, l, part(7, shared, 0, 100))
	other := part(7, exclusive, 10, 20)
	other.Who.UID = 8
	refused(t, l, other)
	other.Range.Start = 0
	try(t, l, other)
	refused(t, l, by(8, named("a", 0, 0)))
}

// A lock handed over is counted where it went, which is never refused.
func TestQuotaSetHolder(t *testing.T) {
	l, _, _ := limited(t, 1)
	try(t, l, by(7, named("a", 0, 0)), by(8, named("b", 0, 0)))
	require.NoError(t, l.SetHolder("a", 0, 8, 8))
	try(t, l, by(7, named("c", 0, 0)))
	require.NoError(t, l.Release("a", 0, lockengine.Forced))
	refused(t, l, by(8, named("d", 0, 0)))
	require.NoError(t, l.Release("b", 0, lockengine.Forced))
	try(t, l, by(8, named("d", 0, 0)))
}

func TestQuotaRoot(t *testing.T) {
	l, _, _ := limited(t, 1)
	try(t, l, by(0, named("a", 0, 0)), by(0, named("b", 0, 0)))
	l = start(t, enginetest.NewClock(), &memLog{}, lockengine.Resumption{}, bound(1), func(c *lockengine.Config) { c.LimitRoot = true })
	try(t, l, by(0, named("a", 0, 0)))
	refused(t, l, by(0, named("b", 0, 0)))
}

// An engine without a log has the bound from the start.
func TestQuotaWithoutLog(t *testing.T) {
	l, err := lockengine.NewLocal(lockengine.Config{Clock: enginetest.NewClock(), MaxPerUser: 1})
	require.NoError(t, err)
	defer l.Close()
	try(t, l, by(7, named("a", 0, 0)))
	refused(t, l, by(7, named("b", 0, 0)))
}

// A lower bound takes nothing away, but gives nothing more.
func TestQuotaLowered(t *testing.T) {
	l, clock, m := limited(t, 4)
	try(t, l, by(7, named("a", 0, 0)), by(7, named("b", 0, 0)), part(7, shared, 0, 10))
	for _, compacted := range []bool{false, true} {
		if compacted {
			m.checkpoint(l)
		}
		again := start(t, clock, m.copy(), sameMount, bound(2))
		require.Len(t, again.Snapshot().Locks, 3)
		refused(t, again, by(7, named("d", 0, 0)))
		try(t, again, part(7, exclusive, 0, 10))
		require.NoError(t, again.Release("a", 0, lockengine.Released))
		refused(t, again, by(7, named("d", 0, 0)))
		require.NoError(t, again.Release("b", 0, lockengine.Released))
		try(t, again, by(7, named("d", 0, 0)))
	}
}

// A request that was refused in the moment in which a lease ran out is in the
// log for the sake of that, and must not be granted by a replay.
func TestQuotaRefusalIsNotReplayed(t *testing.T) {
	l, clock, m := limited(t, 1)
	try(t, l, by(7, named("a", 0, 0)), by(8, named("b", 0, time.Second)))
	clock.Skip(time.Second) // nobody is told: the alarm is late
	_, err := l.Try(new(by(7, named("c", 0, 0))))
	require.ErrorIs(t, err, lockengine.ErrQuota)
	again := start(t, clock, m.copy(), sameMount, bound(1))
	require.Len(t, l.Snapshot().Locks, 1)
	require.Equal(t, l.Snapshot(), again.Snapshot())
}

// Whatever users do, none has more than his bound, and whoever goes on from
// the log counts the same.
func TestQuotaRandom(t *testing.T) {
	const most, users = 5, 3
	for seed := range uint64(30) {
		l, clock, m := limited(t, most)
		rnd := rand.New(rand.NewPCG(seed, 1))
		quota := 0
		for range 600 {
			if errors.Is(quotaStep(l, clock, rnd, users), lockengine.ErrQuota) {
				quota++
			}
			have := map[uint32]int{}
			s := l.Snapshot()
			for _, lock := range s.Locks {
				have[lock.Who.UID]++
			}
			for _, w := range s.Waiting {
				have[w.Who.UID]++
			}
			for uid := uint32(1); uid <= users; uid++ {
				require.LessOrEqual(t, have[uid], most, "user %d", uid)
			}
			if rnd.IntN(100) == 0 {
				m.checkpoint(l)
			}
		}
		require.Greater(t, quota, 20, "the bound was not reached")
		require.Equal(t, l.Snapshot(), start(t, clock, m.copy(), sameMount, bound(most)).Snapshot())
	}
}

// quotaStep makes one random request. Those that wait are for what does not
// split: see Config.MaxPerUser.
func quotaStep(l *lockengine.Local, clock *enginetest.Clock, rnd *rand.Rand, users uint32) (err error) {
	uid := 1 + rnd.Uint32N(users)
	from := rnd.Uint64N(20)
	rec := part(uid, lockengine.Mode(1+rnd.IntN(2)), from, from+1+rnd.Uint64N(20))
	name := by(uid, named(string(rune('a'+rnd.IntN(9))), 0, time.Duration(rnd.IntN(3))*time.Second))
	switch rnd.IntN(8) {
	case 0, 1:
		_, err = l.Try(&rec)
	case 2:
		err = l.Unlock(&rec)
	case 3:
		_, err = l.Try(&name)
	case 4:
		_, _, err = l.Wait(&name, none)
	case 5:
		_, _, err = l.Wait(new(flockOf(uid, rec.Mode)), none)
	case 6:
		err = l.Release(name.Name, 0, lockengine.Released)
	default:
		clock.Pass(time.Duration(1+rnd.IntN(700)) * time.Millisecond)
	}
	return err
}

// Many who wait for many do not make a snapshot of their product.
func TestBlockersAreBounded(t *testing.T) {
	l, _, _ := limited(t, 0)
	const many = 1000
	for i := range uint64(many) {
		req := part(7, shared, 0, 1)
		req.Owner.ID = i
		try(t, l, req)
	}
	for i := range uint64(3) {
		req := part(7, exclusive, 0, 1)
		req.Owner.ID = many + i
		wait(t, l, req)
	}
	for _, w := range l.Snapshot().Waiting {
		require.Len(t, w.Blockers, 256)
	}
}
