package files

import (
	"fmt"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// Resume makes what was replayed usable: it opens the handles again and takes the backing ids over. A handle that
// cannot be opened answers ESTALE from now on. It fails only if this is not the directory that the predecessor had.
func (f *FS) Resume() error {
	if f.otherRoot != nil {
		return f.otherRoot
	}
	if err := f.takeStored(); err != nil {
		f.log.Error("open files that were deleted are lost", "error", err)
	}
	f.resumeHandles()
	f.resumeIO()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.note(recordNode, f.root.record) // so that a successor can tell whether it has the same directory
	return nil
}

// takeStored gives handles the descriptors that were kept for them. What else was kept belongs to handles that were
// closed, or whose OPEN will be sent again.
func (f *FS) takeStored() error {
	if f.store == nil {
		return nil
	}
	kept, err := f.store.Take()
	if err != nil {
		err = fmt.Errorf("files: descriptors of deleted files: %w", err)
	}
	for fh, fd := range kept {
		h := f.open[fh]
		if h == nil {
			unix.Close(fd)
			f.store.Drop(fh)
			continue
		}
		h.fd, h.stored = fd, true
		h.node.sheltered = true
	}
	return err
}

// resumeHandles opens all handles that have no descriptor, on all processors: clients are waiting.
func (f *FS) resumeHandles() {
	closed := make(chan *handle, len(f.open))
	for _, h := range f.open {
		if h.fd < 0 {
			closed <- h
		}
	}
	close(closed)
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for h := range closed {
				f.resumeHandle(h)
			}
		})
	}
	wg.Wait()
}

func (f *FS) resumeHandle(h *handle) {
	fd, err := f.openAgain(h)
	if err != nil {
		f.log.Error("an open file was lost", "inode", h.node.ident.ino, "error", err)
		return
	}
	f.mu.Lock()
	h.fd = fd
	f.mu.Unlock()
}

func (f *FS) openAgain(h *handle) (int, error) {
	if h.node.handle != nil {
		if fd, err := f.openHandle(h.node, h.flags); err == nil {
			return fd, nil
		}
	}
	p, err := f.acquire(h.node)
	if err != nil {
		return -1, err
	}
	defer f.release(p)
	return openFD(p.fd, h.flags)
}

// strayIDs is how many backing ids a predecessor may have made, or taken back, without leaving word of it: as many
// as OPENs and RELEASEs can run at one moment. The kernel gives them out in order.
const strayIDs = 64

// resumeIO rebuilds how the kernel does its I/O, which it has not forgotten, and takes back the backing ids that no
// handle uses.
func (f *FS) resumeIO() {
	for _, h := range f.open {
		switch m := &h.node.io; {
		case h.dir != nil:
		case h.passed:
			m.passed++
		default:
			m.cached++
		}
	}
	if f.pass == nil {
		return
	}
	used := map[int32]bool{}
	for _, n := range f.nodes {
		switch {
		case n.io.id == 0:
		case n.io.passed > 0:
			used[n.io.id] = true
		default:
			f.pass.Unregister(n.io.id)
			f.setBacking(n, 0)
		}
	}
	for id := max(1, f.highestID-strayIDs); id <= f.highestID+strayIDs; id++ {
		if !used[id] {
			f.pass.Unregister(id)
		}
	}
}

// NumPinned is the number of files that the kernel knew when a predecessor died. How many references it has to them
// is not known, so they stay until they have no name and are forgotten, or to the end of the mount.
func (f *FS) NumPinned() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.pinned
}

// Reset forgets what was replayed so far: it belonged to another mount.
func (f *FS) Reset() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.nodes)
	clear(f.idents)
	clear(f.names)
	clear(f.open)
	clear(f.inherited)
	f.root.children, f.pinned, f.highestID, f.otherRoot = 0, 0, 0, nil
	f.nodes[Root], f.idents[f.root.ident] = f.root, f.root
}
