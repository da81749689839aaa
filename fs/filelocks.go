package fs

import (
	"errors"
	"sync/atomic"
	"syscall"
	"time"
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

func errnoFor(err error) syscall.Errno {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	for _, e := range errnos {
		if errors.Is(err, e.err) {
			return e.errno
		}
	}
	return syscall.EIO
}

// lockRequest translates fcntl(2) and flock(2) requests of the kernel. req is
// zero; it is large, and to return it would be to copy it.
func (s *Server) lockRequest(in *fuse.LkIn, key string, req *lockengine.Request) {
	req.Name = key
	req.Class, req.Range = lockRange(in)
	req.Owner = s.lockOwner(in)
	req.Mode = lockengine.Exclusive
	if in.Lk.Typ == syscall.F_RDLCK {
		req.Mode = lockengine.Shared
	}
	req.Handle = in.Fh
	req.Who = lockengine.Who{PID: int32(in.Lk.Pid), TID: int32(in.Pid), UID: in.Uid, GID: in.Gid}
	if in.Opcode == opSetlkw {
		req.Key = requestID(in.Unique)
	}
}

// lockRange is what a request is about; flock(2) is about whole files.
func lockRange(in *fuse.LkIn) (lockengine.Class, lockengine.Range) {
	if in.LkFlags&fuse.LK_FLOCK != 0 {
		return lockengine.Flock, lockengine.Whole
	}
	return lockengine.Record, lockengine.Range{Start: in.Lk.Start, End: min(in.Lk.End, lockengine.MaxEnd-1) + 1}
}

func (s *Server) lockOwner(in *fuse.LkIn) lockengine.Owner {
	return lockengine.Owner{Session: s.cfg.Session, ID: in.Owner}
}

// setlk handles SETLK and SETLKW. A request that waits is answered when the
// lock is handed over; nothing blocks meanwhile.
func (s *Server) setlk(in *fuse.LkIn) {
	key, ok := s.files.LockKey(in.NodeId)
	if !ok {
		s.dev.replyError(in.Unique, syscall.ENOLCK) // synthetic files cannot be locked
		return
	}
	if in.Lk.Typ == syscall.F_UNLCK { // flock(2) sends it as SETLKW
		class, rng := lockRange(in)
		s.dev.replyError(in.Unique, errnoOf(s.engine.Unlock(class, key, s.lockOwner(in), rng)))
		return
	}
	var req lockengine.Request
	s.lockRequest(in, key, &req)
	if in.Opcode == opSetlkw {
		s.wait(in.Unique, &req, nil)
		return
	}
	_, err := s.engine.Try(req)
	s.dev.replyError(in.Unique, errnoOf(err))
}

// lockWait is a request for a lock that may have to wait.
type lockWait struct {
	s      *Server
	unique uint64
	done   func(lockengine.Grant, error) // answers; nil: with the errno
	// decide is the method decided, which would be allocated at each use.
	decide func(lockengine.Grant, error)
	// state says who answers when it is decided: see park.
	state  atomic.Uint32
	waiter lockengine.WaiterID
	parked parked
}

const (
	waitAsked = iota
	waitParked
	waitDecided
)

// newLockWait returns one: mostly that of the last request which did not have to
// wait, so that such a request allocates nothing.
func (s *Server) newLockWait() *lockWait {
	if w := s.lockWait.Swap(nil); w != nil {
		return w
	}
	w := &lockWait{s: s}
	w.decide = w.decided
	return w
}

// wait asks for a lock and parks the request if it has to wait. done answers
// it, when it was not interrupted. It returns for how long the request has waited
// already, with the process before this one.
func (s *Server) wait(unique uint64, req *lockengine.Request, done func(lockengine.Grant, error)) (waited time.Duration) {
	w := s.newLockWait()
	w.unique, w.done = unique, done
	grant, waiter, err := s.engine.Wait(*req, w.decide)
	if waiter == 0 {
		w.answer(grant, err)
		w.done = nil
		s.lockWait.Store(w)
		return 0
	}
	w.waiter = waiter
	w.park()
	if !isResent(unique) {
		return 0
	}
	since, ok := s.keeper().WaitsSince(waiter)
	if !ok {
		return 0
	}
	return time.Duration(s.now().Boot - since.Boot)
}

// park parks the request, so that it can be interrupted. It may have been decided
// already, and then is answered: nobody else can know of it before.
func (w *lockWait) park() {
	w.parked.canceler = w
	w.s.parking.park(w.unique, &w.parked)
	if !w.state.CompareAndSwap(waitAsked, waitParked) {
		w.s.parking.take(w.unique)
	}
}

func (w *lockWait) cancel(keepPlace bool) bool { return w.s.engine.Cancel(w.waiter, keepPlace) }

// decided is called when the wait is over, unless it was canceled.
func (w *lockWait) decided(g lockengine.Grant, err error) {
	if w.state.Swap(waitDecided) == waitAsked || w.s.parking.take(w.unique) {
		w.answer(g, err)
	}
}

func (w *lockWait) answer(g lockengine.Grant, err error) {
	if w.done == nil {
		w.s.dev.replyError(w.unique, errnoOf(err))
		return
	}
	w.done(g, err)
}

// getlk handles GETLK. F_OFD_GETLK lets F_UNLCK through, which asks for the
// caller's own locks; the pid of another's is 0 where it is not known.
func (s *Server) getlk(in *fuse.LkIn) {
	key, ok := s.files.LockKey(in.NodeId)
	if !ok {
		s.dev.replyError(in.Unique, syscall.ENOLCK)
		return
	}
	test := s.engine.Test
	if in.Lk.Typ == syscall.F_UNLCK {
		test = s.engine.TestOwn
	}
	out := fuse.LkOut{Lk: in.Lk}
	out.Lk.Typ = syscall.F_UNLCK
	var req lockengine.Request
	s.lockRequest(in, key, &req)
	if l, found := test(req); found {
		out.Lk = fuse.FileLock{Start: l.Range.Start, End: l.Range.End - 1, Typ: syscall.F_WRLCK, Pid: uint32(l.Who.PID)}
		if l.Mode == lockengine.Shared {
			out.Lk.Typ = syscall.F_RDLCK
		}
	}
	s.dev.reply(in.Unique, unsafe.Slice((*byte)(unsafe.Pointer(&out)), unsafe.Sizeof(out)))
}
