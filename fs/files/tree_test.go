package files

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestReadDirWhileDeleting(t *testing.T) {
	m := mount(t)
	const n = 5000
	require.NoError(t, os.Mkdir(m.path("d"), 0o755))
	for i := range n {
		require.NoError(t, os.WriteFile(fmt.Sprintf("%s/d/%d", m.backing, i), nil, 0o644))
	}
	d, err := os.Open(m.path("d"))
	require.NoError(t, err)
	defer d.Close()
	seen := map[string]int{}
	for {
		names, err := d.Readdirnames(100)
		if len(names) == 0 {
			break
		}
		require.NoError(t, err)
		for i, name := range names {
			seen[name]++
			if i%2 == 0 { // half of those read; none that is still to come may be missed
				require.NoError(t, os.Remove(m.path("d/"+name)))
			}
		}
	}
	require.Len(t, seen, n)
	for name, times := range seen {
		require.Equal(t, 1, times, name)
	}
	_, err = d.Seek(0, 0)
	require.NoError(t, err)
	rest, err := d.Readdirnames(-1)
	require.NoError(t, err)
	require.Less(t, len(rest), n)
	require.NotEmpty(t, rest)
	require.NoError(t, os.RemoveAll(m.path("d")))
	_, err = d.Readdirnames(-1) // the kernel says so of any directory that is gone
	require.ErrorIs(t, err, unix.ENOENT)
}

func TestReadDirTypesAndSeek(t *testing.T) {
	m := mount(t)
	m.write(t, "f", "")
	require.NoError(t, os.Mkdir(m.path("d"), 0o755))
	require.NoError(t, os.Symlink("f", m.path("l")))
	es, err := os.ReadDir(m.dir)
	require.NoError(t, err)
	require.Len(t, es, 3)
	require.Equal(t, fs.ModeDir, es[0].Type())
	require.Equal(t, fs.FileMode(0), es[1].Type())
	require.Equal(t, fs.ModeSymlink, es[2].Type())
	for _, e := range es {
		require.Equal(t, statOf(t, m.backing+"/"+e.Name()).Ino, statOf(t, m.path(e.Name())).Ino)
	}
}

// buildTree makes files in a tree behind the mount.
func buildTree(t *testing.T, dir string, dirs, files int) {
	for i := range dirs {
		d := fmt.Sprintf("%s/%d/%d/%d", dir, i%3, i%7, i)
		require.NoError(t, os.MkdirAll(d, 0o755))
		for j := range files {
			require.NoError(t, os.WriteFile(fmt.Sprintf("%s/%d", d, j), []byte{1}, 0o644))
		}
	}
}

func ourFDs(t *testing.T) int {
	es, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(es)
}

func TestMoreNodesThanDescriptors(t *testing.T) {
	for _, way := range []string{"handles", "names"} {
		t.Run(way, func(t *testing.T) {
			m := mount(t, func(c *Config) { c.MaxFDs, c.noHandles = 16, way == "names" })
			buildTree(t, m.backing, 60, 50)
			before := ourFDs(t)
			for range 2 {
				count := 0
				require.NoError(t, filepath.WalkDir(m.dir, func(p string, d fs.DirEntry, err error) error {
					if err != nil {
						return err
					}
					if _, err := d.Info(); err != nil {
						return err
					}
					if !d.IsDir() {
						count++
						got, err := os.ReadFile(p)
						if err != nil || len(got) != 1 {
							return fmt.Errorf("%s: %v", p, err)
						}
					}
					return nil
				}))
				require.Equal(t, 3000, count)
			}
			eventually(t, "closed", func() bool { return ourFDs(t) <= before+16+10 })
			require.Greater(t, m.fs.NumNodes(), 1000)
			checkTables(t, m.fs)
			require.NoError(t, os.Rename(m.path("0"), m.path("moved")))
			require.NoError(t, filepath.WalkDir(m.path("moved"), func(p string, d fs.DirEntry, err error) error {
				if err == nil && !d.IsDir() {
					_, err = os.ReadFile(p)
				}
				return err
			}))
			require.NoError(t, os.RemoveAll(m.path("moved")))
			checkTables(t, m.fs)
		})
	}
}

// The descriptors of all processes together are limited; a large tree must not need one each.
func TestFindInALargeTree(t *testing.T) {
	m := mount(t, func(c *Config) { c.MaxFDs = 100 })
	buildTree(t, m.backing, 100, 500)
	before := ourFDs(t)
	start := time.Now()
	out, err := exec.Command("find", m.dir, "-type", "f", "-size", "1c").Output()
	require.NoError(t, err)
	require.Equal(t, 50_000, strings.Count(string(out), "\n"))
	require.LessOrEqual(t, ourFDs(t), before+100+20)
	t.Logf("found with %d nodes known, in %v", m.fs.NumNodes(), time.Since(start))
}

// checkTables says what must hold between the tables whenever no request runs.
func checkTables(t *testing.T, f *FS) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	children := map[*node]int{}
	cached, ghosts := 0, 0
	for id, n := range f.nodes {
		require.Equal(t, id, n.id)
		if f.idents[n.ident] != n {
			require.True(t, n.ghost())
			ghosts++
		}
		require.Zero(t, n.changing)
		for _, l := range n.links {
			require.Same(t, n, f.names[nameKey{l.parent.id, l.name}], l.name)
			require.False(t, l.parent.gone)
			children[l.parent]++
		}
		if n.fd != nil && n != f.root {
			cached++
			require.Zero(t, n.fd.users)
		}
	}
	for _, n := range f.nodes {
		require.Equal(t, children[n], n.children)
		require.False(t, n != f.root && n.lookups == 0 && !n.pinned && n.children == 0 && len(n.handles) == 0, "a node nobody needs")
	}
	require.LessOrEqual(t, len(f.nodes)-ghosts, len(f.idents))
	require.Equal(t, cached, f.lru.len)
	require.LessOrEqual(t, cached, f.maxFDs)
}

func TestEverythingIsForgotten(t *testing.T) {
	m := mount(t)
	buildTree(t, m.backing, 30, 20)
	require.NoError(t, filepath.WalkDir(m.dir, func(p string, _ fs.DirEntry, err error) error { return err }))
	for i := range 20 {
		require.NoError(t, os.Link(m.path("0/0/0/1"), m.path(fmt.Sprint("hard", i))))
	}
	checkTables(t, m.fs)
	require.NoError(t, os.RemoveAll(m.path("1")))
	for _, e := range mustReadDir(t, m.dir) {
		require.NoError(t, os.RemoveAll(m.path(e.Name())))
	}
	eventually(t, "only the root is left", func() bool { return m.fs.NumNodes() == 1 })
	checkTables(t, m.fs)
	m.fs.mu.Lock()
	defer m.fs.mu.Unlock()
	require.Empty(t, m.fs.names)
}

func mustReadDir(t *testing.T, dir string) []os.DirEntry {
	t.Helper()
	es, err := os.ReadDir(dir)
	require.NoError(t, err)
	return es
}

func TestSubmountIsRefused(t *testing.T) {
	m := mount(t)
	require.NoError(t, os.Mkdir(m.backing+"/sub", 0o755))
	require.NoError(t, os.Mkdir(m.backing+"/bind", 0o755))
	require.NoError(t, unix.Mount("none", m.backing+"/sub", "tmpfs", 0, "size=64k"))
	t.Cleanup(func() { unix.Unmount(m.backing+"/sub", unix.MNT_DETACH) })
	require.NoError(t, unix.Mount("/etc", m.backing+"/bind", "", unix.MS_BIND, ""))
	t.Cleanup(func() { unix.Unmount(m.backing+"/bind", unix.MNT_DETACH) })
	for _, name := range []string{"sub", "bind"} {
		_, err := os.Stat(m.path(name))
		require.ErrorIs(t, err, unix.EXDEV, name)
		_, err = os.ReadFile(m.path(name + "/passwd"))
		require.ErrorIs(t, err, unix.EXDEV, name)
	}
	require.Len(t, mustReadDir(t, m.dir), 2)
}

// A directory is swapped behind our back with a link that leads out, again and again. The requests are made without
// a kernel, whose cache of names would hide most of the races.
func TestNoEscapeBySwappedLink(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	require.NoError(t, os.Mkdir(dir+"/d", 0o755))
	require.NoError(t, os.WriteFile(dir+"/d/f", []byte("inside"), 0o644))
	require.NoError(t, os.WriteFile(outside+"/f", []byte("outside"), 0o644))
	require.NoError(t, os.Symlink(outside, dir+"/link"))
	f, err := New(Config{Dir: dir, MaxFDs: 1, noHandles: true}) // so that nodes are found again by name
	require.NoError(t, err)
	defer f.Close()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				unix.Renameat2(unix.AT_FDCWD, dir+"/d", unix.AT_FDCWD, dir+"/link", unix.RENAME_EXCHANGE)
			}
		}
	})
	inside := 0
	for end := time.Now().Add(time.Second); time.Now().Before(end); {
		if text, code := readByRequests(f, "d", "f"); code == fuse.OK {
			require.Equal(t, "inside", text)
			inside++
		}
	}
	close(stop)
	wg.Wait()
	require.NotZero(t, inside)
	checkTables(t, f)
}

// readByRequests does what the kernel does to read a file.
func readByRequests(f *FS, names ...string) (string, fuse.Status) {
	id := uint64(Root)
	for _, name := range names {
		var entry fuse.EntryOut
		if code := f.Lookup(nil, &fuse.InHeader{NodeId: id}, name, &entry); code != fuse.OK {
			return "", code
		}
		id = entry.NodeId
		defer f.Forget(id, 1)
	}
	var out fuse.OpenOut
	if code := f.Open(nil, &fuse.OpenIn{InHeader: fuse.InHeader{NodeId: id}}, &out); code != fuse.OK {
		return "", code
	}
	defer f.Release(nil, &fuse.ReleaseIn{Fh: out.Fh})
	buf := make([]byte, 100)
	r, code := f.Read(nil, &fuse.ReadIn{Fh: out.Fh, Size: 100}, buf)
	if code != fuse.OK {
		return "", code
	}
	defer r.Done()
	got, code := r.Bytes(buf)
	return string(got), code
}

// Changes behind the mount's back end in ESTALE or ENOENT, never in another file.
func TestFileReplacedBehindTheMount(t *testing.T) {
	m := mount(t, func(c *Config) { c.MaxFDs, c.noHandles = 1, true })
	m.write(t, "f", "first")
	fd, err := unix.Open(m.path("f"), unix.O_PATH, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	eventually(t, "closed", func() bool { return m.fs.NumHandles() == 0 })
	require.NoError(t, os.Mkdir(m.path("evict"), 0o755))
	require.NoError(t, os.Chmod(m.path("evict"), 0o700))
	require.NoError(t, os.WriteFile(m.backing+"/f2", []byte("second"), 0o644))
	require.NoError(t, os.Rename(m.backing+"/f2", m.backing+"/f"))
	_, err = os.ReadFile(procPath(fd))
	require.ErrorIs(t, err, unix.ESTALE)
}

// Many goroutines do everything at once in a small tree; the tables must still agree afterwards.
func TestStorm(t *testing.T) {
	m := mount(t, withPassthrough, func(c *Config) { c.MaxFDs = 4 })
	var wg sync.WaitGroup
	var ops atomic.Int64
	stop := time.Now().Add(3 * time.Second)
	for w := range 6 {
		wg.Go(func() {
			for i := 0; time.Now().Before(stop); i++ {
				storm(m.dir, w, i)
				ops.Add(1)
			}
		})
	}
	wg.Wait()
	require.NotZero(t, ops.Load())
	eventually(t, "released", func() bool { return m.fs.NumHandles() == 0 })
	checkTables(t, m.fs)
	c := m.kernel.now()
	require.Equal(t, c[0], c[1])
	for _, e := range mustReadDir(t, m.dir) {
		require.NoError(t, os.RemoveAll(m.path(e.Name())))
	}
	eventually(t, "forgotten", func() bool { return m.fs.NumNodes() == 1 })
}

func storm(dir string, w, i int) {
	name := func(k int) string { return fmt.Sprintf("%s/%d/%d", dir, (w+k)%2, (i+k)%3) }
	switch (w + i) % 9 {
	case 0:
		os.MkdirAll(filepath.Dir(name(0)), 0o755)
	case 1:
		os.WriteFile(name(1), []byte("x"), 0o644)
	case 2:
		os.Rename(name(0), name(1))
	case 3:
		os.Link(name(0), name(2))
	case 4:
		os.Remove(name(0))
	case 5:
		unix.Renameat2(unix.AT_FDCWD, name(0), unix.AT_FDCWD, name(2), unix.RENAME_EXCHANGE)
	case 6:
		filepath.WalkDir(dir, func(string, fs.DirEntry, error) error { return nil })
	case 7:
		if f, err := os.OpenFile(name(0), os.O_RDWR, 0); err == nil {
			f.WriteString("y")
			os.Remove(name(0))
			f.Sync()
			f.Close()
		}
	case 8:
		os.Rename(fmt.Sprintf("%s/%d", dir, w%2), fmt.Sprintf("%s/%d", dir, 3+w%2))
		os.Rename(fmt.Sprintf("%s/%d", dir, 3+w%2), fmt.Sprintf("%s/%d", dir, w%2))
	}
}

func TestNewNeedsADirectory(t *testing.T) {
	_, err := New(Config{Dir: "/nonexistent/dir"})
	require.ErrorIs(t, err, fs.ErrNotExist)
	file := filepath.Join(t.TempDir(), "f")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err = New(Config{Dir: file})
	require.True(t, errors.Is(err, unix.ENOTDIR), err)
}
