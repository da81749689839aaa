package fs

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// aioContext writes frames to a file by io_submit(2), many in one system call.
//
// Concurrency: one goroutine at a time.
type aioContext struct {
	id      uintptr // of io_setup(2); 0: there is none
	done    int     // whose results were not taken
	frames  [maxHeld][sizeofOutHeader]byte
	blocks  [maxHeld]iocb // of one frame each
	list    [maxHeld]*iocb
	results [aioRoom][4]uint64 // struct io_event, which nobody looks at
}

// iocb is struct iocb of linux/aio_abi.h. What has no name here is 0.
type iocb struct {
	_      [2]uint64 // data, key, rw_flags
	opcode uint16
	_      int16 // reqprio
	fd     uint32
	buf, n uint64
	_      [3]uint64 // offset, reserved, flags, resfd
}

const (
	iocbWrite = 1 // IOCB_CMD_PWRITE
	// aioRoom is how many results the kernel keeps for us.
	aioRoom = 128
)

// newAIO prepares to write to fd. Where that is not allowed, or all contexts are
// taken (/proc/sys/fs/aio-max-nr), nothing can be submitted.
func newAIO(fd int) *aioContext {
	a := new(aioContext)
	if _, _, errno := syscall.RawSyscall(unix.SYS_IO_SETUP, aioRoom, uintptr(unsafe.Pointer(&a.id)), 0); errno != 0 {
		a.id = 0
	}
	for i := range a.blocks {
		f := &a.frames[i]
		a.blocks[i] = iocb{opcode: iocbWrite, fd: uint32(fd), buf: uint64(uintptr(unsafe.Pointer(f))), n: uint64(len(f))}
		a.list[i] = &a.blocks[i]
	}
	return a
}

// submit writes the first n frames, and returns how many were written: whether
// one was taken is not told.
func (a *aioContext) submit(n int) int {
	if a.done+n > aioRoom {
		got, _, errno := syscall.RawSyscall6(unix.SYS_IO_GETEVENTS, a.id, 0, aioRoom, uintptr(unsafe.Pointer(&a.results)), 0, 0)
		if errno != 0 {
			return 0
		}
		a.done -= int(got)
	}
	made, _, errno := syscall.RawSyscall(unix.SYS_IO_SUBMIT, a.id, uintptr(n), uintptr(unsafe.Pointer(&a.list)))
	if errno != 0 {
		return 0
	}
	a.done += int(made)
	return int(made)
}
