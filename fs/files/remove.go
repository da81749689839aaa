package files

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Unlink removes a name. Handles of the file live on.
func (f *FS) Unlink(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return f.remove(in, name, 0)
}

// Rmdir removes an empty directory.
func (f *FS) Rmdir(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return f.remove(in, name, unix.AT_REMOVEDIR)
}

func (f *FS) remove(in *fuse.InHeader, name string, flags int) fuse.Status {
	if err := checkName(name); err != nil {
		return status(err)
	}
	dir, p, err := f.directory(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer f.release(p)
	file, done := f.hold(dir, p, name)
	defer done()
	f.shelter(file)
	now := state{file}
	f.beginChange(dir)
	_, err = f.once(in, now, file == nothing, func() error { return unix.Unlinkat(p.fd, name, flags) })
	f.endChange(func() []doomed {
		if err != nil {
			return nil
		}
		return f.setName(dir, name, nil)
	}, dir)
	return status(err)
}

// hold looks at a name that is about to go, and holds its file, so that the kernel can still use the node: a working
// directory, or an O_PATH descriptor, of which we are told nothing.
func (f *FS) hold(dir *node, dirFD *pathFD, name string) (file ident, done func()) {
	f.mu.Lock()
	n := f.names[nameKey{dir.id, name}]
	need := n != nil && n.fd == nil
	f.mu.Unlock()
	if need {
		if fd, err := f.openLink(n, dirFD, name); err == nil {
			p := f.cache(n, fd)
			return n.ident, func() { f.release(p) }
		}
	}
	return f.look(dirFD, name), func() {}
}

const renameFlags = unix.RENAME_NOREPLACE | unix.RENAME_EXCHANGE

// Rename moves a name, or exchanges two.
func (f *FS) Rename(_ <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	if in.Flags&^renameFlags != 0 {
		return fuse.EINVAL // RENAME_WHITEOUT is for the upper layer of overlayfs
	}
	return status(f.rename(in, oldName, newName))
}

func (f *FS) rename(in *fuse.RenameIn, oldName, newName string) error {
	if err := f.room(); err != nil {
		return err
	}
	if err := checkName(oldName); err != nil {
		return err
	}
	if err := checkName(newName); err != nil {
		return err
	}
	from, fromFD, err := f.directory(in.NodeId)
	if err != nil {
		return err
	}
	defer f.release(fromFD)
	to, toFD, err := f.directory(in.Newdir)
	if err != nil {
		return err
	}
	defer f.release(toFD)
	over, done := f.hold(to, toFD, newName)
	defer done()
	exchange := in.Flags&unix.RENAME_EXCHANGE != 0
	if !exchange {
		f.shelter(over)
	}
	now := state{f.look(fromFD, oldName), over}
	hopeless := now[0] == nothing || exchange && now[1] == nothing ||
		in.Flags&unix.RENAME_NOREPLACE != 0 && now[1] != nothing
	f.beginChange(from, to)
	before, err := f.once(&in.InHeader, now, hopeless, func() error {
		return unix.Renameat2(fromFD.fd, oldName, toFD.fd, newName, uint(in.Flags))
	})
	f.endChange(func() []doomed {
		if err != nil {
			return nil
		}
		a, b := link{from, oldName}, link{to, newName}
		if before {
			return f.renamedBefore(&in.InHeader, a, b, exchange)
		}
		return f.renamed(a, b, f.names[a.key()], f.names[b.key()], exchange)
	}, from, to)
	return err
}

// renamedBefore tells the table of a rename that a predecessor did, who may have told it too, or in part. Needs mu.
func (f *FS) renamedBefore(in *fuse.InHeader, from, to link, exchange bool) []doomed {
	seen := f.inherited[number(in)]
	return f.renamed(from, to, f.idents[seen[0]], f.idents[seen[1]], exchange)
}

// renamed tells the table of a rename that was done, of moved, and over other or in exchange for it. Needs mu.
func (f *FS) renamed(from, to link, moved, other *node, exchange bool) (ds []doomed) {
	if moved == other {
		return nil // rename(2) between two links of one file does nothing
	}
	if !exchange {
		other = nil
	}
	// The new name first, so that neither node is without one for a moment.
	ds = append(ds, f.setName(to.parent, to.name, moved)...)
	return append(ds, f.setName(from.parent, from.name, other)...)
}
