package files

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Read answers with a result that reads straight into the reply.
func (f *FS) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	h, err := f.grab(in.Fh)
	if err != nil {
		return nil, status(err)
	}
	return &readResult{fs: f, h: h, off: int64(in.Offset), size: min(int(in.Size), len(buf))}, fuse.OK
}

// readResult reads when the reply is written, and holds the handle until then.
type readResult struct {
	fs   *FS
	h    *handle
	off  int64
	size int
}

func (r *readResult) Size() int { return r.size }
func (r *readResult) Done()     { r.fs.drop(r.h) }

// Bytes serves the stock server of go-fuse.
func (r *readResult) Bytes(buf []byte) ([]byte, fuse.Status) {
	buf = buf[:min(len(buf), r.size)]
	n, code := r.Readv([][]byte{buf})
	return buf[:n], code
}

// Readv serves fuse.ProtocolServer. A short read would be taken for the end of the file, so it goes on until there
// is no more.
func (r *readResult) Readv(dst [][]byte) (int, fuse.Status) {
	total := 0
	for _, b := range dst {
		for len(b) > 0 && total < r.size {
			n, err := unix.Pread(r.h.fd, b[:min(len(b), r.size-total)], r.off+int64(total))
			switch {
			case err == unix.EINTR:
				continue
			case err != nil && total == 0:
				return 0, status(err)
			case err != nil || n == 0:
				return total, fuse.OK
			}
			total += n
			b = b[n:]
		}
	}
	return total, fuse.OK
}

// Write serves data in one piece.
func (f *FS) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	return f.Writev(cancel, in, [][]byte{data})
}

// Writev writes at the offset given, for appending writers too: the kernel knows the end of the file and lets one
// append at a time, and a write that is sent again then lands where it did before.
func (f *FS) Writev(_ <-chan struct{}, in *fuse.WriteIn, data [][]byte) (uint32, fuse.Status) {
	h, err := f.grab(in.Fh)
	if err != nil {
		return 0, status(err)
	}
	defer f.drop(h)
	if in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0 {
		if err := killSuidgid(h.fd); err != nil {
			return 0, status(err)
		}
	}
	written, flags := 0, syncFlags(in)
	for _, b := range data {
		n, err := writeAll(h.fd, b, int64(in.Offset)+int64(written), flags)
		written += n
		if err != nil && written == 0 {
			return 0, status(err)
		}
		if err != nil || n < len(b) {
			break // what was written counts; the next attempt gets the error
		}
	}
	return uint32(written), fuse.OK
}

// syncFlags are what a file opened with O_SYNC or O_DSYNC asks of each write. Pages written back later have nobody
// waiting for them.
func syncFlags(in *fuse.WriteIn) int {
	switch {
	case in.WriteFlags&fuse.WRITE_CACHE != 0:
		return 0
	case in.Flags&unix.O_SYNC == unix.O_SYNC:
		return unix.RWF_SYNC
	case in.Flags&unix.O_DSYNC != 0:
		return unix.RWF_DSYNC
	}
	return 0
}

func writeAll(fd int, b []byte, off int64, flags int) (written int, err error) {
	for written < len(b) {
		n, err := writeSome(fd, b[written:], off+int64(written), flags)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return written, err
		case n == 0:
			return written, unix.EIO
		default:
			written += n
		}
	}
	return written, nil
}

func writeSome(fd int, b []byte, off int64, flags int) (int, error) {
	if flags == 0 {
		return unix.Pwrite(fd, b, off)
	}
	return unix.Pwritev2(fd, [][]byte{b}, off, flags)
}

// fsyncData is FUSE_FSYNC_FDATASYNC.
const fsyncData = 1

// Fsync makes a file durable.
func (f *FS) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	h, err := f.grab(in.Fh)
	if err != nil {
		return status(err)
	}
	defer f.drop(h)
	sync := unix.Fsync
	if in.FsyncFlags&fsyncData != 0 {
		sync = unix.Fdatasync
	}
	return status(retry(func() error { return sync(h.fd) }))
}

// FsyncDir makes the names in a directory durable.
func (f *FS) FsyncDir(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return f.Fsync(cancel, in)
}

// Fallocate reserves space, punches holes and so on.
func (f *FS) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	h, err := f.grab(in.Fh)
	if err != nil {
		return status(err)
	}
	defer f.drop(h)
	if err := killForCaller(h, &in.Caller); err != nil {
		return status(err)
	}
	return status(retry(func() error {
		return unix.Fallocate(h.fd, in.Mode, int64(in.Offset), int64(in.Length))
	}))
}

// killForCaller takes suid and sgid where the kernel does not say whether to, but would have on a file of its own.
func killForCaller(h *handle, c *fuse.Caller) error {
	if c.Uid == 0 {
		return nil
	}
	return killSuidgid(h.fd)
}

// Lseek finds data and holes; the other ways to seek are the kernel's.
func (f *FS) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	h, err := f.grab(in.Fh)
	if err != nil {
		return status(err)
	}
	defer f.drop(h)
	if in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE {
		return fuse.EINVAL
	}
	off, err := unix.Seek(h.fd, int64(in.Offset), int(in.Whence))
	out.Offset = uint64(off)
	return status(err)
}

// maxCopy keeps one copy short enough to be interrupted between two; its answer has 32 bits.
const maxCopy = 1 << 30

// CopyFileRange lets the backing copy or share the data.
func (f *FS) CopyFileRange(_ <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	src, err := f.grab(in.FhIn)
	if err != nil {
		return 0, status(err)
	}
	defer f.drop(src)
	dst, err := f.grab(in.FhOut)
	if err != nil {
		return 0, status(err)
	}
	defer f.drop(dst)
	if err := killForCaller(dst, &in.Caller); err != nil {
		return 0, status(err)
	}
	var n int
	err = retry(func() (err error) {
		from, to := int64(in.OffIn), int64(in.OffOut)
		n, err = unix.CopyFileRange(src.fd, &from, dst.fd, &to, int(min(in.Len, maxCopy)), int(in.Flags))
		return err
	})
	return uint32(max(n, 0)), status(err)
}
