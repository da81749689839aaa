package files

import (
	"errors"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// ioMode is how the kernel does the I/O of an inode now. It wants all opens of an inode to agree (fs/fuse/iomode.c,
// EIO otherwise): either all passed through to the same backing id, or all through its page cache and us.
type ioMode struct {
	mu     sync.Mutex
	cached int   // handles with cached I/O
	passed int   // handles passed through
	id     int32 // written with FS.mu held too
	// INVARIANT: cached == 0 || passed == 0; id is registered, and not 0, while passed > 0.
}

// neverAgain are the errors by which a kernel says that passthrough will not work on this mount at all.
var neverAgain = []error{unix.EPERM, unix.EOPNOTSUPP, unix.ENOTTY, unix.ENOSYS, unix.ELOOP, unix.EINVAL}

// finishOpen enters the handle of a file, chooses how the kernel does its I/O, and fills in the answer. Its
// counterpart is endIO.
func (f *FS) finishOpen(h *handle, out *fuse.OpenOut) {
	owner, mode, wanted := f.wantsPass(h)
	f.joinIO(h, wanted)
	if h.passed && h.stranger(owner) && privileged(mode) {
		f.killForWriter(h, mode)
	}
	h.answer(out)
}

// joinIO enters the handle in its inode's mode, which the first handle sets.
func (f *FS) joinIO(h *handle, wanted bool) {
	m := &h.node.io
	m.mu.Lock()
	defer m.mu.Unlock()
	h.passed = m.passed > 0 || m.cached == 0 && wanted && f.register(h)
	if h.passed {
		m.passed++
	} else {
		m.cached++
	}
	f.addHandle(h)
}

// answer tells the kernel of a handle, the same each time it asks.
func (h *handle) answer(out *fuse.OpenOut) {
	out.Fh = h.fh
	if !h.passed {
		return
	}
	h.node.io.mu.Lock()
	defer h.node.io.mu.Unlock()
	out.OpenFlags |= fuse.FOPEN_PASSTHROUGH
	out.BackingID = h.node.io.id
}

// wantsPass says whether a file may be passed through: not when a writer would have to lose it suid or sgid, since
// the kernel writes to the backing with our rights, which keep them.
func (f *FS) wantsPass(h *handle) (owner, mode uint32, wanted bool) {
	if f.pass == nil || f.passOff.Load() {
		return 0, 0, false
	}
	var st unix.Stat_t
	if unix.Fstat(h.fd, &st) != nil {
		return 0, 0, false
	}
	return st.Uid, st.Mode, !h.writable() || !privileged(st.Mode)
}

// register makes the backing id of an inode. The kernel takes only the path from the descriptor and opens it anew
// for each handle, so the one we give is read-only: a writable one would deny execution of the backing file.
func (f *FS) register(h *handle) bool {
	fd, err := openFD(h.fd, unix.O_RDONLY|unix.O_CLOEXEC)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	id, err := f.pass.Register(fd)
	if err == nil {
		f.setBacking(h.node, id)
		return true
	}
	for _, never := range neverAgain {
		if errors.Is(err, never) && !f.passOff.Swap(true) {
			f.log.Info("no passthrough on this mount: all I/O goes through the server", "reason", err)
		}
	}
	return false
}

// endIO undoes joinIO. The kernel has dropped the handle's I/O mode before it sent RELEASE, so the next open may
// choose anew.
func (f *FS) endIO(h *handle) {
	m := &h.node.io
	m.mu.Lock()
	defer m.mu.Unlock()
	if !h.passed {
		m.cached--
		return
	}
	m.passed--
	if m.passed == 0 && m.id != 0 {
		if f.pass != nil {
			f.pass.Unregister(m.id)
		}
		f.setBacking(h.node, 0)
	}
}

// setBacking sets the backing id of a node, 0 for none. Between the kernel's word and ours there is a gap, which
// resumeIO closes. Needs node.io.mu.
func (f *FS) setBacking(n *node, id int32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n.io.id = id
	f.highestID = max(f.highestID, id)
	f.note(recordBacking, n.backingRecord)
}
