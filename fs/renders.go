package fs

import (
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// maxRenders is how many views of everything are rendered at once: each takes
// memory, and a processor from who locks.
var maxRenders = max(1, runtime.GOMAXPROCS(0)/2)

// rendersAll reports whether a request makes a text or a listing of all locks
// there are, or looks at as many processes.
func (s *Server) rendersAll(h *fuse.InHeader) bool {
	if !isSynthetic(h.NodeId) {
		return false
	}
	n, ok := s.node(h.NodeId)
	switch {
	case !ok:
		return false
	case h.Opcode == opOpen:
		return n.row.text != nil && !n.row.quick || n.row.slow
	}
	lists := h.Opcode == opLookup || h.Opcode == opReaddir || h.Opcode == opReaddirplus
	return lists && n.row.list != nil && n.row != tlockRow
}

// render serves such a request when its turn comes. Until then it keeps no
// more than the request, and gives up if the caller is killed.
func (s *Server) render(in []byte) {
	in = slices.Clone(in)
	h := (*fuse.InHeader)(unsafe.Pointer(&in[0]))
	s.parking.add(h.Unique, func() bool { return dying(int32(h.Pid)) })
	job := func() {
		if s.parking.take(h.Unique) {
			out := s.buffer()
			s.answer(in, out)
			s.host.buffers.Put(out)
		}
	}
	t := &s.renders
	if h.Opcode != opOpen {
		t = &s.looks
	}
	if first := t.add(h.Uid, job); first != nil {
		s.spawn(func() { t.run(first) })
	}
}

// dying reports whether a thread has been killed and waits for nothing but us
// (proc_pid_status(5)).
func dying(tid int32) bool {
	pending, err := strconv.ParseUint(procField(tid, "SigPnd"), 16, 64)
	return err == nil && pending&(1<<(syscall.SIGKILL-1)) != 0
}
