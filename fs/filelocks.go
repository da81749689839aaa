package fs

import (
	"errors"
	"syscall"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"

	"lockfs/lockengine"
)

// errnos is the one table from errors to errno.
var errnos = []struct {
	err   error
	errno syscall.Errno
}{
	{lockengine.ErrHeld, syscall.EAGAIN},
	{lockengine.ErrNotHeld, syscall.ENOENT},
	{lockengine.ErrDeadlock, syscall.EDEADLK},
	{lockengine.ErrInvalid, syscall.EINVAL},
	{lockengine.ErrCanceled, syscall.EINTR},
	{lockengine.ErrClosed, syscall.EIO},
	{lockengine.ErrNoSpace, syscall.ENOSPC},
	{lockengine.ErrQuota, syscall.EDQUOT},
}

// errnoOf is the errno of an error; 0 of none, EIO of one unknown.
func errnoOf(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	return errnoFor(err)
}

// errnoFor is errnoOf of an error that is one.
func errnoFor(err error) syscall.Errno {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno
	}
	for _, e := range errnos {
		if errors.Is(err, e.err) {
			return e.errno
		}
	}
	return syscall.EIO
}

// lockFile handles SETLK, SETLKW and GETLK: fcntl(2) and flock(2). A request that
// waits is answered when the lock is handed over; nothing blocks meanwhile.
func (s *Server) lockFile(in *fuse.LkIn) {
	req := &s.lock
	if in.NodeId != s.locked { // a node's number is never another one's
		key, ok := s.files.LockKey(in.NodeId)
		if !ok {
			s.answerLock(in, syscall.ENOLCK) // synthetic files cannot be locked
			return
		}
		req.Name, s.locked = key, in.NodeId
	}
	if s.held.of(in.Owner) {
		s.answerHeld()
	}
	req.Class = lockengine.Record
	if in.LkFlags&fuse.LK_FLOCK != 0 {
		req.Class = lockengine.Flock
	}
	req.Owner = lockengine.Owner{Session: s.cfg.Session, ID: in.Owner}
	req.Mode = lockengine.Exclusive
	if in.Lk.Typ == syscall.F_RDLCK {
		req.Mode = lockengine.Shared
	}
	req.Range = lockengine.Range{Start: in.Lk.Start, End: min(in.Lk.End, lockengine.MaxEnd-1) + 1}
	req.Handle = in.Fh
	req.Who = lockengine.Who{PID: int32(in.Lk.Pid), TID: int32(in.Pid), UID: in.Uid, GID: in.Gid}
	req.Key = 0
	var err error
	switch {
	case in.Opcode == opGetlk:
		s.getlk(in, req)
		return
	case in.Lk.Typ == syscall.F_UNLCK: // flock(2) sends it as SETLKW
		err = s.engine.Unlock(req)
	case in.Opcode == opSetlk:
		_, err = s.engine.Try(req)
	default:
		req.Key = requestID(in.Unique)
		w := s.waitFor(in.Unique, nil)
		var waiter lockengine.WaiterID
		if _, waiter, err = s.engine.Wait(req, w.decide); waiter != 0 {
			w.park(waiter)
			return
		}
	}
	s.answerLock(in, errnoOf(err))
}

// lockWait is a request for a lock that may have to wait.
type lockWait struct {
	parked
	s    *Server
	done func(lockengine.Grant, error) // answers; nil: with the errno
	// decide is called when the wait is over, unless it was canceled. It is for
	// Engine.Wait.
	decide func(lockengine.Grant, error)
	state  waitState // GUARDED_BY(parking.mu)
}

// waitState says who answers a request when it is decided.
type waitState uint8

const (
	waitAsked waitState = iota
	waitParked
	waitDecided
)

func (s *Server) newLockWait() *lockWait {
	w := &lockWait{s: s}
	w.decide = func(g lockengine.Grant, err error) {
		unique, done := w.unique, w.done // w may be another request's soon
		switch {
		case !w.over():
		case done == nil:
			s.dev.replyError(unique, errnoOf(err))
		default:
			done(g, err)
		}
	}
	return w
}

// waitFor is the wait of a request that is about to be made. If that does not
// have to wait, its caller answers it; else it is to be parked, and done answers it
// when it was not interrupted. The reader alone calls it: there is one at a time,
// which is used again and again.
func (s *Server) waitFor(unique uint64, done func(lockengine.Grant, error)) *lockWait {
	w := s.nextWait
	w.unique, w.done = unique, done
	return w
}

// park parks the request, so that it can be interrupted, unless it has been
// decided already: then it is answered, since nobody else knew of it.
func (w *lockWait) park(waiter lockengine.WaiterID) {
	s, next := w.s, w
	s.parking.mu.Lock()
	if w.state == waitDecided {
		w.state = waitAsked
	} else {
		w.state, w.waiter = waitParked, waiter
		s.parking.park(&w.parked)
		next, s.parking.spare = s.parking.spare, nil
	}
	s.parking.mu.Unlock()
	if next == nil {
		next = s.newLockWait()
	}
	s.nextWait = next
}

// over ends a wait that was decided, and reports whether its request is to be
// answered.
func (w *lockWait) over() bool {
	p, answer := &w.s.parking, true
	p.mu.Lock()
	if w.state == waitAsked {
		w.state = waitDecided
	} else if answer = p.unpark(w.unique); answer {
		w.state, w.done, p.spare = waitAsked, nil, w
	}
	p.mu.Unlock()
	return answer
}

// getlk handles GETLK. F_OFD_GETLK lets F_UNLCK through, which asks for the
// caller's own locks; the pid of another's is 0 where it is not known.
func (s *Server) getlk(in *fuse.LkIn, req *lockengine.Request) {
	test := s.engine.Test
	if in.Lk.Typ == syscall.F_UNLCK {
		test = s.engine.TestOwn
	}
	out := fuse.LkOut{Lk: in.Lk}
	out.Lk.Typ = syscall.F_UNLCK
	if l, found := test(req); found {
		out.Lk = fuse.FileLock{Start: l.Range.Start, End: l.Range.End - 1, Typ: syscall.F_WRLCK, Pid: uint32(l.Who.PID)}
		if l.Mode == lockengine.Shared {
			out.Lk.Typ = syscall.F_RDLCK
		}
	}
	s.dev.reply(in.Unique, unsafe.Slice((*byte)(unsafe.Pointer(&out)), unsafe.Sizeof(out)))
}
