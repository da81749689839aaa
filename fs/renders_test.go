package fs

import (
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// Users take turns, however many jobs one of them has, and no more jobs run
// at once than may.
func TestRendersTakeTurns(t *testing.T) {
	var r renders
	var order []uint32
	job := func(uid uint32) func() { return func() { order = append(order, uid) } }
	var first []func()
	for range maxRenders {
		require.True(t, r.add(1, nil))
		first = append(first, job(1))
	}
	for _, uid := range []uint32{1, 1, 1, 2, 3, 2, 3, 3} {
		require.False(t, r.add(uid, job(uid)))
	}
	for _, f := range first {
		r.run(f)
	}
	require.Equal(t, []uint32{1, 1, 2, 3, 1, 2, 3, 1, 3}, order[:9])
	require.Zero(t, r.running)
	require.Empty(t, r.queues)

	require.True(t, r.add(1, nil))
	r.run(job(1))
	require.Zero(t, r.running, "it begins again")
}

func TestRendersRunFew(t *testing.T) {
	var r renders
	var wg sync.WaitGroup
	var mu sync.Mutex
	running, most, done := 0, 0, 0
	job := func() {
		mu.Lock()
		running++
		most = max(most, running)
		mu.Unlock()
		mu.Lock()
		running--
		done++
		mu.Unlock()
	}
	for i := range uint32(500) {
		if r.add(i%7, job) {
			wg.Go(func() { r.run(job) })
		}
	}
	wg.Wait()
	require.Equal(t, 500, done)
	require.LessOrEqual(t, most, maxRenders)
	require.Zero(t, r.running)
}

// A READ that was interrupted leaves nothing.
func TestInterruptedReadIsForgotten(t *testing.T) {
	s := &Server{dev: device{newFuseDevice(-1)}}
	st := &stream{s: s, arm: func(uint64, func()) {}}
	st.next = func(cursor uint64, _ int) (string, uint64, bool) { return "", cursor, false }
	for unique := range uint64(1000) {
		st.read(unique, 10, false)
		s.endWait(unique, syscall.EINTR)
	}
	require.Empty(t, st.readers)
	require.Empty(t, s.parking.m)
	st.read(7, 10, false)
	require.Len(t, st.readers, 1)
}
