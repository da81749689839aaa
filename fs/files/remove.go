package files

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Unlink removes a name. Handles of the file live on.
func (f *FS) Unlink(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return f.remove(in.NodeId, name, 0)
}

// Rmdir removes an empty directory.
func (f *FS) Rmdir(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return f.remove(in.NodeId, name, unix.AT_REMOVEDIR)
}

func (f *FS) remove(parent uint64, name string, flags int) fuse.Status {
	if err := checkName(name); err != nil {
		return status(err)
	}
	dir, p, err := f.directory(parent)
	if err != nil {
		return status(err)
	}
	defer f.release(p)
	defer f.keep(dir, name)()
	f.beginChange(dir)
	err = unix.Unlinkat(p.fd, name, flags)
	f.endChange(func() []doomed {
		if err != nil {
			return nil
		}
		return f.setName(dir, name, nil)
	}, dir)
	return status(err)
}

// keep holds the file with a name that is about to go, so that the kernel can still use its node: a working
// directory, or an O_PATH descriptor, of which we are told nothing.
func (f *FS) keep(dir *node, name string) (done func()) {
	f.mu.Lock()
	n := f.names[nameKey{dir.id, name}]
	need := n != nil && n.fd == nil
	f.mu.Unlock()
	if !need {
		return func() {}
	}
	p, err := f.acquire(n)
	if err != nil {
		return func() {}
	}
	return func() { f.release(p) }
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
	defer f.keep(to, newName)()
	f.beginChange(from, to)
	err = unix.Renameat2(fromFD.fd, oldName, toFD.fd, newName, uint(in.Flags))
	f.endChange(func() []doomed {
		if err != nil {
			return nil
		}
		return f.renamed(link{from, oldName}, link{to, newName}, in.Flags&unix.RENAME_EXCHANGE != 0)
	}, from, to)
	return err
}

// renamed tells the table of a rename that was done. Needs mu.
func (f *FS) renamed(from, to link, exchange bool) (ds []doomed) {
	moved := f.names[nameKey{from.parent.id, from.name}]
	other := f.names[nameKey{to.parent.id, to.name}]
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
