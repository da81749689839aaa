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

// lockRequest translates fcntl(2) and flock(2) requests of the kernel.
func (s *Server) lockRequest(in *fuse.LkIn, key string) lockengine.Request {
	req := lockengine.Request{
		Class:  lockengine.Record,
		Name:   key,
		Owner:  lockengine.Owner{Session: s.cfg.Session, ID: in.Owner},
		Mode:   lockengine.Exclusive,
		Range:  lockengine.Range{Start: in.Lk.Start, End: min(in.Lk.End, lockengine.MaxEnd-1) + 1},
		Handle: in.Fh,
		Who:    lockengine.Who{PID: int32(in.Lk.Pid), TID: int32(in.Pid), UID: in.Uid, GID: in.Gid},
	}
	if in.Lk.Typ == syscall.F_RDLCK {
		req.Mode = lockengine.Shared
	}
	if in.Opcode == opSetlkw {
		req.Key = requestID(in.Unique)
	}
	if in.LkFlags&fuse.LK_FLOCK != 0 {
		req.Class, req.Range = lockengine.Flock, lockengine.Whole
	}
	return req
}

// setlk handles SETLK and SETLKW. A request that waits is answered when the
// lock is handed over; nothing blocks meanwhile.
func (s *Server) setlk(in *fuse.LkIn, wait bool) {
	key, ok := s.lockKey(in.NodeId)
	if !ok {
		s.dev.replyError(in.Unique, syscall.ENOLCK)
		return
	}
	req := s.lockRequest(in, key)
	if in.Lk.Typ == syscall.F_UNLCK {
		// flock(2) sends its unlock as SETLKW.
		err := s.engine.Unlock(req.Class, req.Name, req.Owner, req.Range)
		s.dev.replyError(in.Unique, errnoOf(err))
		return
	}
	if !wait {
		_, err := s.engine.Try(req)
		s.dev.replyError(in.Unique, errnoOf(err))
		return
	}
	unique := in.Unique // the buffer in is in is used again while this waits
	s.wait(unique, req, func(_ lockengine.Grant, err error) bool {
		return s.dev.replyError(unique, errnoOf(err))
	})
}

// wait asks for a lock and parks the request meanwhile. done answers it, when
// it was not interrupted. It returns for how long the request has waited
// already, with the process before this one.
func (s *Server) wait(unique uint64, req lockengine.Request, done func(lockengine.Grant, error) bool) (waited time.Duration) {
	var id atomic.Uint64
	s.parking.add(unique, func(keepPlace bool) bool {
		return s.engine.Cancel(lockengine.WaiterID(id.Load()), keepPlace)
	})
	answer := func(g lockengine.Grant, err error) {
		if s.parking.take(unique) {
			done(g, err)
		}
	}
	grant, waiter, err := s.engine.Wait(req, answer)
	if waiter == 0 {
		answer(grant, err)
		return 0
	}
	id.Store(uint64(waiter))
	if !isResent(unique) {
		return 0
	}
	since, ok := s.keeper().WaitsSince(waiter)
	if !ok {
		return 0
	}
	return time.Duration(s.now().Boot - since.Boot)
}

// getlk handles GETLK. F_OFD_GETLK lets F_UNLCK through, which asks for the
// caller's own locks; the pid of another's is 0 where it is not known.
func (s *Server) getlk(in *fuse.LkIn) {
	key, ok := s.lockKey(in.NodeId)
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
	if l, found := test(s.lockRequest(in, key)); found {
		out.Lk = fuse.FileLock{Start: l.Range.Start, End: l.Range.End - 1, Typ: syscall.F_WRLCK, Pid: uint32(l.Who.PID)}
		if l.Mode == lockengine.Shared {
			out.Lk.Typ = syscall.F_RDLCK
		}
	}
	s.dev.reply(in.Unique, unsafe.Slice((*byte)(unsafe.Pointer(&out)), unsafe.Sizeof(out)))
}

// lockKey is the name under which a file's locks are kept. Synthetic files
// have none: they cannot be locked.
func (s *Server) lockKey(id uint64) (string, bool) {
	if isSynthetic(id) {
		return "", false
	}
	return s.files.LockKey(id)
}
