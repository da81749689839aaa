package fs

import (
	"sync"
	"syscall"
)

// parking keeps requests that wait for something to happen, without a
// goroutine each. A parked request is answered exactly once: by whoever takes
// it out.
//
// Concurrency: safe for use from any goroutine.
type parking struct {
	mu sync.Mutex
	m  map[uint64]func() bool // by the request's unique number: ends the wait
}

// add parks a request. cancel ends its wait and reports whether it did; if
// not, its outcome is on its way.
func (p *parking) add(unique uint64, cancel func() bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.m == nil {
		p.m = map[uint64]func() bool{}
	}
	p.m[unique] = cancel
}

// take removes a request and reports whether it was there, so that the caller
// is the one to answer it.
func (p *parking) take(unique uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.m[unique]
	delete(p.m, unique)
	return ok
}

func (p *parking) cancelOf(unique uint64) func() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.m[unique]
}

// interrupt handles INTERRUPT: the wait ends and is answered EINTR. A request
// not parked is answered already, or soon: nothing to do.
func (s *Server) interrupt(unique uint64) {
	cancel := s.parking.cancelOf(unique)
	if cancel != nil && cancel() && s.parking.take(unique) {
		s.dev.replyError(unique, syscall.EINTR)
	}
}
