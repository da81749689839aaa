package fs

import (
	"maps"
	"sync"
	"time"
)

// A user's texts may take shareAtOnce of a processor's time, and from then on a
// fifth of the time of those that render (maxRenders). More makes who locks on
// a machine of two processors wait: measured, with a half his slowest hundredth
// took four times as long.
const (
	shareOf     = 5
	shareAtOnce = 100 * time.Millisecond
)

// shares bounds how much time the texts of one user take. Who has had more than
// his share owes it, and is served again when time has paid for it.
//
// Concurrency: safe for use from any goroutine.
type shares struct {
	now    func() int64          // boot time
	exempt func(uid uint32) bool // from any bound

	mu   sync.Mutex
	even map[uint32]int64 // when time will have paid for all that a user took, if that is to come
}

// wait is how long a user has to wait; at most 0: not at all.
func (s *shares) wait(uid uint32) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Duration(s.even[uid]-s.now()) - price(shareAtOnce)
}

// take does something for a user, at his charge.
func (s *shares) take(uid uint32, job func()) {
	began := s.now()
	job()
	s.charge(uid, time.Duration(s.now()-began))
}

func (s *shares) charge(uid uint32, took time.Duration) {
	if s.exempt(uid) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	maps.DeleteFunc(s.even, func(_ uint32, even int64) bool { return even <= now })
	if s.even == nil {
		s.even = map[uint32]int64{}
	}
	s.even[uid] = max(s.even[uid], now) + int64(price(took))
}

// price is the time that pays for a time taken.
func price(took time.Duration) time.Duration { return took * shareOf / time.Duration(maxRenders) }
