package integration

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestFiles checks that files/ is a full filesystem: the same expectations hold for a plain directory.
func TestFiles(t *testing.T) {
	checks := []struct {
		name  string
		check func(*testing.T, string)
	}{
		{"read and write", checkReadWrite},
		{"append", checkAppend},
		{"rename", checkRename},
		{"links", checkLinks},
		{"directories", checkDirectories},
		{"many entries", checkManyEntries},
		{"mmap", checkMmap},
		{"fallocate", checkFallocate},
		{"holes", checkHoles},
		{"xattrs", checkXattrs},
		{"fifo", checkFifo},
		{"socket", checkSocket},
		{"O_TMPFILE", checkTmpfile},
		{"statfs", checkStatfs},
		{"attributes", checkAttributes},
		{"names", checkNames},
		{"unlinked while open", checkUnlinked},
		{"exec", checkExec},
		{"copy", checkCopy},
		{"users", checkUsers},
		{"setuid is lost by writing", checkKillpriv},
	}
	play := func(parent string) func(*testing.T) {
		return func(t *testing.T) {
			for _, c := range checks {
				t.Run(c.name, func(t *testing.T) {
					dir := filepath.Join(parent, strings.ReplaceAll(c.name, " ", "-"))
					require.NoError(t, os.Mkdir(dir, 0o755))
					require.NoError(t, os.Chmod(dir, 0o777))
					c.check(t, dir)
				})
			}
		}
	}
	t.Run("kernel", play(tempDir(t)))
	t.Run("lockfs", play(newMount(t).path("files")))
}

func openFile(t *testing.T, path string, flags int) int {
	t.Helper()
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o666)
	require.NoError(t, err, path)
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func checkReadWrite(t *testing.T, dir string) {
	path := dir + "/f"
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<19) // 8 MiB
	require.NoError(t, os.WriteFile(path, data, 0o644))
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, sha256.Sum256(data), sha256.Sum256(got))

	fd := openFile(t, path, unix.O_RDWR)
	_, err = unix.Pwrite(fd, []byte("XYZ"), 5)
	require.NoError(t, err)
	require.NoError(t, unix.Ftruncate(fd, 10))
	require.Equal(t, "01234XYZ89", readFile(t, path))
	require.NoError(t, unix.Truncate(path, 12))
	require.Equal(t, "01234XYZ89\x00\x00", readFile(t, path))
	require.NoError(t, unix.Fsync(fd))
	require.EqualValues(t, 12, statOf(t, path).Size)
	_, err = unix.Open(path, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, 0o644)
	require.Equal(t, unix.EEXIST, err)
	openFile(t, path, unix.O_WRONLY|unix.O_TRUNC)
	require.Empty(t, readFile(t, path))
	_, err = unix.Open(dir+"/missing", unix.O_RDONLY, 0)
	require.Equal(t, unix.ENOENT, err)
}

func checkAppend(t *testing.T, dir string) {
	const writers, lines = 4, 500
	var all sync.WaitGroup
	for w := range writers {
		fd := openFile(t, dir+"/log", unix.O_WRONLY|unix.O_APPEND|unix.O_CREAT)
		all.Go(func() {
			for i := range lines {
				unix.Write(fd, fmt.Appendf(nil, "writer %d line %d\n", w, i))
			}
		})
	}
	all.Wait()
	seen := make(map[string]bool)
	for line := range strings.Lines(readFile(t, dir+"/log")) {
		seen[line] = true
	}
	require.Len(t, seen, writers*lines)
}

func checkRename(t *testing.T, dir string) {
	a, b, sub := dir+"/a", dir+"/b", dir+"/sub"
	require.NoError(t, os.WriteFile(a, []byte("a"), 0o644))
	require.NoError(t, os.WriteFile(b, []byte("b"), 0o644))
	require.NoError(t, os.Mkdir(sub, 0o755))
	require.Equal(t, unix.EEXIST, unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_NOREPLACE))
	require.NoError(t, unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE))
	require.Equal(t, "ba", readFile(t, a)+readFile(t, b))
	require.NoError(t, unix.Rename(a, b))
	require.Equal(t, "b", readFile(t, b))
	require.NoError(t, unix.Rename(b, sub+"/c"))
	require.Equal(t, []string{"c"}, entries(t, sub))
	require.NoError(t, os.WriteFile(a, nil, 0o644))
	require.Equal(t, unix.EISDIR, unix.Rename(a, sub))
	require.Equal(t, unix.ENOTDIR, unix.Rename(sub, a))
	require.NoError(t, unix.Unlink(a))
	require.NoError(t, os.Mkdir(dir+"/sub2", 0o755))
	require.Equal(t, unix.ENOTEMPTY, unix.Rename(dir+"/sub2", sub))
	require.NoError(t, unix.Rename(sub, dir+"/sub2"))
	require.Equal(t, unix.EINVAL, unix.Rename(dir+"/sub2", dir+"/sub2/inside"))
	require.Equal(t, "b", readFile(t, dir+"/sub2/c"))
	require.Equal(t, unix.ENOENT, unix.Rename(a, b))
}

func checkLinks(t *testing.T, dir string) {
	a, b, s := dir+"/a", dir+"/b", dir+"/s"
	require.NoError(t, os.WriteFile(a, []byte("text"), 0o644))
	require.NoError(t, unix.Link(a, b))
	require.Equal(t, unix.EEXIST, unix.Link(a, b))
	require.EqualValues(t, 2, statOf(t, a).Nlink)
	require.Equal(t, statOf(t, a).Ino, statOf(t, b).Ino)
	require.NoError(t, os.WriteFile(b, []byte("more"), 0o644))
	require.Equal(t, "more", readFile(t, a))
	require.NoError(t, unix.Unlink(a))
	require.EqualValues(t, 1, statOf(t, b).Nlink)

	require.NoError(t, unix.Symlink("b", s))
	target, err := os.Readlink(s)
	require.NoError(t, err)
	require.Equal(t, "b", target)
	require.EqualValues(t, 1, statOf(t, s).Size)
	require.Equal(t, "more", readFile(t, s))
	require.NoError(t, unix.Symlink("loop", dir+"/loop"))
	_, err = unix.Open(dir+"/loop", unix.O_RDONLY, 0)
	require.Equal(t, unix.ELOOP, err)
	_, err = unix.Open(s, unix.O_RDONLY|unix.O_NOFOLLOW, 0)
	require.Equal(t, unix.ELOOP, err)
}

func checkDirectories(t *testing.T, dir string) {
	require.NoError(t, os.MkdirAll(dir+"/a/b/c", 0o755))
	require.EqualValues(t, 3, statOf(t, dir+"/a").Nlink)
	require.Equal(t, unix.ENOTEMPTY, unix.Rmdir(dir+"/a"))
	require.Equal(t, unix.EEXIST, unix.Mkdir(dir+"/a", 0o755))
	require.Equal(t, unix.EISDIR, unix.Unlink(dir+"/a"))
	require.NoError(t, os.WriteFile(dir+"/f", nil, 0o644))
	require.Equal(t, unix.ENOTDIR, unix.Rmdir(dir+"/f"))
	require.Equal(t, unix.ENOTDIR, unix.Mkdir(dir+"/f/x", 0o755))
	require.NoError(t, unix.Rmdir(dir+"/a/b/c"))
	require.NoError(t, os.RemoveAll(dir+"/a"))
	require.Equal(t, []string{"f"}, entries(t, dir))
	require.NoError(t, os.Mkdir(dir+"/setgid", 0o755))
	require.NoError(t, os.Chown(dir+"/setgid", 0, 77))
	require.NoError(t, unix.Chmod(dir+"/setgid", 0o2755))
	require.NoError(t, os.Mkdir(dir+"/setgid/sub", 0o755))
	st := statOf(t, dir+"/setgid/sub")
	require.EqualValues(t, 77, st.Gid)
	require.NotZero(t, st.Mode&unix.S_ISGID)
}

func checkManyEntries(t *testing.T, dir string) {
	const n = 2000
	want := make([]string, 0, n)
	for i := range n {
		name := fmt.Sprintf("entry-%05d", i)
		want = append(want, name)
		fd, err := unix.Open(filepath.Join(dir, name), unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
		require.NoError(t, err)
		require.NoError(t, unix.Close(fd))
	}
	require.Equal(t, want, entries(t, dir))
	mustSh(t, `rm -r "$1"/*9`, dir)
	require.Len(t, entries(t, dir), n*9/10)
	mustSh(t, `find "$1" -type f -delete`, dir)
	require.Equal(t, "0", mustSh(t, `find "$1" -type f | wc -l`, dir))
}

func checkMmap(t *testing.T, dir string) {
	path := dir + "/f"
	require.NoError(t, os.WriteFile(path, make([]byte, 8192), 0o644))
	one, two := openFile(t, path, unix.O_RDWR), openFile(t, path, unix.O_RDWR)
	a, err := unix.Mmap(one, 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	require.NoError(t, err)
	b, err := unix.Mmap(two, 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	require.NoError(t, err)
	copy(a[5000:], "shared")
	require.Equal(t, "shared", string(b[5000:5006]))
	require.NoError(t, unix.Msync(a, unix.MS_SYNC))
	buf := make([]byte, 6)
	_, err = unix.Pread(two, buf, 5000)
	require.NoError(t, err)
	require.Equal(t, "shared", string(buf))
	_, err = unix.Pwrite(two, []byte("written"), 100)
	require.NoError(t, err)
	require.Equal(t, "written", string(a[100:107]))
	require.NoError(t, unix.Munmap(a))
	require.NoError(t, unix.Munmap(b))
}

func checkFallocate(t *testing.T, dir string) {
	path := dir + "/f"
	fd := openFile(t, path, unix.O_RDWR|unix.O_CREAT)
	require.NoError(t, unix.Fallocate(fd, 0, 0, 1<<16))
	require.EqualValues(t, 1<<16, statOf(t, path).Size)
	require.NotZero(t, statOf(t, path).Blocks)
	require.NoError(t, unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, 1<<16, 1<<16))
	require.EqualValues(t, 1<<16, statOf(t, path).Size)
	_, err := unix.Pwrite(fd, bytes.Repeat([]byte("x"), 1<<16), 0)
	require.NoError(t, err)
	require.NoError(t, unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 4096, 4096))
	text := readFile(t, path)
	require.Equal(t, strings.Repeat("\x00", 4096), text[4096:8192])
	require.Equal(t, "x", text[8192:8193])
	require.Equal(t, unix.EINVAL, unix.Fallocate(fd, 0, 0, 0))
}

func checkHoles(t *testing.T, dir string) {
	fd := openFile(t, dir+"/f", unix.O_RDWR|unix.O_CREAT)
	_, err := unix.Pwrite(fd, []byte("data"), 1<<20)
	require.NoError(t, err)
	require.NoError(t, unix.Ftruncate(fd, 4<<20))
	data, err := unix.Seek(fd, 0, unix.SEEK_DATA)
	require.NoError(t, err)
	require.EqualValues(t, 1<<20, data)
	hole, err := unix.Seek(fd, data, unix.SEEK_HOLE)
	require.NoError(t, err)
	require.True(t, hole > data && hole < 2<<20, "hole at %d", hole)
	_, err = unix.Seek(fd, 2<<20, unix.SEEK_DATA)
	require.Equal(t, unix.ENXIO, err)
}

func checkXattrs(t *testing.T, dir string) {
	path := dir + "/f"
	require.NoError(t, os.WriteFile(path, nil, 0o644))
	require.NoError(t, unix.Setxattr(path, "user.colour", []byte("green"), unix.XATTR_CREATE))
	require.Equal(t, unix.EEXIST, unix.Setxattr(path, "user.colour", []byte("red"), unix.XATTR_CREATE))
	require.NoError(t, unix.Setxattr(path, "user.empty", nil, 0))
	buf := make([]byte, 100)
	n, err := unix.Getxattr(path, "user.colour", buf)
	require.NoError(t, err)
	require.Equal(t, "green", string(buf[:n]))
	n, err = unix.Getxattr(path, "user.colour", nil)
	require.NoError(t, err)
	require.Equal(t, 5, n)
	_, err = unix.Getxattr(path, "user.colour", buf[:2])
	require.Equal(t, unix.ERANGE, err)
	n, err = unix.Listxattr(path, buf)
	require.NoError(t, err)
	require.Subset(t, strings.Split(string(buf[:n]), "\x00"), []string{"user.colour", "user.empty"})
	require.NoError(t, unix.Removexattr(path, "user.colour"))
	_, err = unix.Getxattr(path, "user.colour", buf)
	require.Equal(t, unix.ENODATA, err)
}

func checkFifo(t *testing.T, dir string) {
	require.Equal(t, "through", mustSh(t, `cd "$1" && mkfifo p && { echo through > p & cat p; }`, dir))
	require.Equal(t, uint32(unix.S_IFIFO), statOf(t, dir+"/p").Mode&unix.S_IFMT)
}

func checkSocket(t *testing.T, dir string) {
	listener, err := net.Listen("unix", dir+"/s")
	require.NoError(t, err)
	defer listener.Close()
	require.Equal(t, uint32(unix.S_IFSOCK), statOf(t, dir+"/s").Mode&unix.S_IFMT)
	conn, err := net.Dial("unix", dir+"/s")
	require.NoError(t, err)
	conn.Close()
}

func checkTmpfile(t *testing.T, dir string) {
	fd := openFile(t, dir, unix.O_TMPFILE|unix.O_RDWR)
	_, err := unix.Write(fd, []byte("text"))
	require.NoError(t, err)
	require.Empty(t, entries(t, dir))
	var st unix.Stat_t
	require.NoError(t, unix.Fstat(fd, &st))
	require.EqualValues(t, 0, st.Nlink)
	require.NoError(t, unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, dir+"/named",
		unix.AT_SYMLINK_FOLLOW))
	require.Equal(t, "text", readFile(t, dir+"/named"))
	require.EqualValues(t, 1, statOf(t, dir+"/named").Nlink)
}

func checkStatfs(t *testing.T, dir string) {
	var st unix.Statfs_t
	require.NoError(t, unix.Statfs(dir, &st))
	require.NotZero(t, st.Blocks)
	require.NotZero(t, st.Bavail)
	require.NotZero(t, st.Bsize)
	require.EqualValues(t, 255, st.Namelen)
}

func checkAttributes(t *testing.T, dir string) {
	path := dir + "/f"
	require.NoError(t, os.WriteFile(path, []byte("x"), 0o640))
	require.Equal(t, uint32(unix.S_IFREG|0o640), statOf(t, path).Mode)
	require.NoError(t, unix.Chmod(path, 0o4711))
	require.Equal(t, uint32(unix.S_IFREG|0o4711), statOf(t, path).Mode)
	require.NoError(t, os.Chown(path, 5, 6))
	st := statOf(t, path)
	require.EqualValues(t, 5, st.Uid)
	require.EqualValues(t, 6, st.Gid)
	require.NoError(t, unix.UtimesNano(path, []unix.Timespec{{Sec: 1, Nsec: 2}, {Sec: 1_000_000_000, Nsec: 123456789}}))
	st = statOf(t, path)
	require.Equal(t, unix.Timespec{Sec: 1, Nsec: 2}, st.Atim)
	require.Equal(t, unix.Timespec{Sec: 1_000_000_000, Nsec: 123456789}, st.Mtim)
	require.NoError(t, os.WriteFile(path, []byte("y"), 0o640))
	require.Greater(t, statOf(t, path).Mtim.Sec, int64(1_700_000_000))
	var one, two unix.Stat_t
	require.NoError(t, unix.Stat(dir, &one))
	require.NoError(t, unix.Fstat(openFile(t, dir, unix.O_RDONLY|unix.O_DIRECTORY), &two))
	require.Equal(t, one.Ino, two.Ino)
}

func checkNames(t *testing.T, dir string) {
	for _, name := range []string{strings.Repeat("n", 255), "a b", "é", "\xff\xfe", "a\nb", "-x", ".hidden", "@+,", "tlock"} {
		path := dir + "/" + name
		require.NoError(t, os.WriteFile(path, []byte(name), 0o644))
		require.Equal(t, name, readFile(t, path))
		require.Contains(t, entries(t, dir), name)
	}
	require.Equal(t, unix.ENAMETOOLONG, unix.Mkdir(dir+"/"+strings.Repeat("n", 256), 0o755))
}

func checkUnlinked(t *testing.T, dir string) {
	path := dir + "/f"
	fd := openFile(t, path, unix.O_RDWR|unix.O_CREAT)
	require.NoError(t, unix.Unlink(path))
	_, err := unix.Pwrite(fd, []byte("still here"), 0)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, []byte("another"), 0o644))
	buf := make([]byte, 10)
	_, err = unix.Pread(fd, buf, 0)
	require.NoError(t, err)
	require.Equal(t, "still here", string(buf))
	var st unix.Stat_t
	require.NoError(t, unix.Fstat(fd, &st))
	require.EqualValues(t, 0, st.Nlink)
	require.EqualValues(t, 10, st.Size)
	require.NoError(t, unix.Fchmod(fd, 0o600))
	require.Equal(t, []string{"f"}, entries(t, dir))
	require.NoError(t, unix.Unlink(path))
	require.NoError(t, unix.Rmdir(dir), "nothing hidden is left in it")
}

func checkExec(t *testing.T, dir string) {
	require.Equal(t, "hello", mustSh(t, `cp /bin/sh "$1/sh" && "$1/sh" -c 'echo hello'`, dir))
	require.Equal(t, "script", mustSh(t, `printf '#!/bin/sh\necho script\n' > "$1/s" && chmod +x "$1/s" && "$1/s"`, dir))
}

func checkCopy(t *testing.T, dir string) {
	require.NoError(t, os.WriteFile(dir+"/from", []byte("0123456789"), 0o644))
	from, to := openFile(t, dir+"/from", unix.O_RDONLY), openFile(t, dir+"/to", unix.O_WRONLY|unix.O_CREAT)
	offset := int64(2)
	n, err := unix.CopyFileRange(from, &offset, to, nil, 5, 0)
	require.NoError(t, err)
	require.Equal(t, 5, n)
	require.Equal(t, "23456", readFile(t, dir+"/to"))
	mustSh(t, `cd "$1" && mkdir tree && cp -a from to tree && ln -s from tree/l && cp -a tree copy && diff -r tree copy`, dir)
}

func checkUsers(t *testing.T, dir string) {
	mine := newClient(t, dir, asUser(stranger))
	theirs := newClient(t, dir, asUser(stranger+1))
	require.NoError(t, unix.Chmod(dir, 0o1777))
	require.Equal(t, "ok", mine.do("open f"))
	st := statOf(t, dir+"/f")
	assert.EqualValues(t, stranger, st.Uid)
	assert.EqualValues(t, stranger, st.Gid)
	assert.Equal(t, uint32(unix.S_IFREG|0o644), st.Mode)
	assert.Equal(t, "EACCES", theirs.do("open f w"))
	assert.Equal(t, "ok", theirs.do("open f r"))
	require.NoError(t, unix.Chmod(dir+"/f", 0o600))
	assert.Equal(t, "EACCES", theirs.do("open f:2 r"))
	assert.Equal(t, "ok", mine.do("open f:2 r"))
	assert.Equal(t, "EPERM", theirs.do("unlink f"), "the directory is sticky")
	assert.Equal(t, "EPERM", theirs.do("rename f g"))
	assert.Equal(t, "ok", mine.do("mkdir sub"))
	assert.Equal(t, "EACCES", theirs.do("mkdir sub/x"))
	assert.EqualValues(t, stranger, statOf(t, dir+"/sub").Uid)
	assert.Equal(t, "ok", mine.do("unlink f"))
	assert.Equal(t, "ok", mine.do("rmdir sub"))
}

func checkKillpriv(t *testing.T, dir string) {
	path := dir + "/f"
	require.NoError(t, os.WriteFile(path, []byte("x"), 0o666))
	require.NoError(t, os.Chown(path, stranger+1, stranger+1))
	require.NoError(t, unix.Chmod(path, 0o6777))
	c := newClient(t, dir, asUser(stranger))
	require.Equal(t, "ok", c.do("write f text"))
	require.Equal(t, uint32(unix.S_IFREG|0o777), statOf(t, path).Mode)
}

// TestNothingCrossesTheParts: a rename or link between the parts of the tree is refused.
func TestNothingCrossesTheParts(t *testing.T) {
	m := newMount(t)
	require.NoError(t, os.WriteFile(m.path("files/f"), nil, 0o644))
	for _, to := range []string{"tlock/f", "view/f", "f", "take/f", "hold/f"} {
		for what, err := range map[string]error{
			"rename": unix.Rename(m.path("files/f"), m.path(to)),
			"link":   unix.Link(m.path("files/f"), m.path(to)),
		} {
			assert.Contains(t, []string{"EXDEV", "EPERM", "EROFS", "EEXIST"}, errnoName(err), "%s to %s", what, to)
		}
	}
	assert.Equal(t, []string{"f"}, entries(t, m.path("files")))
	assert.Equal(t, []string{"README", "files", "hold", "take", "tlock", "view"}, entries(t, m.dir))
}

// TestSubmountsAreRefused: a filesystem mounted in the backing directory is not served.
func TestSubmountsAreRefused(t *testing.T) {
	backing := tempDir(t)
	for _, name := range []string{"sub", "plain"} {
		require.NoError(t, os.Mkdir(filepath.Join(backing, name), 0o755))
	}
	require.NoError(t, unix.Mount("tmpfs", backing+"/sub", "tmpfs", 0, "size=1m"))
	t.Cleanup(func() { unix.Unmount(backing+"/sub", unix.MNT_DETACH) })
	m := newMount(t, "--files", backing)
	var st unix.Stat_t
	require.Equal(t, "EXDEV", errnoName(unix.Stat(m.path("files/sub"), &st)))
	require.NoError(t, unix.Stat(m.path("files/plain"), &st))
	_, err := os.ReadDir(m.path("files"))
	require.NoError(t, err)
}

// TestMountIsReachableByItsFiles: where the mount is below its own backing directory it is a submount there as any other,
// and nobody waits for an answer of it before he knows that.
func TestMountIsReachableByItsFiles(t *testing.T) {
	backing := tempDir(t)
	dir, file := backing+"/locks", backing+"/file"
	require.NoError(t, os.Mkdir(dir, 0o755))
	require.NoError(t, os.WriteFile(file, nil, 0o644))
	m := newMount(t, "--files", backing)
	for at, what := range map[string]string{dir: m.dir, file: m.path("README")} {
		require.NoError(t, unix.Mount(what, at, "", unix.MS_BIND, ""))
		t.Cleanup(func() { unix.Unmount(at, unix.MNT_DETACH) })
	}
	defer time.AfterFunc(30*time.Second, m.abort).Stop() // no signal ends who waits for ever
	for range 2 {
		r := newProgram(t, 10*time.Second, "stat", m.path("files/locks"), m.path("files/file")).run(t)
		require.Equal(t, 1, r.code, r)
		require.Equal(t, 2, strings.Count(r.err, "Invalid cross-device link"), r.err)
		r = newProgram(t, 10*time.Second, "ls", m.path("files")).run(t)
		require.Equal(t, "file\nlocks\n", r.out)
		m.killWorker()
	}
}

// TestBackingDirectoryStaysOutside: no way leads from files/ to what is above its backing directory.
func TestBackingDirectoryStaysOutside(t *testing.T) {
	m := newMount(t)
	require.NoError(t, os.Mkdir(m.path("files/sub"), 0o755))
	var top, up unix.Stat_t
	require.NoError(t, unix.Stat(m.path("files"), &top))
	require.NoError(t, unix.Stat(m.dir+"/files/sub/..", &up))
	require.Equal(t, top.Ino, up.Ino)
	require.NoError(t, unix.Symlink("/proc/self/status", m.path("files/link")))
	require.Contains(t, readFile(t, m.path("files/link")), fmt.Sprint("Pid:\t", syscall.Getpid()),
		"a link is followed by the reader, not by the daemon")
}

// leaseScript has a lease on a file until it is told to end, and says when another program asks for the file.
const leaseScript = `
import fcntl, signal, sys
f = open(sys.argv[1], 'r+')
signal.signal(signal.SIGIO, lambda *_: print('asked', flush=True))
fcntl.fcntl(f, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print('leased', flush=True)
sys.stdin.readline()
`

// TestOpenOutlastsSignals: Go's runtime interrupts threads by signals. A call on the backing file that waits, here for
// who has a lease on it (fcntl(2), "Leases"), must not fail with EINTR by that.
func TestOpenOutlastsSignals(t *testing.T) {
	m := newMount(t)
	for _, command := range []string{`python3 -c 'import os; os.truncate("FILE", 2)'`, "echo ab > FILE", "cat FILE"} {
		require.NoError(t, os.WriteFile(m.path("files/leased"), []byte("text"), 0o644))
		lease := startScript(t, newProgram(t, hangLimit, "python3", "-c", leaseScript, filepath.Join(m.state, "files/leased")))
		require.Equal(t, "leased", lease.next("the lease"))
		asks := start(t, newProgram(t, hangLimit, "sh", "-c", strings.ReplaceAll(command, "FILE", m.path("files/leased"))))
		require.Equal(t, "asked", lease.next(command))
		for range 50 {
			threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", m.worker()))
			require.NoError(t, err)
			for _, thread := range threads {
				_ = unix.Tgkill(m.worker(), int(parseInt(thread.Name())), unix.SIGURG) // it may have ended
			}
		}
		lease.in.Close()
		assert.Equal(t, 0, asks.wait(t).code, command)
	}
}
