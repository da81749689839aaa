package fs

import (
	"maps"
	"slices"
	"sync"
	"syscall"
)

// A lock that runs out vanishes by itself, of which the kernel tells inotify(7)
// nothing: only an rmdir(2) through the mount does. Its own server must not
// make that call, since it could never be ended while it waits for itself. So
// another process does, the janitor, for which alone the lock is there a
// little longer: its LOOKUP finds the lock that ran out, and its RMDIR changes
// nothing.

// Janitor makes rmdir(2) calls on tlock/NAME through the mount, from the main
// threads of other processes.
type Janitor interface {
	// OnStart has started called with each such process, before its first call.
	OnStart(started func(pid int32))
	// Remove must not block.
	Remove(name string)
}

// janitors are the processes that are a janitor's: ours, and maybe one of a
// process before this.
//
// Concurrency: safe for use from any goroutine.
type janitors struct {
	mu    sync.Mutex
	since map[int32]int64 // when each process started, by pid
	swept map[string]uint64
}

// maxSwept bounds how many locks that ran out are there for the janitor.
const maxSwept = 4096

func (j *janitors) restore(pid int32, since int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.since == nil {
		j.since = map[int32]int64{}
	}
	j.since[pid] = since
}

// is reports whether a thread is the janitor's: its main thread makes the calls.
func (j *janitors) is(tid int32) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.since) == 0 {
		return false
	}
	if _, ok := j.since[tid]; !ok {
		return false
	}
	st, ok := statOf(tid)
	return ok && st.start == j.since[tid]
}

// restoreSweep takes in a lock to be swept, or swept if token is 0.
func (j *janitors) restoreSweep(name string, token uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.swept == nil {
		j.swept = map[string]uint64{}
	}
	if j.swept[name] = token; token == 0 {
		delete(j.swept, name)
	}
}

func (j *janitors) records() (out []keptRecord) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for pid, since := range j.since {
		if st, ok := statOf(pid); ok && st.start == since {
			out = append(out, keptRecord{recJanitor, encodeJanitor(pid, since)})
		}
	}
	for name, token := range j.swept {
		out = append(out, keptRecord{recSweep, encodeSweep(name, token)})
	}
	return out
}

func encodeJanitor(pid int32, since int64) (e encoder) {
	e.int(int64(pid))
	e.int(since)
	return e
}

func (s *Server) janitorStarted(pid int32) {
	if st, ok := statOf(pid); ok {
		s.janitors.restore(pid, st.start)
		s.record(recJanitor, encodeJanitor(pid, st.start))
	}
}

// sweep shows inotify that a lock has run out.
func (s *Server) sweep(name string, token uint64) {
	j := &s.janitors
	j.mu.Lock()
	if j.swept == nil {
		j.swept = map[string]uint64{}
	}
	if len(j.swept) >= maxSwept {
		clear(j.swept)
	}
	j.swept[name] = token
	s.record(recSweep, encodeSweep(name, token))
	j.mu.Unlock()
	s.cfg.Janitor.Remove(name)
}

func encodeSweep(name string, token uint64) (e encoder) {
	e.text(name)
	e.uint(token)
	return e
}

// sweepOn sweeps what a process before this one left.
func (s *Server) sweepOn() {
	j := &s.janitors
	j.mu.Lock()
	names := slices.Collect(maps.Keys(j.swept))
	j.mu.Unlock()
	for _, name := range names {
		if s.cfg.Janitor != nil {
			s.cfg.Janitor.Remove(name)
		}
	}
}

// toSweep is what the janitor's LOOKUP finds: the lock that ran out, also when
// the name is held again. Both have nodes of their own.
func (s *Server) toSweep(name string) (node, error) {
	j := &s.janitors
	j.mu.Lock()
	token, ok := j.swept[name]
	j.mu.Unlock()
	if !ok {
		return node{}, syscall.ENOENT
	}
	n := lockNode(token, plain, lockRow, 0)
	n.ended = true
	return n, nil
}

// swept answers the janitor's RMDIR.
func (s *Server) swept(name string) error {
	j := &s.janitors
	j.mu.Lock()
	defer j.mu.Unlock()
	if _, ok := j.swept[name]; !ok {
		return syscall.ENOENT
	}
	delete(j.swept, name)
	s.record(recSweep, encodeSweep(name, 0))
	return nil
}
