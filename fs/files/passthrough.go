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
	cached int // handles with cached I/O
	passed int // handles passed through
	id     int32
	// INVARIANT: cached == 0 || passed == 0; id is registered while passed > 0.
}

// neverAgain are the errors by which a kernel says that passthrough will not work on this mount at all.
var neverAgain = []error{unix.EPERM, unix.EOPNOTSUPP, unix.ENOTTY, unix.ENOSYS, unix.ELOOP, unix.EINVAL}

// chooseIO decides how the handle does I/O and fills in the answer. Its counterpart is endIO.
func (f *FS) chooseIO(h *handle, out *fuse.OpenOut) {
	owner, mode, wanted := f.wantsPass(h)
	id, passed := f.joinIO(h, wanted)
	if !passed {
		return
	}
	if h.stranger(owner) && privileged(mode) {
		f.killForWriter(h, mode)
	}
	out.OpenFlags |= fuse.FOPEN_PASSTHROUGH
	out.BackingID = id
}

// joinIO enters the handle in its inode's mode, which the first handle sets.
func (f *FS) joinIO(h *handle, wanted bool) (id int32, passed bool) {
	m := &h.node.io
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.passed == 0 && (m.cached > 0 || !wanted || !f.register(h, m)) {
		m.cached++
		return 0, false
	}
	m.passed++
	h.passed = true
	return m.id, true
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
	return st.Uid, st.Mode, !h.writable || !privileged(st.Mode)
}

// register makes the backing id of an inode. The kernel takes only the path from the descriptor and opens it anew
// for each handle, so the one we give is read-only: a writable one would deny execution of the backing file.
func (f *FS) register(h *handle, m *ioMode) bool {
	fd, err := unix.Open(procPath(h.fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	id, err := f.pass.Register(fd)
	if err == nil {
		m.id = id
		return true
	}
	for _, never := range neverAgain {
		if errors.Is(err, never) && !f.passOff.Swap(true) {
			f.log.Info("no passthrough on this mount: all I/O goes through the server", "reason", err)
		}
	}
	return false
}

// endIO undoes chooseIO. The kernel has dropped the handle's I/O mode before it sent RELEASE, so the next open may
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
	if m.passed == 0 {
		f.pass.Unregister(m.id)
	}
}
