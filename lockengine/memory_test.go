package lockengine

import (
	"fmt"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
)

// What many locks needed is free when they are released, but for what a few
// need.
func TestMemoryGoes(t *testing.T) {
	const n = 3 * largeMap
	l := newBenchLocal(t)
	before := heapSize()
	for i := range n {
		_, err := l.Try(&Request{Class: Named, Name: fmt.Sprint("lock-", i), Timeout: time.Hour})
		require.NoError(t, err)
		req := benchRequest(uint64(i + 1))
		req.Name = fmt.Sprint("file-", i)
		_, err = l.Try(&req)
		require.NoError(t, err)
		req.Name, req.Range = "crowded", at(uint64(i)*20, 10)
		_, err = l.Try(&req)
		require.NoError(t, err)
	}
	held := heapSize()
	for i := range n {
		require.NoError(t, l.Release(fmt.Sprint("lock-", i), 0, Released))
		l.DropHandle(uint64(i + 1))
	}
	l.mu.Lock()
	l.core.names.ended, l.core.names.endedFIFO = map[string]ended{}, nil // as time would
	l.mu.Unlock()
	left := heapSize()
	t.Logf("%d KB, with locks %d KB, then %d KB", before>>10, held>>10, left>>10)
	require.Less(t, left, before+(held-before)/4)
}

// Locks taken by the same keep one description of it.
func TestMetaOnce(t *testing.T) {
	l := newBenchLocal(t)
	var metas []string
	for i := range 3 {
		name := fmt.Sprint("lock-", i)
		_, err := l.Try(&Request{Class: Named, Name: name, Meta: fmt.Sprint("command ", "x")})
		require.NoError(t, err)
		lock, _ := l.Get(name)
		metas = append(metas, lock.Meta)
	}
	require.Equal(t, "command x", metas[2])
	require.Same(t, unsafe.StringData(metas[0]), unsafe.StringData(metas[2]))
}
