package fs

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// heldAnswers are answers to requests for locks that the kernel is given together.
// Whoever is answered mostly runs at once, before the worker is back from write(2);
// so when many ask by turns, the worker would be run for one request, and with
// nothing in the caches, for each. It reads on instead until nobody asks, or
// maxHeld requests are served, and then answers all of them. One answer is held
// until the next read all the same: see answerAndRead of a device.
//
// Concurrency: the reader's alone.
type heldAnswers struct {
	// may: this goes through [Server.next], which answers in time.
	may    bool
	many   bool      // ask; the reader reads on
	askers [3]uint32 // threads that asked last
	reads  int       // since the first of all
	n      int
	all    [maxHeld]lockAnswer
}

// lockAnswer is a reply without data: code is 0 or a negative errno.
type lockAnswer struct {
	unique uint64
	owner  uint64 // who asked, as the kernel names the owner of locks
	code   int32
}

// maxHeld bounds how many requests whoever asked first waits for.
const maxHeld = 16

// crowded reports whether this thread is none of the last three to ask. Few that
// ask by turns, as in a hand-over, are served one by one: to look whether there is
// another request costs more than it gives.
func (h *heldAnswers) crowded(tid uint32) bool {
	last := &h.askers
	if tid == last[0] || tid == last[1] || tid == last[2] {
		return false
	}
	last[0], last[1], last[2] = tid, last[0], last[1]
	return true
}

// of reports whether an answer to this owner is held. It is given before anything
// else is done for the owner, or somebody could hear of a lock that the owner gave
// back before it heard that it had got it.
func (h *heldAnswers) of(owner uint64) bool {
	for i := range h.n {
		if h.all[i].owner == owner {
			return true
		}
	}
	return false
}

// answerLock answers a request for a lock: as the next one is read, or together with
// others.
func (s *Server) answerLock(in *fuse.LkIn, errno syscall.Errno) {
	h := &s.held
	if !h.may {
		s.dev.replyError(in.Unique, errno)
		return
	}
	if h.crowded(in.Pid) {
		h.many = true
	}
	h.all[h.n] = lockAnswer{in.Unique, in.Owner, -int32(errno)}
	h.n++
}

// answerHeld gives the kernel what is held.
func (s *Server) answerHeld() {
	h := &s.held
	s.dev.answerAll(h.all[:h.n])
	h.n, h.reads, h.many = 0, 0, false
}

// next reads the next request. It waits for one only when all are answered.
func (s *Server) next(buf []byte) (int, error) {
	h := &s.held
	switch {
	case h.n == 0:
		return s.dev.read(buf)
	case h.many:
		return s.nextOfMany(buf)
	}
	h.n = 0 // it was the only one
	return s.dev.answerAndRead(&h.all[0], buf)
}

// nextOfMany is next when answers are held. It is by itself so that the way of a
// single client runs through little code.
func (s *Server) nextOfMany(buf []byte) (int, error) {
	if s.held.reads++; s.held.reads < maxHeld { // so there is room for the next one's answer
		if n, err := s.dev.tryRead(buf); err == nil {
			return n, nil
		}
	}
	s.answerHeld()
	return s.dev.read(buf)
}
