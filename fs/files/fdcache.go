package files

import (
	"strconv"

	"golang.org/x/sys/unix"
)

// pathFD is an O_PATH descriptor of a node. It is closed when it has left the cache and nobody uses it.
type pathFD struct {
	fd      int
	users   int  // GUARDED_BY(FS.mu)
	evicted bool // GUARDED_BY(FS.mu)
}

// lru lists the nodes with a descriptor, the one used longest ago last.
type lru struct {
	first, last *node
	len         int
}

func (l *lru) push(n *node) {
	n.prev, n.next = nil, l.first
	if l.first != nil {
		l.first.prev = n
	} else {
		l.last = n
	}
	l.first = n
	l.len++
}

func (l *lru) remove(n *node) {
	if n.prev != nil {
		n.prev.next = n.next
	} else {
		l.first = n.next
	}
	if n.next != nil {
		n.next.prev = n.prev
	} else {
		l.last = n.prev
	}
	n.prev, n.next = nil, nil
	l.len--
}

func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// acquire gives an O_PATH descriptor of n, opening one if it has none. Give it back with release.
func (f *FS) acquire(n *node) (*pathFD, error) {
	if p := f.cached(n); p != nil {
		return p, nil
	}
	fd, err := f.reopen(n)
	if err != nil {
		return nil, err
	}
	return f.cache(n, fd), nil
}

// cached returns the descriptor that n has, if any.
func (f *FS) cached(n *node) *pathFD {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n.fd == nil {
		return nil
	}
	n.fd.users++
	if n != f.root && f.lru.first != n {
		f.lru.remove(n)
		f.lru.push(n)
	}
	return n.fd
}

// cache keeps a new descriptor for n, in the place of the one used longest ago when there are too many.
func (f *FS) cache(n *node, fd int) *pathFD {
	p := &pathFD{fd: fd, users: 1}
	f.mu.Lock()
	var idle []doomed
	if n.fd != nil || n.gone {
		p.evicted = true // somebody was faster; ours lasts for this one use
	} else {
		n.fd = p
		f.lru.push(n)
		idle = f.shrink()
	}
	f.mu.Unlock()
	f.dispose(idle)
	return p
}

// shrink evicts down to maxFDs and returns what is to be closed. Needs mu.
func (f *FS) shrink() (idle []doomed) {
	for f.lru.len > f.maxFDs {
		n := f.lru.last
		if p := f.uncache(n); p != nil {
			idle = append(idle, n.doom(p.fd))
		}
	}
	return idle
}

// uncache takes n's descriptor from the cache, and returns it if the caller has to close it. Needs mu.
func (f *FS) uncache(n *node) *pathFD {
	p := n.fd
	if p == nil {
		return nil
	}
	n.fd = nil
	f.lru.remove(n)
	p.evicted = true
	if p.users > 0 {
		return nil
	}
	return p
}

func (f *FS) release(p *pathFD) {
	f.mu.Lock()
	p.users--
	idle := p.evicted && p.users == 0
	f.mu.Unlock()
	if idle {
		f.closer.close(p.fd)
	}
}

// reopen finds the file of n again: by its file handle, which survives renames behind our back; through a
// descriptor somebody has open, which is all that an unlinked file has; or by name.
func (f *FS) reopen(n *node) (int, error) {
	if n.handle != nil {
		if fd, err := f.openHandle(n, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC); err == nil {
			return fd, nil
		}
	}
	if fd, err := f.openThroughHandle(n); err == nil {
		return fd, nil
	}
	f.mu.Lock()
	links := append([]link(nil), n.links...)
	f.mu.Unlock()
	for _, l := range links {
		fd, err := f.openBelow(n, l)
		if err == nil || err == unix.EMFILE || err == unix.ENFILE {
			return fd, err
		}
	}
	return -1, unix.ESTALE
}

// verified returns fd if it is n, and closes it otherwise.
func (f *FS) verified(n *node, fd int) (int, error) {
	var st unix.Statx_t
	err := f.statAt(fd, "", &st)
	if err == nil && identOf(&st) != n.ident {
		err = unix.ESTALE
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func (f *FS) openHandle(n *node, flags int) (int, error) {
	fd, err := unix.OpenByHandleAt(f.mountFD, *n.handle, flags)
	if err != nil {
		return -1, err
	}
	return f.verified(n, fd)
}

func (f *FS) openThroughHandle(n *node) (int, error) {
	h := f.anyHandle(n)
	if h == nil {
		return -1, unix.ESTALE
	}
	defer f.drop(h)
	fd, err := openFD(h.fd, unix.O_PATH|unix.O_CLOEXEC)
	if err != nil {
		return -1, err
	}
	return f.verified(n, fd)
}

func (f *FS) openBelow(n *node, l link) (int, error) {
	dir, err := f.acquire(l.parent)
	if err != nil {
		return -1, err
	}
	defer f.release(dir)
	return f.openLink(n, dir, l.name)
}

func (f *FS) openLink(n *node, dir *pathFD, name string) (int, error) {
	fd, err := openAt(dir.fd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	return f.verified(n, fd)
}

// openMount opens what open_by_handle_at(2) needs to find the filesystem: O_PATH will not do. It returns -1 if file
// handles cannot be made and opened: it takes CAP_DAC_READ_SEARCH and a filesystem that can be exported.
func openMount(root int) int {
	mount, err := unix.Openat(root, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1
	}
	h, _, err := unix.NameToHandleAt(root, "", unix.AT_EMPTY_PATH)
	if err == nil {
		var fd int
		if fd, err = unix.OpenByHandleAt(mount, h, unix.O_PATH|unix.O_CLOEXEC); err == nil {
			unix.Close(fd)
			return mount
		}
	}
	unix.Close(mount)
	return -1
}
