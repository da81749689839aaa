package lockengine_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"lockfs/lockengine"
	"lockfs/lockengine/enginetest"
)

var sameMount = lockengine.Resumption{Same: true}

func named(name string, key uint64, timeout time.Duration) lockengine.Request {
	return lockengine.Request{
		Class: lockengine.Named, Name: name, Owner: lockengine.Owner{Session: 1, ID: key}, Key: key, Timeout: timeout,
	}
}

func byteOf(owner, key uint64) lockengine.Request {
	return lockengine.Request{
		Class: lockengine.Record, Name: "file", Owner: lockengine.Owner{Session: 1, ID: owner}, Key: key, Handle: 10 * owner,
		Mode: lockengine.Exclusive, Range: lockengine.Range{Start: 0, End: 1},
	}
}

// outcome is what a callback brought.
type outcome struct {
	grant lockengine.Grant
	err   error
}

// wait asks for what is not granted at once, or not told at once.
func wait(t *testing.T, l *lockengine.Local, req lockengine.Request) (lockengine.WaiterID, chan outcome) {
	t.Helper()
	done := make(chan outcome, 1)
	_, id, err := l.Wait(&req, func(g lockengine.Grant, err error) { done <- outcome{g, err} })
	require.NoError(t, err)
	require.NotZero(t, id)
	return id, done
}

func none(lockengine.Grant, error) {}

// A request made again after a restart is the same request.
func TestKeyMadeAgain(t *testing.T) {
	clock, m := enginetest.NewClock(), &memLog{}
	l := start(t, clock, m, lockengine.Resumption{})
	req := named("x", 7, time.Minute)
	g, err := l.Try(&req)
	require.NoError(t, err)
	clock.Pass(time.Second)
	l = start(t, clock, m, sameMount)
	again, err := l.Try(&req)
	require.NoError(t, err)
	require.Equal(t, g, again, "the lock that it took")
	again, id, err := l.Wait(&req, none)
	require.NoError(t, err)
	require.Zero(t, id)
	require.Equal(t, g, again)
	events, _ := l.Events(0, 10)
	require.Len(t, events, 1, "nothing happened")

	other := req
	other.Key = 8
	_, err = l.Try(&other)
	require.ErrorIs(t, err, lockengine.ErrHeld, "another request")
	other = req
	other.Owner.ID++
	_, err = l.Try(&other)
	require.ErrorIs(t, err, lockengine.ErrHeld, "of another owner")
	none := req
	none.Key = 0
	_, err = l.Try(&none)
	require.ErrorIs(t, err, lockengine.ErrHeld)
}

// A request that is answered at once forgets its place, which counts also when
// it changes nothing else: the next one must not find it in a replay only.
func TestForgottenPlaceIsRecorded(t *testing.T) {
	clock, m := enginetest.NewClock(), &memLog{}
	l := start(t, clock, m, lockengine.Resumption{})
	flock := func(owner uint64) lockengine.Request {
		return lockengine.Request{
			Class: lockengine.Flock, Name: "file", Owner: lockengine.Owner{Session: 1, ID: owner}, Handle: owner, Mode: lockengine.Exclusive,
		}
	}
	unlock := func(owner uint64) {
		l.Unlock(new(flock(owner)))
	}
	_, err := l.Try(new(flock(1)))
	require.NoError(t, err)
	id, _ := wait(t, l, flock(2))
	require.True(t, l.Cancel(id, true))
	unlock(1)
	_, err = l.Try(new(flock(2)))
	require.NoError(t, err)
	_, id, err = l.Wait(new(flock(2)), none)
	require.NoError(t, err)
	require.Zero(t, id, "it has it already")
	unlock(2)
	_, err = l.Try(new(flock(1)))
	require.NoError(t, err)
	third, _ := wait(t, l, flock(3))
	second, _ := wait(t, l, flock(2))
	require.Less(t, third, second)
	again := start(t, clock, m.copy(), sameMount)
	require.Equal(t, l.Snapshot(), again.Snapshot())
}

// An open that a signal ended has its place back when it is made again, but not
// its patience: for how long it has waited counts anew.
func TestPlaceOfNamedWaitsAnew(t *testing.T) {
	clock, m := enginetest.NewClock(), &memLog{}
	l := start(t, clock, m, lockengine.Resumption{})
	_, err := l.Try(new(named("x", 1, time.Hour)))
	require.NoError(t, err)
	first, _ := wait(t, l, named("x", 2, time.Hour))
	clock.Pass(time.Minute)
	require.True(t, l.Cancel(first, true))
	req := named("x", 2, time.Hour)
	req.Key = 3
	again, _ := wait(t, l, req)
	require.Equal(t, first, again)
	require.Equal(t, clock.Now(), l.Waiters(lockengine.Named, "x")[0].Since)
}

// Who waits goes on waiting in its place, with the callback of the claim.
func TestClaims(t *testing.T) {
	clock, m := enginetest.NewClock(), &memLog{}
	l := start(t, clock, m, lockengine.Resumption{})
	_, err := l.Try(new(byteOf(1, 1)))
	require.NoError(t, err)
	_, err = l.Try(new(named("x", 2, time.Minute)))
	require.NoError(t, err)
	second, _ := wait(t, l, byteOf(2, 12))
	third, _ := wait(t, l, byteOf(3, 13))
	lost, _ := wait(t, l, byteOf(4, 0))
	x, _ := wait(t, l, named("x", 14, time.Hour))
	gone, _ := wait(t, l, named("x", 15, time.Hour))

	l = start(t, clock, m, sameMount)
	claimed, done3 := wait(t, l, byteOf(3, 13))
	require.Equal(t, third, claimed)
	l.Unlock(new(byteOf(1, 0))) // the second has it, before it claims it
	clock.Pass(time.Minute)     // 14 has x, before it claims it
	require.Len(t, done3, 0)
	g, id, err := l.Wait(new(byteOf(2, 12)), none)
	require.NoError(t, err)
	require.Zero(t, id)
	require.NotZero(t, g.Since)
	g, id, err = l.Wait(new(named("x", 14, time.Hour)), none)
	require.NoError(t, err)
	require.Zero(t, id)
	lock, _ := l.Get("x")
	require.Equal(t, lock.Token, g.Token)

	l.Claimed()
	var left []lockengine.WaiterID
	for _, w := range l.Snapshot().Waiting {
		left = append(left, w.ID)
	}
	require.Equal(t, []lockengine.WaiterID{third}, left, "%d and %d are canceled; %d and %d were granted", lost, gone, second, x)
	l.Unlock(new(byteOf(2, 0)))
	require.NoError(t, (<-done3).err)

	again := start(t, clock, m, sameMount)
	require.Equal(t, l.Snapshot(), again.Snapshot())
}

// What is refused before it is claimed is refused when it is.
func TestClaimOfRefused(t *testing.T) {
	clock, m := enginetest.NewClock(), &memLog{}
	l := start(t, clock, m, lockengine.Resumption{})
	_, err := l.Try(new(byteOf(1, 1)))
	require.NoError(t, err)
	wait(t, l, byteOf(2, 12))
	l = start(t, clock, m, sameMount)
	l.DropHandle(20)
	_, id, err := l.Wait(new(byteOf(2, 12)), none)
	require.ErrorIs(t, err, lockengine.ErrCanceled)
	require.Zero(t, id)
	_, id, err = l.Wait(new(byteOf(2, 12)), none)
	require.NoError(t, err, "it is claimed once")
	require.NotZero(t, id)
}

// What was granted since the restart to nobody who claimed it is given back.
func TestGrantsNotClaimed(t *testing.T) {
	clock, m := enginetest.NewClock(), &memLog{}
	l := start(t, clock, m, lockengine.Resumption{})
	_, err := l.Try(new(byteOf(1, 1)))
	require.NoError(t, err)
	_, err = l.Try(new(named("x", 2, time.Minute)))
	require.NoError(t, err)
	wait(t, l, byteOf(2, 12))
	wait(t, l, named("x", 13, 0))
	_, mine := wait(t, l, named("x", 14, time.Hour))
	require.Empty(t, mine)

	l = start(t, clock, m, sameMount)
	_, mine = wait(t, l, named("x", 14, time.Hour))
	l.DropHandle(10)
	require.NoError(t, l.Release("x", 0, lockengine.Released))
	require.Len(t, l.Snapshot().Locks, 2)
	require.Empty(t, mine)
	l.Claimed()
	require.NoError(t, (<-mine).err, "next in line")
	locks := l.Snapshot().Locks
	require.Len(t, locks, 1)
	require.EqualValues(t, 14, locks[0].Owner.ID)
}

// Who does not ask again is granted nothing more, and keeps what it has: the
// lock that it wanted in another mode.
func TestNotExpected(t *testing.T) {
	clock, m := enginetest.NewClock(), &memLog{}
	l := start(t, clock, m, lockengine.Resumption{})
	shared := func(owner uint64) lockengine.Request {
		req := byteOf(owner, 0)
		req.Mode = lockengine.Shared
		return req
	}
	for _, owner := range []uint64{1, 2} {
		_, err := l.Try(new(shared(owner)))
		require.NoError(t, err)
	}
	wait(t, l, byteOf(2, 12))
	third, _ := wait(t, l, byteOf(3, 13))

	l = start(t, clock, m, sameMount)
	l.Expect(map[uint64]bool{13: true})
	claimed, done := wait(t, l, byteOf(3, 13))
	require.Equal(t, third, claimed)
	l.DropHandle(10)
	l.Claimed()
	require.Empty(t, done)
	locks := l.Snapshot().Locks
	require.Len(t, locks, 1)
	require.EqualValues(t, 2, locks[0].Owner.ID)
	require.Equal(t, lockengine.Shared, locks[0].Mode)
}

// A watch goes on, and says what it missed.
func TestRewatch(t *testing.T) {
	clock, m := enginetest.NewClock(), &memLog{}
	l := start(t, clock, m, lockengine.Resumption{})
	ids := map[string]lockengine.WatchID{}
	never := func(lockengine.End) { t.Error("called") }
	for _, name := range []string{"before", "since", "later", "unclaimed"} {
		_, err := l.Try(new(named(name, 1, 0)))
		require.NoError(t, err)
		ids[name], err = l.Watch(name, 0, func(lockengine.End) {})
		require.NoError(t, err)
	}
	require.NoError(t, l.Release("before", 0, lockengine.Forced))

	l = start(t, clock, m, sameMount)
	require.NoError(t, l.Release("since", 0, lockengine.Lost))
	ends := map[string]lockengine.End{}
	for _, name := range []string{"before", "since", "later"} {
		require.True(t, l.Rewatch(ids[name], func(e lockengine.End) { ends[name] = e }))
	}
	require.Equal(t, map[string]lockengine.End{"before": lockengine.Forced, "since": lockengine.Lost}, ends)
	require.False(t, l.Rewatch(ids["before"], never), "it is told once")
	require.False(t, l.Rewatch(99, never))
	l.Claimed()
	require.False(t, l.Rewatch(ids["unclaimed"], never))
	require.NoError(t, l.Release("later", 0, lockengine.Released))
	require.Equal(t, lockengine.Released, ends["later"])
	require.NoError(t, l.Release("unclaimed", 0, lockengine.Released))

	_, err := l.Try(new(named("new", 1, 0)))
	require.NoError(t, err)
	id, err := l.Watch("new", 0, never)
	require.NoError(t, err)
	for _, old := range ids {
		require.NotEqual(t, old, id)
	}
	require.True(t, l.Unwatch(id))
}

// fill takes one lock of each sort, and waits for some.
func fill(t *testing.T, l *lockengine.Local) (timed lockengine.Grant) {
	t.Helper()
	_, err := l.Try(new(byteOf(1, 1)))
	require.NoError(t, err)
	flock := byteOf(1, 1)
	flock.Class = lockengine.Flock
	_, err = l.Try(&flock)
	require.NoError(t, err)
	_, err = l.Try(new(named("hold", 2, 0)))
	require.NoError(t, err)
	req := named("timed", 3, 10*time.Minute)
	req.Handle = 30
	timed, err = l.Try(&req)
	require.NoError(t, err)
	_, err = l.Watch("timed", 0, func(lockengine.End) {})
	require.NoError(t, err)
	wait(t, l, byteOf(2, 12))
	wait(t, l, named("timed", 13, time.Hour))
	guarded := named("free", 14, time.Hour)
	guarded.Guard = "timed"
	wait(t, l, guarded)
	canceled, _ := wait(t, l, named("hold", 15, time.Hour))
	require.True(t, l.Cancel(canceled, true))
	return timed
}

// On a fresh mount only timed locks are left, of nobody's handle or request.
func TestFreshMount(t *testing.T) {
	clock, m := enginetest.NewClock(), &memLog{}
	timed := fill(t, start(t, clock, m, lockengine.Resumption{}))
	clock.Pass(time.Minute)

	l := start(t, clock, m, lockengine.Resumption{})
	s := l.Snapshot()
	require.Len(t, s.Locks, 1)
	require.Empty(t, s.Waiting)
	lock := s.Locks[0]
	require.Equal(t, timed, lockengine.Grant{Token: lock.Token, Since: lock.Since, Expiry: lock.Expiry})
	require.Zero(t, lock.Handle)
	l.DropHandle(30)
	_, err := l.Try(new(named("timed", 3, time.Minute)))
	require.ErrorIs(t, err, lockengine.ErrHeld, "its request is forgotten")
	require.Empty(t, l.Names())
	stats := l.Stats()
	require.Equal(t, [4]int{lockengine.Named: 1}, stats.Held)
	require.Zero(t, stats.Waiting)
	again := start(t, clock, m, sameMount)
	require.Equal(t, l.Snapshot(), again.Snapshot())
	clock.Pass(9 * time.Minute)
	require.Empty(t, again.Snapshot().Locks)
}

// After a boot a lease has left what the wall clock says, but never more than
// it had.
func TestReboot(t *testing.T) {
	for _, c := range []struct {
		step, left time.Duration
	}{
		{0, 9 * time.Minute},
		{5 * time.Minute, 4 * time.Minute},
		{time.Hour, 0},
		{-time.Hour, 10 * time.Minute},
	} {
		t.Run(fmt.Sprint(c.step), func(t *testing.T) {
			clock, m := enginetest.NewClock(), &memLog{}
			timed := fill(t, start(t, clock, m, lockengine.Resumption{}))
			clock.Pass(time.Minute)
			clock.Step(c.step)

			next := enginetest.NewClock() // one second after boot
			next.Step(time.Duration(clock.Now().Wall - next.Now().Wall))
			boot2 := func(cfg *lockengine.Config) { cfg.Boot = "boot-2" }
			l := start(t, next, m, sameMount, boot2)
			s := l.Snapshot()
			require.Empty(t, s.Waiting)
			if c.left == 0 {
				require.Empty(t, s.Locks)
				events, _ := l.Events(0, 1000)
				last := events[len(events)-1]
				require.Equal(t, lockengine.EventExpired, last.Kind)
				require.Equal(t, timed.Token, last.Token)
				require.GreaterOrEqual(t, last.Held, time.Minute)
				return
			}
			require.Len(t, s.Locks, 1)
			require.Equal(t, timed.Token, s.Locks[0].Token)
			now := next.Now()
			require.Equal(t, lockengine.Instant{Boot: now.Boot + int64(c.left), Wall: now.Wall + int64(c.left)}, s.Locks[0].Expiry)
			next.Pass(c.left - 1)
			require.Len(t, l.Snapshot().Locks, 1)
			next.Pass(1)
			require.Empty(t, l.Snapshot().Locks)
		})
	}
}

// Tokens grow over restarts: after the last one, or after all that may have
// been given out when the end of the log is lost.
func TestTokensOverRestarts(t *testing.T) {
	clock, m := enginetest.NewClock(), &memLog{}
	l := start(t, clock, m, lockengine.Resumption{})
	take := func(l *lockengine.Local) uint64 {
		t.Helper()
		g, err := l.Try(new(named("x", 0, time.Second)))
		require.NoError(t, err)
		require.NoError(t, l.Release("x", g.Token, lockengine.Released))
		return g.Token
	}
	first := take(l)
	reserved := m.len() // with the tokens that first is of
	clock.Pass(50 * time.Minute)
	last := take(l)
	clock.Step(-2 * time.Hour)
	require.Equal(t, last+1, take(start(t, clock, m, sameMount)))

	cut := m.copy()
	cut.records = cut.records[:reserved] // as the machine went down, the rest was not on disk
	crashed := start(t, clock, cut, lockengine.Resumption{Lost: true}, func(c *lockengine.Config) { c.Boot = "boot-2" })
	require.Greater(t, take(crashed), first+3600e6-1)

	m.checkpoint(l)
	m.records = m.records[:1]
	clock.Step(-24 * time.Hour)
	crashed = start(t, clock, m, lockengine.Resumption{Lost: true})
	require.Greater(t, take(crashed), last+3600e6/2-1, "the state says what is reserved")
}

// No token is given out that is not reserved on disk.
func TestTokensAreReservedFirst(t *testing.T) { synctest.Test(t, tokensAreReservedFirst) }

func tokensAreReservedFirst(t *testing.T) {
	clock, m := enginetest.NewClock(), &memLog{slow: true}
	l := start(t, clock, m, lockengine.Resumption{})
	taken := make(chan error)
	take := func() {
		_, err := l.Try(new(named("x", 0, 0)))
		taken <- err
	}
	go take()
	_, err := l.Try(new(byteOf(1, 0)))
	require.NoError(t, err, "no token, nothing to wait for")
	synctest.Wait()
	require.Len(t, l.Snapshot().Locks, 1, "granted before its token was reserved")
	require.Equal(t, 1, m.sync(nil))
	require.NoError(t, <-taken)

	require.NoError(t, l.Release("x", 0, lockengine.Released))
	clock.Pass(40 * time.Minute)
	go take()
	require.NoError(t, <-taken, "the next block is reserved meanwhile")
	require.Equal(t, 1, m.sync(nil))

	clock.Pass(3 * time.Hour)
	require.NoError(t, l.Release("x", 0, lockengine.Released))
	go take()
	synctest.Wait()
	m.sync(errFull)
	require.ErrorIs(t, <-taken, errFull)
	_, held := l.Get("x")
	require.False(t, held)
}

// checkpoint is the chunks of a checkpoint.
func checkpoint(l *lockengine.Local, switchLog func()) (chunks [][]byte, err error) {
	err = l.Checkpoint(switchLog, func(chunk []byte) error {
		chunks = append(chunks, chunk)
		return nil
	})
	return chunks, err
}

// A checkpoint is the state at its moment: what the log had before is not
// needed.
func TestCheckpoint(t *testing.T) {
	clock, m := enginetest.NewClock(), &memLog{}
	l := start(t, clock, m, lockengine.Resumption{})
	fill(t, l)
	var next *memLog
	chunks, _ := checkpoint(l, func() {
		m.set(func() { m.records = nil })
	})
	clock.Pass(time.Second)
	_, err := l.Try(new(named("y", 20, time.Minute)))
	require.NoError(t, err)
	next = &memLog{}
	for _, chunk := range chunks {
		next.records = append(next.records, memRecord{2, chunk})
	}
	next.records = append(next.records, m.copy().records...)
	again := start(t, clock, next, sameMount)
	require.Equal(t, l.Snapshot(), again.Snapshot())
	want, _ := l.Events(0, 1000)
	got, _ := again.Events(0, 1000)
	require.Equal(t, want, got)
	id, _ := wait(t, again, byteOf(2, 12))
	require.Equal(t, again.Snapshot().Waiting[0].ID, id)
}

// Without room nothing grows, and all can be given back.
func TestNoSpace(t *testing.T) {
	clock, m := enginetest.NewClock(), &memLog{}
	l := start(t, clock, m, lockengine.Resumption{})
	fill(t, l)
	waiting, done := wait(t, l, byteOf(5, 16))
	before := l.Snapshot()
	require.NoError(t, l.Room())
	m.set(func() { m.full = true })
	require.ErrorIs(t, l.Room(), lockengine.ErrNoSpace)
	refused := func(err error) {
		t.Helper()
		require.ErrorIs(t, err, lockengine.ErrNoSpace)
		require.ErrorIs(t, err, errFull)
		require.Equal(t, before, l.Snapshot())
	}
	_, err := l.Try(new(named("new", 1, 0)))
	refused(err)
	_, _, err = l.Wait(new(byteOf(6, 0)), none)
	refused(err)
	_, err = l.Renew("timed", 0, time.Hour, false, 0)
	refused(err)
	refused(l.SetNote("timed", 0, "note"))
	refused(l.SetSpan("timed", 0, 60, 0))
	refused(l.SetStart("timed", 0, 60, 0))
	refused(l.SetHolder("timed", 0, 1, 1))
	_, err = l.Watch("timed", 0, nil)
	refused(err)

	require.NoError(t, l.Detach("timed", 0))
	require.True(t, l.Cancel(waiting, false))
	require.Empty(t, done)
	l.DropHandle(10)
	require.NoError(t, l.Release("hold", 0, lockengine.Released))
	require.Equal(t, l.Snapshot(), start(t, clock, m.copy(), sameMount).Snapshot())

	// Not even the reserve is left: it is recorded as soon as it can be.
	m.set(func() { m.broken = true })
	l.DropHandle(20)
	require.NoError(t, l.Release("timed", 0, lockengine.Released))
	require.Equal(t, 2, l.Stats().Unrecorded)
	require.ErrorIs(t, l.Room(), lockengine.ErrNoSpace)
	_, err = checkpoint(l, func() { require.Fail(t, "what is owed would be missing in the log") })
	require.ErrorIs(t, err, errFull)
	m.set(func() { m.full = false })
	_, err = l.Try(new(named("new", 1, 0)))
	require.ErrorIs(t, err, lockengine.ErrNoSpace)
	m.set(func() { m.broken = false })
	_, err = l.Try(new(named("new", 1, 0)))
	require.NoError(t, err)
	require.Zero(t, l.Stats().Unrecorded)
	require.Equal(t, l.Snapshot(), start(t, clock, m.copy(), sameMount).Snapshot())
	require.NoError(t, l.Room())
	require.NoError(t, l.Close())
	require.ErrorIs(t, l.Room(), lockengine.ErrClosed)
}

// A lock that is detached does not go with its handle.
func TestDetach(t *testing.T) {
	clock, m := enginetest.NewClock(), &memLog{}
	l := start(t, clock, m, lockengine.Resumption{})
	req := named("x", 1, time.Minute)
	req.Handle = 10
	g, err := l.Try(&req)
	require.NoError(t, err)
	require.ErrorIs(t, l.Detach("x", g.Token+1), lockengine.ErrNotHeld)
	require.NoError(t, l.Detach("x", g.Token))
	n := m.len()
	require.NoError(t, l.Detach("x", g.Token))
	require.Equal(t, n, m.len(), "nothing changed")
	l.DropHandle(10)
	_, held := start(t, clock, m, sameMount).Get("x")
	require.True(t, held)
}

// What changes nothing is not recorded.
func TestOnlyChangesAreRecorded(t *testing.T) {
	clock, m := enginetest.NewClock(), &memLog{}
	l := start(t, clock, m, lockengine.Resumption{})
	_, err := l.Try(new(byteOf(1, 0)))
	require.NoError(t, err)
	n := m.len()
	for range 10 {
		_, err = l.Try(new(byteOf(2, 0)))
		require.ErrorIs(t, err, lockengine.ErrHeld)
		l.Unlock(new(byteOf(2, 0)))
		l.DropHandle(99)
		require.ErrorIs(t, l.Release("x", 0, lockengine.Released), lockengine.ErrNotHeld)
		l.Snapshot()
		clock.Pass(time.Second)
	}
	require.Equal(t, n, m.len())
}

// A place that is given up is recorded, though nobody is told of it.
func TestPlacesAreRecorded(t *testing.T) {
	for _, drop := range []func(*lockengine.Local){
		func(l *lockengine.Local) { l.DropOwner("file", lockengine.Owner{Session: 1, ID: 2}) },
		func(l *lockengine.Local) { l.DropHandle(20) },
	} {
		clock, m := enginetest.NewClock(), &memLog{}
		l := start(t, clock, m, lockengine.Resumption{})
		_, err := l.Try(new(byteOf(1, 0)))
		require.NoError(t, err)
		process := byteOf(2, 0)
		process.Kind = lockengine.KindProcess
		first, _ := wait(t, l, process)
		require.True(t, l.Cancel(first, true))
		drop(l)
		l = start(t, clock, m, sameMount)
		second, _ := wait(t, l, process)
		require.Greater(t, second, first, "its place is gone")
	}
}

// What cannot be read is refused with what it is.
func TestReplayOfNonsense(t *testing.T) {
	l, err := lockengine.NewLocal(lockengine.Config{Clock: enginetest.NewClock()})
	require.NoError(t, err)
	defer l.Close()
	for kind := range uint8(10) {
		require.ErrorContains(t, l.Replay(kind, []byte{1, 200, 1}), fmt.Sprint("kind ", kind))
	}
}
