package fs

import (
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// What a user has open is counted as long as it is.
func TestOpenedIsCounted(t *testing.T) {
	s := &Server{cfg: Config{MaxPerUser: 10}}
	text := make([]byte, 1<<20)
	view := node{row: viewFileRow}
	last := uint64(0)
	open := func(uid uint32, n node, text []byte) error {
		if err := s.mayOpen(uid, n); err != nil {
			return err
		}
		last++
		s.handles.add(&handle{fh: last, node: n, uid: uid, data: text})
		return nil
	}
	closeAll := func() {
		for _, h := range s.handles.all() {
			require.NotNil(t, s.handles.remove(h.fh))
		}
		require.Empty(t, s.handles.ofUser)
	}
	for range openPerLock*10 + openMore {
		require.NoError(t, open(7, view, nil))
	}
	require.Equal(t, syscall.EDQUOT, open(7, view, nil))
	require.NoError(t, open(8, view, nil))
	require.NoError(t, open(0, view, nil))
	s.handles.remove(1)
	require.NoError(t, open(7, view, nil))
	closeAll()

	s.cfg.MaxPerUser = 1000
	for range maxText / len(text) {
		require.NoError(t, open(7, view, text))
	}
	require.Equal(t, syscall.EDQUOT, open(7, view, nil))
	closeAll()
	for range maxFollowers {
		require.NoError(t, open(7, node{row: eventsRow}, nil))
	}
	require.Equal(t, syscall.EDQUOT, open(7, node{row: eventsRow}, nil))
	require.NoError(t, open(7, view, nil))
	closeAll()
	for range 2000 {
		require.NoError(t, open(0, node{row: eventsRow}, text))
	}
	s.cfg.LimitRoot = true
	require.Equal(t, syscall.EDQUOT, open(0, view, nil))
}
