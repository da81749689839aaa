package fs

import "sync"

// handle is an open synthetic file or directory.
type handle struct {
	node   node
	flags  uint32  // of open(2)
	data   []byte  // content, rendered at open
	stream *stream // content that comes with time
	taking *taking // of take/ and hold/

	mu      sync.Mutex
	written []byte // what was written through it so far
}

// handles numbers them; numbers are not used again.
//
// Concurrency: safe for use from any goroutine.
type handles struct {
	mu   sync.Mutex
	last uint64
	m    map[uint64]*handle
}

func (t *handles) add(h *handle) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.m == nil {
		t.m = map[uint64]*handle{}
	}
	t.last++
	fh := synthetic | t.last
	t.m[fh] = h
	return fh
}

func (t *handles) get(fh uint64) *handle {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.m[fh]
}

// remove returns the handle, nil if there is none.
func (t *handles) remove(fh uint64) *handle {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.m[fh]
	delete(t.m, fh)
	return h
}

func (t *handles) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.m)
}
