package files

import (
	"fmt"
	"slices"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// LockKey is the identity of a node's backing file: the same for all its hard links, never used again for another
// file. It contains device, inode and birth time. ok is false of a number that is none of this package's.
func (f *FS) LockKey(node uint64) (key string, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.nodes[node]
	if n == nil {
		return "", false
	}
	return n.key, true
}

// Path is a name that the file with this key has now, relative to files/; "." for files/ itself, and
// "#INO (deleted)" once it has none. ok is false if the kernel does not know the file any more.
func (f *FS) Path(key string) (path string, ok bool) {
	id, ok := parseKey(key)
	if !ok {
		return "", false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.idents[id]
	if n == nil {
		return "", false
	}
	if n == f.root {
		return ".", true
	}
	path, linked := f.pathOf(n)
	if !linked {
		path = fmt.Sprintf("#%d (deleted)", shownIno(n.ident.ino))
	}
	return path, true
}

// pathOf walks up to the root; false if a directory on the way has been removed. Needs mu.
func (f *FS) pathOf(n *node) (string, bool) {
	var parts []string
	for n != f.root {
		if len(n.links) == 0 || len(parts) > unix.PathMax {
			return "", false
		}
		l := n.links[0]
		parts = append(parts, l.name)
		n = l.parent
	}
	slices.Reverse(parts)
	return strings.Join(parts, "/"), true
}

// KeyByPath is the key of the file with this path relative to files/, if the kernel knows it.
func (f *FS) KeyByPath(path string) (key string, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.root
	for part := range strings.SplitSeq(path, "/") {
		if part == "" || part == "." {
			continue
		}
		if n = f.names[nameKey{n.id, part}]; n == nil {
			return "", false
		}
	}
	return n.key, true
}

// RootAttr gives the attributes of files/ itself, zero if the backing directory cannot be asked.
func (f *FS) RootAttr(out *fuse.Attr) {
	var st unix.Statx_t
	if err := statFD(f.root.fd.fd, &st); err != nil {
		f.log.Error("the backing directory does not answer", "error", err)
		*out = fuse.Attr{Ino: shownIno(f.root.ident.ino), Mode: unix.S_IFDIR | 0o555, Nlink: 2}
		return
	}
	fillAttr(out, &st)
}

// NumHandles is the number of open files and directories.
func (f *FS) NumHandles() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.open)
}

// NumNodes is the number of files that the kernel knows, files/ included.
func (f *FS) NumNodes() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.nodes)
}
