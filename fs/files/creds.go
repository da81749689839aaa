package files

import (
	"runtime"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// callerCreds lets one thread create files that belong to the caller from their first moment.
//
// Only the filesystem uid and gid of the thread change. Leaving uid 0 drops the capabilities that override file
// permissions from the effective set (capabilities(7)); they are raised again, because the kernel has checked the
// caller's rights already, with the supplementary groups that we do not have.
type callerCreds struct {
	caps [2]unix.CapUserData
}

func newCallerCreds() (*callerCreds, error) {
	c := &callerCreds{}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	return c, unix.Capget(&hdr, &c.caps[0])
}

// asCaller runs op, which creates something, with the filesystem identity of the caller.
func (f *FS) asCaller(c *fuse.Caller, op func() error) error {
	if f.creds == nil && f.shared && c.Uid != f.uid {
		return unix.EPERM // it would be ours, with the mode of the caller's choice
	}
	if f.creds == nil || (c.Uid == 0 && c.Gid == 0) {
		return op()
	}
	if c.Uid == ^uint32(0) || c.Gid == ^uint32(0) {
		return unix.EOVERFLOW // not mapped into our user namespace
	}
	runtime.LockOSThread()
	err := f.creds.become(c.Uid, c.Gid)
	if err == nil {
		err = op()
	}
	if !setFSIDs(0, 0) {
		// The thread stays locked, so it dies with this request's goroutine rather than serving others.
		f.log.Error("a thread could not leave the caller's identity", "uid", c.Uid, "gid", c.Gid)
		return err
	}
	runtime.UnlockOSThread()
	return err
}

func (c *callerCreds) become(uid, gid uint32) error {
	if !setFSIDs(uid, gid) {
		return unix.EPERM
	}
	caps := c.caps
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	return unix.Capset(&hdr, &caps[0])
}

// setFSIDs sets both for this thread only. The calls report no errors, so the result is read back: an id of -1 is
// never valid and changes nothing.
func setFSIDs(uid, gid uint32) bool {
	const ask = ^uint32(0)
	setFSID(unix.SYS_SETFSGID, gid)
	setFSID(unix.SYS_SETFSUID, uid)
	return setFSID(unix.SYS_SETFSGID, ask) == gid && setFSID(unix.SYS_SETFSUID, ask) == uid
}

// setFSID is a raw system call because the wrappers apply to every thread of the process.
func setFSID(call uintptr, id uint32) (old uint32) {
	r, _, _ := unix.RawSyscall(call, uintptr(id), 0, 0)
	return uint32(r)
}
