package fs

import (
	"sync"
	"syscall"
	"time"

	"lockfs/lockengine"
)

// parking keeps requests that wait for something to happen, without a
// goroutine each. A parked request is answered exactly once: by whoever takes
// it out.
//
// It is a hash table through its elements, and keeps a lockWait that is over for
// the next one: to wait for a lock allocates nothing.
//
// Concurrency: safe for use from any goroutine.
type parking struct {
	mu      sync.Mutex
	buckets []*parked // by the request's number; none, or a power of two of them. GUARDED_BY(mu)
	n       int       // requests there are. GUARDED_BY(mu)
	spare   *lockWait // one that is over, to be used again; or nil. GUARDED_BY(mu)
}

// parked is a request that waits.
type parked struct {
	unique uint64
	next   *parked             // in the same bucket
	waiter lockengine.WaiterID // of a lock that it waits for
	giveUp func() bool         // of what else it waits for: ends that, and reports whether it did
	late   stopper             // nil: it may take as long as it takes
}

const minBuckets = 64

// at is where a request is linked in, or would be. There must be buckets. The
// kernel counts requests up, so the last digits spread them.
func (p *parking) at(unique uint64) **parked {
	at := &p.buckets[unique/numberStep&uint64(len(p.buckets)-1)]
	for *at != nil && (*at).unique != unique {
		at = &(*at).next
	}
	return at
}

// find returns a request; nil if it is not there. GUARDED_BY(mu)
func (p *parking) find(unique uint64) *parked {
	if p.n == 0 {
		return nil
	}
	return *p.at(unique)
}

// park adds a request. GUARDED_BY(mu)
func (p *parking) park(r *parked) {
	if p.n >= len(p.buckets) {
		p.grow()
	}
	at := p.at(r.unique)
	r.next, *at = *at, r
	p.n++
}

func (p *parking) grow() {
	old := p.buckets
	p.buckets = make([]*parked, max(minBuckets, 2*len(old)))
	for _, r := range old {
		for r != nil {
			next, at := r.next, p.at(r.unique)
			r.next, *at = nil, r
			r = next
		}
	}
}

// unpark removes a request and reports whether it was there. GUARDED_BY(mu)
func (p *parking) unpark(unique uint64) bool {
	if p.n == 0 {
		return false
	}
	at := p.at(unique)
	r := *at
	if r == nil {
		return false
	}
	*at, r.next = r.next, nil
	p.n--
	if r.late != nil {
		r.late.Stop()
		r.late = nil
	}
	return true
}

// add parks a request that waits for something else than a lock.
func (p *parking) add(unique uint64, giveUp func() bool) {
	p.mu.Lock()
	p.park(&parked{unique: unique, giveUp: giveUp})
	p.mu.Unlock()
}

// take removes a request and reports whether it was there, so that the caller
// is the one to answer it.
func (p *parking) take(unique uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.unpark(unique)
}

// endWait ends the wait of a parked request, if it is still waiting, and
// answers it. Whoever is answered already, or soon, is left alone.
func (s *Server) endWait(unique uint64, errno syscall.Errno) {
	s.parking.mu.Lock()
	r := s.parking.find(unique)
	if r == nil {
		s.parking.mu.Unlock()
		return
	}
	waiter, giveUp := r.waiter, r.giveUp // r may be another request's soon
	s.parking.mu.Unlock()
	if giveUp == nil {
		keepPlace := errno == syscall.EINTR // it may be made again in a moment
		giveUp = func() bool { return s.engine.Cancel(waiter, keepPlace) }
	}
	if giveUp() && s.parking.take(unique) {
		s.dev.replyError(unique, errno)
	}
}

// timeOut ends the wait of a request with ETIMEDOUT if it takes longer.
func (s *Server) timeOut(unique uint64, after time.Duration) {
	s.parking.mu.Lock()
	defer s.parking.mu.Unlock()
	if r := s.parking.find(unique); r != nil {
		r.late = s.host.after(after, func() { s.endWait(unique, syscall.ETIMEDOUT) })
	}
}
