package files

import (
	"sync"

	"golang.org/x/sys/unix"
)

// doomed is a descriptor to close once FS.mu is free.
type doomed struct {
	fd   int
	slow bool // it may be the last one of a file without names, whose blocks are freed then

	stored bool // the store has a duplicate, of handle fh
	fh     uint64
}

// doom needs mu.
func (n *node) doom(fd int) doomed { return doomed{fd: fd, slow: len(n.links) == 0 && !n.isDir()} }

// doom needs FS.mu.
func (h *handle) doom() doomed {
	d := h.node.doom(h.fd)
	d.stored, d.fh = h.stored, h.fh
	return d
}

func (f *FS) dispose(ds []doomed) {
	for _, d := range ds {
		if d.stored {
			f.store.Drop(d.fh)
		}
		if d.fd < 0 {
			continue
		}
		if d.slow {
			f.closer.close(d.fd)
		} else {
			unix.Close(d.fd)
		}
	}
}

// closer closes descriptors in the background: the last close of an unlinked file frees its blocks, and that is
// too long for the thread that reads the device.
type closer struct {
	mu   sync.Mutex
	wake *sync.Cond
	fds  []int
	done bool
	idle chan struct{}
}

func newCloser() *closer {
	c := &closer{idle: make(chan struct{})}
	c.wake = sync.NewCond(&c.mu)
	go c.run()
	return c
}

func (c *closer) close(fds ...int) {
	if len(fds) == 0 {
		return
	}
	c.mu.Lock()
	c.fds = append(c.fds, fds...)
	c.mu.Unlock()
	c.wake.Signal()
}

func (c *closer) run() {
	defer close(c.idle)
	for {
		c.mu.Lock()
		for len(c.fds) == 0 && !c.done {
			c.wake.Wait()
		}
		fds := c.fds
		c.fds = nil
		c.mu.Unlock()
		if len(fds) == 0 {
			return
		}
		for _, fd := range fds {
			unix.Close(fd)
		}
	}
}

// stop returns when all is closed.
func (c *closer) stop() {
	c.mu.Lock()
	c.done = true
	c.mu.Unlock()
	c.wake.Signal()
	<-c.idle
}
