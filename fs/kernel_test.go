package fs

import (
	"context"
	"encoding/binary"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"lockfs/lockengine"
)

// patience is how long the kernel of these tests waits before it calls
// something a hang.
const patience = 10 * time.Second

// kernel is the other end of a server's device: a socket, in which each
// request and each reply is a packet.
type kernel struct {
	t      testing.TB
	s      *Server
	engine *lockengine.Local
	fd     int
	panics panicLog
	unique uint64
	asked  map[uint64]bool // requests that want a reply, by number

	read    sync.WaitGroup
	arrived chan struct{} // something has, since it was looked at last

	mu      sync.Mutex
	replies map[uint64][]byte // by number of the request
	wrong   []string          // what no kernel would take
}

// panicLog keeps what a server's log says of panics that it survived.
type panicLog struct {
	mu   sync.Mutex
	said []string
}

func (p *panicLog) Enabled(context.Context, slog.Level) bool { return true }
func (p *panicLog) WithAttrs([]slog.Attr) slog.Handler       { return p }
func (p *panicLog) WithGroup(string) slog.Handler            { return p }

func (p *panicLog) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "panic" || a.Key == "stack" {
			p.mu.Lock()
			p.said = append(p.said, a.Value.String())
			p.mu.Unlock()
		}
		return true
	})
	return nil
}

// newKernel serves a small tree of files, and two named locks that are held.
func newKernel(t testing.TB, dir string) *kernel {
	k := &kernel{t: t, unique: 100, asked: map[uint64]bool{}, replies: map[uint64][]byte{}, arrived: make(chan struct{}, 1)}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	k.fd = pair[0]
	require.NoError(t, os.Mkdir(filepath.Join(dir, "dir"), 0o777))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "f"), []byte("some text\n"), 0o666))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "dir", "g"), nil, 0o600))
	require.NoError(t, os.Symlink("f", filepath.Join(dir, "link")))
	require.NoError(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o666))
	k.engine, err = lockengine.NewLocal(lockengine.Config{Classify: Classify})
	require.NoError(t, err)
	k.s, err = NewServer(Config{
		FD: pair[1], Engine: k.engine, Now: k.engine.Now, Session: 1, Files: dir, AllowOther: true,
		DefaultTimeout: time.Hour, MaxTimeout: 24 * time.Hour, ViewMode: 0o555, Log: slog.New(&k.panics),
	})
	require.NoError(t, err)
	for name, timeout := range map[string]time.Duration{"held": time.Hour, "m_.x": time.Minute, "hold": 0} {
		_, err := k.engine.Try(&lockengine.Request{Class: lockengine.Named, Name: name, Timeout: timeout,
			Owner: lockengine.Owner{Session: 1, ID: 1}, Meta: "kind mkdir\ncommand sh\n"})
		require.NoError(t, err)
	}
	k.read.Go(k.receive)
	return k
}

// receive takes what the server sends, until the connection ends.
func (k *kernel) receive() {
	buf := make([]byte, bufferSize)
	for {
		n, err := unix.Read(k.fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return
		}
		k.take(append([]byte(nil), buf[:n]...))
		select {
		case k.arrived <- struct{}{}:
		default:
		}
	}
}

// take checks a frame as the kernel does (fuse_dev_do_write in fs/fuse/dev.c).
func (k *kernel) take(frame []byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(frame) < sizeofOutHeader || binary.NativeEndian.Uint32(frame) != uint32(len(frame)) {
		k.wrong = append(k.wrong, "a frame with a wrong length")
		return
	}
	unique, code := binary.NativeEndian.Uint64(frame[8:]), int32(binary.NativeEndian.Uint32(frame[4:]))
	_, twice := k.replies[unique]
	switch {
	case unique == 0 && code != notifyPoll && code != notifyStore && code != notifyPrune:
		k.wrong = append(k.wrong, "a notification that nobody knows")
	case unique == 0:
	case code > 0 || code <= -512 || code < 0 && len(frame) != sizeofOutHeader:
		k.wrong = append(k.wrong, "an error that is none")
	case twice:
		k.wrong = append(k.wrong, "a second reply")
	default:
		k.replies[unique] = frame
	}
}

func (k *kernel) reply(unique uint64) []byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.replies[unique]
}

// await waits for the reply to a request.
func (k *kernel) await(unique uint64) []byte {
	k.t.Helper()
	late := time.After(patience)
	for {
		if r := k.reply(unique); r != nil {
			return r
		}
		select {
		case <-k.arrived:
		case <-late:
			require.Fail(k.t, "no reply", "request %d", unique)
		}
	}
}

// send gives the server a request with a number of its own. It returns the
// reply, nil if the request waits or wants none.
func (k *kernel) send(in []byte) []byte {
	k.t.Helper()
	k.unique += numberStep
	unique := k.unique
	if len(in) >= sizeofInHeader {
		binary.NativeEndian.PutUint64(in[8:], unique|binary.NativeEndian.Uint64(in[8:])&resentBit)
	}
	done, served := make(chan struct{}), make(chan struct{})
	go func() {
		buf, out := k.s.buffer(), k.s.buffer()
		if n := copy(buf[:], in); k.s.dispatch(buf, n, out, func() { close(done) }) {
			k.s.host.buffers.Put(buf)
			close(done)
		}
		k.s.host.buffers.Put(out)
		close(served)
	}()
	for _, c := range []chan struct{}{served, done} {
		select {
		case <-c:
		case <-time.After(patience):
			require.Fail(k.t, "hangs", "%x", in)
		}
	}
	if len(in) < sizeofInHeader || !wantsReply(in) {
		return nil
	}
	unique = binary.NativeEndian.Uint64(in[8:])
	k.asked[unique] = true
	k.s.parking.mu.Lock()
	parked := k.s.parking.find(unique) != nil
	k.s.parking.mu.Unlock()
	if parked {
		return k.reply(unique)
	}
	return k.await(unique)
}

// wantsReply: the kernel waits for an answer to this request.
func wantsReply(in []byte) bool {
	const notifyReply = 41
	switch binary.NativeEndian.Uint32(in[4:]) {
	case opForget, opBatchForget, notifyReply, opInterrupt:
		return false
	}
	return true
}

// request makes a request: header, fixed part, and the rest.
func newRequest(opcode uint32, node uint64, body []byte) []byte {
	in := make([]byte, sizeofInHeader, sizeofInHeader+len(body))
	binary.NativeEndian.PutUint32(in[4:], opcode)
	binary.NativeEndian.PutUint64(in[16:], node)
	binary.NativeEndian.PutUint32(in[32:], uint32(os.Getpid()))
	in = append(in, body...)
	binary.NativeEndian.PutUint32(in, uint32(len(in)))
	return in
}

// words are a request's fixed part.
func words(vs ...uint64) (b []byte) {
	for _, v := range vs {
		b = binary.NativeEndian.AppendUint64(b, v)
	}
	return b
}

// lookup finds a name and returns the number of its node, 0 if there is none.
func (k *kernel) lookup(dir uint64, name string) uint64 {
	r := k.send(newRequest(opLookup, dir, append([]byte(name), 0)))
	return word(r, 0)
}

// word is the word at an offset of a reply's data, 0 if it is not there.
func word(reply []byte, off int) uint64 {
	if len(reply) < sizeofOutHeader+off+8 {
		return 0
	}
	return binary.NativeEndian.Uint64(reply[sizeofOutHeader+off:])
}

func errnoIn(reply []byte) syscall.Errno {
	return syscall.Errno(-int32(binary.NativeEndian.Uint32(reply[4:])))
}

// finish interrupts what waits, demands that each request was answered once
// and that the server still answers, and ends it.
func (k *kernel) finish() {
	k.t.Helper()
	for unique := range k.asked {
		if k.reply(unique) == nil {
			k.send(newRequest(opInterrupt, 0, words(unique)))
		}
	}
	for unique := range k.asked {
		k.await(unique)
	}
	root := k.send(newRequest(opGetattr, fuse.FUSE_ROOT_ID, words(0, 0)))
	require.Zero(k.t, errnoIn(root), "the root is gone")
	require.NotEmpty(k.t, word(root, 16+8*7), "the root has no mode")

	ended := make(chan struct{})
	go func() {
		k.s.close(nil)
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(patience):
		require.Fail(k.t, "the server does not end")
	}
	require.NoError(k.t, unix.Shutdown(k.fd, unix.SHUT_RDWR))
	k.read.Wait()
	unix.Close(k.fd)
	unix.Close(k.s.cfg.FD)
	require.Empty(k.t, k.wrong)
	require.Empty(k.t, k.panics.said, "survived a panic")
}
