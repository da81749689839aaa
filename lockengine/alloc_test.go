package lockengine

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// An uncontended lock and unlock allocates nothing, whoever else holds what.
func TestUncontendedAllocatesNothing(t *testing.T) {
	l := newBenchLocal(t)
	for _, class := range []Class{Record, Flock} {
		req := benchRequest(7)
		req.Class = class
		pair := func() {
			if _, err := l.Try(req); err != nil {
				t.Fatal(err)
			}
			l.Unlock(class, req.Name, req.Owner, req.Range)
		}
		for range 2 * defaultEventLog {
			pair()
		}
		require.Zero(t, testing.AllocsPerRun(1000, pair))
	}
}
