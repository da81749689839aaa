package files

import (
	"bytes"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"
	capability = "security.capability"
)

// hasACL says whether a file carries an ACL, and whether it could. The mode shows the ACL's mask in the place of
// the group's rights, so a kernel that knows only the mode would give the group too much.
func hasACL(path string, dir bool) (has, supported bool) {
	for _, attr := range []string{aclAccess, aclDefault} {
		if attr == aclDefault && !dir {
			continue
		}
		_, err := unix.Lgetxattr(path, attr, nil)
		if err == nil {
			return true, true
		}
		if err == unix.EOPNOTSUPP {
			return false, false
		}
	}
	return false, true
}

// carried says whether attributes of this kind exist here: those for which the kernel has checked the caller's rights,
// with the server's word in rootOnly. Of system.* and of other names it leaves that to the filesystem (xattr_permission
// in fs/xattr.c), and the backing would see our rights: system.nfs4_acl, say, would be anybody's to set.
func carried(attr string) bool { return strings.HasPrefix(attr, "user.") || rootOnly(attr) }

// rootOnly says whether only root may set an attribute; the kernel has checked the details.
func rootOnly(attr string) bool {
	return strings.HasPrefix(attr, "security.") || strings.HasPrefix(attr, "trusted.")
}

// onPath runs a call that wants a path, with one that leads to the file of a node and nowhere else. The calls that
// follow links are right for it, since it is one, to a file that may be a symbolic link in turn.
func (f *FS) onPath(id uint64, call func(path string) error) fuse.Status {
	n, err := f.node(id)
	if err != nil {
		return status(err)
	}
	p, err := f.acquire(n)
	if err != nil {
		return status(err)
	}
	defer f.release(p)
	return status(call(procPath(p.fd)))
}

// GetXAttr reads an extended attribute; with a buffer that is too small it tells the size, and ERANGE.
func (f *FS) GetXAttr(_ <-chan struct{}, in *fuse.InHeader, attr string, dest []byte) (n uint32, code fuse.Status) {
	if !carried(attr) {
		return 0, fuse.Status(unix.EOPNOTSUPP)
	}
	code = f.onPath(in.NodeId, func(path string) error {
		size, err := unix.Getxattr(path, attr, dest)
		if err == nil && size > len(dest) {
			err = unix.ERANGE
		}
		n = uint32(max(size, 0))
		return err
	})
	return n, code
}

// ListXAttr lists the attributes that the caller may see, trusted ones if it is root.
func (f *FS) ListXAttr(_ <-chan struct{}, in *fuse.InHeader, dest []byte) (n uint32, code fuse.Status) {
	code = f.onPath(in.NodeId, func(path string) error {
		list, err := listAll(path)
		if err != nil {
			return err
		}
		list = visible(list, in.Uid == 0)
		n = uint32(len(list))
		if len(list) > len(dest) {
			return unix.ERANGE
		}
		copy(dest, list)
		return nil
	})
	return n, code
}

func listAll(path string) ([]byte, error) {
	buf := make([]byte, 1<<10)
	for {
		n, err := unix.Listxattr(path, buf)
		if err == unix.ERANGE && len(buf) < 64<<10 { // XATTR_LIST_MAX
			buf = make([]byte, 64<<10)
			continue
		}
		if err != nil {
			return nil, err
		}
		return buf[:n], nil
	}
}

func visible(list []byte, root bool) (kept []byte) {
	for name := range bytes.SplitAfterSeq(list, []byte{0}) {
		attr := string(bytes.TrimSuffix(name, []byte{0}))
		if !carried(attr) || !root && strings.HasPrefix(attr, "trusted.") {
			continue
		}
		kept = append(kept, name...)
	}
	return kept
}

// SetXAttr sets an extended attribute.
func (f *FS) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, attr string, data []byte) fuse.Status {
	switch {
	case !carried(attr):
		return fuse.Status(unix.EOPNOTSUPP)
	case rootOnly(attr) && in.Uid != 0:
		return fuse.EPERM
	}
	return f.onPath(in.NodeId, func(path string) error {
		set := func() error {
			return unix.Setxattr(path, attr, data[:min(len(data), int(in.Size))], int(in.Flags))
		}
		if in.Flags&unix.XATTR_CREATE == 0 {
			return set() // may be done twice, with XATTR_REPLACE too
		}
		if err := f.room(); err != nil {
			return err
		}
		now := f.lookXattr(path, attr)
		_, err := f.once(&in.InHeader, now, now[0] != nothing, set)
		return err
	})
}

// lookXattr is look for an attribute, which is there or not.
func (f *FS) lookXattr(path, attr string) (now state) {
	if f.journal == nil {
		return now
	}
	if _, err := unix.Getxattr(path, attr, nil); err == nil {
		now[0].ino = 1
	}
	return now
}

// RemoveXAttr removes an extended attribute. The kernel takes security.capability from a file that is written in
// the name of whoever writes.
func (f *FS) RemoveXAttr(_ <-chan struct{}, in *fuse.InHeader, attr string) fuse.Status {
	switch {
	case !carried(attr):
		return fuse.Status(unix.EOPNOTSUPP)
	case rootOnly(attr) && attr != capability && in.Uid != 0:
		return fuse.EPERM
	}
	return f.onPath(in.NodeId, func(path string) error {
		now := f.lookXattr(path, attr)
		_, err := f.once(in, now, now[0] == nothing, func() error { return unix.Removexattr(path, attr) })
		return err
	})
}
