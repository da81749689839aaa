package files

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// heir serves a real mount with one process after another.
type heir struct {
	*memory
	t       *testing.T
	dir     string // the backing directory
	change  func(*Config)
	dev     int
	init    []byte // the kernel sends it only once
	fs      *FS
	served  *fuse.ProtocolServer
	resends bool // requests that were sent again may still come
	deaths  int
	resent  int
}

// Of include/uapi/linux/fuse.h.
const (
	opInit, opForget, opBatchForget = 26, 2, 42

	notifyResend    = 7
	iocBackingOpen  = 0x4010e501
	iocBackingClose = 0x4004e502
)

func (h *heir) Register(fd int) (id int32, err error) {
	h.stepped(func() {
		m := fuse.BackingMap{Fd: int32(fd)}
		r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(h.dev), iocBackingOpen, uintptr(unsafe.Pointer(&m)))
		if errno != 0 {
			err = errno
			return
		}
		id = int32(r)
		h.ids[id] = true
	})
	return id, err
}

func (h *heir) Unregister(id int32) {
	h.stepped(func() {
		v := uint32(id)
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(h.dev), iocBackingClose, uintptr(unsafe.Pointer(&v)))
		if errno == 0 {
			delete(h.ids, id)
		}
	})
}

// succeed starts the next process.
func (h *heir) succeed() {
	h.fs = h.start(h.t, h.dir, func(c *Config) {
		c.AllowOther, c.Passthrough = true, h
		h.change(c)
	})
	h.served = fuse.NewProtocolServer(top{h.fs}, &fuse.MountOptions{
		MaxWrite:          1 << 20,
		MaxBackground:     1 << 10,
		ExtraCapabilities: fuse.CAP_HANDLE_KILLPRIV_V2 | fuse.CAP_ATOMIC_O_TRUNC,
		Logger:            log.New(io.Discard, "", 0),
	})
	if h.init == nil {
		return
	}
	h.served.HandleRequest([][]byte{h.init}, [][]byte{make([]byte, 4096)})
	frame := make([]byte, 16)
	binary.NativeEndian.PutUint32(frame, 16)
	binary.NativeEndian.PutUint32(frame[4:], notifyResend)
	_, err := unix.Write(h.dev, frame)
	require.NoError(h.t, err, "needs a kernel that sends requests again: 6.9")
	h.resends = true
}

func (h *heir) serve(r *rand.Rand) {
	in, out := make([]byte, 1<<20+4096), make([]byte, 1<<20+4096)
	for {
		n, err := unix.Read(h.dev, in)
		switch {
		case err == unix.ENODEV:
			return
		case err != nil: // interrupted, before or after it was sent
			continue
		}
		h.request(r, slices.Clone(in[:n]), out)
	}
}

func (h *heir) request(r *rand.Rand, in, out []byte) {
	header := (*fuse.InHeader)(unsafe.Pointer(&in[0]))
	forgets := header.Opcode == opForget || header.Opcode == opBatchForget
	switch {
	case again(header):
		h.resent++
	case h.resends && !forgets:
		h.resends = false // those that are sent again come first
		h.fs.Claimed()
	}
	if header.Opcode == opInit {
		h.init = slices.Clone(in)
	}
	steps := 1 << 20
	if h.init != nil && r.IntN(20) == 0 {
		steps = r.IntN(10)
	}
	var size int
	var code fuse.Status
	serve := func() { size, code = h.served.HandleRequest([][]byte{in}, [][]byte{out}) }
	if killedAfter(h.memory, steps, serve) || steps < 10 { // in the middle, or before the answer
		bury(h.fs)
		h.deaths++
		h.succeed()
		return
	}
	if !code.Ok() {
		size = 16
		binary.NativeEndian.PutUint32(out[4:], uint32(-int32(code)))
		binary.NativeEndian.PutUint64(out[8:], header.Unique)
		binary.NativeEndian.PutUint32(out, 16)
	}
	if size > 0 {
		_, _ = unix.Write(h.dev, out[:size])
	}
	h.fs.Answered(header.Unique)
}

func TestHandover(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"passthrough": func(*Config) {},
		"cached":      func(c *Config) { c.Passthrough = nil },
		"names":       func(c *Config) { c.Passthrough, c.noHandles, c.MaxFDs = nil, true, 16 },
	} {
		t.Run(name, func(t *testing.T) { handOver(t, change) })
	}
}

func handOver(t *testing.T, change func(*Config)) {
	base, err := os.MkdirTemp("", "lockfs-files-")
	require.NoError(t, err)
	defer os.RemoveAll(base)
	backing, mnt := filepath.Join(base, "backing"), filepath.Join(base, "mnt")
	require.NoError(t, os.Mkdir(backing, 0o755))
	require.NoError(t, os.Mkdir(mnt, 0o755))
	h := &heir{memory: newMemory(t), t: t, dir: backing, change: change}
	h.dev, err = unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(h.dev)
	theGuard.say("mounted " + mnt)
	data := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other", h.dev)
	require.NoError(t, unix.Mount("lockfs-test", mnt, "fuse.lockfs-test", unix.MS_NODEV, data))
	h.succeed()
	done := make(chan struct{})
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	go func() { h.serve(rand.New(rand.NewPCG(seed, 0))); close(done) }()

	var wg sync.WaitGroup
	errs := make([]error, 4)
	rounds := make([]int, len(errs))
	end := time.Now().Add(3 * time.Second)
	for w := range errs {
		wg.Go(func() {
			dir := fmt.Sprintf("%s/files/%d", mnt, w)
			for time.Now().Before(end) && errs[w] == nil {
				errs[w] = round(dir, rounds[w])
				rounds[w]++
			}
		})
	}
	wg.Wait()
	require.NoError(t, errors.Join(errs...))
	var st unix.Statfs_t // unmounting drops the RELEASEs that nobody has read yet; this is read after them
	require.NoError(t, unix.Statfs(mnt+"/files", &st))
	require.NoError(t, unix.Unmount(mnt, unix.MNT_DETACH))
	theGuard.say("unmounted " + mnt)
	select {
	case <-done:
	case <-time.After(deadline):
		t.Fatal("the mount did not end")
	}
	defer h.fs.Close()
	checkTables(t, h.fs)
	require.Zero(t, h.fs.NumHandles())
	require.Empty(t, h.fds)
	require.Empty(t, h.ids)
	require.Greater(t, h.deaths, 20)
	require.Greater(t, h.resent, 20)
	t.Logf("%v rounds, %d processes, %d requests sent again, %d pinned", rounds, h.deaths+1, h.resent, h.fs.NumPinned())
}

// round does in a directory of its own what must succeed, and looks at what comes of it.
func round(dir string, i int) (err error) {
	step := func(what string, e error) bool {
		if e != nil && err == nil {
			err = fmt.Errorf("%s in %s, round %d: %w", what, dir, i, e)
		}
		return err == nil
	}
	p := func(name string) string { return dir + "/" + name }
	if !step("mkdir", unix.Mkdir(dir, 0o755)) {
		return err
	}
	fd, e := unix.Open(p("a"), unix.O_CREAT|unix.O_EXCL|unix.O_RDWR, 0o400)
	if !step("create", e) {
		return err
	}
	defer unix.Close(fd)
	text := fmt.Sprint("text ", i)
	_, e = unix.Pwrite(fd, []byte(text), 0)
	ok := step("write", e) &&
		step("setxattr", unix.Setxattr(p("a"), "user.x", []byte("1"), unix.XATTR_CREATE)) &&
		step("removexattr", unix.Removexattr(p("a"), "user.x")) &&
		step("link", unix.Link(p("a"), p("b"))) &&
		step("symlink", unix.Symlink("a", p("s"))) &&
		step("names", expectNames(dir, "a", "b", "s")) &&
		step("rename", unix.Rename(p("b"), p("c"))) &&
		step("names", expectNames(dir, "a", "c", "s")) &&
		step("exchange", unix.Renameat2(unix.AT_FDCWD, p("s"), unix.AT_FDCWD, p("c"), unix.RENAME_EXCHANGE)) &&
		step("unlink", unix.Unlink(p("s"))) &&
		step("text", expectText(fd, text, 1)) &&
		step("write over", writeFile(p("d"))) &&
		step("rename over", unix.Rename(p("d"), p("a"))) &&
		step("text after", expectText(fd, text, 0)) &&
		step("unlink", unix.Unlink(p("a"))) &&
		step("unlink", unix.Unlink(p("c"))) &&
		step("tmpfile", useTmpfile(dir, text)) &&
		step("text still", expectText(fd, text, 0)) &&
		step("names", expectNames(dir)) &&
		step("rmdir", unix.Rmdir(dir))
	if ok && unix.Access(dir, 0) != unix.ENOENT {
		step("access", errors.New("it is there again"))
	}
	return err
}

// writeFile does without package os: that asks whether the file can be polled, and holds up one of Go's processors
// until the server, in this very process, has answered.
func writeFile(path string) error {
	fd, err := unix.Open(path, unix.O_CREAT|unix.O_TRUNC|unix.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte("d"))
	return err
}

func expectNames(dir string, want ...string) error {
	es, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var got []string
	for _, e := range es {
		got = append(got, e.Name())
	}
	if !slices.Equal(got, want) {
		return fmt.Errorf("%v instead of %v", got, want)
	}
	return nil
}

func expectText(fd int, want string, links uint64) error {
	got := make([]byte, 100)
	n, err := unix.Pread(fd, got, 0)
	if err == nil && !bytes.Equal(got[:n], []byte(want)) {
		err = fmt.Errorf("%q instead of %q", got[:n], want)
	}
	var st unix.Stat_t
	err = errors.Join(err, unix.Fstat(fd, &st))
	if err == nil && uint64(st.Nlink) != links {
		err = fmt.Errorf("%d links instead of %d", st.Nlink, links)
	}
	return err
}

func useTmpfile(dir, text string) error {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if _, err := unix.Pwrite(fd, []byte(text), 0); err != nil {
		return err
	}
	return expectText(fd, text, 0)
}
