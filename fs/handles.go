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
	mu     sync.Mutex
	last   uint64
	m      map[uint64]*handle
	onNode map[uint64]int // how many are open, by node number
}

func (t *handles) add(h *handle) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.m == nil {
		t.m, t.onNode = map[uint64]*handle{}, map[uint64]int{}
	}
	t.last++
	fh := synthetic | t.last
	t.m[fh] = h
	t.onNode[h.node.id]++
	return fh
}

// isOpen reports whether a node is open.
func (t *handles) isOpen(id uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.onNode[id] > 0
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
	if h == nil {
		return nil
	}
	delete(t.m, fh)
	if t.onNode[h.node.id]--; t.onNode[h.node.id] == 0 {
		delete(t.onNode, h.node.id)
	}
	return h
}

func (t *handles) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.m)
}
