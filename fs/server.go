// Package fs is the tree: it serves a mounted lockfs, turns file calls into
// requests to a lock engine and shows the engine's state as files.
//
// # How requests are served
//
// One goroutine, the reader, takes requests off the device and answers what
// cannot block itself. Lock requests and RELEASE are among them, so they take
// effect in the order of the device: a close(2) is done before a later try of
// another process. What may block is parked without a goroutine (see parking)
// and answered by whoever ends the wait; what touches the backing files'
// disk runs on a goroutine of its own; large views are rendered few at a time,
// by users' turns.
//
// # Where things are
//
// table.go is the synthetic tree. device.go speaks to /dev/fuse, mount.go
// mounts. raw.go has one method for each request of the tree, filelocks.go the
// locks on files, take.go and stream.go what waits. Package files is files/.
package fs

import (
	"encoding/binary"
	"io"
	"log"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"

	"lockfs/fs/files"
	"lockfs/lockengine"
	"lockfs/lockengine/journal"
)

// Config of a server.
type Config struct {
	// FD is the descriptor of a mounted FUSE connection (see Mount). It stays
	// the caller's to close, after Serve.
	FD int
	// Engine grants the locks; Now is its clock.
	Engine lockengine.Engine
	Now    func() lockengine.Instant
	// Session tells this mount's owners apart in an engine that has several.
	Session uint64
	// Files is the directory behind files/. It must exist.
	Files string
	// AllowOther: callers may be other users than the daemon's.
	AllowOther bool
	// DefaultTimeout and MaxTimeout of timed locks.
	DefaultTimeout, MaxTimeout time.Duration
	// ViewMode is the permissions of view/: 0555 or 0500.
	ViewMode uint32
	// TokenMode is the permissions of tlock/NAME/token: 0444 (also if it is 0), or
	// 0400, when nobody but the holder and root is shown a token elsewhere either.
	TokenMode uint32
	// MaxPerUser bounds what a user other than root has open outside files/ (see
	// openPerLock); 0: no bound. The engine has the same for locks. LimitRoot: it
	// is for root too.
	MaxPerUser int
	LimitRoot  bool
	// Log; default discards.
	Log *slog.Logger

	// Ready is called when requests are about to be read, after those that a
	// process before left unanswered; nil: nobody wants to know.
	Ready func()

	// Journal keeps what a successor of this process must know; nil: the
	// state ends with the process. The engine must have the same one.
	Journal *journal.Journal
	// Instance names the kernel's connection. A journal of the same instance
	// is gone on with; of another one, only timed locks are kept.
	Instance string
	// Store keeps descriptors for a successor; nil: nobody does.
	Store files.Store
	// Janitor shows locks that ran out to inotify(7); nil: nobody does.
	Janitor Janitor
	// Durable: a grant is told only once it is on disk, so taking a named lock
	// may block its goroutine.
	Durable bool
}

// Server serves one mount.
type Server struct {
	engine   lockengine.Engine
	dev      device
	files    *files.FS
	lock     lockengine.Request // the reader's, for the next request about a lock
	locked   uint64             // the reader's: the node that lock's name is of; 0: none yet
	nextWait *lockWait          // the reader's, for the next request that may wait
	held     heldAnswers
	cfg      Config
	host     host
	protocol *fuse.ProtocolServer
	log      *slog.Logger
	started  lockengine.Instant

	dynamic dynamicNodes
	handles handles
	parking parking
	shares  shares
	renders turns
	looks   turns // into directories: others may wait in the kernel for who looks, so no share is asked for
	events  followers
	removed removals
	notices *notices

	instance   instance
	intents    intents
	janitors   janitors
	sweeps     bool              // the janitor shows expiries to inotify
	found      map[uint64][]byte // records of handles, while the journal is replayed
	resumed    bool              // the connection had a process before
	deadly     map[uint64]bool   // requests of which a process before died
	filesStore filesStore
	// journalFailed: the last record could not be appended, which was logged.
	journalFailed atomic.Bool

	running sync.WaitGroup // requests on goroutines
}

// NewServer prepares to serve the connection cfg.FD.
func NewServer(cfg Config) (*Server, error) { return newServer(cfg, hostOf(&cfg)) }

func newServer(cfg Config, h host) (*Server, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	s := &Server{cfg: cfg, engine: cfg.Engine, host: h, dev: device{h.conn}, log: cfg.Log, started: cfg.Now(), notices: newNotices()}
	boot := func() int64 { return s.now().Boot }
	s.shares = shares{now: boot, exempt: s.sharesNothing}
	free := &shares{now: boot, exempt: func(uint32) bool { return true }}
	s.renders = turns{most: maxRenders, shares: &s.shares, spawn: s.spawn, after: h.after}
	s.looks = turns{most: maxRenders, shares: free, spawn: s.spawn, after: h.after}
	s.events = followers{s: s, turns: turns{most: 1, shares: &s.shares, spawn: s.spawn, after: h.after}}
	filesConfig := files.Config{
		Dir: cfg.Files, Passthrough: h.conn, AllowOther: cfg.AllowOther, Logger: cfg.Log,
	}
	if cfg.Store != nil {
		s.filesStore.Store = cfg.Store
		filesConfig.Store = &s.filesStore
	}
	if h.journal != nil {
		filesConfig.Log = h.journal
		s.dynamic.keep = s.keepDynamic
	}
	s.dynamic.prune = s.dev.notifyPrune
	s.nextWait = s.newLockWait()
	backing, err := files.New(filesConfig)
	if err != nil {
		return nil, err
	}
	s.files = backing
	s.protocol = fuse.NewProtocolServer(serving(&raw{FS: backing, s: s}), &fuse.MountOptions{
		EnableLocks: true,
		MaxWrite:    maxWrite,
		// RELEASE is a background request to the kernel: with few of them
		// allowed it would queue behind reads and writes, and close(2) would
		// be late to release its locks.
		MaxBackground: 1<<16 - 1,
		// Without KILLPRIV_V2 each write asks for security.capability.
		ExtraCapabilities: fuse.CAP_HANDLE_KILLPRIV_V2 | fuse.CAP_READDIRPLUS_AUTO | fuse.CAP_ASYNC_DIO,
		Logger:            log.New(io.Discard, "", 0),
		PanicHandler:      s.panicked,
	})
	s.listen()
	if err := s.restore(); err != nil {
		_ = backing.Close()
		return nil, err
	}
	return s, nil
}

// panicked keeps a fault in one request from ending the mount: with a journal
// by letting this process die, since who knows what it left half done, and with
// which mutex held.
func (s *Server) panicked(v any) fuse.Status {
	if s.host.journal != nil {
		panic(v)
	}
	stack := make([]byte, 16<<10)
	s.log.Error("request failed: this is a fault of lockfs", "panic", v, "stack", string(stack[:runtime.Stack(stack, false)]))
	return fuse.EIO
}

// Serve answers requests until the filesystem is unmounted.
func (s *Server) Serve() (err error) {
	defer func() { s.close(err) }()
	if s.resumed {
		s.takeOver()
	}
	if s.cfg.Ready != nil {
		s.cfg.Ready()
	}
	if s.host.journal != nil {
		stop, stopped := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			s.compact(stop)
		}()
		defer func() {
			close(stop)
			<-stopped
		}()
	}
	in, out := s.buffer(), s.buffer()
	defer s.condemn(&in)
	s.held.may = s.dev.answersMany()
	for {
		n, err := s.next(in[:])
		if err != nil || n == 0 {
			return err
		}
		if s.dispatch(in, n, out, nil) {
			continue
		}
		// The request went on with its buffer to a goroutine; let that run
		// before this thread blocks in the kernel.
		in = s.buffer()
		runtime.Gosched()
	}
}

// Restarts is how many processes before this one have served the same mount.
func (s *Server) Restarts() uint64 { return s.instance.restarts }

// close ends the engine, and with it all waits: but not if it was only the
// reading that failed, since another process goes on with them.
func (s *Server) close(failed error) {
	s.renders.drop()
	s.looks.drop()
	s.events.turns.drop()
	s.running.Wait()
	if failed == nil {
		_ = s.engine.Close()
	}
	_ = s.files.Close()
}

func (s *Server) buffer() *[bufferSize]byte { return s.host.buffers.Get().(*[bufferSize]byte) }

// phantom is a file that go-fuse finds in every root, for a use that is none
// here.
const phantom = ".go-fuse-epoll-hack\x00"

// dispatch serves the request in the first n bytes of in and reports whether
// it is done with in. If not, it calls done, if there is one, when the request
// is answered.
func (s *Server) dispatch(in *[bufferSize]byte, n int, out *[bufferSize]byte, done func()) bool {
	if s.answersAtOnce(in[:n], out) {
		return true
	}
	lk := request[fuse.LkIn](in[:n])
	if lk == nil || lk.Opcode != opSetlk && lk.Opcode != opSetlkw || isResent(lk.Unique) {
		return s.serve(in, n, out, done)
	}
	s.lockFile(lk)
	return true
}

// serve is dispatch of any request. That to lock or unlock a file seldom comes
// here, so that it runs through little code.
func (s *Server) serve(in *[bufferSize]byte, n int, out *[bufferSize]byte, done func()) bool {
	if s.held.n > 0 {
		s.answerHeld() // this may take longer
	}
	if n < sizeofInHeader {
		s.log.Error("request too short", "bytes", n)
		return true
	}
	h := (*fuse.InHeader)(unsafe.Pointer(in))
	if isResent(h.Unique) && s.deadly[requestID(h.Unique)] {
		s.dev.replyError(h.Unique, syscall.EIO)
		return true
	}
	if s.waits(h, in[:n]) {
		return true
	}
	if h.NodeId == fuse.FUSE_ROOT_ID && h.Opcode == opLookup && string(in[sizeofInHeader:n]) == phantom {
		s.dev.replyError(h.Unique, syscall.ENOENT)
		return true
	}
	if h.Opcode == opInit {
		s.keepInit(in[:n])
	}
	if s.rendersAll(h) {
		s.render(in[:n])
		return true
	}
	if !s.mayBeSlow(h, in[:n]) {
		s.answer(in[:n], out)
		return true
	}
	s.spawn(func() {
		in := in // so that no other request has it on the heap
		defer s.condemn(&in)
		out := s.buffer()
		s.answer(in[:n], out)
		s.host.buffers.Put(out)
		s.host.buffers.Put(in)
		if done != nil {
			done()
		}
	})
	return false
}

// spawn runs part of a request on a goroutine of its own.
func (s *Server) spawn(f func()) {
	s.running.Add(1)
	s.host.spawn(func() {
		defer s.running.Done()
		f()
	})
}

// answer has go-fuse parse the request and call raw.
func (s *Server) answer(in []byte, out *[bufferSize]byte) {
	n, status := s.protocol.HandleRequest([][]byte{in}, [][]byte{out[:]})
	if !status.Ok() {
		s.dev.replyError(binary.NativeEndian.Uint64(in[8:]), syscall.Errno(status))
	} else if n > 0 {
		s.dev.write(out[:n])
	}
	h := (*fuse.InHeader)(unsafe.Pointer(&in[0]))
	switch {
	case !isSynthetic(h.NodeId):
		s.files.Answered(h.Unique)
	case h.Opcode == opRmdir, h.Opcode == opWrite:
		s.answered(h.Unique)
	}
}

// condemn is deferred: it records that this process dies of the request in a
// buffer, so that the next one does not serve it: it gets EIO.
func (s *Server) condemn(in **[bufferSize]byte) {
	if v := recover(); v != nil {
		if s.host.journal != nil {
			unique := (*fuse.InHeader)(unsafe.Pointer(*in)).Unique
			s.record(recDeadly, numbered(requestID(unique)))
		}
		panic(v)
	}
}

// request reads the fixed part of a request; nil when it is cut short.
func request[T any](in []byte) *T {
	if len(in) < int(unsafe.Sizeof(*new(T))) {
		return nil
	}
	return (*T)(unsafe.Pointer(&in[0]))
}

// waits serves the requests that may have to wait, and those that act on them,
// and reports whether this was one.
func (s *Server) waits(h *fuse.InHeader, in []byte) bool {
	switch h.Opcode {
	case opSetlk, opSetlkw, opGetlk:
		if lk := request[fuse.LkIn](in); lk != nil {
			s.lockFile(lk)
			return true
		}
	case opInterrupt:
		if i := request[fuse.InterruptIn](in); i != nil {
			s.endWait(i.Unique, syscall.EINTR)
			return true
		}
	case opPoll:
		if p := request[pollIn](in); p != nil {
			s.poll(p)
			return true
		}
	case opOpen:
		if n, ok := s.node(h.NodeId); ok && n.row.take {
			if o := request[fuse.OpenIn](in); o != nil {
				s.openTake(n, *o)
				return true
			}
		}
	case opRead:
		return s.readStream(h, in)
	}
	return false
}

// readStream serves a READ of what comes with time, and reports whether it was
// one.
func (s *Server) readStream(h *fuse.InHeader, in []byte) bool {
	r := request[fuse.ReadIn](in)
	if !isSynthetic(h.NodeId) || r == nil {
		return false
	}
	handle := s.handles.get(r.Fh)
	if handle == nil || handle.stream == nil {
		return false
	}
	handle.stream.read(h.Unique, int(r.Size), r.Flags&syscall.O_NONBLOCK != 0)
	return true
}

// mayBeSlow reports whether a request may take longer than a lock request
// should wait for: what reads or changes the backing files, but for what their
// caches answer.
func (s *Server) mayBeSlow(h *fuse.InHeader, in []byte) bool {
	switch h.Opcode {
	case opMkdir, opSetattr, opWrite:
		return s.cfg.Durable || !isSynthetic(h.NodeId)
	case opLookup, opForget, opBatchForget, opGetattr, opReadlink, opStatfs, opRelease, opFlush, opReleasedir,
		opAccess, opInit, opDestroy:
		return false
	case opOpen:
		o := request[fuse.OpenIn](in)
		return !isSynthetic(h.NodeId) && o != nil && o.Flags&syscall.O_TRUNC != 0
	}
	return !isSynthetic(h.NodeId)
}

// pollIn is struct fuse_poll_in.
type pollIn struct {
	fuse.InHeader
	Fh, Kh        uint64
	Flags, Events uint32
}

const pollAlways = 0x145 // DEFAULT_POLLMASK: POLLIN, POLLOUT, POLLRDNORM, POLLWRNORM

// poll handles POLL. ENOSYS would switch it off for the whole mount.
func (s *Server) poll(in *pollIn) {
	revents := in.Events & pollAlways
	if h := s.handles.get(in.Fh); h != nil && h.stream != nil &&
		!h.stream.poll(in.Kh, in.Flags&pollScheduleNotify != 0) {
		revents = 0
	}
	var out [8]byte
	binary.NativeEndian.PutUint32(out[:], revents)
	s.dev.reply(in.Unique, out[:])
}

// ownUID is whose the fixed part of the tree is.
var ownUID, ownGID = uint32(os.Geteuid()), uint32(os.Getegid())
