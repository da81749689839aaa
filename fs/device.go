package fs

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Wire facts of include/uapi/linux/fuse.h that go-fuse keeps to itself.
const (
	opLookup      = 1
	opForget      = 2
	opGetattr     = 3
	opSetattr     = 4
	opReadlink    = 5
	opMkdir       = 9
	opRmdir       = 11
	opOpen        = 14
	opRead        = 15
	opWrite       = 16
	opStatfs      = 17
	opRelease     = 18
	opFlush       = 25
	opInit        = 26
	opReaddir     = 28
	opReleasedir  = 29
	opGetlk       = 31
	opSetlk       = 32
	opSetlkw      = 33
	opAccess      = 34
	opInterrupt   = 36
	opDestroy     = 38
	opPoll        = 40
	opBatchForget = 42
	opReaddirplus = 44

	sizeofInHeader  = 40
	sizeofOutHeader = 16

	notifyPoll  = 1 // FUSE_NOTIFY_POLL
	notifyStore = 4 // FUSE_NOTIFY_STORE
	notifyPrune = 9 // FUSE_NOTIFY_PRUNE

	pollScheduleNotify = 1 // FUSE_POLL_SCHEDULE_NOTIFY

	iocBackingOpen  = 0x4010e501 // FUSE_DEV_IOC_BACKING_OPEN
	iocBackingClose = 0x4004e502 // FUSE_DEV_IOC_BACKING_CLOSE

	// maxWrite bounds the data of one READ or WRITE. The kernel wants the
	// read buffer to hold it plus the largest header.
	maxWrite   = 1 << 20
	bufferSize = maxWrite + 4096
)

// fuseDevice is an open /dev/fuse.
//
// Concurrency: one goroutine reads and answers many; every other method may be
// called from any.
type fuseDevice struct {
	fd   int
	idle int // reads in a row that brought no request
	// busy says that the reader may keep its processor while it waits.
	busy  bool
	waits bool // a read waits for a request: O_NONBLOCK is not set
	aio   *aioContext
}

var _ connection = (*fuseDevice)(nil)

// shortWaits is for how many waits in a row the reader keeps its processor. The
// runtime ends each after 10 ms, which makes a second, or sooner.
const shortWaits = 100

// preempts: the runtime asks for a processor by a signal. It does so unless one of
// two settings of GODEBUG has it stop that (runtime, "Environment Variables").
var preempts = !strings.Contains(os.Getenv("GODEBUG"), "asyncpreemptoff=") && !strings.Contains(os.Getenv("GODEBUG"), "gccheckmark=")

func newFuseDevice(fd int) *fuseDevice {
	d := &fuseDevice{fd: fd, busy: preempts && preemptionEndsReads()}
	d.setWaits(d.busy)
	d.aio = newAIO(fd)
	return d
}

// read implements [connection]. For up to a second after the last request it waits
// without a word to Go's scheduler. That would take the processor away after 10 ms,
// and then run its monitor every 20 µs for some time whenever a request ends such a
// wait (runtime.sysmon), which costs more than a lock does. The signal by which
// the runtime asks for the processor, every 10 ms and for the garbage collector,
// ends the wait; a time limit would do that too, but to arm a timer and to disarm
// it takes 2 µs, and 8 in a virtual machine if no other would ring before.
func (d *fuseDevice) read(buf []byte) (int, error) {
	for {
		n, errno := d.call(unix.SYS_READ, unsafe.Pointer(&buf[0]), len(buf))
		if errno == 0 {
			d.idle = 0
			return int(n), nil
		}
		if again, err := d.readFailed(errno); !again {
			return 0, err
		}
		if d.busy && !d.waits {
			d.setWaits(true)
			continue
		}
		if d.idle++; d.busy && d.idle < shortWaits {
			runtime.Gosched() // who became ready here meanwhile goes first
		} else {
			p := [1]unix.PollFd{{Fd: int32(d.fd), Events: unix.POLLIN}}
			_, _ = unix.Poll(p[:], -1) // of which Go's scheduler is told
		}
	}
}

// readFailed reports whether to read again.
func (d *fuseDevice) readFailed(errno syscall.Errno) (again bool, err error) {
	switch errno {
	case unix.EINTR, unix.EAGAIN, unix.ENOENT: // ENOENT: the request was interrupted before it could be read
		return true, nil
	case unix.ENODEV, unix.ECONNABORTED:
		return false, nil
	}
	return false, fmt.Errorf("read /dev/fuse: %w", errno)
}

// tryRead implements [connection].
func (d *fuseDevice) tryRead(buf []byte) (int, error) {
	if d.waits {
		d.setWaits(false) // it stays so until nothing comes: many ask
	}
	for {
		n, errno := d.call(unix.SYS_READ, unsafe.Pointer(&buf[0]), len(buf))
		if errno == 0 {
			return int(n), nil
		}
		if again, _ := d.readFailed(errno); !again || errno == unix.EAGAIN {
			return 0, errno
		}
	}
}

// setWaits has reads wait for a request, or not.
func (d *fuseDevice) setWaits(wait bool) {
	flags := unix.O_RDWR
	if !wait {
		flags |= unix.O_NONBLOCK
	}
	_, _, _ = syscall.RawSyscall(unix.SYS_FCNTL, uintptr(d.fd), unix.F_SETFL, uintptr(flags)) // it cannot fail for an open file
	d.waits = wait
}

// call reads or writes without telling Go's scheduler that this thread might
// block.
func (d *fuseDevice) call(number uintptr, p unsafe.Pointer, n int) (uintptr, syscall.Errno) {
	done, _, errno := syscall.RawSyscall6(number, uintptr(d.fd), uintptr(p), uintptr(n), 0, 0, 0)
	return done, errno
}

// preemptionEndsReads has the signal by which the runtime asks for a processor end
// a read(2) of the device, and reports whether it does now. The runtime's handlers
// have the kernel go on with what they interrupt (SA_RESTART, sigaction(2)); of
// calls that may wait that leaves out poll(2), but not read. Any call that the
// signal interrupts can end with EINTR from now on: Go's own packages make it
// again, and so must we (package files does by openAt and retry).
func preemptionEndsReads() bool {
	var action struct { // as the kernel has it, but for what comes behind these two
		handler, flags uintptr
		rest           [8]uintptr
	}
	const (
		sigInfo = 4          // SA_SIGINFO: so this is the runtime's, and where flags are
		restart = 0x10000000 // SA_RESTART
		setSize = 8          // of a set of signals, in bytes
	)
	_, _, errno := syscall.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(unix.SIGURG), 0, uintptr(unsafe.Pointer(&action)), setSize, 0, 0)
	if errno != 0 || action.flags&sigInfo == 0 {
		return false
	}
	action.flags &^= restart
	_, _, errno = syscall.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(unix.SIGURG), uintptr(unsafe.Pointer(&action)), 0, setSize, 0, 0)
	return errno == 0
}

// send implements [connection].
func (d *fuseDevice) send(frame []byte) error {
	if isShortAnswer(frame) {
		return d.writeAtOnce(unsafe.Pointer(&frame[0]), len(frame))
	}
	for {
		_, err := unix.Write(d.fd, frame)
		if err != unix.EINTR && err != unix.EAGAIN {
			return err
		}
	}
}

// answer implements [connection].
func (d *fuseDevice) answer(unique uint64, code int32) error {
	var b [sizeofOutHeader]byte // it does not leave the stack
	putOutHeader(b[:], len(b), code, unique)
	if _, errno := d.call(unix.SYS_WRITE, unsafe.Pointer(&b), len(b)); errno == 0 {
		return nil
	}
	return d.writeAtOnce(unsafe.Pointer(&b), len(b)) // again, or to fail in the same way
}

// answerAndRead implements [connection]. Whoever is answered mostly runs before write(2)
// returns, and leaves nothing of ours in the caches: so there is little code, and
// stack, between the two calls.
func (d *fuseDevice) answerAndRead(a *lockAnswer, buf []byte) (int, error) {
	_ = d.answer(a.unique, a.code) // it may be that nobody waits for it any more
	return d.read(buf)
}

// answersMany implements [connection].
func (d *fuseDevice) answersMany() bool { return d.aio.id != 0 }

// answerAll implements [connection].
func (d *fuseDevice) answerAll(held []lockAnswer) {
	done := 0
	if len(held) > 1 {
		for i, a := range held {
			putOutHeader(d.aio.frames[i][:], sizeofOutHeader, a.code, a.unique)
		}
		done = d.aio.submit(len(held))
	}
	for _, a := range held[done:] {
		_ = d.answer(a.unique, a.code) // as with all answers: nobody may wait for it any more
	}
}

// isShortAnswer reports whether a frame is one that the kernel takes without
// waiting for anything: a notification may wait for a page or an inode.
func isShortAnswer(frame []byte) bool {
	return len(frame) >= sizeofOutHeader && len(frame) <= 4096 && binary.NativeEndian.Uint64(frame[8:]) != 0
}

// writeAtOnce writes what the kernel takes at once.
func (d *fuseDevice) writeAtOnce(p unsafe.Pointer, n int) error {
	for {
		_, errno := d.call(unix.SYS_WRITE, p, n)
		switch errno {
		case 0:
			return nil
		case unix.EINTR, unix.EAGAIN:
		default:
			return errno
		}
	}
}

// device is the connection to the kernel, and the frames that are sent to it.
//
// Concurrency: every method may be called from any goroutine.
type device struct{ connection }

// write sends one frame. A request that is no longer waited for (ENOENT) or a
// connection that is gone (ENODEV) is no failure of ours; told by false.
func (d device) write(frame []byte) bool { return d.send(frame) == nil }

// replyError answers a request with no data: 0 is success.
func (d device) replyError(unique uint64, errno syscall.Errno) bool {
	return d.answer(unique, -int32(errno)) == nil
}

// reply answers a request with data.
func (d device) reply(unique uint64, data []byte) bool {
	b := make([]byte, sizeofOutHeader+len(data))
	putOutHeader(b, len(b), 0, unique)
	copy(b[sizeofOutHeader:], data)
	return d.write(b)
}

// notifyPoll wakes the pollers of the kernel's poll handle kh.
func (d device) notifyPoll(kh uint64) {
	var b [sizeofOutHeader + 8]byte
	putOutHeader(b[:], len(b), notifyPoll, 0)
	binary.NativeEndian.PutUint64(b[sizeofOutHeader:], kh)
	d.write(b[:])
}

// apparentSize is more than any synthetic file's text.
const apparentSize = 1 << 30

// notifySize makes the kernel believe that a file has apparentSize bytes, or
// more, until it asks for its attributes again. stat(2) does ask, and is told 0 as in
// sysfs (before Linux 5.16 only if its attributes are not to be believed); but
// sendfile(2) and splice(2) into a pipe, by which busybox's cat reads, go by what
// the kernel believes and would find nothing to read (mm/filemap.c,
// filemap_splice_read). They learn the real size from the first short read.
//
// It stores one byte at the end. That would wait for a read of the same page,
// which waits for us: so the end is somewhere else each time, where nobody can
// aim a read at.
func (d device) notifySize(node uint64) {
	var b [sizeofOutHeader + 24 + 1]byte // and struct fuse_notify_store_out
	putOutHeader(b[:], len(b), notifyStore, 0)
	binary.NativeEndian.PutUint64(b[16:], node)
	binary.NativeEndian.PutUint64(b[24:], apparentSize+rand.Uint64N(1<<44))
	binary.NativeEndian.PutUint32(b[32:], 1)
	d.write(b[:])
}

// notifyPrune asks the kernel to forget nodes that nobody uses (Linux 6.18;
// those before answer EINVAL). Unlike FUSE_NOTIFY_INVAL_ENTRY it takes no lock of
// a directory, for which it could wait (fs/fuse/dev.c, fuse_notify_prune).
func (d device) notifyPrune(nodes []uint64) {
	b := make([]byte, sizeofOutHeader+16, sizeofOutHeader+16+8*len(nodes)) // and struct fuse_notify_prune_out
	binary.NativeEndian.PutUint32(b[sizeofOutHeader:], uint32(len(nodes)))
	for _, id := range nodes {
		b = binary.NativeEndian.AppendUint64(b, id)
	}
	putOutHeader(b, len(b), notifyPrune, 0)
	d.write(b)
}

func putOutHeader(b []byte, length int, code int32, unique uint64) {
	binary.NativeEndian.PutUint32(b, uint32(length))
	binary.NativeEndian.PutUint32(b[4:], uint32(code))
	binary.NativeEndian.PutUint64(b[8:], unique)
}

// Register gives an open file to the kernel for passthrough (linux/fuse.h,
// struct fuse_backing_map) and returns its backing id. It needs CAP_SYS_ADMIN.
func (d *fuseDevice) Register(fd int) (int32, error) {
	m := struct {
		fd      int32
		flags   uint32
		padding uint64
	}{fd: int32(fd)}
	id, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(d.fd), iocBackingOpen, uintptr(unsafe.Pointer(&m)))
	if errno != 0 {
		return 0, errno
	}
	return int32(id), nil
}

// Unregister takes a backing id back.
func (d *fuseDevice) Unregister(id int32) {
	v := uint32(id)
	_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(d.fd), iocBackingClose, uintptr(unsafe.Pointer(&v)))
}
