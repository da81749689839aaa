package files

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

func fillEntry(out *fuse.EntryOut, n *node, st *unix.Statx_t) {
	out.NodeId = n.id
	out.Generation = 1 // node numbers are never used again
	out.EntryValid = entryTTL
	out.AttrValid = attrTTL(st)
	fillAttr(&out.Attr, st)
}

// Lookup finds a name in a directory.
func (f *FS) Lookup(_ <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if err := checkName(name); err != nil {
		return status(err)
	}
	dir, p, err := f.directory(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer f.release(p)
	n, st, err := f.resolve(dir, p, name, f.room)
	if err != nil {
		return status(err)
	}
	fillEntry(out, n, st)
	return fuse.OK
}

// resolve makes the node of a name, with one more lookup of the kernel's counted. A node that is new has to be
// allowed; what a request has just created always is.
func (f *FS) resolve(dir *node, p *pathFD, name string, allow func() error) (*node, *unix.Statx_t, error) {
	at, quiet := f.changesOf(dir)
	st := new(unix.Statx_t)
	if err := f.statAt(p.fd, name, st); err != nil {
		if err == unix.ENOENT {
			f.seen(dir, name, nil, at, quiet)
		}
		return nil, nil, err
	}
	n, err := f.admit(st, func(n *node) error {
		if err := allow(); err != nil {
			return err
		}
		return f.prepare(n, p.fd, name)
	})
	if err != nil {
		return nil, nil, err
	}
	f.seen(dir, name, n, at, quiet)
	return n, st, nil
}

// prepare does for a new node what takes system calls. A file swapped in between is found out by reopen.
func (f *FS) prepare(n *node, dirfd int, name string) error {
	if f.acls && n.fmt != unix.S_IFLNK {
		if has, _ := hasACL(procPath(dirfd)+"/"+name, n.isDir()); has {
			f.warnACL(name)
			return unix.EOPNOTSUPP
		}
	}
	if f.mountFD >= 0 {
		if h, _, err := unix.NameToHandleAt(dirfd, name, 0); err == nil {
			n.handle = &h
		}
	}
	return nil
}

// warnACL says the first few times which files are refused for their ACLs.
func (f *FS) warnACL(name string) {
	if f.warnedACL.Add(1) <= 10 {
		f.log.Warn("refusing a file with a POSIX ACL, which cannot be enforced through the mount", "name", name)
	}
}

func allowed() error { return nil }

// make creates a name in a directory with the caller's identity and answers with its entry.
func (f *FS) make(in *fuse.InHeader, c *fuse.Caller, name string, out *fuse.EntryOut, create func(dirfd int) error) fuse.Status {
	if err := f.room(); err != nil {
		return status(err)
	}
	if err := checkName(name); err != nil {
		return status(err)
	}
	dir, p, err := f.directory(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer f.release(p)
	now := state{f.look(p, name)}
	_, err = f.once(in, now, now[0] != nothing, func() error {
		return f.changing(dir, c, func() error { return create(p.fd) })
	})
	if err != nil {
		return status(err)
	}
	n, st, err := f.resolve(dir, p, name, allowed)
	if err != nil {
		return status(err)
	}
	fillEntry(out, n, st)
	return fuse.OK
}

// changing runs something that makes a name in dir.
func (f *FS) changing(dir *node, c *fuse.Caller, create func() error) error {
	f.beginChange(dir)
	defer f.endChange(nil, dir)
	return f.asCaller(c, create)
}

// directory finds a node to work in. Give the descriptor back with release.
func (f *FS) directory(id uint64) (*node, *pathFD, error) {
	n, err := f.node(id)
	if err != nil {
		return nil, nil, err
	}
	p, err := f.acquire(n)
	return n, p, err
}

// Mkdir makes a directory; a setgid parent's group is inherited as the backing does it.
func (f *FS) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	return f.make(&in.InHeader, &in.Caller, name, out, func(dirfd int) error {
		return unix.Mkdirat(dirfd, name, in.Mode&0o7777)
	})
}

// Mknod makes a fifo, socket, regular file or device. The kernel lets only CAP_MKNOD make devices.
func (f *FS) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	return f.make(&in.InHeader, &in.Caller, name, out, func(dirfd int) error {
		return unix.Mknodat(dirfd, name, in.Mode, int(in.Rdev))
	})
}

// Symlink makes a symbolic link; what it points to is the caller's affair and never followed here.
func (f *FS) Symlink(_ <-chan struct{}, in *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	return f.make(in, &in.Caller, name, out, func(dirfd int) error {
		return unix.Symlinkat(target, dirfd, name)
	})
}

// Link gives a file one more name, or its first to one of Tmpfile.
func (f *FS) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	old, err := f.node(in.Oldnodeid)
	if err != nil {
		return status(err)
	}
	p, err := f.acquire(old)
	if err != nil {
		return status(err)
	}
	defer f.release(p)
	self := &fuse.Caller{Owner: fuse.Owner{Uid: f.uid}} // nothing is created, so there is no owner to set
	return f.make(&in.InHeader, self, name, out, func(dirfd int) error {
		return unix.Linkat(unix.AT_FDCWD, procPath(p.fd), dirfd, name, unix.AT_SYMLINK_FOLLOW)
	})
}

// Readlink reads a symbolic link.
func (f *FS) Readlink(_ <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	n, err := f.node(in.NodeId)
	if err != nil {
		return nil, status(err)
	}
	p, err := f.acquire(n)
	if err != nil {
		return nil, status(err)
	}
	defer f.release(p)
	buf := make([]byte, unix.PathMax)
	k, err := unix.Readlinkat(p.fd, "", buf)
	if err != nil {
		return nil, status(err)
	}
	return buf[:k], fuse.OK
}
