package integration

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestJournalDiskFull: what cannot be recorded is refused with ENOSPC; what is held stays held, can be released, and
// survives a kill; and all goes on as soon as there is room.
func TestJournalDiskFull(t *testing.T) {
	disk := smallDisk(t, "12m")
	files := tempDir(t)
	binary, err := testedBinary()
	require.NoError(t, err)
	m := mountAt(t, binary, filepath.Join(tempDir(t), "mnt"), filepath.Join(disk, "state"), "--files", files)
	c, other := newClient(t, m.dir), newClient(t, m.dir)
	for _, request := range []string{"open files/f", "open files/g", "setlk files/f w 0 10", "flock files/g sh", "mkdir tlock/held+1h"} {
		require.Equal(t, "ok", c.do("%s", request), request)
	}
	require.Equal(t, "ok", other.do("open files/f"))
	require.Equal(t, "ok", other.do("open files/g"))
	token := readValue(t, m.path("tlock/held/token"))

	fill(t, filepath.Join(disk, "filler"))
	taken := takeUntilFull(t, m)
	t.Logf("%d locks found room", taken)
	require.Equal(t, "ENOSPC", lockUntilFull(other), "record locks")
	require.Equal(t, "ENOSPC", flockUntilFull(other), "flock")
	require.Equal(t, "ENOSPC", openErrno(m.path("take/more+5m"), unix.O_RDONLY), "take")
	require.Equal(t, "ENOSPC", openErrno(m.path("hold/more"), unix.O_RDONLY), "hold")
	require.Equal(t, "EEXIST", errnoName(unix.Mkdir(m.path("tlock/held"), 0o755)), "the answer of no change is as always")
	require.Contains(t, []string{"EAGAIN", "ENOSPC"}, other.do("setlk files/f w 5 1"), "never granted to two")

	m.killWithLocks("on a full disk")
	require.Equal(t, token, readValue(t, m.path("tlock/held/token")))

	require.NoError(t, unix.Rmdir(m.path("tlock/held@"+token)), "what is held can be released")
	require.Equal(t, "ok", c.do("setlk files/f u 0 10"))
	require.Equal(t, "ok", c.do("close files/g"))
	for i := range taken {
		require.NoError(t, unix.Rmdir(m.path("tlock", fmt.Sprint("full", i))), "release %d", i)
	}
	m.killWithLocks("after releases on a full disk")

	require.NoError(t, os.Remove(filepath.Join(disk, "filler")))
	eventually(t, waitLimit, "service goes on", func() bool { return unix.Mkdir(m.path("tlock/again"), 0o755) == nil })
	require.Equal(t, "ok", other.do("flock files/g ex"))
	require.Equal(t, "ok", other.do("setlk files/f w 5 1"))
	m.killWorker()
	require.Contains(t, entries(t, m.path("tlock")), "again")
	other.kill()
	c.kill()
}

// smallDisk is a tmpfs of a size.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	dir := tempDir(t)
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size))
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// fill writes a file until its disk has no page left.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	require.NoError(t, err)
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	require.ErrorIs(t, err, unix.ENOSPC)
}

// fullLimit is more locks than a disk of that size has room for.
const fullLimit = 60_000

// takeUntilFull takes names until that is refused, and returns how many.
func takeUntilFull(t *testing.T, m *mount) int {
	t.Helper()
	for i := range fullLimit {
		if err := unix.Mkdir(m.path("tlock", fmt.Sprint("full", i)), 0o755); err != nil {
			require.Equal(t, "ENOSPC", errnoName(err), "mkdir %d on a full disk", i)
			return i
		}
	}
	t.Fatalf("%d locks taken, and the disk of the journal is still not full", fullLimit)
	return 0
}

// lockUntilFull locks byte after byte, which may take less room than a name, and returns the refusal.
func lockUntilFull(c *client) string {
	c.t.Helper()
	for i := range fullLimit {
		if said := c.do("setlk files/f w %d 1", 100+2*i); said != "ok" {
			return said
		}
	}
	return "ok"
}

// flockUntilFull does the same with a lock that may take less room still.
func flockUntilFull(c *client) string {
	c.t.Helper()
	for range fullLimit {
		if said := c.do("flock files/g sh"); said != "ok" {
			return said
		}
		if said := c.do("flock files/g un"); said != "ok" {
			return "unlock: " + said
		}
	}
	return "ok"
}

// killWithLocks kills the worker, and requires that the next one knows the same locks.
func (m *mount) killWithLocks(when string) {
	m.t.Helper()
	before := m.locks(m.t)
	m.killWorker()
	lost, leaked := compareLocks(before, m.locks(m.t))
	require.Empty(m.t, lost, "lost by a kill %s", when)
	require.Empty(m.t, leaked, "there again after a kill %s", when)
}

// TestJournalDamaged: a journal that is damaged in the middle is refused, and nothing is changed; one that only lacks
// its end is used, and that is said.
func TestJournalDamaged(t *testing.T) {
	t.Run("in the middle", func(t *testing.T) {
		m := crashedWithLocks(t, 200)
		log := largestFile(t, m.journal())
		used := usedBytes(t, log)
		require.Greater(t, used, 4096, "the journal is too short for this test")
		damage(t, log, used/2, []byte{0xff, 0x00, 0xaa, 0x55, 0xff, 0x00, 0xaa, 0x55})
		before := treeHash(t, m.journal())

		r := newProgram(t, time.Minute, m.binary, "mount", "--state", m.state, m.dir).run(t)
		require.Equal(t, 3, r.code, r.err)
		require.Contains(t, r.err, log, "the file")
		requireOffsetNear(t, r.err, used/2)
		require.Regexp(t, `(?i)backup|move|away|restore`, r.err, "what to do")
		require.Equal(t, before, treeHash(t, m.journal()), "the journal was changed")
		_, mounted := mountedAt(m.dir)
		require.False(t, mounted)
		require.Empty(t, entries(t, m.dir))
	})
	t.Run("at the end", func(t *testing.T) {
		m := crashedWithLocks(t, 50)
		log := largestFile(t, m.journal())
		used := usedBytes(t, log)
		damage(t, log, used-2, []byte{0, 0}) // of the last record, as if it had not been written in full
		next := m.remount()
		require.Regexp(t, `(?i)torn|cut|incomplete|lost`, next.stderr.String())
		names := entries(t, next.path("tlock"))
		require.GreaterOrEqual(t, len(names), 49)
		require.Contains(t, names, "n0")
		require.NoError(t, unix.Mkdir(next.path("tlock/new"), 0o755))
		next.crash()
		require.Contains(t, entries(t, next.remount().path("tlock")), "new")
	})
}

func (m *mount) journal() string { return filepath.Join(m.state, "journal") }

// crashedWithLocks is a mount that took n locks and was killed; its mount point is free.
func crashedWithLocks(t *testing.T, n int) *mount {
	t.Helper()
	m := newCrashMount(t)
	for i := range n {
		require.NoError(t, unix.Mkdir(m.path("tlock", fmt.Sprint("n", i)), 0o755))
	}
	m.crash()
	require.NoError(t, unix.Unmount(m.dir, unix.MNT_DETACH))
	return m
}

func largestFile(t *testing.T, dir string) (path string) {
	t.Helper()
	most := -1
	for _, name := range entries(t, dir) {
		if used := usedBytes(t, filepath.Join(dir, name)); used > most {
			path, most = filepath.Join(dir, name), used
		}
	}
	require.NotEmpty(t, path, "no files in %s", dir)
	return path
}

// usedBytes is a file's length without the zeros at its end: room that was allocated ahead.
func usedBytes(t *testing.T, path string) int {
	t.Helper()
	return len(bytes.TrimRight([]byte(readFile(t, path)), "\x00"))
}

func damage(t *testing.T, path string, offset int, with []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	_, err = f.WriteAt(with, int64(offset))
	require.NoError(t, err)
}

// requireOffsetNear finds a number in a message that may be where the damaged record begins.
func requireOffsetNear(t *testing.T, message string, offset int) {
	t.Helper()
	for _, word := range bytes.FieldsFunc([]byte(message), func(r rune) bool { return r < '0' || r > '9' }) {
		if n, err := strconv.Atoi(string(word)); err == nil && n <= offset && n > offset-2048 {
			return
		}
	}
	assert.Fail(t, "no offset", "damaged at %d, but the message names no place shortly before: %s", offset, message)
}

// treeHash is a digest of all files below a directory.
func treeHash(t *testing.T, dir string) string {
	t.Helper()
	sum := sha256.New()
	require.NoError(t, filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		fmt.Fprintf(sum, "%s %d\n", path, len(text))
		sum.Write(text)
		return err
	}))
	return fmt.Sprintf("%x", sum.Sum(nil))
}
