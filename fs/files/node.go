package files

import (
	"slices"

	"golang.org/x/sys/unix"
)

// node is one file, directory, link or special file that the kernel knows.
type node struct {
	id     uint64
	ident  ident
	key    string // ident as text, made once: lock requests must not allocate
	fmt    uint16 // S_IFMT bits; they never change
	handle *unix.FileHandle

	// All below GUARDED_BY(FS.mu).
	lookups  uint64 // references of the kernel
	children int    // links of other nodes that name this one as their parent
	links    []link
	fd       *pathFD
	prev     *node // in the LRU, if fd != nil
	next     *node
	handles  map[*handle]struct{}
	changing int    // renames, unlinks and the like now running in this directory
	changes  uint64 // ... that have ended
	gone     bool   // no longer in the table

	pinned    bool // replayed: the kernel has more references than lookups counts
	sheltered bool // its handles are stored, since it may have no name

	io ioMode // guarded by its own mutex
}

// link is one name of a node.
type link struct {
	parent *node
	name   string
}

type nameKey struct {
	parent uint64
	name   string
}

func (l link) key() nameKey { return nameKey{l.parent.id, l.name} }

func newNode(id uint64, st *unix.Statx_t) *node {
	i := identOf(st)
	return &node{id: id, ident: i, key: i.key(), fmt: st.Mode & unix.S_IFMT}
}

func (n *node) isDir() bool     { return n.fmt == unix.S_IFDIR }
func (n *node) isRegular() bool { return n.fmt == unix.S_IFREG }

// node returns a node by its number; ESTALE if the kernel names one that we do not have.
func (f *FS) node(id uint64) (*node, error) {
	f.mu.Lock()
	n := f.nodes[id]
	f.mu.Unlock()
	if n == nil {
		return nil, unix.ESTALE
	}
	return n, nil
}

// admit finds or makes the node of st and counts a lookup of the kernel. prepare is called without the lock, for a
// node that is new, to fill in what needs system calls.
func (f *FS) admit(st *unix.Statx_t, prepare func(*node) error) (*node, error) {
	id := identOf(st)
	f.exorcise(id)
	f.mu.Lock()
	n := f.idents[id]
	if n != nil {
		n.lookups++
	}
	f.mu.Unlock()
	if n != nil {
		return n, nil
	}
	fresh := newNode(0, st)
	if err := prepare(fresh); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if n = f.idents[id]; n == nil {
		f.lastNode++
		n = fresh
		n.id = f.lastNode
		f.nodes[n.id], f.idents[id] = n, n
		f.note(recordNode, n.record)
	}
	n.lookups++
	return n, nil
}

// ghost says whether nothing is left of n but the kernel's references to its number. Needs mu.
func (n *node) ghost() bool {
	return n.fd == nil && len(n.links) == 0 && len(n.handles) == 0
}

// exorcise takes the identity from a ghost whose file is gone. Nobody has it open, so its inode may be in use again
// at once, and birth times have the resolution of a timer tick only.
func (f *FS) exorcise(id ident) {
	f.mu.Lock()
	n := f.idents[id]
	ghost := n != nil && n.ghost()
	f.mu.Unlock()
	if !ghost {
		return
	}
	if n.handle != nil {
		if fd, err := f.openHandle(n, unix.O_PATH|unix.O_CLOEXEC); err == nil {
			unix.Close(fd)
			return
		}
	}
	f.mu.Lock()
	if f.idents[id] == n && n.ghost() {
		delete(f.idents, id)
	}
	f.mu.Unlock()
}

// Forget drops lookups of the kernel, and the node with the last one.
func (f *FS) Forget(id, lookups uint64) {
	f.mu.Lock()
	n := f.nodes[id]
	if n == nil || n == f.root {
		f.mu.Unlock()
		return
	}
	n.lookups -= min(n.lookups, lookups)
	if n.lookups == 0 && len(n.links) == 0 {
		f.unpin(n)
	}
	ds := f.dropUnused(n, nil)
	f.mu.Unlock()
	f.dispose(ds)
}

// dropUnused removes n, and the directories kept only for its sake, once nothing refers to it. It returns the
// descriptors to close. Needs mu.
func (f *FS) dropUnused(n *node, ds []doomed) []doomed {
	if n.lookups > 0 || n.pinned || n.children > 0 || len(n.handles) > 0 || n.gone || n == f.root {
		return ds
	}
	if p := f.uncache(n); p != nil {
		ds = append(ds, n.doom(p.fd))
	}
	links := f.discard(n)
	f.note(recordNodeGone, func(b []byte) []byte { return appendU64(b, n.id) })
	for _, l := range links {
		ds = f.dropUnused(l.parent, ds)
	}
	return ds
}

// discard takes n and its names, which it returns, out of the tables. Needs mu.
func (f *FS) discard(n *node) (links []link) {
	n.gone = true
	f.unpin(n)
	delete(f.nodes, n.id)
	if f.idents[n.ident] == n {
		delete(f.idents, n.ident)
	}
	for _, l := range n.links {
		f.forgetName(n, l)
	}
	links, n.links = n.links, nil
	return links
}

// unpin needs mu.
func (f *FS) unpin(n *node) {
	if n.pinned {
		n.pinned = false
		f.pinned--
	}
}

// forgetName undoes the table's part of a link. Needs mu.
func (f *FS) forgetName(n *node, l link) {
	l.parent.children--
	k := nameKey{l.parent.id, l.name}
	if f.names[k] == n {
		delete(f.names, k)
	}
}

// setName records that n is now what name in parent stands for; n nil: nothing. It returns descriptors to close,
// since the node that had the name may have been kept only by it. Needs mu.
func (f *FS) setName(parent *node, name string, n *node) (ds []doomed) {
	k := nameKey{parent.id, name}
	old, changed := f.bind(parent, name, n)
	if !changed {
		return nil
	}
	f.note(recordName, func(b []byte) []byte { return k.record(b, f.names[k]) })
	if old != nil {
		ds = f.dropUnused(old, ds)
	}
	return f.dropUnused(parent, ds)
}

// bind is the table's part of setName. Needs mu.
func (f *FS) bind(parent *node, name string, n *node) (old *node, changed bool) {
	k := nameKey{parent.id, name}
	old = f.names[k]
	if old == n {
		return old, false
	}
	if n != nil && !n.gone && !parent.gone {
		n.links = append(n.links, link{parent, name})
		parent.children++
		f.names[k] = n
	}
	if old != nil {
		old.links = slices.DeleteFunc(old.links, func(l link) bool { return l.parent == parent && l.name == name })
		parent.children--
		if f.names[k] == old {
			delete(f.names, k)
		}
	}
	return old, true
}

// A directory's changes are bracketed by begin and end, so that a lookup that ran beside one does not record the
// name as it was before. The kernel orders the two only as long as its own cache of the name is fresh.
func (f *FS) beginChange(dirs ...*node) {
	f.mu.Lock()
	for _, d := range dirs {
		d.changing++
	}
	f.mu.Unlock()
}

// endChange also runs update, under mu, which tells the table what changed and returns descriptors to close.
func (f *FS) endChange(update func() []doomed, dirs ...*node) {
	f.mu.Lock()
	for _, d := range dirs {
		d.changing--
		d.changes++
	}
	var ds []doomed
	if update != nil {
		ds = update()
	}
	f.mu.Unlock()
	f.dispose(ds)
}

// changesOf is what to give seen once the name was looked at; ok is false while a change is running.
func (f *FS) changesOf(dir *node) (at uint64, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return dir.changes, dir.changing == 0
}

// seen records that name in dir was found to be n, unless dir has changed since at: a name found beside a change
// is believed only if the node has no better one.
func (f *FS) seen(dir *node, name string, n *node, at uint64, quiet bool) {
	f.mu.Lock()
	var ds []doomed
	quiet = quiet && dir.changing == 0 && dir.changes == at
	if quiet || (n != nil && len(n.links) == 0) {
		ds = f.setName(dir, name, n)
	}
	f.mu.Unlock()
	f.dispose(ds)
}
