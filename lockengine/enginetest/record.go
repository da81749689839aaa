package enginetest

import (
	"testing"

	"github.com/stretchr/testify/require"

	"lockfs/lockengine"
)

const (
	shared    = lockengine.Shared
	exclusive = lockengine.Exclusive
)

func testRecord(t *testing.T, n New) {
	unlock := lockengine.Mode(0)
	for _, c := range []struct {
		name   string
		before string
		mode   lockengine.Mode
		at     [2]uint64
		after  string
	}{
		{"lock", "........", shared, [2]uint64{2, 4}, "..rr...."},
		{"same again", "..rr....", shared, [2]uint64{2, 4}, "..rr...."},
		{"within", "rrrrrr..", shared, [2]uint64{2, 4}, "rrrrrr.."},
		{"merge on the left", "rr......", shared, [2]uint64{2, 4}, "rrrr...."},
		{"merge on the right", "....WW..", exclusive, [2]uint64{2, 4}, "..WWWW.."},
		{"merge on both sides", "WW..WW..", exclusive, [2]uint64{2, 4}, "WWWWWW.."},
		{"merge over several", "rr.r.rr.", shared, [2]uint64{1, 6}, "rrrrrrr."},
		{"no merge across modes", "WW..WW..", shared, [2]uint64{2, 4}, "WWrrWW.."},
		{"upgrade in the middle", "rrrrrrrr", exclusive, [2]uint64{3, 5}, "rrrWWrrr"},
		{"downgrade in the middle", "WWWWWWWW", shared, [2]uint64{3, 5}, "WWWrrWWW"},
		{"upgrade and merge", "rrrrWW..", exclusive, [2]uint64{2, 4}, "rrWWWW.."},
		{"downgrade all", "WWWW....", shared, [2]uint64{0, 4}, "rrrr...."},
		{"over both modes", "rrWWrrWW", exclusive, [2]uint64{1, 7}, "rWWWWWWW"},
		{"unlock in the middle", "WWWWWWWW", unlock, [2]uint64{3, 5}, "WWW..WWW"},
		{"unlock at the left", "..WWWW..", unlock, [2]uint64{0, 4}, "....WW.."},
		{"unlock at the right", "..WWWW..", unlock, [2]uint64{4, 8}, "..WW...."},
		{"unlock over several", "rrWW.rrr", unlock, [2]uint64{1, 6}, "r.....rr"},
		{"unlock all", "rrWW.rrr", unlock, [2]uint64{0, lockengine.MaxEnd}, "........"},
		{"unlock nothing", "rr....rr", unlock, [2]uint64{2, 6}, "rr....rr"},
		{"to the end of the file", "......WW", exclusive, [2]uint64{7, lockengine.MaxEnd}, "......WW"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, n)
			b.draw(c.before)
			if c.mode == unlock {
				b.Unlock(new(record(1, 0, c.at[0], c.at[1])))
			} else {
				b.try(record(1, c.mode, c.at[0], c.at[1]))
			}
			b.drawn(c.after)
		})
	}
}

func testRecordConflict(t *testing.T, n New) {
	for _, c := range []struct {
		name   string
		others []string // from owner 2 on
		mode   lockengine.Mode
		at     [2]uint64
		by     uint64 // the owner in the way, 0: none
		start  uint64
	}{
		{"nobody", []string{"........"}, exclusive, [2]uint64{0, 8}, 0, 0},
		{"readers", []string{"rrrr....", "..rrrr.."}, shared, [2]uint64{0, 8}, 0, 0},
		{"writer among readers", []string{"rrrr....", "..rrrr.."}, exclusive, [2]uint64{3, 8}, 2, 0},
		{"touching is no conflict", []string{"WW....WW"}, exclusive, [2]uint64{2, 6}, 0, 0},
		{"one byte", []string{"WW....WW"}, shared, [2]uint64{2, 7}, 2, 6},
		{"lowest start", []string{"....WW..", "..WW...."}, shared, [2]uint64{0, 8}, 3, 2},
		{"lowest owner", []string{"..rrrr..", "..rr...."}, exclusive, [2]uint64{0, 8}, 2, 2},
		{"reaching in from the left", []string{"rrrrrrr.", ".rr....."}, exclusive, [2]uint64{5, 6}, 2, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, n)
			b.draw(append([]string{"........"}, c.others...)...)
			r := record(1, c.mode, c.at[0], c.at[1])
			l, found := b.Test(&r)
			require.Equal(t, c.by != 0, found)
			if !found {
				b.try(r)
				return
			}
			b.held(r)
			require.Equal(t, owner(c.by), l.Owner)
			require.Equal(t, c.start, l.Range.Start)
		})
	}
	t.Run("own", func(t *testing.T) {
		b := newBench(t, n)
		b.draw("..WW.rr.", "........")
		_, found := b.Test(new(record(1, exclusive, 0, 8)))
		require.False(t, found)
		l, found := b.TestOwn(new(record(1, 0, 3, 8)))
		require.True(t, found)
		require.Equal(t, lockengine.Range{Start: 2, End: 4}, l.Range)
		_, found = b.TestOwn(new(record(1, 0, 4, 5)))
		require.False(t, found)
		_, found = b.TestOwn(new(record(2, 0, 0, 8)))
		require.False(t, found)
	})
	t.Run("classes", func(t *testing.T) {
		b := newBench(t, n)
		b.try(record(1, exclusive, 0, 8))
		b.try(flock(2, exclusive))
		b.try(on("file", name(3, 0)))
		b.try(on("other", record(4, exclusive, 0, 8)))
	})
}

func testRecordWait(t *testing.T, n New) {
	t.Run("past those who wait", func(t *testing.T) {
		b := newBench(t, n)
		b.draw("rr")
		b.wait("writer", record(2, exclusive, 0, 2))
		b.try(record(3, shared, 0, 2))
		b.drawn("rr", "..", "rr")
		b.unlock(1)
		b.order()
		b.unlock(3)
		b.order("writer")
	})
	t.Run("a downgrade wakes readers", func(t *testing.T) {
		b := newBench(t, n)
		b.draw("WWWW")
		b.wait("writer", record(2, exclusive, 0, 4))
		b.wait("left", record(3, shared, 0, 2))
		b.wait("right", record(4, shared, 2, 4))
		b.try(record(1, shared, 0, 2))
		b.order("left")
		b.drawn("rrWW", "....", "rr..")
	})
	t.Run("an upgrade waits for other readers only", func(t *testing.T) {
		b := newBench(t, n)
		b.draw("rr", "rr")
		b.wait("upgrade", record(1, exclusive, 0, 2))
		b.wait("other", record(3, exclusive, 0, 2))
		b.unlock(2)
		b.order("upgrade")
		b.drawn("WW", "..", "..")
	})
	t.Run("a grant may free something", func(t *testing.T) {
		b := newBench(t, n)
		b.draw("WW..", "..WW")
		b.wait("downgrade", record(1, shared, 0, 4))
		b.wait("reader", record(3, shared, 0, 2))
		b.unlock(2)
		b.order("downgrade", "reader")
	})
	t.Run("a part is enough", func(t *testing.T) {
		b := newBench(t, n)
		b.draw("WWWW")
		b.wait("all", record(2, exclusive, 0, 4))
		b.wait("two", record(3, exclusive, 1, 3))
		b.Unlock(new(record(1, 0, 1, 3)))
		b.order("two")
		b.drawn("W..W", "....", ".WW.")
	})
	t.Run("cancel", func(t *testing.T) {
		b := newBench(t, n)
		b.draw("WW")
		id := b.wait("first", record(2, exclusive, 0, 2))
		b.wait("second", record(3, exclusive, 0, 2))
		require.True(t, b.Cancel(id, false))
		require.False(t, b.Cancel(id, false))
		b.unlock(1)
		b.order("second")
	})
}

func testHandles(t *testing.T, n New) {
	t.Run("drop handle", func(t *testing.T) {
		b := newBench(t, n)
		b.draw("WW..", "..WW")
		b.try(on("other", record(1, exclusive, 0, 2)))
		b.wait("its own", record(1, exclusive, 2, 4))
		b.wait("another's", record(3, exclusive, 0, 2))
		b.DropHandle(10)
		b.order("its own: "+lockengine.ErrCanceled.Error(), "another's")
		b.drawn("....", "..WW", "WW..")
		require.Equal(t, []string{"file"}, b.Names())
		b.DropHandle(10)
		b.DropHandle(0)
	})
	t.Run("merged is the newest handle's", func(t *testing.T) {
		b := newBench(t, n)
		b.draw("WW..")
		r := record(1, exclusive, 2, 4)
		r.Handle = 11
		b.try(r)
		b.DropHandle(10)
		b.drawn("WWWW")
		b.DropHandle(11)
		b.drawn("....")
	})
	t.Run("drop owner", func(t *testing.T) {
		b := newBench(t, n)
		b.draw("WW.r", "...r")
		b.try(flock(1, exclusive))
		b.try(on("other", record(1, exclusive, 0, 2)))
		b.wait("waiter", record(2, exclusive, 0, 4))
		b.DropOwner("file", owner(1))
		b.order("waiter")
		b.drawn("....", "WWWW")
		b.held(flock(2, shared))
		b.held(on("other", record(2, shared, 0, 2)))
		b.DropOwner("nothing", owner(7))
	})
	t.Run("drop handle of a hold", func(t *testing.T) {
		b := newBench(t, n)
		r := name(1, 0)
		r.Handle = 10
		b.try(r)
		b.wait("next", name(2, 0))
		b.DropHandle(10)
		b.order("next")
	})
}
