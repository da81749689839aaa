package files

import (
	"errors"
	"strings"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// status is the errno the backing gave; anything else is a fault of ours and shown as EIO.
func status(err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return fuse.Status(errno)
	}
	return fuse.EIO
}

// retry repeats a system call that a signal cut short: the Go runtime sends itself many, and the caller's own
// signals never reach us.
func retry(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

// openAt is openat(2), which may wait: for who has a lease on the file, or for a network.
func openAt(dir int, name string, flags int, mode uint32) (fd int, err error) {
	err = retry(func() error {
		fd, err = unix.Openat(dir, name, flags, mode)
		return err
	})
	return fd, err
}

// openFD opens the file that another descriptor is of.
func openFD(fd, flags int) (int, error) { return openAt(unix.AT_FDCWD, procPath(fd), flags, 0) }

// checkName refuses what is not one name below a directory. The kernel does not send such names, and if it did they
// must not lead out.
func checkName(name string) error {
	switch {
	case name == "":
		return unix.ENOENT
	case name == "." || name == ".." || strings.ContainsAny(name, "/\x00"):
		return unix.EINVAL
	}
	return nil
}
