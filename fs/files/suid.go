package files

import (
	"golang.org/x/sys/unix"
)

// With FUSE_HANDLE_KILLPRIV_V2 the kernel leaves it to us to take suid and sgid from a file that is written,
// truncated or given away; chown(2) on the backing does so itself, and so does any write with security.capability.

// privileged says whether a regular file has bits that a write by an ordinary user takes away. Without group
// execution sgid means mandatory locking, and stays (setattr_should_drop_sgid in fs/attr.c).
func privileged(mode uint32) bool {
	if mode&unix.S_IFMT != unix.S_IFREG {
		return false
	}
	return mode&unix.S_ISUID != 0 || mode&(unix.S_ISGID|unix.S_IXGRP) == unix.S_ISGID|unix.S_IXGRP
}

func withoutPrivileges(mode uint32) uint32 {
	mode &^= unix.S_ISUID
	if mode&unix.S_IXGRP != 0 {
		mode &^= unix.S_ISGID
	}
	return mode & 0o7777
}

// killSuidgid takes suid and sgid from an open file.
func killSuidgid(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if !privileged(st.Mode) {
		return nil
	}
	return unix.Fchmod(fd, withoutPrivileges(st.Mode))
}

// Files that are passed through are written without our knowledge. So a file with suid or sgid is not passed
// through to a writer to begin with; the functions below cover the file that is, and then meets the other half. A
// writer that is root or the owner gains nothing by the bits, so only strangers count.

func (h *handle) stranger(owner uint32) bool {
	return h.writable() && h.uid != 0 && h.uid != owner
}

// killForWriter takes the bits at once from a file that must be passed through because others have it open so.
func (f *FS) killForWriter(h *handle, mode uint32) {
	if err := unix.Fchmod(h.fd, withoutPrivileges(mode)); err != nil {
		f.log.Warn("suid and sgid stay on a file that is being written", "inode", h.node.ident.ino, "error", err)
	}
}

// checkChmod refuses with ETXTBSY to give suid or sgid to a file that a stranger can write past us.
func (f *FS) checkChmod(n *node, p *pathFD, mode uint32) error {
	if !privileged(uint32(n.fmt) | mode&0o7777) {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(p.fd, &st); err != nil {
		return err
	}
	n.io.mu.Lock()
	defer n.io.mu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	for h := range n.handles {
		if h.passed && h.stranger(st.Uid) {
			return unix.ETXTBSY
		}
	}
	return nil
}
