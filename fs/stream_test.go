package fs

import (
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

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
	require.Zero(t, s.parking.n)
	st.read(7, 10, false)
	require.Len(t, st.readers, 1)
}
