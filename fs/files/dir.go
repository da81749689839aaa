package files

import (
	"bytes"
	"encoding/binary"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// dirStream reads a directory. Its offsets are the backing's own cookies, so a reader may go on from any of them,
// whatever was created or removed meanwhile.
type dirStream struct {
	mu   sync.Mutex // held over reading the directory: one READDIR of a handle at a time
	pos  uint64     // the offset of the first entry in rest
	rest []byte     // read but not yet taken
	buf  []byte
}

type dirent struct {
	ino, off uint64 // off: where to go on after this entry
	typ      uint8
	name     string
}

// OpenDir opens a directory for reading.
func (f *FS) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
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
	p, err := f.acquire(n)
	if err != nil {
		return status(err)
	}
	defer f.release(p)
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC
	fd, err := openAt(p.fd, ".", flags, 0)
	if err != nil {
		return status(err)
	}
	h := newHandle(&in.InHeader, n, fd, flags)
	h.dir = &dirStream{}
	f.addHandle(h)
	h.answer(out)
	return fuse.OK
}

// ReleaseDir ends a directory handle.
func (f *FS) ReleaseDir(in *fuse.ReleaseIn) { f.end(in.Fh) }

// ReadDir lists names.
func (f *FS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.list(in, func(_ *handle, e *dirent) bool {
		return out.AddDirEntry(e.entry())
	})
}

// ReadDirPlus lists names with their attributes, which counts as a lookup of each. A name that is gone meanwhile,
// or that must not be looked up, is listed without.
func (f *FS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	var dir *pathFD
	defer func() {
		if dir != nil {
			f.release(dir)
		}
	}()
	return f.list(in, func(h *handle, e *dirent) bool {
		entry := out.AddDirLookupEntry(e.entry())
		if entry == nil {
			return false
		}
		if e.name == "." || e.name == ".." {
			return true
		}
		if dir == nil {
			var err error
			if dir, err = f.acquire(h.node); err != nil {
				dir = nil
				return true
			}
		}
		if n, st, err := f.resolve(h.node, dir, e.name, f.room); err == nil {
			fillEntry(entry, n, st)
			out.FixMode(uint32(st.Mode))
		}
		return true
	})
}

// list gives entries to add from the offset asked for, until it has no room.
func (f *FS) list(in *fuse.ReadIn, add func(*handle, *dirent) bool) fuse.Status {
	h, err := f.grab(in.Fh)
	if err != nil {
		return status(err)
	}
	defer f.drop(h)
	if h.dir == nil {
		return fuse.ENOTDIR
	}
	d := h.dir
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.seek(h.fd, in.Offset); err != nil {
		return status(err)
	}
	added := false
	for {
		e, size, err := d.peek(h.fd)
		if err != nil && !added {
			return status(err)
		}
		if err != nil || e == nil || !add(h, e) {
			return fuse.OK
		}
		added = true
		d.take(e, size)
	}
}

// seek goes to an offset. Going to the start always reads anew, as rewinddir(3) promises.
func (d *dirStream) seek(fd int, off uint64) error {
	if off == d.pos && off != 0 {
		return nil
	}
	d.rest, d.pos = nil, off
	_, err := unix.Seek(fd, int64(off), unix.SEEK_SET)
	return err
}

// peek returns the next entry, nil at the end.
func (d *dirStream) peek(fd int) (e *dirent, size int, err error) {
	if len(d.rest) == 0 {
		if d.buf == nil {
			d.buf = make([]byte, 32<<10)
		}
		n, err := unix.Getdents(fd, d.buf)
		if err == unix.ENOENT {
			return nil, 0, nil // the directory has been removed
		}
		if err != nil || n == 0 {
			return nil, 0, err
		}
		d.rest = d.buf[:n]
	}
	return parseDirent(d.rest)
}

func (d *dirStream) take(e *dirent, size int) {
	d.rest = d.rest[size:]
	d.pos = e.off
}

// parseDirent reads a struct linux_dirent64: inode, next offset, record length, type, name with a final NUL.
func parseDirent(b []byte) (*dirent, int, error) {
	const header = 19
	if len(b) < header {
		return nil, 0, unix.EIO
	}
	size := int(binary.NativeEndian.Uint16(b[16:]))
	if size < header || size > len(b) {
		return nil, 0, unix.EIO
	}
	name, _, _ := bytes.Cut(b[header:size], []byte{0})
	return &dirent{
		ino:  binary.NativeEndian.Uint64(b),
		off:  binary.NativeEndian.Uint64(b[8:]),
		typ:  b[18],
		name: string(name),
	}, size, nil
}

func (e *dirent) entry() fuse.DirEntry {
	return fuse.DirEntry{Mode: uint32(e.typ) << 12, Name: e.name, Ino: shownIno(e.ino), Off: e.off}
}
