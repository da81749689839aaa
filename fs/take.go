package fs

import (
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"

	"lockfs/lockengine"
)

// taking is the named lock behind an open take/NAME or hold/NAME. It goes with
// the handle; one of take/ is detached from it, and lives by its timeout, once
// its token was read.
type taking struct {
	name     string
	token    uint64
	hold     bool
	pid      int32 // who opened it; 0: out of our sight
	detached bool  // GUARDED_BY(handle.mu)
	answered bool  // the kernel knows the handle and will release it. GUARDED_BY(handle.mu)
}

// openTake handles the OPEN of take/NAME and hold/NAME: it waits in line for
// the lock and answers when it has it.
func (s *Server) openTake(n node, in fuse.OpenIn) {
	if h := s.handles.get(handleNumber(in.Unique)); h != nil {
		s.answerTaken(h, in.Unique) // sent again
		return
	}
	req, w, err := s.takeRequest(n, &in)
	if err == nil && !isResent(in.Unique) {
		err = s.mayOpen(in.Uid, n)
	}
	if err != nil {
		s.dev.replyError(in.Unique, errnoOf(err))
		return
	}
	unique := in.Unique
	granted := func(g lockengine.Grant, err error) {
		if err != nil {
			s.dev.replyError(unique, errnoOf(err))
			return
		}
		s.openTaken(n, unique, in.Flags, req, g)
	}
	if in.Flags&syscall.O_NONBLOCK != 0 || w.bounded && w.wait == 0 {
		try := func() { granted(s.engine.Try(&req)) }
		if s.cfg.Durable {
			s.spawn(try)
		} else {
			try()
		}
		return
	}
	wait := s.waitFor(unique, granted)
	g, waiter, err := s.engine.Wait(&req, wait.decide)
	if waiter == 0 {
		granted(g, err)
		return
	}
	wait.park(waiter)
	if w.bounded {
		s.timeOut(unique, w.wait-s.waited(unique, waiter))
	}
}

// waited is for how long a request has waited already, with the process before
// this one.
func (s *Server) waited(unique uint64, waiter lockengine.WaiterID) time.Duration {
	if !isResent(unique) {
		return 0
	}
	since, ok := s.keeper().WaitsSince(waiter)
	if !ok {
		return 0
	}
	return time.Duration(s.now().Boot - since.Boot)
}

// takeRequest makes a request of the name opened and the caller.
func (s *Server) takeRequest(n node, in *fuse.OpenIn) (lockengine.Request, waitName, error) {
	w, err := parseWaitName(n.name, s.cfg.MaxTimeout)
	if err != nil {
		return lockengine.Request{}, w, err
	}
	kind, timeout := "take", w.timeout
	switch {
	case n.row == holdFileRow && w.spelling == bySpan:
		return lockengine.Request{}, w, syscall.EINVAL // a hold has no timeout
	case n.row == holdFileRow:
		kind = "hold"
	case timeout == 0:
		timeout = s.defaultTimeout(w.name)
	}
	req, err := s.namedRequest(w.name, kind, timeout, &in.InHeader)
	req.Handle = handleNumber(in.Unique)
	return req, w, err
}

// namedRequest asks for a named lock on behalf of the caller.
func (s *Server) namedRequest(name, kind string, timeout time.Duration, h *fuse.InHeader) (lockengine.Request, error) {
	if uid, reserved := nameUID(name); reserved && h.Uid != 0 && h.Uid != uid {
		return lockengine.Request{}, syscall.EPERM
	}
	from := s.host.asker(int32(h.Pid), s.now().Boot)
	return lockengine.Request{
		Class:   lockengine.Named,
		Name:    name,
		Owner:   lockengine.Owner{Session: s.cfg.Session, ID: ownerID(from.pid, kind, h)},
		Mode:    lockengine.Exclusive,
		Range:   lockengine.Whole,
		Who:     lockengine.Who{PID: from.pid, TID: int32(h.Pid), UID: h.Uid, GID: h.Gid},
		Timeout: timeout,
		Key:     requestID(h.Unique),
		Guard:   masterOf(name),
		Meta:    "kind " + kind + "\n" + from.who,
	}, nil
}

// What the owner of a named lock is, where it is not a process of ours.
const (
	unseenUser = uint64(1) << 61 // with a uid
	unseenCall = uint64(1) << 62 // with the number of a request
)

// ownerID is who asks for a named lock: its process. One owner may take a lock
// under its master lock, and has back its place in the queue.
//
// Of callers outside our pid namespace the kernel tells nothing but the user.
// Each of their opens is an owner of its own. Not so a mkdir: Sys::Tlock makes
// two of them, the second under the lock of the first, and believes that it
// succeeded. So those of one user are one owner. Of two such programs one
// still loses the race for the master lock; but a mkdir of that user which
// asks for no master lock can come in between.
func ownerID(pid int32, kind string, h *fuse.InHeader) uint64 {
	switch {
	case pid != 0:
		return uint64(pid)
	case kind == "mkdir":
		return unseenUser | uint64(h.Uid)
	}
	return unseenCall | requestID(h.Unique)
}

// openTaken answers the OPEN with a handle on the lock granted.
func (s *Server) openTaken(n node, unique uint64, flags uint32, req lockengine.Request, g lockengine.Grant) {
	h := &handle{fh: req.Handle, node: n, uid: req.Who.UID, flags: flags,
		taking: &taking{name: req.Name, token: g.Token, hold: req.Timeout == 0, pid: req.Who.PID},
		data:   append(strconv.AppendUint(nil, g.Token, 10), '\n')}
	s.openHandle(h)
	s.answerTaken(h, unique)
}

// answerTaken answers the OPEN. If nobody is there to take the handle, the
// lock goes back.
func (s *Server) answerTaken(h *handle, unique uint64) {
	out := fuse.OpenOut{Fh: h.fh, OpenFlags: fuse.FOPEN_DIRECT_IO}
	s.dev.notifySize(h.node.id)
	if !s.dev.reply(unique, unsafe.Slice((*byte)(unsafe.Pointer(&out)), unsafe.Sizeof(out))) {
		s.engine.DropHandle(h.fh)
		s.closeHandle(h.fh)
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.taking.answered = true
	s.saveHandle(h)
}

// readTaken reads the token. The handle of a hold that was released by force
// answers EIO.
func (s *Server) readTaken(h *handle) syscall.Errno {
	t := h.taking
	if t.hold {
		if l, ok := s.engine.Get(t.name); !ok || l.Token != t.token {
			return syscall.EIO
		}
		return 0
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if !t.detached {
		_ = s.engine.Detach(t.name, t.token) // it may have run out
		t.detached, t.answered = true, true
		s.saveHandle(h)
	}
	return 0
}

// answered: the kernel knows the handle of a taking.
func (h *handle) answered() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.taking.answered
}
