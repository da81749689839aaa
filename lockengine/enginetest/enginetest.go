// Package enginetest is the suite of behaviour that every lockengine.Engine
// must pass, whatever it is built on.
//
// Locks are drawn: a letter a byte, one row an owner, lower case for shared
// and upper case for exclusive, so that "..WW.rr" is an exclusive lock on bytes
// 2 and 3 and a shared one on 5 and 6. A row that is not there holds nothing.
package enginetest

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lockfs/lockengine"
)

// New makes an engine that goes by the clock given. It closes it at the end
// of the test.
type New func(t *testing.T, clock lockengine.Clock) lockengine.Engine

// Run runs the suite.
func Run(t *testing.T, newEngine func(t *testing.T, clock lockengine.Clock) lockengine.Engine) {
	for _, s := range []struct {
		name string
		run  func(*testing.T, New)
	}{
		{"Record", testRecord},
		{"RecordConflict", testRecordConflict},
		{"RecordWait", testRecordWait},
		{"Handles", testHandles},
		{"Flock", testFlock},
		{"Named", testNamed},
		{"Lease", testLease},
		{"Guard", testGuard},
		{"Key", testKey},
		{"Detach", testDetach},
		{"Times", testTimes},
		{"Watch", testWatch},
		{"Order", testOrder},
		{"Place", testPlace},
		{"Deadlock", testDeadlock},
		{"Possible", testPossible},
		{"Events", testEvents},
		{"Views", testViews},
		{"Invalid", testInvalid},
		{"Acquire", testAcquire},
		{"Close", testClose},
	} {
		t.Run(s.name, func(t *testing.T) { s.run(t, newEngine) })
	}
}

// bench is an engine under test, with what its callbacks brought.
type bench struct {
	lockengine.Engine
	t       *testing.T
	clock   *Clock
	granted []string // of wait, in order
}

func newBench(t *testing.T, n New) *bench {
	clock := NewClock()
	return &bench{Engine: n(t, clock), t: t, clock: clock}
}

// Owners are numbered; the handle of each is ten times its number.
func owner(n uint64) lockengine.Owner { return lockengine.Owner{Session: 1, ID: n} }

func record(n uint64, mode lockengine.Mode, start, end uint64) lockengine.Request {
	return lockengine.Request{
		Class: lockengine.Record, Name: "file", Owner: owner(n), Mode: mode,
		Range: lockengine.Range{Start: start, End: end}, Handle: 10 * n,
	}
}

func flock(n uint64, mode lockengine.Mode) lockengine.Request {
	return lockengine.Request{Class: lockengine.Flock, Name: "file", Owner: owner(n), Mode: mode, Handle: 10 * n}
}

func name(n uint64, timeout time.Duration) lockengine.Request {
	return lockengine.Request{Class: lockengine.Named, Name: "backup", Owner: owner(n), Timeout: timeout}
}

// unlock gives back all that an owner has of the file.
func (b *bench) unlock(n uint64) { b.Unlock(new(record(n, 0, 0, lockengine.MaxEnd))) }

// on moves a request to another name.
func on(name string, r lockengine.Request) lockengine.Request {
	r.Name = name
	return r
}

// as tells what the owner is.
func as(kind lockengine.OwnerKind, r lockengine.Request) lockengine.Request {
	r.Kind = kind
	return r
}

// by tells which process asks.
func by(pid int32, r lockengine.Request) lockengine.Request {
	r.Who = lockengine.Who{PID: pid, TID: pid}
	return r
}

func (b *bench) try(r lockengine.Request) lockengine.Grant {
	b.t.Helper()
	g, err := b.Try(&r)
	require.NoError(b.t, err)
	return g
}

func (b *bench) held(r lockengine.Request) {
	b.t.Helper()
	_, err := b.Try(&r)
	require.ErrorIs(b.t, err, lockengine.ErrHeld)
}

// wait queues the request, which must not be granted at once. When it is, what
// is appended to b.granted.
func (b *bench) wait(what string, r lockengine.Request) lockengine.WaiterID {
	b.t.Helper()
	_, id, err := b.Wait(&r, func(_ lockengine.Grant, err error) {
		if err != nil {
			what += ": " + err.Error()
		}
		b.granted = append(b.granted, what)
	})
	require.NoError(b.t, err)
	require.NotZero(b.t, id, "%s did not wait", what)
	return id
}

// order demands which waits have been granted since it was called last, in order.
func (b *bench) order(want ...string) {
	b.t.Helper()
	require.Equal(b.t, want, b.granted)
	b.granted = nil
}

// draw puts down the locks of a drawing.
func (b *bench) draw(rows ...string) {
	b.t.Helper()
	for i, row := range rows {
		for at := 0; at < len(row); {
			end := at + 1
			for end < len(row) && row[end] == row[at] {
				end++
			}
			if row[at] != '.' {
				mode := lockengine.Shared
				if row[at] == 'W' {
					mode = lockengine.Exclusive
				}
				b.try(record(uint64(i+1), mode, uint64(at), uint64(end)))
			}
			at = end
		}
	}
}

// drawn demands that the record locks held are those of the drawing, merged
// where they can be.
func (b *bench) drawn(rows ...string) {
	b.t.Helper()
	got := make([][]byte, len(rows))
	for i := range got {
		got[i] = []byte(strings.Repeat(".", len(rows[0])))
	}
	locks, _ := b.Locks("file")
	pieces := 0
	for _, l := range locks {
		if l.Class != lockengine.Record {
			continue
		}
		pieces++
		c := byte('r')
		if l.Mode == lockengine.Exclusive {
			c = 'W'
		}
		for at := l.Range.Start; at < min(l.Range.End, uint64(len(rows[0]))); at++ {
			got[l.Owner.ID-1][at] = c
		}
	}
	want := 0
	for i, row := range rows {
		require.Equal(b.t, row, string(got[i]), "owner %d", i+1)
		want += runs(row)
	}
	require.Equal(b.t, want, pieces, "pieces")
}

// runs counts the locks in a row.
func runs(row string) (n int) {
	for i := range row {
		if row[i] != '.' && (i == 0 || row[i-1] != row[i]) {
			n++
		}
	}
	return n
}
