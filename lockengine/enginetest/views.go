package enginetest

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lockfs/lockengine"
)

// said is what an event says, without when and who.
type said struct {
	Kind  lockengine.EventKind
	Class lockengine.Class
	Owner uint64
	Range lockengine.Range
}

func testEvents(t *testing.T, n New) {
	t.Run("what happened", func(t *testing.T) {
		b := newBench(t, n)
		b.draw("WW")
		id := b.wait("", record(2, shared, 0, 1))
		b.Cancel(id, false)
		b.wait("", record(2, shared, 0, 1))
		b.clock.Pass(time.Second)
		b.Unlock(new(record(1, 0, 0, 1)))
		g := b.try(name(3, time.Second))
		b.held(name(4, 0))
		b.Renew("backup", 0, 2*time.Second, false, 0)
		b.clock.Pass(2 * time.Second)
		events, missed := b.Events(0, 100)
		require.Zero(t, missed)
		one, two := lockengine.Range{Start: 0, End: 1}, lockengine.Range{Start: 0, End: 2}
		var got []said
		for i, e := range events {
			require.EqualValues(t, i+1, e.Seq)
			got = append(got, said{e.Kind, e.Class, e.Owner.ID, e.Range})
		}
		require.Equal(t, []said{
			{lockengine.EventGranted, lockengine.Record, 1, two},
			{lockengine.EventWaiting, lockengine.Record, 2, one},
			{lockengine.EventCanceled, lockengine.Record, 2, one},
			{lockengine.EventWaiting, lockengine.Record, 2, one},
			{lockengine.EventReleased, lockengine.Record, 1, one},
			{lockengine.EventGranted, lockengine.Record, 2, one},
			{lockengine.EventGranted, lockengine.Named, 3, lockengine.Whole},
			{lockengine.EventRefused, lockengine.Named, 4, lockengine.Whole},
			{lockengine.EventRenewed, lockengine.Named, 3, lockengine.Whole},
			{lockengine.EventExpired, lockengine.Named, 3, lockengine.Whole},
		}, got)
		require.Equal(t, time.Second, events[4].Held)
		require.Equal(t, time.Second, events[5].Waited)
		require.Equal(t, 2*time.Second, events[9].Held)
		require.Equal(t, g.Token, events[9].Token)
		require.EqualValues(t, len(events), b.Stats().Events)
	})
	t.Run("some at a time", func(t *testing.T) {
		b := newBench(t, n)
		b.draw("W.W.W.W.")
		events, missed := b.Events(1, 2)
		require.Zero(t, missed)
		require.Len(t, events, 2)
		require.EqualValues(t, 2, events[0].Seq)
		events, _ = b.Events(4, 2)
		require.Empty(t, events)
	})
	t.Run("when there is one", func(t *testing.T) {
		b := newBench(t, n)
		rang := 0
		ready := func() { rang++ }
		b.OnEvents(0, ready)
		no := b.OnEvents(0, ready)
		require.True(t, b.Unwatch(no))
		b.draw("W.W.")
		require.Equal(t, 1, rang, "once")
		b.OnEvents(1, ready)
		require.Equal(t, 2, rang, "at once")
		b.OnEvents(2, ready)
		b.clock.Pass(time.Hour)
		require.Equal(t, 2, rang, "not for nothing")
	})
}

func testViews(t *testing.T, n New) {
	b := newBench(t, n)
	second := b.try(on("b", name(1, 0)))
	first := b.try(on("a", name(1, time.Minute)))
	b.try(on("z", flock(1, shared)))
	b.draw("..WW", "rr..")
	b.wait("", record(3, exclusive, 1, 3))
	b.wait("", on("z", flock(2, exclusive)))
	b.wait("", on("b", name(5, 0)))

	s := b.Snapshot()
	require.Equal(t, b.clock.Now(), s.Now)
	var names []string
	for _, l := range s.Locks {
		names = append(names, l.Name)
	}
	require.Equal(t, []string{"b", "a", "file", "file", "z"}, names)
	require.Equal(t, []uint64{second.Token, first.Token}, []uint64{s.Locks[0].Token, s.Locks[1].Token})
	require.Equal(t, owner(2), s.Locks[2].Owner)
	require.Len(t, s.Waiting, 3)
	require.Equal(t, []int{2, 3}, s.Waiting[0].Blockers)
	require.Equal(t, []int{4}, s.Waiting[1].Blockers)
	require.Equal(t, []int{0}, s.Waiting[2].Blockers)

	require.Equal(t, []string{"file", "z"}, b.Names())
	locks, waiting := b.Locks("file")
	require.Len(t, locks, 2)
	require.Len(t, waiting, 1)
	require.Equal(t, waiting, b.Waiters(lockengine.Record, "file"))
	locks, waiting = b.Locks("nothing")
	require.Empty(t, locks)
	require.Empty(t, waiting)

	stats := b.Stats()
	require.Equal(t, [4]int{lockengine.Named: 2, lockengine.Record: 2, lockengine.Flock: 1}, stats.Held)
	require.Equal(t, [4]int{lockengine.Named: 1, lockengine.Record: 1, lockengine.Flock: 1}, stats.Waiting)
}

func testInvalid(t *testing.T, n New) {
	b := newBench(t, n)
	for what, r := range map[string]lockengine.Request{
		"class":       {Name: "x", Mode: shared, Range: lockengine.Whole},
		"mode":        record(1, 0, 0, 1),
		"other mode":  flock(1, 3),
		"name":        on("", record(1, shared, 0, 1)),
		"empty range": record(1, shared, 1, 1),
		"turned":      record(1, shared, 2, 1),
		"too long":    record(1, shared, 0, lockengine.MaxEnd+1),
		"timeout":     name(1, -1),
	} {
		_, err := b.Try(&r)
		require.ErrorIs(t, err, lockengine.ErrInvalid, what)
		_, _, err = b.Wait(&r, nil)
		require.ErrorIs(t, err, lockengine.ErrInvalid, what)
		_, found := b.Test(&r)
		require.False(t, found, what)
	}
	b.Unlock(&lockengine.Request{Class: lockengine.Named, Name: "x", Owner: owner(1), Range: lockengine.Whole})
	b.Unlock(&lockengine.Request{Class: 0, Name: "x", Owner: owner(1), Range: lockengine.Whole})
	b.Unlock(&lockengine.Request{Class: lockengine.Record, Name: "x", Owner: owner(1), Range: lockengine.Range{Start: 2, End: 1}})
	require.Zero(t, b.Stats().Events)
}
