package lockengine

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

// An uncontended lock and unlock allocates nothing, whoever else holds what,
// and whether it is recorded or not.
func TestUncontendedAllocatesNothing(t *testing.T) {
	allocatesNothing(t, newBenchLocal(t))
	allocatesNothing(t, newBench(t, Config{Log: &ringLog{}}))
	crowded := newBench(t, Config{MaxPerUser: 10})
	for uid := range uint32(1000) {
		if _, err := crowded.Try(&Request{Class: Named, Name: fmt.Sprint(uid), Who: Who{UID: 1 + uid}}); err != nil {
			t.Fatal(err)
		}
	}
	allocatesNothing(t, crowded)
	for _, n := range []int{fewSegs, fanout, 10_000} {
		l := newBenchLocal(t)
		holdRanges(l, n)
		allocatesNothing(t, l)
	}
}

func allocatesNothing(t *testing.T, l *Local) {
	for _, class := range fileClasses {
		req := benchRequest(7)
		req.Class = class
		pair := func() {
			if _, err := l.Try(&req); err != nil {
				t.Fatal(err)
			}
			l.Unlock(&req)
		}
		for range 2 * defaultEventLog {
			pair()
		}
		require.Zero(t, testing.AllocsPerRun(1000, pair))
	}
}
