package fs

import (
	"bytes"
	"io"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"lockfs/lockengine"
)

// Open files.

func (r *raw) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if !isSynthetic(in.NodeId) {
		return r.FS.Open(cancel, in, out)
	}
	n, ok := r.s.node(in.NodeId)
	if !ok {
		return fuse.Status(syscall.ESTALE)
	}
	h := r.s.handles.get(handleNumber(in.Unique))
	if h == nil {
		var err error
		if h, err = r.s.open(n, in); err != nil {
			return statusOf(err)
		}
		r.s.openHandle(h)
	}
	out.Fh = h.fh
	out.OpenFlags = fuse.FOPEN_DIRECT_IO
	switch {
	case h.stream == nil:
		r.s.dev.notifySize(n.id)
	case n.row.once:
		// Without KEEP_CACHE an open would wait for the page that another
		// process's sendfile(2) waits for.
		out.OpenFlags |= fuse.FOPEN_STREAM | fuse.FOPEN_NONSEEKABLE | fuse.FOPEN_KEEP_CACHE
	default:
		out.OpenFlags |= fuse.FOPEN_STREAM | fuse.FOPEN_NONSEEKABLE
	}
	return fuse.OK
}

// open renders a synthetic file, from one state of the engine.
func (s *Server) open(n node, in *fuse.OpenIn) (*handle, error) {
	h := &handle{fh: handleNumber(in.Unique), node: n, uid: in.Uid, flags: in.Flags}
	if err := s.mayOpen(in.Uid, n); err != nil {
		return nil, err
	}
	c := callerOf(&in.InHeader)
	if in.Flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		if err := s.mayWrite(n, c); err != nil {
			return nil, err
		}
	}
	var err error
	switch {
	case n.row.stream != nil:
		h.stream = n.row.stream(s, n)
		h.stream.h, h.stream.space = h, s.host.space(c.tid)
		err = h.stream.start()
	case n.row.text != nil, n.row.lockText != nil:
		var text longText
		if err = s.renderText(&text, n, c); err == nil {
			err = h.setText(&text)
		} else {
			text.free()
		}
	default:
		err = syscall.EISDIR
	}
	return h, err
}

// renderText writes the text of a synthetic file.
func (s *Server) renderText(text *longText, n node, c caller) error {
	if n.row.text != nil {
		return n.row.text(s, n, c, text)
	}
	l, err := s.lockOf(n)
	if err == nil {
		_, err = io.WriteString(text, n.row.lockText(&lockView{l, s, c, s.now()}))
	}
	return err
}

// mayWrite says whether the caller may open a node for writing.
func (s *Server) mayWrite(n node, c caller) error {
	if n.inView() {
		return syscall.EROFS
	}
	if n.row.write == nil {
		return syscall.EPERM
	}
	l, err := s.lockOf(n)
	if err == nil && !c.may(l.Who.UID) {
		err = syscall.EPERM
	}
	return err
}

func (r *raw) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	if !isSynthetic(in.NodeId) {
		return r.FS.Read(cancel, in, buf)
	}
	h := r.s.handles.get(in.Fh)
	if h == nil {
		return nil, fuse.EBADF
	}
	if h.taking != nil {
		if errno := r.s.readTaken(h); errno != 0 {
			return nil, fuse.Status(errno)
		}
	}
	text, err := h.readText(buf, in.Offset)
	return fuse.ReadResultData(text), statusOf(err)
}

func (r *raw) Writev(cancel <-chan struct{}, in *fuse.WriteIn, data [][]byte) (uint32, fuse.Status) {
	if !isSynthetic(in.NodeId) {
		return r.FS.Writev(cancel, in, data)
	}
	return 0, fuse.ENOSYS // the kernel's side of go-fuse calls Write then
}

func (r *raw) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	if !isSynthetic(in.NodeId) {
		return r.FS.Write(cancel, in, data)
	}
	h := r.s.handles.get(in.Fh)
	if h == nil || h.node.row.write == nil {
		return 0, fuse.EBADF
	}
	if err := r.s.write(h, in, data); err != nil {
		return 0, statusOf(err)
	}
	return uint32(len(data)), fuse.OK
}

// write hands the whole of what was written through a handle so far to the
// row, so that a text in several pieces arrives as one.
func (s *Server) write(h *handle, in *fuse.WriteIn, data []byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.lastWrite == requestID(in.Unique) {
		return nil // sent again, and done before
	}
	l, err := s.lockOf(h.node)
	if err != nil {
		if was, again := s.intended(in.Unique); again && s.now().Boot < was.expiry {
			return nil // it was released since. One that ran out may not have been renewed.
		}
		return err
	}
	offset := in.Offset
	if h.flags&syscall.O_APPEND != 0 && h.written == nil && h.node.row == noteRow {
		h.written = []byte(wholeLine(l.Note))
	}
	text := h.written
	if h.node.row == timeoutRow && bytes.HasSuffix(text, []byte("\n")) {
		text, offset = nil, 0 // the next renewal through the same descriptor
	}
	switch {
	case h.flags&syscall.O_APPEND != 0:
	case offset > uint64(len(text)):
		return syscall.EINVAL
	default:
		text = text[:offset]
	}
	text = append(text[:len(text):len(text)], data...)
	if err := h.node.row.write(s, in.Unique, l, string(text)); err != nil {
		return err
	}
	h.written, h.lastWrite = text, requestID(in.Unique)
	s.saveHandle(h)
	return nil
}

func (r *raw) Flush(cancel <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	if isSynthetic(in.NodeId) {
		return fuse.OK
	}
	// close(2) of any descriptor of a file drops the process's record locks
	// on it (fcntl(2)).
	if key, ok := r.FS.LockKey(in.NodeId); ok {
		r.s.engine.DropOwner(key, lockengine.Owner{Session: r.s.cfg.Session, ID: in.LockOwner})
	}
	return r.FS.Flush(cancel, in)
}

func (r *raw) Release(cancel <-chan struct{}, in *fuse.ReleaseIn) {
	if !isSynthetic(in.NodeId) {
		r.s.engine.DropHandle(in.Fh)
		r.FS.Release(cancel, in)
		return
	}
	r.s.engine.DropHandle(in.Fh) // first: sent again, it is still known
	if h := r.s.closeHandle(in.Fh); h != nil && h.stream != nil {
		h.stream.close()
	}
}

func (r *raw) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	if !isSynthetic(in.NodeId) {
		return r.FS.Fsync(cancel, in)
	}
	return fuse.OK
}

func (r *raw) Lseek(cancel <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	if !isSynthetic(in.NodeId) {
		return r.FS.Lseek(cancel, in, out)
	}
	return fuse.EINVAL
}

func (r *raw) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	if !isSynthetic(in.NodeId) {
		return r.FS.Fallocate(cancel, in)
	}
	return fuse.Status(syscall.EOPNOTSUPP)
}

func (r *raw) CopyFileRange(cancel <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	if !isSynthetic(in.NodeId) && !isSynthetic(in.NodeIdOut) {
		return r.FS.CopyFileRange(cancel, in)
	}
	return 0, fuse.Status(syscall.EOPNOTSUPP) // the kernel copies by hand then
}

func (r *raw) Ioctl(cancel <-chan struct{}, in *fuse.IoctlIn, inbuf []byte, out *fuse.IoctlOut, outbuf []byte) fuse.Status {
	if !isSynthetic(in.NodeId) {
		return r.FS.Ioctl(cancel, in, inbuf, out, outbuf)
	}
	return fuse.Status(syscall.ENOTTY)
}

// Open directories.

func (r *raw) OpenDir(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if !isSynthetic(in.NodeId) {
		return r.FS.OpenDir(cancel, in, out)
	}
	n, ok := r.s.node(in.NodeId)
	if !ok {
		return fuse.Status(syscall.ESTALE)
	}
	out.Fh = handleNumber(in.Unique)
	if r.s.handles.get(out.Fh) != nil {
		return fuse.OK // sent again
	}
	if err := r.s.mayOpen(in.Uid, n); err != nil {
		return statusOf(err)
	}
	r.s.openHandle(&handle{fh: out.Fh, node: n, uid: in.Uid, flags: in.Flags})
	return fuse.OK
}

func (r *raw) ReleaseDir(in *fuse.ReleaseIn) {
	if !isSynthetic(in.NodeId) {
		r.FS.ReleaseDir(in)
		return
	}
	r.s.closeHandle(in.Fh)
}

func (r *raw) FsyncDir(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	if !isSynthetic(in.NodeId) {
		return r.FS.FsyncDir(cancel, in)
	}
	return fuse.OK
}

// Cookies of the first two entries of every directory; the fixed and other
// entries come after.
const (
	dotCookie    = 1
	dotDotCookie = 2
	firstCookie  = 2
)

func (r *raw) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	if !isSynthetic(in.NodeId) {
		return r.FS.ReadDir(cancel, in, out)
	}
	return statusOf(r.s.readDir(in, func(e fuse.DirEntry) bool { return out.AddDirEntry(e) }))
}

// ReadDirPlus gives no attributes in the synthetic part: they are never kept.
func (r *raw) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	if !isSynthetic(in.NodeId) {
		return r.FS.ReadDirPlus(cancel, in, out)
	}
	return statusOf(r.s.readDir(in, func(e fuse.DirEntry) bool { return out.AddDirLookupEntry(e) != nil }))
}

func (s *Server) readDir(in *fuse.ReadIn, add func(fuse.DirEntry) bool) error {
	n, ok := s.node(in.NodeId)
	if !ok {
		return syscall.ESTALE
	}
	entry := func(name string, c node, cookie uint64) bool {
		return add(fuse.DirEntry{Name: name, Mode: c.row.mode, Ino: c.id, Off: cookie})
	}
	after := in.Offset
	if after < dotCookie && !entry(".", n, dotCookie) || after < dotDotCookie && !entry("..", n, dotDotCookie) {
		return nil
	}
	if n.token != 0 {
		if _, err := s.lockOf(n); err != nil {
			return err
		}
	}
	for i, c := range n.row.children {
		cookie := firstCookie + uint64(i) + 1
		if cookie <= after || c.unlisted {
			continue
		}
		child, err := s.fixedChild(n, c)
		if err == nil && !entry(c.name, child, cookie) {
			return nil
		}
	}
	if n.row.list != nil {
		n.row.list(s, n, callerOf(&in.InHeader), after, entry)
	}
	return nil
}
