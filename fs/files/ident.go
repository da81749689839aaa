package files

import (
	"strconv"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// ident tells files of the backing apart for ever: an inode number that is used again comes with another birth time.
type ident struct {
	dev, ino uint64
	sec      int64
	nsec     uint32
}

// mountID tells a submount from the backing's own mount.
type mountID struct {
	id  uint64 // STATX_MNT_ID; 0 on kernels before 5.8
	dev uint64 // compared only without id: overlayfs and btrfs show several devices in one mount
}

const statMask = unix.STATX_BASIC_STATS | unix.STATX_BTIME | unix.STATX_MNT_ID

// statAt looks at one name below a directory, following nothing; "": at what dirfd is. It fails with EXDEV where
// another filesystem is mounted, of which it does not wait for attributes: that may be the mount that is served
// here, and nobody would answer. What may keep attributes that are out of date is asked for them then.
func (f *FS) statAt(dirfd int, name string, st *unix.Statx_t) error {
	const flags = unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT | unix.AT_EMPTY_PATH
	err := unix.Statx(dirfd, name, flags|unix.AT_STATX_DONT_SYNC, statMask, st)
	switch {
	case err != nil:
		return err
	case !f.mount.same(mountOf(st)):
		return unix.EXDEV
	case f.local:
		return nil
	}
	return unix.Statx(dirfd, name, flags, statMask, st)
}

// isLocal reports whether the attributes that are at hand are always true. Others than these have to be asked for
// them, as NFS.
func isLocal(fd int) bool {
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return false
	}
	switch st.Type {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.F2FS_SUPER_MAGIC, unix.TMPFS_MAGIC:
		return true
	}
	return false
}

func statFD(fd int, st *unix.Statx_t) error {
	return unix.Statx(fd, "", unix.AT_EMPTY_PATH, statMask, st)
}

func identOf(st *unix.Statx_t) ident {
	id := ident{dev: unix.Mkdev(st.Dev_major, st.Dev_minor), ino: st.Ino}
	if st.Mask&unix.STATX_BTIME != 0 {
		id.sec, id.nsec = st.Btime.Sec, st.Btime.Nsec
	}
	return id
}

func mountOf(st *unix.Statx_t) mountID {
	m := mountID{dev: unix.Mkdev(st.Dev_major, st.Dev_minor)}
	if st.Mask&unix.STATX_MNT_ID != 0 {
		m.id = st.Mnt_id
	}
	return m
}

func (m mountID) same(o mountID) bool {
	if m.id != 0 && o.id != 0 {
		return m.id == o.id
	}
	return m.dev == o.dev
}

// key is the ident as text, the identity of a file for the lock engine: "dev:ino:seconds.nanoseconds" in hex but
// for the inode, which people look up with find -inum.
func (id ident) key() string {
	b := make([]byte, 0, 64)
	b = strconv.AppendUint(b, id.dev, 16)
	b = append(b, ':')
	b = strconv.AppendUint(b, id.ino, 10)
	b = append(b, ':')
	b = strconv.AppendInt(b, id.sec, 16)
	b = append(b, '.')
	b = strconv.AppendUint(b, uint64(id.nsec), 16)
	return string(b)
}

// parseKey is the inverse of key.
func parseKey(key string) (id ident, ok bool) {
	dev, rest, ok1 := strings.Cut(key, ":")
	ino, rest, ok2 := strings.Cut(rest, ":")
	sec, nsec, ok3 := strings.Cut(rest, ".")
	if !ok1 || !ok2 || !ok3 {
		return ident{}, false
	}
	var errs [4]error
	var ns uint64
	id.dev, errs[0] = strconv.ParseUint(dev, 16, 64)
	id.ino, errs[1] = strconv.ParseUint(ino, 10, 64)
	id.sec, errs[2] = strconv.ParseInt(sec, 16, 64)
	ns, errs[3] = strconv.ParseUint(nsec, 16, 32)
	id.nsec = uint32(ns)
	return id, errs == [4]error{}
}

// synthetic is the bit that marks the inode and node numbers of the rest of the mount.
const synthetic = 1 << 62

func shownIno(ino uint64) uint64 { return ino &^ synthetic }

func fillAttr(a *fuse.Attr, st *unix.Statx_t) {
	*a = fuse.Attr{
		Ino: shownIno(st.Ino), Size: st.Size, Blocks: st.Blocks,
		Atime: uint64(st.Atime.Sec), Atimensec: st.Atime.Nsec,
		Mtime: uint64(st.Mtime.Sec), Mtimensec: st.Mtime.Nsec,
		Ctime: uint64(st.Ctime.Sec), Ctimensec: st.Ctime.Nsec,
		Mode: uint32(st.Mode), Nlink: st.Nlink,
		Owner:   fuse.Owner{Uid: st.Uid, Gid: st.Gid},
		Rdev:    uint32(unix.Mkdev(st.Rdev_major, st.Rdev_minor)),
		Blksize: st.Blksize,
	}
}

// entryTTL is how long, in seconds, the kernel may believe a name: changes made through the mount it sees itself.
const entryTTL = 1

// attrTTL is 0 for files with several links, so that none shows a link count that another name changed.
func attrTTL(st *unix.Statx_t) uint64 {
	if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return 0
	}
	return 1
}
