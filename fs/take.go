package fs

import (
	"errors"
	"strconv"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"

	"lockfs/lockengine"
)

// taking is the named lock behind an open take/NAME or hold/NAME.
type taking struct {
	name  string
	token uint64
	hold  bool

	mu   sync.Mutex
	read bool // the token was read: a lock of take/ now lives by its timeout
}

// openTake handles the OPEN of take/NAME and hold/NAME: it waits in line for
// the lock and answers when it has it.
func (s *Server) openTake(n node, in *fuse.OpenIn) {
	req, w, err := s.takeRequest(n, in)
	if err != nil {
		s.dev.replyError(in.Unique, errnoOf(err))
		return
	}
	flags, unique := in.Flags, in.Unique
	granted := func(g lockengine.Grant, err error) bool {
		if err != nil {
			return s.dev.replyError(unique, errnoOf(err))
		}
		return s.openTaken(n, unique, flags, req, g)
	}
	if flags&syscall.O_NONBLOCK != 0 || w.bounded && w.wait == 0 {
		granted(s.engine.Try(req))
		return
	}
	s.wait(unique, req, granted)
	if w.bounded {
		s.timeOut(unique, w.wait)
	}
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
	return req, w, err
}

// namedRequest asks for a named lock on behalf of the caller.
func (s *Server) namedRequest(name, kind string, timeout time.Duration, h *fuse.InHeader) (lockengine.Request, error) {
	if uid, reserved := nameUID(name); reserved && h.Uid != 0 && h.Uid != uid {
		return lockengine.Request{}, syscall.EPERM
	}
	from := s.askers.of(int32(h.Pid), s.now().Boot)
	return lockengine.Request{
		Class:   lockengine.Named,
		Name:    name,
		Owner:   lockengine.Owner{Session: s.cfg.Session, ID: uint64(from.pid)},
		Mode:    lockengine.Exclusive,
		Range:   lockengine.Whole,
		Who:     lockengine.Who{PID: from.pid, TID: int32(h.Pid), UID: h.Uid, GID: h.Gid},
		Timeout: timeout,
		Guard:   masterOf(name),
		Meta:    "kind " + kind + "\n" + from.who,
	}, nil
}

// openTaken answers the OPEN with a handle on the lock granted. If nobody is
// there to take it, the lock goes back.
func (s *Server) openTaken(n node, unique uint64, flags uint32, req lockengine.Request, g lockengine.Grant) bool {
	t := &taking{name: req.Name, token: g.Token, hold: req.Timeout == 0}
	fh := s.handles.add(&handle{node: n, flags: flags, taking: t,
		data: append(strconv.AppendUint(nil, g.Token, 10), '\n')})
	out := fuse.OpenOut{Fh: fh, OpenFlags: fuse.FOPEN_DIRECT_IO}
	s.dev.notifySize(n.id)
	if s.dev.reply(unique, unsafe.Slice((*byte)(unsafe.Pointer(&out)), unsafe.Sizeof(out))) {
		return true
	}
	s.handles.remove(fh)
	s.release(t)
	return false
}

// release gives the lock back at the handle's end: a hold always, a lock of
// take/ when nobody learned its token.
func (s *Server) release(t *taking) {
	t.mu.Lock()
	read := t.read
	t.mu.Unlock()
	if read && !t.hold {
		return
	}
	err := s.engine.Release(t.name, t.token, lockengine.Released)
	if err != nil && !errors.Is(err, lockengine.ErrNotHeld) {
		s.log.Error("release at close failed", "name", t.name, "token", t.token, "error", err)
	}
}

// readTaken reads the token. The handle of a hold that was released by force
// answers EIO.
func (s *Server) readTaken(t *taking) syscall.Errno {
	l, ok := s.engine.Get(t.name)
	if t.hold && (!ok || l.Token != t.token) {
		return syscall.EIO
	}
	t.mu.Lock()
	t.read = true
	t.mu.Unlock()
	return 0
}
