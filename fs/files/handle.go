package files

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// handle is an open file description of the kernel: one OPEN, CREATE or OPENDIR, until its RELEASE.
type handle struct {
	fh    uint64
	node  *node
	fd    int        // -1: a predecessor's, which could not be opened again
	flags int        // of open(2), to open it again
	uid   uint32     // who opened it
	dir   *dirStream // nil for files

	passed bool // its I/O is passed through. Does not change once it is in the table

	users  int  // requests now using fd. GUARDED_BY(FS.mu)
	closed bool // RELEASE has come. GUARDED_BY(FS.mu)
	stored bool // Config.Store has a duplicate of fd, or is being given one. GUARDED_BY(FS.mu)
}

func (h *handle) writable() bool { return h.flags&unix.O_ACCMODE != unix.O_RDONLY }

// newHandle is a handle with the number of the request that opens it, so that a request which is sent again finds
// the handle it made before.
func newHandle(in *fuse.InHeader, n *node, fd, flags int) *handle {
	return &handle{fh: number(in), node: n, fd: fd, flags: flags & reopenFlags, uid: in.Uid}
}

// addHandle enters h, given to the store before if it has to be.
func (f *FS) addHandle(h *handle) {
	f.mu.Lock()
	for f.mustStore(h) {
		h.stored = true
		f.mu.Unlock()
		f.put(h)
		f.mu.Lock()
	}
	f.enter(h)
	f.note(recordHandle, h.record)
	f.mu.Unlock()
}

// enter is the table's part of addHandle. Needs mu.
func (f *FS) enter(h *handle) {
	f.open[h.fh] = h
	if h.node.handles == nil {
		h.node.handles = map[*handle]struct{}{}
	}
	h.node.handles[h] = struct{}{}
}

// leave undoes enter. Needs mu.
func (f *FS) leave(h *handle) {
	delete(f.open, h.fh)
	delete(h.node.handles, h)
}

// openedBefore is the handle that a request made when it was sent the first time, nil if it did not come to that,
// or has come to nothing.
func (f *FS) openedBefore(in *fuse.InHeader) *handle {
	if !again(in) {
		return nil
	}
	f.mu.Lock()
	h := f.open[number(in)]
	f.mu.Unlock()
	if h != nil && h.fd < 0 {
		f.end(h.fh)
		return nil
	}
	return h
}

// grab finds a handle and keeps its descriptor open until drop.
func (f *FS) grab(fh uint64) (*handle, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.open[fh]
	if h == nil {
		return nil, unix.EBADF
	}
	if h.fd < 0 {
		return nil, unix.ESTALE
	}
	h.users++
	return h, nil
}

// anyHandle grabs one of the handles of n, nil if it has none.
func (f *FS) anyHandle(n *node) *handle {
	f.mu.Lock()
	defer f.mu.Unlock()
	for h := range n.handles {
		if h.fd >= 0 {
			h.users++
			return h
		}
	}
	return nil
}

func (f *FS) drop(h *handle) {
	f.mu.Lock()
	h.users--
	var ds []doomed
	if h.closed && h.users == 0 {
		ds = append(ds, h.doom())
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
	f.leave(h)
	f.note(recordClosed, func(b []byte) []byte { return appendU64(b, fh) })
	h.closed = true
	var ds []doomed
	if h.users == 0 {
		ds = append(ds, h.doom())
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

// Open opens a regular file. Only with O_TRUNC can it take long.
func (f *FS) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if h := f.openedBefore(&in.InHeader); h != nil {
		h.answer(out)
		return fuse.OK
	}
	if err := f.room(); err != nil {
		return status(err)
	}
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
	f.finishOpen(newHandle(&in.InHeader, n, fd, backingFlags(in.Flags)), out)
	return fuse.OK
}

func (f *FS) openNode(p *pathFD, in *fuse.OpenIn) (fd int, err error) {
	if fd, err = openFD(p.fd, backingFlags(in.Flags)); err != nil {
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
	if h := f.openedBefore(&in.InHeader); h != nil {
		f.named(dir, name, h.node)
		return f.createdBefore(h, out)
	}
	if err := f.room(); err != nil {
		return status(err)
	}
	fd, err := f.createOnce(dir, p, in, name)
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

// createdBefore answers a request that has made file and handle already.
func (f *FS) createdBefore(h *handle, out *fuse.CreateOut) fuse.Status {
	var st unix.Statx_t
	if err := statFD(h.fd, &st); err != nil {
		return status(err)
	}
	f.mu.Lock()
	h.node.lookups++
	f.mu.Unlock()
	fillEntry(&out.EntryOut, h.node, &st)
	h.answer(&out.OpenOut)
	return fuse.OK
}

// named records a name that a predecessor made, but may not have recorded.
func (f *FS) named(dir *node, name string, n *node) {
	f.mu.Lock()
	ds := f.setName(dir, name, n)
	f.mu.Unlock()
	f.dispose(ds)
}

// createOnce makes a file, or opens the one that this request made before it was sent again.
func (f *FS) createOnce(dir *node, p *pathFD, in *fuse.CreateIn, name string) (fd int, err error) {
	const flags = unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW
	now := state{f.look(p, name)}
	done, err := f.once(&in.InHeader, now, now[0] != nothing, func() error {
		fd, err = f.createAt(dir, p, in, name, flags)
		return err
	})
	if !done {
		return fd, err
	}
	fd, err = openAt(p.fd, name, backingFlags(in.Flags)|unix.O_NOFOLLOW, 0)
	if err == unix.EACCES {
		// The mode, which counts from the next open(2) on only, is against us.
		if err := unix.Unlinkat(p.fd, name, 0); err != nil {
			return -1, err
		}
		return f.createAt(dir, p, in, name, flags)
	}
	return fd, err
}

// createAt makes a file that belongs to the caller and opens it.
func (f *FS) createAt(dir *node, p *pathFD, in *fuse.CreateIn, name string, flags int) (fd int, err error) {
	err = f.changing(dir, &in.Caller, func() error {
		fd, err = openAt(p.fd, name, backingFlags(in.Flags)|flags, in.Mode&0o7777)
		return err
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
	f.finishOpen(newHandle(&in.InHeader, n, fd, backingFlags(in.Flags)), &out.OpenOut)
	return n, nil
}

// Tmpfile makes a file without a name. LINK can give it one.
func (f *FS) Tmpfile(_ <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	if h := f.openedBefore(&in.InHeader); h != nil {
		return f.createdBefore(h, out)
	}
	if err := f.room(); err != nil {
		return status(err)
	}
	dir, p, err := f.directory(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer f.release(p)
	fd, err := f.createAt(dir, p, in, ".", unix.O_TMPFILE|int(in.Flags)&unix.O_EXCL)
	if err != nil {
		return status(err)
	}
	_, err = f.finishCreate(in, fd, out, func(n *node) error {
		n.sheltered = true
		return nil
	})
	return status(err)
}

// Release ends a handle.
func (f *FS) Release(_ <-chan struct{}, in *fuse.ReleaseIn) { f.end(in.Fh) }

func (f *FS) end(fh uint64) {
	if h := f.removeHandle(fh); h != nil && h.dir == nil {
		f.endIO(h)
	}
}

// Flush has nothing to do: nothing is buffered here. The lock requests that hang on it are the caller's.
func (f *FS) Flush(_ <-chan struct{}, in *fuse.FlushIn) fuse.Status { return fuse.OK }
