package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A link is the pair of sockets between the supervisor and one worker. Each
// message is a packet: its kind, and what belongs to it. A packet that was sent
// is delivered although its sender dies.
const (
	// From the worker.
	msgReady  = 'r' // it serves; its version
	msgFailed = 'f' // it cannot serve; why
	msgPut    = 'p' // keep the descriptor that comes along; its handle
	msgDrop   = 'd' // keep it no longer; its handle
	msgTake   = 't' // send all that are kept
	msgBeat   = 'b' // the mount answers
	// From the supervisor.
	msgKept = 'k' // descriptors that are kept; their handles
	msgEnd  = 'e' // these were all
)

const (
	maxKept   = 64 // descriptors in one packet; the kernel allows 253 (SCM_MAX_FD)
	maxPacket = 4096

	// linkPatience bounds how long a worker waits for a supervisor that does
	// not read (it is stopped, say).
	linkPatience = time.Second
)

// newLink makes both ends: ours, and the file that the worker inherits.
func newLink() (*net.UnixConn, *os.File, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "link")
	ours, err := linkOf(pair[0])
	if err != nil {
		theirs.Close()
	}
	return ours, theirs, err
}

// linkOf takes over the descriptor of an end.
func linkOf(fd int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), "link")
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		conn.Close()
		return nil, errors.New("the link is no unix socket")
	}
	return unixConn, nil
}

// packet is a message received.
type packet struct {
	kind byte
	body []byte
	fds  []int // the receiver's to close
}

// receiver receives packets. Each is valid until the next.
type receiver struct {
	conn     *net.UnixConn
	buf, oob []byte
}

func newReceiver(conn *net.UnixConn) *receiver {
	return &receiver{conn, make([]byte, maxPacket), make([]byte, unix.CmsgSpace(4*maxKept))}
}

// next returns io.EOF once the other end is gone and all it sent was read.
func (r *receiver) next() (packet, error) {
	for {
		n, oobn, _, _, err := r.conn.ReadMsgUnix(r.buf, r.oob)
		if err != nil {
			return packet{}, err
		}
		if n > 0 {
			return packet{r.buf[0], r.buf[1:n], rights(r.oob[:oobn])}, nil
		}
	}
}

func rights(oob []byte) (fds []int) {
	msgs, _ := unix.ParseSocketControlMessage(oob)
	for i := range msgs {
		more, _ := unix.ParseUnixRights(&msgs[i])
		fds = append(fds, more...)
	}
	return fds
}

func send(conn *net.UnixConn, kind byte, body []byte, fds ...int) error {
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	_, _, err := conn.WriteMsgUnix(append([]byte{kind}, body...), oob, nil)
	return err
}

func handleBytes(fhs ...uint64) (b []byte) {
	for _, fh := range fhs {
		b = binary.NativeEndian.AppendUint64(b, fh)
	}
	return b
}

func handlesOf(b []byte) (fhs []uint64) {
	for ; len(b) >= 8; b = b[8:] {
		fhs = append(fhs, binary.NativeEndian.Uint64(b))
	}
	return fhs
}

// fdStore is the supervisor's end: the descriptors of open files that no
// worker could open again, under their handles.
//
// Concurrency: one goroutine at a time, that of the worker which lives.
type fdStore struct {
	kept  map[uint64]int
	limit int // of the descriptors' numbers
	log   *slog.Logger
}

// spareFDs are the descriptors that the supervisor itself needs to start a
// worker, and then some.
const spareFDs = 64

// serve does what a packet asks for.
func (s *fdStore) serve(conn *net.UnixConn, p packet) {
	fhs := handlesOf(p.body)
	switch {
	case p.kind == msgTake:
		if err := s.sendAll(conn); err != nil {
			s.log.Warn("descriptors were not handed to the new worker", "err", err)
		}
	case p.kind == msgPut && len(fhs) == 1 && len(p.fds) == 1 && p.fds[0] < s.limit:
		s.put(fhs[0], p.fds[0])
		return
	case p.kind == msgPut:
		s.log.Warn("too many descriptors of open files to keep this one: if the worker dies, it is lost; raise `ulimit -Hn`", "kept", len(s.kept))
	case p.kind == msgDrop && len(fhs) == 1:
		s.drop(fhs[0])
	}
	closeFDs(p.fds)
}

func (s *fdStore) put(fh uint64, fd int) {
	s.drop(fh)
	if s.kept == nil {
		s.kept = map[uint64]int{}
	}
	s.kept[fh] = fd
}

func (s *fdStore) drop(fh uint64) {
	if fd, ok := s.kept[fh]; ok {
		unix.Close(fd)
		delete(s.kept, fh)
	}
}

func (s *fdStore) sendAll(conn *net.UnixConn) error {
	var fhs []uint64
	var fds []int
	for fh, fd := range s.kept {
		fhs, fds = append(fhs, fh), append(fds, fd)
		if len(fds) == maxKept {
			if err := send(conn, msgKept, handleBytes(fhs...), fds...); err != nil {
				return err
			}
			fhs, fds = fhs[:0], fds[:0]
		}
	}
	if len(fds) > 0 {
		if err := send(conn, msgKept, handleBytes(fhs...), fds...); err != nil {
			return err
		}
	}
	return send(conn, msgEnd, nil)
}

func closeFDs(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// supervisorLink is a worker's end. It is the Store of package files.
//
// Concurrency: every method may be called from any goroutine.
type supervisorLink struct {
	conn *net.UnixConn
	// orphaned is closed when the supervisor is gone.
	orphaned chan struct{}

	taking sync.Mutex // one Take at a time
	taken  chan map[uint64]int

	// stalled: the supervisor does not read, so nobody waits for it any more.
	stalled atomic.Bool
	mu      sync.Mutex
	drops   []uint64 // GUARDED_BY(mu): handles to let go of
	dropped chan struct{}
}

func newSupervisorLink(fd int) (*supervisorLink, error) {
	conn, err := linkOf(fd)
	if err != nil {
		return nil, fmt.Errorf("link to the supervisor: %w", err)
	}
	l := &supervisorLink{conn: conn, orphaned: make(chan struct{}), taken: make(chan map[uint64]int, 1), dropped: make(chan struct{}, 1)}
	go l.listen()
	go l.sendDrops()
	return l, nil
}

// listen collects what is sent until the supervisor is gone.
func (l *supervisorLink) listen() {
	defer close(l.orphaned)
	in := newReceiver(l.conn)
	kept := map[uint64]int{}
	for {
		p, err := in.next()
		if err != nil {
			return
		}
		switch p.kind {
		case msgKept:
			for i, fh := range handlesOf(p.body) {
				if i < len(p.fds) { // fewer: our limit on descriptors is reached
					kept[fh] = p.fds[i]
				}
			}
		case msgEnd:
			l.taken <- kept
			kept = map[uint64]int{}
		}
	}
}

func (l *supervisorLink) send(kind byte, body []byte, fds ...int) error {
	_ = l.conn.SetWriteDeadline(time.Now().Add(linkPatience))
	if err := send(l.conn, kind, body, fds...); err != nil {
		return fmt.Errorf("send to the supervisor: %w", err)
	}
	return nil
}

// ready says that we serve.
func (l *supervisorLink) ready() error { return l.send(msgReady, []byte(fullVersion())) }

// beat says that the mount answers.
func (l *supervisorLink) beat() error { return l.send(msgBeat, nil) }

// failed says why we cannot serve.
func (l *supervisorLink) failed(why error) {
	text := why.Error()
	_ = l.send(msgFailed, []byte(text[:min(len(text), maxPacket-1)]))
}

// Put keeps a duplicate of fd beyond our death, in place of an earlier one of
// the same handle. Once it returns nil, that holds although we die at once.
// A supervisor that does not read is waited for once.
func (l *supervisorLink) Put(fh uint64, fd int) error {
	if l.stalled.Load() {
		return errStalled
	}
	err := l.send(msgPut, handleBytes(fh), fd)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		l.stalled.Store(true)
	}
	return err
}

var errStalled = errors.New("the supervisor does not take descriptors; is it stopped?")

// Drop lets go of a handle's descriptor, soon. If it cannot be told, nobody is
// left to keep it.
func (l *supervisorLink) Drop(fh uint64) {
	l.mu.Lock()
	l.drops = append(l.drops, fh)
	l.mu.Unlock()
	select {
	case l.dropped <- struct{}{}:
	default:
	}
}

// sendDrops tells the supervisor, however long it takes.
func (l *supervisorLink) sendDrops() {
	for {
		select {
		case <-l.dropped:
		case <-l.orphaned:
			return
		}
		l.mu.Lock()
		drops := l.drops
		l.drops = nil
		l.mu.Unlock()
		for _, fh := range drops {
			for errors.Is(l.send(msgDrop, handleBytes(fh)), os.ErrDeadlineExceeded) {
			}
			l.stalled.Store(false)
		}
	}
}

// Take returns duplicates of all descriptors that are kept; they are the
// caller's to close.
func (l *supervisorLink) Take() (map[uint64]int, error) {
	l.taking.Lock()
	defer l.taking.Unlock()
	if err := l.send(msgTake, nil); err != nil {
		return nil, err
	}
	select {
	case kept := <-l.taken:
		return kept, nil
	case <-l.orphaned:
		return nil, errors.New("the supervisor is gone, and the descriptors that it kept")
	}
}
