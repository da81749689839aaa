package lockengine_test

import (
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lockfs/lockengine"
	"lockfs/lockengine/enginetest"
)

func TestLocal(t *testing.T) {
	enginetest.Run(t, func(t *testing.T, clock lockengine.Clock) lockengine.Engine {
		l, err := lockengine.NewLocal(lockengine.Config{Clock: clock})
		require.NoError(t, err)
		t.Cleanup(func() { l.Close() })
		return l
	})
}

// A lease ends by the machine's own clock and alarm, without anyone looking.
func TestSystemClock(t *testing.T) {
	l, err := lockengine.NewLocal(lockengine.Config{})
	require.NoError(t, err)
	defer l.Close()
	g, err := l.Try(&lockengine.Request{Class: lockengine.Named, Name: "short", Timeout: 20 * time.Millisecond})
	require.NoError(t, err)
	require.InDelta(t, time.Now().UnixNano(), g.Since.Wall, 1e9)
	ended := make(chan lockengine.End, 1)
	_, err = l.Watch("short", g.Token, func(e lockengine.End) { ended <- e })
	require.NoError(t, err)
	require.Equal(t, lockengine.Expired, <-ended)
	events, _ := l.Events(0, 10)
	late := events[1].At.Boot - g.Expiry.Boot
	require.GreaterOrEqual(t, late, int64(0), "never early")
	require.Less(t, late, int64(5*time.Second))
}

// Owners are asked about only if a cycle hangs on it, with who waits, and
// what is answered decides.
func TestClassify(t *testing.T) {
	for kind, want := range map[lockengine.OwnerKind]error{
		lockengine.KindUnknown:     lockengine.ErrDeadlock,
		lockengine.KindProcess:     lockengine.ErrDeadlock,
		lockengine.KindDescription: nil,
	} {
		var asked atomic.Int32
		l, err := lockengine.NewLocal(lockengine.Config{
			Clock: enginetest.NewClock(),
			Classify: func(o lockengine.Owner, who lockengine.Who) lockengine.OwnerKind {
				asked.Add(1)
				require.EqualValues(t, o.ID, who.PID)
				return kind
			},
		})
		require.NoError(t, err)
		at := func(owner, byte uint64) lockengine.Request {
			return lockengine.Request{
				Class: lockengine.Record, Name: "file", Owner: lockengine.Owner{ID: owner}, Mode: lockengine.Exclusive,
				Range: lockengine.Range{Start: byte, End: byte + 1}, Who: lockengine.Who{PID: int32(owner)},
			}
		}
		for i := range uint64(3) {
			_, err := l.Try(new(at(i+1, i+1)))
			require.NoError(t, err)
		}
		done := func(lockengine.Grant, error) {}
		_, _, err = l.Wait(new(at(1, 2)), done)
		require.NoError(t, err)
		_, _, err = l.Wait(new(at(2, 3)), done)
		require.NoError(t, err)
		require.Zero(t, asked.Load())
		_, id, err := l.Wait(new(at(3, 1)), done)
		require.ErrorIs(t, err, want)
		require.Equal(t, want == nil, id != 0)
		require.NotZero(t, asked.Load())
		require.NoError(t, l.Close())
	}
}

// A log that is full forgets the oldest events and says how many.
func TestEventLogIsBounded(t *testing.T) {
	l, err := lockengine.NewLocal(lockengine.Config{Clock: enginetest.NewClock(), EventLog: 100})
	require.NoError(t, err)
	defer l.Close()
	for range 250 {
		_, err := l.Try(&lockengine.Request{Class: lockengine.Named, Name: "x"})
		require.NoError(t, err)
		require.NoError(t, l.Release("x", 0, lockengine.Released))
	}
	events, missed := l.Events(0, 1000)
	require.EqualValues(t, 400, missed)
	require.Len(t, events, 100)
	require.EqualValues(t, 401, events[0].Seq)
	require.EqualValues(t, 500, events[99].Seq)
	_, missed = l.Events(450, 1000)
	require.Zero(t, missed)
}

// countingClock counts how often it is to ring.
type countingClock struct {
	*enginetest.Clock
	alarms int
}

func (c *countingClock) Alarm(boot int64, fire func()) {
	c.alarms++
	c.Clock.Alarm(boot, fire)
}

// What is remembered of locks that ended needs no timer for each of them.
func TestFewAlarms(t *testing.T) {
	clock := &countingClock{Clock: enginetest.NewClock()}
	l, err := lockengine.NewLocal(lockengine.Config{Clock: clock})
	require.NoError(t, err)
	defer l.Close()
	for i := range 10_000 { // ten seconds
		req := &lockengine.Request{Class: lockengine.Named, Name: strconv.Itoa(i), Mode: lockengine.Exclusive, Timeout: time.Hour}
		g, err := l.Try(req)
		require.NoError(t, err)
		require.NoError(t, l.Release(req.Name, g.Token, lockengine.Released))
		clock.Pass(time.Millisecond)
	}
	require.Less(t, clock.alarms, 20)
}
