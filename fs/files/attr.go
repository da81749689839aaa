package files

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// stat asks for the attributes of a node: through the handle, if there is one, else by whatever is at hand without
// opening anything, so that find(1) over a large tree costs no descriptors.
func (f *FS) stat(n *node, fh uint64, st *unix.Statx_t) error {
	if fh != 0 {
		if h, err := f.grab(fh); err == nil {
			defer f.drop(h)
			return statFD(h.fd, st)
		}
	}
	if p := f.cached(n); p != nil {
		defer f.release(p)
		return statFD(p.fd, st)
	}
	if f.statByName(n, st) {
		return nil
	}
	p, err := f.acquire(n)
	if err != nil {
		return err
	}
	defer f.release(p)
	return statFD(p.fd, st)
}

func (f *FS) statByName(n *node, st *unix.Statx_t) bool {
	f.mu.Lock()
	var l link
	if len(n.links) > 0 {
		l = n.links[0]
	}
	f.mu.Unlock()
	if l.parent == nil {
		return false
	}
	p, err := f.acquire(l.parent)
	if err != nil {
		return false
	}
	defer f.release(p)
	return f.statAt(p.fd, l.name, st) == nil && identOf(st) == n.ident
}

// GetAttr reads attributes.
func (f *FS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	var fh uint64
	if in.Flags()&fuse.FUSE_GETATTR_FH != 0 {
		fh = in.Fh()
	}
	return f.replyAttr(in.NodeId, fh, out)
}

func (f *FS) replyAttr(id, fh uint64, out *fuse.AttrOut) fuse.Status {
	n, err := f.node(id)
	if err != nil {
		return status(err)
	}
	var st unix.Statx_t
	if err := f.stat(n, fh, &st); err != nil {
		return status(err)
	}
	out.AttrValid = attrTTL(&st)
	fillAttr(&out.Attr, &st)
	return fuse.OK
}

// Statx is GetAttr with the birth time.
func (f *FS) Statx(_ <-chan struct{}, in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	n, err := f.node(in.NodeId)
	if err != nil {
		return status(err)
	}
	var fh uint64
	if in.GetattrFlags&fuse.FUSE_GETATTR_FH != 0 {
		fh = in.Fh
	}
	var st unix.Statx_t
	if err := f.stat(n, fh, &st); err != nil {
		return status(err)
	}
	out.AttrValid = attrTTL(&st)
	out.FromStatx(&st)
	out.Mask &= unix.STATX_BASIC_STATS | unix.STATX_BTIME // the mount id is the backing's
	out.Ino = shownIno(st.Ino)
	out.RdevMajor, out.RdevMinor = st.Rdev_major, st.Rdev_minor
	return fuse.OK
}

// SetAttr changes owner, mode, size and times, in this order: a new owner takes away suid, which a mode may give
// back, and a new size sets the times.
func (f *FS) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	n, err := f.node(in.NodeId)
	if err != nil {
		return status(err)
	}
	p, err := f.acquire(n)
	if err != nil {
		return status(err)
	}
	defer f.release(p)
	for _, set := range []func(*node, *pathFD, *fuse.SetAttrIn) error{f.setOwner, f.setMode, f.setSize, f.setTimes} {
		if err := set(n, p, in); err != nil {
			return status(err)
		}
	}
	var fh uint64
	if in.Valid&fuse.FATTR_FH != 0 {
		fh = in.Fh
	}
	return f.replyAttr(in.NodeId, fh, out)
}

func (f *FS) setOwner(_ *node, p *pathFD, in *fuse.SetAttrIn) error {
	uid, setUID := in.GetUID()
	gid, setGID := in.GetGID()
	if !setUID && !setGID {
		return nil
	}
	keep := func(id uint32, set bool) int {
		if !set {
			return -1
		}
		return int(id)
	}
	return unix.Fchownat(p.fd, "", keep(uid, setUID), keep(gid, setGID), unix.AT_EMPTY_PATH)
}

func (f *FS) setMode(n *node, p *pathFD, in *fuse.SetAttrIn) error {
	mode, ok := in.GetMode()
	if !ok {
		return nil
	}
	if err := f.checkChmod(n, p, mode); err != nil {
		return err
	}
	return unix.Fchmodat(unix.AT_FDCWD, procPath(p.fd), mode, 0)
}

func (f *FS) setSize(n *node, p *pathFD, in *fuse.SetAttrIn) error {
	size, ok := in.GetSize()
	if !ok {
		return nil
	}
	if !n.isRegular() {
		return unix.EINVAL // the kernel refuses it itself; to open a fifo would wait, and a device may do anything
	}
	if in.Valid&fuse.FATTR_FH != 0 {
		if h, err := f.grab(in.Fh); err == nil {
			defer f.drop(h)
			if h.writable() {
				return truncate(h.fd, size, in.Valid)
			}
		}
	}
	fd, err := openFD(p.fd, unix.O_WRONLY|unix.O_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return truncate(fd, size, in.Valid)
}

func truncate(fd int, size uint64, valid uint32) error {
	if valid&fuse.FATTR_KILL_SUIDGID != 0 {
		if err := killSuidgid(fd); err != nil {
			return err
		}
	}
	return retry(func() error { return unix.Ftruncate(fd, int64(size)) })
}

func (f *FS) setTimes(_ *node, p *pathFD, in *fuse.SetAttrIn) error {
	if in.Valid&(fuse.FATTR_ATIME|fuse.FATTR_MTIME) == 0 {
		return nil
	}
	times := []unix.Timespec{
		timeToSet(in.Valid, fuse.FATTR_ATIME, fuse.FATTR_ATIME_NOW, in.Atime, in.Atimensec),
		timeToSet(in.Valid, fuse.FATTR_MTIME, fuse.FATTR_MTIME_NOW, in.Mtime, in.Mtimensec),
	}
	// The path is a magic link: it leads to the file itself, and a symbolic link there is not followed further.
	return unix.UtimesNanoAt(unix.AT_FDCWD, procPath(p.fd), times, 0)
}

func timeToSet(valid, set, now uint32, sec uint64, nsec uint32) unix.Timespec {
	switch {
	case valid&set == 0:
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	case valid&now != 0:
		return unix.Timespec{Nsec: unix.UTIME_NOW}
	}
	return unix.Timespec{Sec: int64(sec), Nsec: int64(nsec)}
}

// StatFs describes the backing filesystem.
func (f *FS) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	var st unix.Statfs_t
	if err := unix.Fstatfs(f.root.fd.fd, &st); err != nil {
		return status(err)
	}
	*out = fuse.StatfsOut{
		Blocks: st.Blocks, Bfree: st.Bfree, Bavail: st.Bavail, Files: st.Files, Ffree: st.Ffree,
		Bsize: uint32(st.Bsize), Frsize: uint32(st.Frsize), NameLen: uint32(st.Namelen),
	}
	return fuse.OK
}

// Access is never sent with default_permissions; ENOSYS makes the kernel stop asking without it.
func (f *FS) Access(_ <-chan struct{}, _ *fuse.AccessIn) fuse.Status { return fuse.ENOSYS }

// Ioctl: there are none.
func (f *FS) Ioctl(_ <-chan struct{}, _ *fuse.IoctlIn, _ []byte, _ *fuse.IoctlOut, _ []byte) fuse.Status {
	return fuse.Status(unix.ENOTTY)
}
