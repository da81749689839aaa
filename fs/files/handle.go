package files

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// handle is an open file description of the kernel: one OPEN, CREATE or OPENDIR, until its RELEASE.
type handle struct {
	fh       uint64
	node     *node
	fd       int
	writable bool
	uid      uint32     // who opened it
	dir      *dirStream // nil for files

	passed bool // its I/O is passed through. GUARDED_BY(node.io.mu)

	users  int  // requests now using fd. GUARDED_BY(FS.mu)
	closed bool // RELEASE has come. GUARDED_BY(FS.mu)
}

// addHandle gives h its number, which is not used again in this run.
func (f *FS) addHandle(h *handle) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lastFh++
	h.fh = f.lastFh
	f.open[h.fh] = h
	if h.node.handles == nil {
		h.node.handles = map[*handle]struct{}{}
	}
	h.node.handles[h] = struct{}{}
}

// grab finds a handle and keeps its descriptor open until drop.
func (f *FS) grab(fh uint64) (*handle, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.open[fh]
	if h == nil {
		return nil, unix.EBADF
	}
	h.users++
	return h, nil
}

// anyHandle grabs one of the handles of n, nil if it has none.
func (f *FS) anyHandle(n *node) *handle {
	f.mu.Lock()
	defer f.mu.Unlock()
	for h := range n.handles {
		h.users++
		return h
	}
	return nil
}

func (f *FS) drop(h *handle) {
	f.mu.Lock()
	h.users--
	var ds []doomed
	if h.closed && h.users == 0 {
		ds = append(ds, h.node.doom(h.fd))
	}
	f.mu.Unlock()
	f.dispose(ds)
}

// removeHandle takes a handle from the table; its descriptor goes with the last request that uses it.
func (f *FS) removeHandle(fh uint64) *handle {
	f.mu.Lock()
	h := f.open[fh]
	if h == nil {
		f.mu.Unlock()
		return nil
	}
	delete(f.open, fh)
	delete(h.node.handles, h)
	h.closed = true
	var ds []doomed
	if h.users == 0 {
		ds = append(ds, h.node.doom(h.fd))
	}
	ds = f.dropUnused(h.node, ds)
	f.mu.Unlock()
	f.dispose(ds)
	return h
}

// backingFlags are the flags of open(2) that mean the same on the backing file. O_APPEND is not among them: the
// kernel sends offsets, and it may write back a shared mapping through any handle of the inode, which an appending
// descriptor would put at the end. O_DIRECT would ask us for aligned buffers, and the O_SYNC flags come with each
// WRITE.
func backingFlags(flags uint32) int {
	const keep = unix.O_ACCMODE | unix.O_TRUNC | unix.O_NOATIME
	return int(flags)&keep | unix.O_CLOEXEC
}

func canWrite(flags uint32) bool { return flags&unix.O_ACCMODE != unix.O_RDONLY }

// Open opens a regular file. Only with O_TRUNC can it take long.
func (f *FS) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n, err := f.node(in.NodeId)
	if err != nil {
		return status(err)
	}
	if !n.isRegular() {
		return fuse.Status(unix.ENXIO) // the kernel opens fifos, sockets and devices itself
	}
	p, err := f.acquire(n)
	if err != nil {
		return status(err)
	}
	defer f.release(p)
	fd, err := f.openNode(p, in)
	if err != nil {
		return status(err)
	}
	h := &handle{node: n, fd: fd, writable: canWrite(in.Flags), uid: in.Uid}
	f.finishOpen(h, out)
	return fuse.OK
}

func (f *FS) openNode(p *pathFD, in *fuse.OpenIn) (fd int, err error) {
	err = retry(func() error {
		fd, err = unix.Open(procPath(p.fd), backingFlags(in.Flags), 0)
		return err
	})
	if err != nil {
		return -1, err
	}
	if in.Flags&unix.O_TRUNC != 0 && in.Mode&fuse.OPEN_KILL_SUIDGID != 0 {
		if err := killSuidgid(fd); err != nil {
			unix.Close(fd)
			return -1, err
		}
	}
	return fd, nil
}

// finishOpen enters a handle and chooses how the kernel does its I/O.
func (f *FS) finishOpen(h *handle, out *fuse.OpenOut) {
	f.addHandle(h)
	out.Fh = h.fh
	f.chooseIO(h, out)
}

// Create makes a file that does not exist yet and opens it. When the name turns out to be taken, ESTALE makes the
// kernel look it up again and open it with the checks that an existing file deserves.
func (f *FS) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	if err := checkName(name); err != nil {
		return status(err)
	}
	dir, p, err := f.directory(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer f.release(p)
	fd, err := f.createAt(dir, p, in, name, unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW)
	if err == unix.EEXIST && in.Flags&unix.O_EXCL == 0 {
		return fuse.Status(unix.ESTALE)
	}
	if err != nil {
		return status(err)
	}
	at, quiet := f.changesOf(dir)
	n, err := f.finishCreate(in, fd, out, func(n *node) error { return f.prepare(n, p.fd, name) })
	if err != nil {
		return status(err)
	}
	f.seen(dir, name, n, at, quiet)
	return fuse.OK
}

// createAt makes a file that belongs to the caller and opens it.
func (f *FS) createAt(dir *node, p *pathFD, in *fuse.CreateIn, name string, flags int) (fd int, err error) {
	err = f.changing(dir, &in.Caller, func() error {
		return retry(func() error {
			fd, err = unix.Openat(p.fd, name, backingFlags(in.Flags)|flags, in.Mode&0o7777)
			return err
		})
	})
	return fd, err
}

// finishCreate makes node and handle of a file that was created. It asks the descriptor, not the name, so they
// belong to the same file whatever has become of the name.
func (f *FS) finishCreate(in *fuse.CreateIn, fd int, out *fuse.CreateOut, prepare func(*node) error) (*node, error) {
	var st unix.Statx_t
	err := statFD(fd, &st)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	n, err := f.admit(&st, prepare)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	fillEntry(&out.EntryOut, n, &st)
	f.finishOpen(&handle{node: n, fd: fd, writable: canWrite(in.Flags), uid: in.Uid}, &out.OpenOut)
	return n, nil
}

// Tmpfile makes a file without a name. LINK can give it one.
func (f *FS) Tmpfile(_ <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	dir, p, err := f.directory(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer f.release(p)
	fd, err := f.createAt(dir, p, in, ".", unix.O_TMPFILE|int(in.Flags)&unix.O_EXCL)
	if err != nil {
		return status(err)
	}
	_, err = f.finishCreate(in, fd, out, func(*node) error { return nil })
	return status(err)
}

// Release ends a handle.
func (f *FS) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	if h := f.removeHandle(in.Fh); h != nil {
		f.endIO(h)
	}
}

// Flush has nothing to do: nothing is buffered here. The lock requests that hang on it are the caller's.
func (f *FS) Flush(_ <-chan struct{}, in *fuse.FlushIn) fuse.Status { return fuse.OK }
