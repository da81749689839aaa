package fs

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// aioContext is a queue of io_setup(2), by which one system call makes many. A
// write to /dev/fuse is done when io_submit(2) returns.
//
// Concurrency: one goroutine at a time.
type aioContext struct {
	id     uintptr // 0: there is none
	done   int     // whose results were not taken
	blocks [maxHeld]iocb
	list   [maxHeld]*iocb
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

// setup prepares to write to fd. It has no effect where that is not allowed, or
// where all queues are taken (/proc/sys/fs/aio-max-nr).
func (a *aioContext) setup(fd int) {
	if _, _, errno := syscall.RawSyscall(unix.SYS_IO_SETUP, aioRoom, uintptr(unsafe.Pointer(&a.id)), 0); errno != 0 {
		a.id = 0
	}
	for i := range a.blocks {
		a.blocks[i] = iocb{opcode: iocbWrite, fd: uint32(fd)}
		a.list[i] = &a.blocks[i]
	}
}

// submit makes the first n writes of blocks, and returns how many were made. Those
// have succeeded, or failed as they would fail again.
func (a *aioContext) submit(n int) int {
	if a.id == 0 {
		return 0
	}
	if a.done+n > aioRoom {
		var results [aioRoom][4]uint64 // struct io_event
		got, _, errno := syscall.RawSyscall6(unix.SYS_IO_GETEVENTS, a.id, 0, aioRoom, uintptr(unsafe.Pointer(&results)), 0, 0)
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
