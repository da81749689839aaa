package lockengine_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lockfs/lockengine"
	"lockfs/lockengine/enginetest"
)

// The oldest lock of each class is told, also after those before it have ended.
func TestOldest(t *testing.T) {
	clock := enginetest.NewClock()
	l, err := lockengine.NewLocal(lockengine.Config{Clock: clock})
	require.NoError(t, err)
	defer l.Close()
	oldest := func(named, record, flock lockengine.Instant) {
		t.Helper()
		since, now := l.Oldest(2)
		require.Equal(t, [4]lockengine.Instant{lockengine.Named: named, lockengine.Record: record, lockengine.Flock: flock}, since)
		require.Equal(t, clock.Now(), now)
	}
	var none lockengine.Instant
	oldest(none, none, none)

	take := func(req lockengine.Request) lockengine.Instant {
		t.Helper()
		clock.Pass(time.Second)
		_, err := l.Try(&req)
		require.NoError(t, err)
		return clock.Now()
	}
	one, two := lockengine.Owner{Session: 1, ID: 1}, lockengine.Owner{Session: 1, ID: 2}
	named1 := take(lockengine.Request{Class: lockengine.Named, Name: "z", Owner: one})
	named2 := take(lockengine.Request{Class: lockengine.Named, Name: "a", Owner: one})
	record1 := take(lockengine.Request{Class: lockengine.Record, Name: "f", Owner: one, Mode: lockengine.Shared, Range: lockengine.Range{Start: 5, End: 6}})
	record2 := take(lockengine.Request{Class: lockengine.Record, Name: "f", Owner: two, Mode: lockengine.Exclusive, Range: lockengine.Range{Start: 1, End: 2}})
	flock1 := take(lockengine.Request{Class: lockengine.Flock, Name: "f", Owner: one, Mode: lockengine.Exclusive})
	oldest(named1, record1, flock1)
	since, _ := l.Oldest(1)
	require.Equal(t, [4]lockengine.Instant{lockengine.Named: named1, lockengine.Flock: flock1}, since, "two record locks are too many")

	require.NoError(t, l.Release("z", 0, lockengine.Released))
	require.NoError(t, l.Unlock(&lockengine.Request{Class: lockengine.Record, Name: "f", Owner: one, Range: lockengine.Whole}))
	require.NoError(t, l.Unlock(&lockengine.Request{Class: lockengine.Flock, Name: "f", Owner: one, Range: lockengine.Whole}))
	oldest(named2, record2, none)
}
