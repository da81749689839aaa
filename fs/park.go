package fs

import (
	"sync"
	"syscall"
	"time"
)

// parking keeps requests that wait for something to happen, without a
// goroutine each. A parked request is answered exactly once: by whoever takes
// it out.
//
// Concurrency: safe for use from any goroutine.
type parking struct {
	mu sync.Mutex
	m  map[uint64]*parked // by the request's unique number
}

// parked is a request that waits.
type parked struct {
	canceler
	late stopper // nil: it may take as long as it takes
}

type canceler interface {
	// cancel ends the wait and reports whether it did; if not, its outcome is
	// on its way. keepPlace: it may be made again in a moment.
	cancel(keepPlace bool) bool
}

type cancelFunc func() bool

func (f cancelFunc) cancel(bool) bool { return f() }

func (p *parking) add(unique uint64, cancel cancelFunc) {
	p.park(unique, &parked{canceler: cancel})
}

func (p *parking) park(unique uint64, r *parked) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.m == nil {
		p.m = map[uint64]*parked{}
	}
	p.m[unique] = r
}

// take removes a request and reports whether it was there, so that the caller
// is the one to answer it.
func (p *parking) take(unique uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	r, ok := p.m[unique]
	delete(p.m, unique)
	if ok && r.late != nil {
		r.late.Stop()
	}
	return ok
}

// endWait ends the wait of a parked request, if it is still waiting, and
// answers it. Whoever is answered already, or soon, is left alone.
func (s *Server) endWait(unique uint64, errno syscall.Errno) {
	s.parking.mu.Lock()
	r := s.parking.m[unique]
	s.parking.mu.Unlock()
	if r != nil && r.cancel(errno == syscall.EINTR) && s.parking.take(unique) {
		s.dev.replyError(unique, errno)
	}
}

// timeOut ends the wait of a request with ETIMEDOUT if it takes longer.
func (s *Server) timeOut(unique uint64, after time.Duration) {
	s.parking.mu.Lock()
	defer s.parking.mu.Unlock()
	if r := s.parking.m[unique]; r != nil {
		r.late = s.host.after(after, func() { s.endWait(unique, syscall.ETIMEDOUT) })
	}
}
