package fs

import (
	"cmp"
	"maps"
	"os"
	"slices"
	"sync"
)

// handle is an open synthetic file or directory.
type handle struct {
	fh     uint64
	node   node
	uid    uint32  // who opened it
	flags  uint32  // of open(2)
	data   []byte  // content, rendered at open; none if it is long
	stream *stream // content that comes with time
	taking *taking // of take/ and hold/

	long     *os.File // content that is long; nil: it is not
	longSize int64    // in bytes

	mu        sync.Mutex
	written   []byte // what was written through it so far
	lastWrite uint64 // the request that wrote last, so that it is not done twice
	kept      bool   // its record is in the journal, and goes with it
	inStore   bool   // its text is in the store, and not in the record
}

// guard is held where what changes of a handle changes.
func (h *handle) guard() *sync.Mutex {
	if h.stream != nil {
		return &h.stream.mu
	}
	return &h.mu
}

// handleNumber is the number of the handle that a request opens. Numbers of
// requests are never used again, and one that is sent again keeps its number.
func handleNumber(unique uint64) uint64 { return synthetic | requestID(unique) }

// handles are all that are open.
//
// Concurrency: safe for use from any goroutine.
type handles struct {
	mu     sync.Mutex
	m      map[uint64]*handle
	onNode map[uint64]int // how many are open, by node number
	ofUser map[uint32]opened
}

func (t *handles) add(h *handle) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.m == nil {
		t.m, t.onNode, t.ofUser = map[uint64]*handle{}, map[uint64]int{}, map[uint32]opened{}
	}
	t.m[h.fh] = h
	t.onNode[h.node.id]++
	t.tally(h, 1)
}

// tally counts a handle for its user, or takes it off. GUARDED_BY(mu)
func (t *handles) tally(h *handle, n int) {
	o := t.ofUser[h.uid]
	if o.count(h, n); o == (opened{}) {
		delete(t.ofUser, h.uid)
	} else {
		t.ofUser[h.uid] = o
	}
}

// opened is what a user has open.
func (t *handles) opened(uid uint32) opened {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ofUser[uid]
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
	t.tally(h, -1)
	return h
}

// all lists them by number.
func (t *handles) all() []*handle {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]*handle, 0, len(t.m))
	for _, h := range t.m {
		out = append(out, h)
	}
	slices.SortFunc(out, func(a, b *handle) int { return cmp.Compare(a.fh, b.fh) })
	return out
}

func (t *handles) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.m)
}

func (t *handles) records() (out []keptRecord) {
	for _, h := range t.all() {
		mu := h.guard()
		mu.Lock()
		if h.kept {
			out = append(out, keptRecord{recHandle, h.encode()})
		}
		mu.Unlock()
	}
	return out
}

// openHandle enters a handle, and its record.
func (s *Server) openHandle(h *handle) {
	s.handles.add(h)
	mu := h.guard()
	mu.Lock()
	defer mu.Unlock()
	if h.size() > maxRecordedText {
		if h.inStore = s.host.journal != nil && s.keepText(h); !h.inStore {
			return // a successor will not know it
		}
	}
	e := h.encode()
	// A lock goes with its handle, so that one is recorded at any rate; the
	// engine had room for the lock.
	if h.kept = h.taking != nil || s.room(len(e)); h.kept {
		s.record(recHandle, e)
	}
}

// saveHandle records a handle that has changed. Needs its guard.
func (s *Server) saveHandle(h *handle) {
	if h.kept {
		s.record(recHandle, h.encode())
	}
}

// closeHandle removes a handle, nil if there is none.
func (s *Server) closeHandle(fh uint64) *handle {
	h := s.handles.remove(fh)
	if h == nil {
		return nil
	}
	mu := h.guard()
	mu.Lock()
	defer mu.Unlock()
	if h.kept {
		h.kept = false
		s.record(recHandleGone, numbered(fh))
	}
	if h.inStore {
		s.cfg.Store.Drop(fh)
	}
	if h.long != nil {
		_ = h.long.Close()
	}
	return h
}

// encode makes a handle's record. Needs its guard.
func (h *handle) encode() encoder {
	var e encoder
	e.uint(h.fh)
	e.uint(h.node.id)
	e.uint(uint64(h.flags))
	e.bool(h.inStore)
	if !h.inStore {
		e.bytes(h.data)
	}
	e.bytes(h.written)
	e.uint(h.lastWrite)
	if st := h.stream; st != nil {
		if h.node.row.once {
			st.fill(0) // how it ended, which a snapshot of the engine does not tell
		}
		e.uint(uint64(st.watch))
		e.uint(st.lastRead)
		st.before.encode(&e)
		st.at.encode(&e)
		e.uint(uint64(len(st.polls)))
		for _, kh := range slices.Sorted(maps.Keys(st.polls)) {
			e.uint(kh)
		}
	}
	if t := h.taking; t != nil {
		e.text(t.name)
		e.uint(t.token)
		e.bool(t.hold)
		e.bool(t.detached)
		e.bool(t.answered)
		e.int(int64(t.pid))
	}
	e.uint(uint64(h.uid))
	if st := h.stream; st != nil {
		e.int(int64(st.space.depth))
		e.uint(st.space.inode)
	}
	return e
}

// decodeHandle makes a handle of its record.
func (s *Server) decodeHandle(d *decoder) *handle {
	h := &handle{fh: d.uint(), kept: true}
	id := d.uint()
	n, ok := s.node(id)
	h.node, h.flags = n, uint32(d.uint())
	if h.inStore = d.bool(); !h.inStore {
		h.data = d.bytes()
	}
	h.written, h.lastWrite = d.bytes(), d.uint()
	if !ok || d.err != nil {
		return h
	}
	if n.row.stream != nil {
		st := n.row.stream(s, n)
		st.h, st.watch, st.lastRead = h, lockWatch(d.uint()), d.uint()
		st.before.decode(d)
		st.at.decode(d)
		for range min(d.uint(), uint64(len(d.rest))) {
			st.addPoll(d.uint())
		}
		h.stream = st
	}
	if n.row.take {
		h.taking = &taking{name: d.text(), token: d.uint(), hold: d.bool(), detached: d.bool(), answered: d.bool(), pid: int32(d.int())}
	}
	if len(d.rest) > 0 { // not in a record of before there were limits
		h.uid = uint32(d.uint())
	}
	if h.stream != nil && len(d.rest) > 0 { // nor of before pids were translated
		h.stream.space = pidSpace{int(d.int()), d.uint()}
	}
	return h
}
