package fs

import (
	"runtime"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// maxRenders is how many views of everything are rendered at once: each takes
// memory, and a processor from who locks.
var maxRenders = max(1, runtime.GOMAXPROCS(0)/2)

// renders are the requests that render a view of everything. Users take
// turns: who asks for many waits for himself alone.
//
// Concurrency: safe for use from any goroutine.
type renders struct {
	mu      sync.Mutex
	running int
	queues  []renderQueue // of users with jobs that wait; whose turn is next comes first
}

type renderQueue struct {
	uid  uint32
	jobs []func()
}

// add reports whether the caller is to run the job, and what comes after it;
// if not, somebody else will.
func (r *renders) add(uid uint32, job func()) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.running < maxRenders {
		r.running++
		return true
	}
	i := slices.IndexFunc(r.queues, func(q renderQueue) bool { return q.uid == uid })
	if i < 0 {
		i = len(r.queues)
		r.queues = append(r.queues, renderQueue{uid: uid})
	}
	r.queues[i].jobs = append(r.queues[i].jobs, job)
	return false
}

func (r *renders) run(job func()) {
	for ; job != nil; job = r.next() {
		job()
	}
}

// next takes the first job of the user whose turn it is; nil if there is none.
func (r *renders) next() func() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.queues) == 0 {
		r.running--
		return nil
	}
	q := r.queues[0]
	r.queues = slices.Delete(r.queues, 0, 1)
	job := q.jobs[0]
	if q.jobs = slices.Delete(q.jobs, 0, 1); len(q.jobs) > 0 {
		r.queues = append(r.queues, q)
	}
	return job
}

// drop forgets what waits: nobody is there to be answered.
func (r *renders) drop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.queues = nil
}

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
	s.parking.add(h.Unique, func(bool) bool { return dying(int32(h.Pid)) })
	job := func() {
		if s.parking.take(h.Unique) {
			out := s.buffer()
			s.answer(in, out)
			s.host.buffers.Put(out)
		}
	}
	if s.renders.add(h.Uid, job) {
		s.spawn(func() { s.renders.run(job) })
	}
}

// dying reports whether a thread has been killed and waits for nothing but us
// (proc_pid_status(5)).
func dying(tid int32) bool {
	pending, err := strconv.ParseUint(procField(tid, "SigPnd"), 16, 64)
	return err == nil && pending&(1<<(syscall.SIGKILL-1)) != 0
}
