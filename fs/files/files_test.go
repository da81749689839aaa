package files

import (
	"errors"
	"fmt"
	"os"
	"sort"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// both runs a test with the server's own I/O and with the kernel's.
func both(t *testing.T, test func(*testing.T, *mounted)) {
	t.Run("cached", func(t *testing.T) { test(t, mount(t)) })
	t.Run("passthrough", func(t *testing.T) { test(t, mount(t, withPassthrough)) })
}

func TestReadWriteTruncate(t *testing.T) {
	both(t, func(t *testing.T, m *mounted) {
		big := strings.Repeat("0123456789abcdef", 100_000)
		p := m.write(t, "a", big)
		got, err := os.ReadFile(p)
		require.NoError(t, err)
		require.True(t, string(got) == big)
		behind, err := os.ReadFile(m.backing + "/a")
		require.NoError(t, err)
		require.True(t, string(behind) == big)
		require.NoError(t, os.Truncate(p, 5))
		f, err := os.OpenFile(p, os.O_RDWR|os.O_APPEND, 0)
		require.NoError(t, err)
		_, err = f.WriteString("tail")
		require.NoError(t, err)
		require.NoError(t, f.Sync())
		require.NoError(t, unix.Fdatasync(int(f.Fd())))
		require.NoError(t, f.Truncate(8))
		require.NoError(t, f.Close())
		got, _ = os.ReadFile(p)
		require.Equal(t, "01234tai", string(got))
		f, err = os.OpenFile(p, os.O_WRONLY|os.O_TRUNC|os.O_SYNC, 0)
		require.NoError(t, err)
		_, err = f.WriteString("new")
		require.NoError(t, err)
		f.Close()
		got, _ = os.ReadFile(m.backing + "/a")
		require.Equal(t, "new", string(got))
	})
}

func TestAppendersDoNotOverwriteEachOther(t *testing.T) {
	both(t, func(t *testing.T, m *mounted) {
		p := m.write(t, "log", "")
		const writers, lines = 4, 200
		errs := make(chan error, writers)
		for range writers {
			go func() {
				f, err := os.OpenFile(p, os.O_WRONLY|os.O_APPEND, 0)
				for i := 0; err == nil && i < lines; i++ {
					_, err = f.WriteString("a line of text\n")
				}
				f.Close()
				errs <- err
			}()
		}
		for range writers {
			require.NoError(t, <-errs)
		}
		got, _ := os.ReadFile(p)
		require.Equal(t, writers*lines, strings.Count(string(got), "a line of text\n"))
		require.Len(t, got, writers*lines*len("a line of text\n"))
	})
}

// An appending handle may be the one through which the kernel writes back a shared mapping.
func TestMappingWithAppender(t *testing.T) {
	both(t, func(t *testing.T, m *mounted) {
		p := m.write(t, "map", strings.Repeat("x", 8192))
		require.Equal(t, []string{"ok"}, person{}.acts(t, "mapappend "+p))
		behind, err := os.ReadFile(m.backing + "/map")
		require.NoError(t, err)
		require.Len(t, behind, 8192)
		require.Equal(t, "mapped", string(behind[4096:4102]))
	})
}

func mapBesideAppender(path string) error {
	app, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer app.Close()
	mem, err := mapFile(path, 8192)
	if err != nil {
		return err
	}
	copy(mem[4096:], "mapped")
	return unix.Msync(mem, unix.MS_SYNC)
}

func TestTwoMappingsSeeEachOther(t *testing.T) {
	both(t, func(t *testing.T, m *mounted) {
		p := m.write(t, "shm", strings.Repeat("\x00", 4096))
		require.Equal(t, []string{"ok"}, person{}.acts(t, "maptwice "+p))
	})
}

func mapTwice(path string) error {
	a, err := mapFile(path, 4096)
	if err != nil {
		return err
	}
	b, err := mapFile(path, 4096)
	if err != nil {
		return err
	}
	copy(a, "wal-index")
	if string(b[:9]) != "wal-index" {
		return errors.New("the mappings differ")
	}
	return nil
}

func mapFile(path string, size int) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}

func TestSparse(t *testing.T) {
	both(t, func(t *testing.T, m *mounted) {
		f, err := os.OpenFile(m.path("s"), os.O_RDWR|os.O_CREATE, 0o600)
		require.NoError(t, err)
		defer f.Close()
		_, err = f.WriteAt(make([]byte, 64<<10), 1<<20)
		require.NoError(t, err)
		_, err = f.WriteAt([]byte("end"), 4<<20)
		require.NoError(t, err)
		require.NoError(t, f.Sync())
		fd := int(f.Fd())
		off, err := unix.Seek(fd, 0, unix.SEEK_DATA)
		require.NoError(t, err)
		require.EqualValues(t, 1<<20, off)
		off, err = unix.Seek(fd, 1<<20, unix.SEEK_HOLE)
		require.NoError(t, err)
		require.EqualValues(t, 1<<20+64<<10, off)
		_, err = unix.Seek(fd, 5<<20, unix.SEEK_DATA)
		require.Equal(t, unix.ENXIO, err)
		require.NoError(t, unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 1<<20, 64<<10))
		off, err = unix.Seek(fd, 0, unix.SEEK_DATA)
		require.NoError(t, err)
		require.EqualValues(t, 4<<20, off)
		require.NoError(t, unix.Fallocate(fd, 0, 0, 6<<20))
		fi, _ := f.Stat()
		require.EqualValues(t, 6<<20, fi.Size())
	})
}

func TestCopyFileRange(t *testing.T) {
	both(t, func(t *testing.T, m *mounted) {
		src, err := os.Open(m.write(t, "src", strings.Repeat("abcd", 50_000)))
		require.NoError(t, err)
		defer src.Close()
		dst, err := os.Create(m.path("dst"))
		require.NoError(t, err)
		defer dst.Close()
		from := int64(4)
		n, err := unix.CopyFileRange(int(src.Fd()), &from, int(dst.Fd()), nil, 100_000, 0)
		require.NoError(t, err)
		require.Equal(t, 100_000, n)
		got, _ := os.ReadFile(m.path("dst"))
		require.Equal(t, strings.Repeat("abcd", 25_000), string(got))
	})
}

func TestUnlinkedFileLivesOn(t *testing.T) {
	both(t, func(t *testing.T, m *mounted) {
		p := m.write(t, "gone", "still here")
		f, err := os.OpenFile(p, os.O_RDWR, 0)
		require.NoError(t, err)
		defer f.Close()
		key := m.key(t, "gone")
		require.NoError(t, os.Remove(p))
		got := make([]byte, 5)
		_, err = f.ReadAt(got, 0)
		require.NoError(t, err)
		require.Equal(t, "still", string(got))
		require.NoError(t, f.Chmod(0o600))
		require.NoError(t, f.Truncate(3))
		var st unix.Stat_t
		require.NoError(t, unix.Fstat(int(f.Fd()), &st))
		require.EqualValues(t, 0, st.Nlink)
		require.EqualValues(t, 3, st.Size)
		require.EqualValues(t, 0o100600, st.Mode)
		path, ok := m.fs.Path(key)
		require.True(t, ok)
		require.Equal(t, fmt.Sprintf("#%d (deleted)", st.Ino), path)
		// Opening it once more is a new OPEN on a node without a name.
		again, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_RDWR, 0)
		require.NoError(t, err)
		again.Close()
	})
}

// Nothing but the kernel's own reference is left of these: no handle, no name.
func TestUnlinkedPathDescriptor(t *testing.T) {
	m := mount(t)
	m.write(t, "f", "x")
	require.NoError(t, os.Mkdir(m.path("d"), 0o755))
	for _, name := range []string{"f", "d"} {
		fd, err := unix.Open(m.path(name), unix.O_PATH, 0)
		require.NoError(t, err)
		require.NoError(t, os.Remove(m.path(name)))
		var st unix.Stat_t
		require.NoError(t, unix.Fstat(fd, &st), name)
		require.NoError(t, unix.Close(fd))
	}
	eventually(t, "forgotten", func() bool { return m.fs.NumNodes() == 1 })
}

func TestHardLinksShareKey(t *testing.T) {
	m := mount(t)
	m.write(t, "a", "1")
	require.NoError(t, os.Link(m.path("a"), m.path("b")))
	require.Equal(t, m.key(t, "a"), m.key(t, "b"))
	var st unix.Stat_t
	require.NoError(t, unix.Stat(m.path("a"), &st))
	require.EqualValues(t, 2, st.Nlink)
	require.NoError(t, os.Remove(m.path("a")))
	path, ok := m.fs.Path(m.key(t, "b"))
	require.True(t, ok)
	require.Equal(t, "b", path)
	require.NoError(t, unix.Stat(m.path("b"), &st))
	require.EqualValues(t, 1, st.Nlink)
}

func TestKeyIsNotUsedAgain(t *testing.T) {
	m := mount(t)
	seen := map[string]bool{}
	for range 50 { // ext4 gives the same inode number at once
		m.write(t, "f", "")
		key := m.key(t, "f")
		require.False(t, seen[key], key)
		seen[key] = true
		require.NoError(t, os.Remove(m.path("f")))
	}
}

func TestKeyRoundTrip(t *testing.T) {
	for _, id := range []ident{{1, 2, 3, 4}, {0xfe01, 1 << 63, -5, 999999999}, {}} {
		back, ok := parseKey(id.key())
		require.True(t, ok)
		require.Equal(t, id, back)
	}
	for _, bad := range []string{"", "1", "1:2", "1:2:3", "x:2:3.4", "1:2:3.4:5"} {
		_, ok := parseKey(bad)
		require.False(t, ok, bad)
	}
}

func TestLockKeyDoesNotAllocate(t *testing.T) {
	f, err := New(Config{Dir: t.TempDir()})
	require.NoError(t, err)
	defer f.Close()
	require.Zero(t, testing.AllocsPerRun(100, func() { f.LockKey(Root) }))
	_, ok := f.LockKey(77)
	require.False(t, ok)
}

func TestPathFollowsRenames(t *testing.T) {
	m := mount(t)
	require.NoError(t, os.MkdirAll(m.path("d/e"), 0o755))
	require.NoError(t, os.Mkdir(m.path("other"), 0o755))
	m.write(t, "d/e/f", "")
	key := m.key(t, "d/e/f")
	expect := func(want string) {
		t.Helper()
		path, ok := m.fs.Path(key)
		require.True(t, ok)
		require.Equal(t, want, path)
	}
	expect("d/e/f")
	require.NoError(t, os.Rename(m.path("d/e"), m.path("other/g")))
	expect("other/g/f")
	require.NoError(t, os.Rename(m.path("other/g/f"), m.path("top")))
	expect("top")
	_, ok := m.fs.KeyByPath("other/g/f")
	require.False(t, ok)
	m.write(t, "new", "")
	require.NoError(t, os.Rename(m.path("new"), m.path("top")))
	require.NotEqual(t, key, m.key(t, "top"))
	root, ok := m.fs.LockKey(Root)
	require.True(t, ok)
	path, ok := m.fs.Path(root)
	require.True(t, ok)
	require.Equal(t, ".", path)
}

func TestRenameFlags(t *testing.T) {
	m := mount(t)
	m.write(t, "a", "A")
	m.write(t, "b", "B")
	require.NoError(t, os.Mkdir(m.path("dir"), 0o755))
	rename := func(from, to string, flags uint) error {
		return unix.Renameat2(unix.AT_FDCWD, m.path(from), unix.AT_FDCWD, m.path(to), flags)
	}
	ka, kb := m.key(t, "a"), m.key(t, "b")
	require.Equal(t, unix.EEXIST, rename("a", "b", unix.RENAME_NOREPLACE))
	require.NoError(t, rename("a", "b", unix.RENAME_EXCHANGE))
	got, _ := os.ReadFile(m.path("a"))
	require.Equal(t, "B", string(got))
	for key, want := range map[string]string{ka: "b", kb: "a"} {
		path, _ := m.fs.Path(key)
		require.Equal(t, want, path)
	}
	require.Equal(t, unix.ENOENT, rename("a", "none", unix.RENAME_EXCHANGE))
	require.Equal(t, unix.EINVAL, rename("a", "w", unix.RENAME_WHITEOUT))
	require.NoError(t, rename("a", "c", unix.RENAME_NOREPLACE))
	require.NoError(t, os.Link(m.path("c"), m.path("c2")))
	require.NoError(t, rename("c", "c2", 0)) // the same file: nothing happens
	require.Equal(t, m.key(t, "c"), m.key(t, "c2"))
	require.Equal(t, unix.EISDIR, rename("c", "dir", 0))
	require.Equal(t, unix.ENOTDIR, rename("dir", "c", 0))
	require.NoError(t, rename("dir", "c", unix.RENAME_EXCHANGE))
}

func TestSpecialFiles(t *testing.T) {
	m := mount(t)
	require.NoError(t, unix.Mkfifo(m.path("fifo"), 0o640))
	var st unix.Stat_t
	require.NoError(t, unix.Lstat(m.path("fifo"), &st))
	require.EqualValues(t, unix.S_IFIFO|0o640, st.Mode)
	rw, err := os.OpenFile(m.path("fifo"), os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = rw.WriteString("through")
	require.NoError(t, err)
	got := make([]byte, 7)
	_, err = rw.Read(got)
	require.NoError(t, err)
	require.Equal(t, "through", string(got))
	rw.Close()

	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	require.NoError(t, err)
	require.NoError(t, unix.Bind(fd, &unix.SockaddrUnix{Name: m.path("sock")}))
	require.NoError(t, unix.Listen(fd, 1))
	client, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	require.NoError(t, err)
	require.NoError(t, unix.Connect(client, &unix.SockaddrUnix{Name: m.path("sock")}))
	unix.Close(client)
	unix.Close(fd)

	require.NoError(t, unix.Mknod(m.path("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	require.NoError(t, unix.Stat(m.path("null"), &st))
	require.EqualValues(t, unix.Mkdev(1, 3), st.Rdev)
	require.NoError(t, unix.Mknod(m.path("reg"), unix.S_IFREG|0o604, 0))
	require.NoError(t, unix.Stat(m.path("reg"), &st))
	require.EqualValues(t, unix.S_IFREG|0o604, st.Mode)
}

func TestSymlinks(t *testing.T) {
	m := mount(t)
	m.write(t, "target", "t")
	require.NoError(t, os.Symlink("target", m.path("link")))
	got, err := os.Readlink(m.path("link"))
	require.NoError(t, err)
	require.Equal(t, "target", got)
	long := strings.Repeat("x/", 2000)
	require.NoError(t, os.Symlink(long, m.path("long")))
	got, err = os.Readlink(m.path("long"))
	require.NoError(t, err)
	require.Equal(t, long, got)
	when := []unix.Timespec{{Sec: 1000, Nsec: 1}, {Sec: 2000, Nsec: 2}}
	require.NoError(t, unix.UtimesNanoAt(unix.AT_FDCWD, m.path("link"), when, unix.AT_SYMLINK_NOFOLLOW))
	require.NoError(t, unix.Lchown(m.path("link"), 5, 6))
	require.NoError(t, os.Link(m.path("link"), m.path("link2")))
	var st unix.Stat_t
	require.NoError(t, unix.Lstat(m.path("link2"), &st))
	require.EqualValues(t, 2000, st.Mtim.Sec)
	require.EqualValues(t, 5, st.Uid)
	require.NoError(t, unix.Stat(m.path("target"), &st))
	require.NotEqualValues(t, 2000, st.Mtim.Sec)
	require.EqualValues(t, 0, st.Uid)
	_, err = unix.Lgetxattr(m.path("link"), "trusted.none", nil)
	require.Equal(t, unix.ENODATA, err)
	require.NoError(t, unix.Lsetxattr(m.path("link"), "trusted.mine", []byte("v"), 0))
	_, err = unix.Getxattr(m.path("target"), "trusted.mine", nil)
	require.Equal(t, unix.ENODATA, err)
}

func TestTimes(t *testing.T) {
	m := mount(t)
	p := m.write(t, "f", "x")
	var st unix.Stat_t
	set := func(a, mt unix.Timespec) {
		t.Helper()
		require.NoError(t, unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{a, mt}, 0))
		require.NoError(t, unix.Stat(p, &st))
	}
	set(unix.Timespec{Sec: -5, Nsec: 7}, unix.Timespec{Sec: 1 << 33, Nsec: 999999999})
	require.EqualValues(t, unix.Timespec{Sec: -5, Nsec: 7}, st.Atim)
	require.EqualValues(t, unix.Timespec{Sec: 1 << 33, Nsec: 999999999}, st.Mtim)
	set(unix.Timespec{Nsec: unix.UTIME_OMIT}, unix.Timespec{Nsec: unix.UTIME_NOW})
	require.EqualValues(t, -5, st.Atim.Sec)
	require.WithinDuration(t, time.Now(), time.Unix(st.Mtim.Unix()), 10*time.Second)
	var stx unix.Statx_t
	require.NoError(t, unix.Statx(unix.AT_FDCWD, p, 0, unix.STATX_ALL, &stx))
	require.NotZero(t, stx.Mask&unix.STATX_BTIME)
	require.WithinDuration(t, time.Now(), time.Unix(stx.Btime.Sec, 0), 10*time.Second)
}

func TestTmpfileGetsAName(t *testing.T) {
	both(t, func(t *testing.T, m *mounted) {
		fd, err := unix.Open(m.dir, unix.O_TMPFILE|unix.O_RDWR, 0o640)
		require.NoError(t, err)
		f := os.NewFile(uintptr(fd), "tmp")
		defer f.Close()
		_, err = f.WriteString("anonymous")
		require.NoError(t, err)
		var st unix.Stat_t
		require.NoError(t, unix.Fstat(fd, &st))
		require.EqualValues(t, 0, st.Nlink)
		require.NoError(t, f.Chmod(0o644))
		require.NoError(t, unix.Linkat(unix.AT_FDCWD, procPath(fd), unix.AT_FDCWD, m.path("named"), unix.AT_SYMLINK_FOLLOW))
		got, err := os.ReadFile(m.path("named"))
		require.NoError(t, err)
		require.Equal(t, "anonymous", string(got))
		require.NoError(t, unix.Fstat(fd, &st))
		require.EqualValues(t, 1, st.Nlink)
		fd, err = unix.Open(m.dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_EXCL, 0o600)
		require.NoError(t, err)
		require.Error(t, unix.Linkat(unix.AT_FDCWD, procPath(fd), unix.AT_FDCWD, m.path("never"), unix.AT_SYMLINK_FOLLOW))
		unix.Close(fd)
	})
}

func TestXattrs(t *testing.T) {
	m := mount(t)
	p := m.write(t, "f", "")
	require.NoError(t, unix.Setxattr(p, "user.colour", []byte("blue"), unix.XATTR_CREATE))
	require.Equal(t, unix.EEXIST, unix.Setxattr(p, "user.colour", []byte("red"), unix.XATTR_CREATE))
	require.Equal(t, unix.ENODATA, unix.Setxattr(p, "user.none", []byte("x"), unix.XATTR_REPLACE))
	require.NoError(t, unix.Setxattr(p, "user.empty", nil, 0))
	require.NoError(t, unix.Setxattr(p, "trusted.secret", []byte("s"), 0))
	buf := make([]byte, 100)
	n, err := unix.Getxattr(p, "user.colour", buf)
	require.NoError(t, err)
	require.Equal(t, "blue", string(buf[:n]))
	n, err = unix.Getxattr(p, "user.colour", nil)
	require.NoError(t, err)
	require.Equal(t, 4, n)
	_, err = unix.Getxattr(p, "user.colour", buf[:2])
	require.Equal(t, unix.ERANGE, err)
	n, err = unix.Getxattr(p, "user.empty", buf)
	require.NoError(t, err)
	require.Zero(t, n)
	n, err = unix.Listxattr(p, nil)
	require.NoError(t, err)
	n2, err := unix.Listxattr(p, buf)
	require.NoError(t, err)
	require.Equal(t, n, n2)
	names := strings.Split(strings.TrimRight(string(buf[:n]), "\x00"), "\x00")
	sort.Strings(names)
	require.Equal(t, []string{"trusted.secret", "user.colour", "user.empty"}, names)
	_, err = unix.Listxattr(p, buf[:5])
	require.Equal(t, unix.ERANGE, err)
	require.NoError(t, unix.Removexattr(p, "user.colour"))
	_, err = unix.Getxattr(p, "user.colour", buf)
	require.Equal(t, unix.ENODATA, err)
	for _, acl := range []string{aclAccess, aclDefault} {
		require.Equal(t, unix.EOPNOTSUPP, unix.Setxattr(m.dir, acl, someACL(), 0), acl)
		_, err = unix.Getxattr(m.dir, acl, buf)
		require.Equal(t, unix.EOPNOTSUPP, err)
	}
	require.Equal(t, []string{`["user.empty"] ok`, "EPERM", "EPERM"}, alice.acts(t,
		"listxattr "+p, "setxattr "+p+" trusted.x y", "setxattr "+p+" security.x y"))
}

// someACL is user::rwx, user:12001:r--, group::r-x, mask::r-x, other::--- as the kernel stores it.
func someACL() []byte {
	entry := func(tag, perm uint16, id uint32) []byte {
		return []byte{byte(tag), 0, byte(perm), 0, byte(id), byte(id >> 8), byte(id >> 16), byte(id >> 24)}
	}
	acl := []byte{2, 0, 0, 0}
	acl = append(acl, entry(1, 7, ^uint32(0))...)
	acl = append(acl, entry(2, 4, 12001)...)
	acl = append(acl, entry(4, 5, ^uint32(0))...)
	acl = append(acl, entry(0x10, 5, ^uint32(0))...)
	return append(acl, entry(0x20, 0, ^uint32(0))...)
}

func TestACLsAreRefused(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, unix.Setxattr(dir, aclDefault, someACL(), 0), "the test needs a TMPDIR on a filesystem with ACLs")
	_, err := New(Config{Dir: dir})
	require.ErrorContains(t, err, dir)
	require.ErrorContains(t, err, "ACL")

	m := mount(t)
	require.NoError(t, os.WriteFile(m.backing+"/f", nil, 0o600))
	require.NoError(t, unix.Setxattr(m.backing+"/f", aclAccess, someACL(), 0))
	_, err = os.Stat(m.path("f"))
	require.ErrorIs(t, err, unix.EOPNOTSUPP)
}

func TestStatfs(t *testing.T) {
	m := mount(t)
	var mine, theirs unix.Statfs_t
	require.NoError(t, unix.Statfs(m.dir, &mine))
	require.NoError(t, unix.Statfs(m.backing, &theirs))
	require.Equal(t, theirs.Blocks, mine.Blocks)
	require.Equal(t, theirs.Bsize, mine.Bsize)
	require.Equal(t, theirs.Namelen, mine.Namelen)
}

func TestIoctlAndAccess(t *testing.T) {
	m := mount(t)
	f, err := os.Open(m.write(t, "f", ""))
	require.NoError(t, err)
	defer f.Close()
	var flags uint32
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.FS_IOC_GETFLAGS, uintptr(unsafe.Pointer(&flags)))
	require.Equal(t, unix.ENOTTY, errno)
	require.NoError(t, unix.Access(m.path("f"), unix.R_OK|unix.W_OK))
}

// cases that test suites for POSIX filesystems like to ask.
func TestErrnos(t *testing.T) {
	m := mount(t)
	m.write(t, "file", "")
	require.NoError(t, os.MkdirAll(m.path("dir/sub"), 0o755))
	require.NoError(t, os.Symlink("loop", m.path("loop")))
	p, long := m.path, strings.Repeat("n", 256)
	open := func(name string, flags int) error {
		fd, err := unix.Open(p(name), flags, 0o600)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
	for _, c := range []struct {
		what string
		err  error
		want error
	}{
		{"unlink a directory", unix.Unlink(p("dir")), unix.EISDIR},
		{"rmdir a file", unix.Rmdir(p("file")), unix.ENOTDIR},
		{"rmdir a full directory", unix.Rmdir(p("dir")), unix.ENOTEMPTY},
		{"rmdir .", unix.Rmdir(p("dir") + "/."), unix.EINVAL},
		{"unlink nothing", unix.Unlink(p("none")), unix.ENOENT},
		{"mkdir what exists", unix.Mkdir(p("file"), 0o755), unix.EEXIST},
		{"mkfifo what exists", unix.Mkfifo(p("file"), 0o755), unix.EEXIST},
		{"symlink what exists", unix.Symlink("x", p("file")), unix.EEXIST},
		{"link what exists", unix.Link(p("file"), p("loop")), unix.EEXIST},
		{"link a directory", unix.Link(p("dir"), p("dir2")), unix.EPERM},
		{"below a file", open("file/x", unix.O_RDONLY), unix.ENOTDIR},
		{"create long name", open(long, unix.O_CREAT|unix.O_WRONLY), unix.ENAMETOOLONG},
		{"look up long name", unix.Access(p(long), 0), unix.ENAMETOOLONG},
		{"mkdir long name", unix.Mkdir(p(long), 0o755), unix.ENAMETOOLONG},
		{"open a loop", open("loop", unix.O_RDONLY), unix.ELOOP},
		{"open a link nofollow", open("loop", unix.O_RDONLY|unix.O_NOFOLLOW), unix.ELOOP},
		{"create exclusively over a link", open("loop", unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY), unix.EEXIST},
		{"create exclusively", open("file", unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY), unix.EEXIST},
		{"open a file as directory", open("file", unix.O_DIRECTORY|unix.O_RDONLY), unix.ENOTDIR},
		{"write a directory", open("dir", unix.O_WRONLY), unix.EISDIR},
		{"rename into itself", unix.Rename(p("dir"), p("dir/sub/x")), unix.EINVAL},
		{"rename over full", unix.Rename(p("dir/sub"), p("dir")), unix.ENOTEMPTY},
		{"truncate a directory", unix.Truncate(p("dir"), 0), unix.EISDIR},
		{"truncate negative", unix.Truncate(p("file"), -1), unix.EINVAL},
		{"open a 255 byte name", open(long[:255], unix.O_CREAT|unix.O_WRONLY), nil},
		{"utf-8 and spaces", open("ä b\n", unix.O_CREAT|unix.O_WRONLY), nil},
		{"O_DIRECT", open("file", unix.O_RDWR|unix.O_DIRECT), nil},
		{"chmod a link itself", unix.Fchmodat(unix.AT_FDCWD, p("loop"), 0o600, unix.AT_SYMLINK_NOFOLLOW), unix.EOPNOTSUPP},
	} {
		require.Equal(t, c.want, c.err, c.what)
	}
}

func TestNamesThatAreNone(t *testing.T) {
	for _, name := range []string{"", ".", "..", "a/b", "/etc", "a\x00b", "../x"} {
		require.Error(t, checkName(name), "%q", name)
	}
	for _, name := range []string{"a", "...", ".a", "-", "a b"} {
		require.NoError(t, checkName(name))
	}
}
