package files

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// mortal lets a process live for some steps of what outlives it: an append, a descriptor kept, an id registered, each
// with a step before it and one after.
type mortal struct {
	steps int
	dead  chan struct{}
}

// step never returns to a process that has died. Its goroutine is left as it stands, locks and all.
func (d *mortal) step() {
	if d.steps--; d.steps < 0 {
		close(d.dead)
		select {}
	}
}

// killedAfter runs a request in a process that dies after so many steps; false: it got to the end.
func killedAfter(m *memory, steps int, request func()) (killed bool) {
	d := &mortal{steps: steps, dead: make(chan struct{})}
	m.step = d.step
	defer func() { m.step = nil }()
	done := make(chan struct{})
	go func() { request(); close(done) }()
	select {
	case <-d.dead:
		return true
	case <-done:
		return false
	}
}

// bury closes the descriptors of a process that is dead.
func bury(f *FS) {
	for _, n := range f.nodes {
		if n.fd != nil {
			unix.Close(n.fd.fd)
		}
	}
	for _, h := range f.open {
		unix.Close(h.fd)
	}
}

// scene is what the requests below work on.
type scene struct {
	dir, file, other, sub uint64 // directory d with file, other and the empty directory sub
	fh, otherFh           uint64 // file and other are open
	tmp, tmpFh            uint64 // made with O_TMPFILE
}

// requests that must take effect exactly once, with what must be there in d after.
var requests = []struct {
	name  string
	do    func(f *FS, in fuse.InHeader, s *scene) fuse.Status
	after []string // as listed by find; empty: as before
}{
	{"mkdir", func(f *FS, in fuse.InHeader, s *scene) fuse.Status {
		return f.Mkdir(nil, &fuse.MkdirIn{InHeader: in, Mode: 0o750}, "new", &fuse.EntryOut{})
	}, []string{"file", "new/", "other", "sub/"}},
	{"mknod", func(f *FS, in fuse.InHeader, s *scene) fuse.Status {
		return f.Mknod(nil, &fuse.MknodIn{InHeader: in, Mode: unix.S_IFIFO | 0o640}, "new", &fuse.EntryOut{})
	}, []string{"file", "new", "other", "sub/"}},
	{"symlink", func(f *FS, in fuse.InHeader, s *scene) fuse.Status {
		return f.Symlink(nil, &in, "target", "new", &fuse.EntryOut{})
	}, []string{"file", "new", "other", "sub/"}},
	{"link", func(f *FS, in fuse.InHeader, s *scene) fuse.Status {
		return f.Link(nil, &fuse.LinkIn{InHeader: in, Oldnodeid: s.file}, "new", &fuse.EntryOut{})
	}, []string{"file", "new", "other", "sub/"}},
	{"link tmpfile", func(f *FS, in fuse.InHeader, s *scene) fuse.Status {
		return f.Link(nil, &fuse.LinkIn{InHeader: in, Oldnodeid: s.tmp}, "new", &fuse.EntryOut{})
	}, []string{"file", "new", "other", "sub/"}},
	{"create", createNew(0o600, 0), []string{"file", "new", "other", "sub/"}},
	{"create exclusively", createNew(0o600, unix.O_EXCL|unix.O_TRUNC), []string{"file", "new", "other", "sub/"}},
	{"create for others", createNew(0o000, 0), []string{"file", "new", "other", "sub/"}},
	{"tmpfile", func(f *FS, in fuse.InHeader, s *scene) fuse.Status {
		var out fuse.CreateOut
		if code := f.Tmpfile(nil, &fuse.CreateIn{InHeader: in, Flags: unix.O_RDWR, Mode: 0o600}, &out); code != fuse.OK {
			return code
		}
		return usable(f, &out.OpenOut)
	}, nil},
	{"open", func(f *FS, in fuse.InHeader, s *scene) fuse.Status {
		in.NodeId = s.file
		var out fuse.OpenOut
		if code := f.Open(nil, &fuse.OpenIn{InHeader: in, Flags: unix.O_RDWR}, &out); code != fuse.OK {
			return code
		}
		return usable(f, &out)
	}, nil},
	{"opendir", func(f *FS, in fuse.InHeader, s *scene) fuse.Status {
		var out fuse.OpenOut
		code := f.OpenDir(nil, &fuse.OpenIn{InHeader: in}, &out)
		f.ReleaseDir(&fuse.ReleaseIn{Fh: out.Fh})
		return code
	}, nil},
	{"release", func(f *FS, in fuse.InHeader, s *scene) fuse.Status {
		f.Release(nil, &fuse.ReleaseIn{InHeader: in, Fh: s.otherFh})
		return fuse.OK
	}, nil},
	{"unlink", func(f *FS, in fuse.InHeader, s *scene) fuse.Status {
		return f.Unlink(nil, &in, "file")
	}, []string{"other", "sub/"}},
	{"rmdir", func(f *FS, in fuse.InHeader, s *scene) fuse.Status {
		return f.Rmdir(nil, &in, "sub")
	}, []string{"file", "other"}},
	{"rename", renameTo("new", 0), []string{"new", "other", "sub/"}},
	{"rename exclusively", renameTo("new", unix.RENAME_NOREPLACE), []string{"new", "other", "sub/"}},
	{"rename over", renameTo("other", 0), []string{"other", "sub/"}},
	{"exchange", renameTo("other", unix.RENAME_EXCHANGE), nil},
	{"setxattr", func(f *FS, in fuse.InHeader, s *scene) fuse.Status {
		in.NodeId = s.file
		set := &fuse.SetXAttrIn{InHeader: in, Size: 1, Flags: unix.XATTR_CREATE}
		return f.SetXAttr(nil, set, "user.new", []byte("v"))
	}, nil},
	{"removexattr", func(f *FS, in fuse.InHeader, s *scene) fuse.Status {
		in.NodeId = s.file
		return f.RemoveXAttr(nil, &in, "user.old")
	}, nil},
}

func createNew(mode, flags uint32) func(f *FS, in fuse.InHeader, s *scene) fuse.Status {
	return func(f *FS, in fuse.InHeader, s *scene) fuse.Status {
		var out fuse.CreateOut
		create := &fuse.CreateIn{InHeader: in, Flags: unix.O_RDWR | unix.O_CREAT | flags, Mode: mode}
		if code := f.Create(nil, create, "new", &out); code != fuse.OK {
			return code
		}
		return usable(f, &out.OpenOut)
	}
}

// usable writes through a handle and closes it.
func usable(f *FS, out *fuse.OpenOut) fuse.Status {
	_, code := f.Write(nil, &fuse.WriteIn{Fh: out.Fh}, []byte("f"))
	f.Release(nil, &fuse.ReleaseIn{Fh: out.Fh})
	return code
}

func renameTo(name string, flags uint32) func(f *FS, in fuse.InHeader, s *scene) fuse.Status {
	return func(f *FS, in fuse.InHeader, s *scene) fuse.Status {
		return f.Rename(nil, &fuse.RenameIn{InHeader: in, Newdir: s.dir, Flags: flags}, "file", name)
	}
}

func setScene(c *client) *scene {
	s := &scene{dir: c.mkdir(Root, "d")}
	s.file, s.fh = c.create(s.dir, "file", 0o600)
	s.other, s.otherFh = c.create(s.dir, "other", 0o600)
	require.Equal(c.t, fuse.OK, c.write(s.fh, 0, "file"))
	require.Equal(c.t, fuse.OK, c.write(s.otherFh, 0, "other"))
	s.sub = c.mkdir(s.dir, "sub")
	var out fuse.CreateOut
	in := &fuse.CreateIn{InHeader: c.header(s.dir), Flags: unix.O_RDWR, Mode: 0o600}
	require.Equal(c.t, fuse.OK, c.f.Tmpfile(nil, in, &out))
	s.tmp, s.tmpFh = out.NodeId, out.Fh
	set := &fuse.SetXAttrIn{InHeader: c.header(s.file), Size: 1}
	require.Equal(c.t, fuse.OK, c.f.SetXAttr(nil, set, "user.old", []byte("v")))
	return s
}

// A process is killed at each step of each request, and the next one at each step of the same request sent again.
// The third gets it done, and it was done once.
func TestExactlyOnce(t *testing.T) {
	for _, r := range requests {
		t.Run(r.name, func(t *testing.T) {
			runs := 0
			for first, more := 0, true; more; first++ {
				for second, again := 0, true; again; second++ {
					more, again = killTwice(t, r.do, r.after, first, second)
					runs++
				}
			}
			t.Logf("%d lives", runs)
			require.Greater(t, runs, 4)
		})
	}
}

func killTwice(t *testing.T, do func(*FS, fuse.InHeader, *scene) fuse.Status, after []string, first, second int) (more, again bool) {
	m := newMemory(t)
	dir, err := os.MkdirTemp(t.TempDir(), "")
	require.NoError(t, err)
	c := &client{t: t, f: m.start(t, dir)}
	s := setScene(c)
	if after == nil {
		after = []string{"file", "other", "sub/"}
	}
	request := c.header(s.dir)
	run := func(f *FS, in fuse.InHeader, steps int) bool {
		return killedAfter(m, steps, func() {
			if code := do(f, in, s); code != fuse.OK {
				t.Errorf("killed after %d and %d steps: %v", first, second, code)
			}
		})
	}
	more = run(c.f, request, first)
	bury(c.f) // if it was not killed, it was before the answer was sent
	request.Unique |= resent
	c.f = m.start(t, dir)
	again = run(c.f, request, second)
	bury(c.f)
	c.f = m.start(t, dir)
	defer c.f.Close()
	run(c.f, request, 1000)
	c.f.Answered(request.Unique)
	c.f.Claimed()
	require.Empty(t, c.f.intents)
	require.Empty(t, c.f.inherited)
	require.Equal(t, after, find(t, dir+"/d"), "killed after %d and %d steps", first, second)
	require.Equal(t, fuse.OK, c.write(s.tmpFh, 0, "tmp"))
	c.expect(s.tmpFh, "tmp")
	c.expect(s.fh, "file")
	checkTables(t, c.f)
	checkNames(t, c.f, dir+"/d", s.dir)
	for _, fh := range []uint64{s.fh, s.otherFh, s.tmpFh} {
		c.release(fh)
	}
	require.Zero(t, c.f.NumHandles(), "killed after %d and %d steps", first, second)
	c.f.Close()
	c.f = m.start(t, dir) // takes away what nobody claims
	require.Empty(t, m.fds)
	require.Empty(t, m.ids)
	return more, again
}

func find(t *testing.T, dir string) (names []string) {
	t.Helper()
	for _, e := range mustReadDir(t, dir) {
		name := e.Name()
		if e.IsDir() {
			name += "/"
		}
		names = append(names, name)
	}
	return names
}

// checkNames compares the names that the table knows with those that there are.
func checkNames(t *testing.T, f *FS, dir string, id uint64) {
	t.Helper()
	for _, e := range mustReadDir(t, dir) {
		require.Contains(t, f.names, nameKey{id, e.Name()})
	}
	for k, n := range f.names {
		if k.parent != id {
			continue
		}
		var st unix.Statx_t
		require.NoError(t, f.statAt(unix.AT_FDCWD, dir+"/"+k.name, &st), k.name)
		require.Equal(t, identOf(&st), n.ident, k.name)
	}
}

// What could only fail fails again, whatever has changed since.
func TestHopelessLeavesNoIntent(t *testing.T) {
	c, m, dir := inherit(t)
	s := setScene(c)
	in := c.header(s.dir)
	require.Equal(t, fuse.Status(unix.EEXIST), c.f.Mkdir(nil, &fuse.MkdirIn{InHeader: in}, "sub", &fuse.EntryOut{}))
	gone := c.header(s.dir)
	require.Equal(t, fuse.ENOENT, c.f.Unlink(nil, &gone, "none"))
	c.restart(m, dir)
	require.NoError(t, os.Remove(dir+"/d/sub"))
	require.NoError(t, os.WriteFile(dir+"/d/none", nil, 0o600))
	in.Unique |= resent
	gone.Unique |= resent
	require.Equal(t, fuse.OK, c.f.Mkdir(nil, &fuse.MkdirIn{InHeader: in, Mode: 0o700}, "sub", &fuse.EntryOut{}))
	require.Equal(t, fuse.OK, c.f.Unlink(nil, &gone, "none"))
}

// An intent that a snapshot is made over is in it until the request was answered.
func TestIntentIsInTheSnapshot(t *testing.T) {
	c, m, dir := inherit(t)
	in := c.header(Root)
	mkdir := func() fuse.Status {
		return c.f.Mkdir(nil, &fuse.MkdirIn{InHeader: in, Mode: 0o700}, "d", &fuse.EntryOut{})
	}
	require.Equal(t, fuse.OK, mkdir())
	m.compact(t, c.f)
	c.restart(m, dir)
	m.compact(t, c.f)
	c.restart(m, dir)
	in.Unique |= resent
	require.Equal(t, fuse.OK, mkdir())
	c.f.Answered(in.Unique)
	c.f.Claimed()
	m.compact(t, c.f)
	c.restart(m, dir)
	require.Equal(t, fuse.Status(unix.EEXIST), mkdir())
}

func BenchmarkCreateUnlink(b *testing.B) {
	for _, kept := range []bool{false, true} {
		b.Run(fmt.Sprint("journal=", kept), func(b *testing.B) {
			cfg := Config{Dir: b.TempDir()}
			if kept {
				cfg.Log = &void{}
			}
			f, err := New(cfg)
			require.NoError(b, err)
			defer f.Close()
			unique := uint64(0)
			for b.Loop() {
				unique += 2
				var out fuse.CreateOut
				in := &fuse.CreateIn{InHeader: fuse.InHeader{Unique: unique, NodeId: Root}, Flags: unix.O_RDWR, Mode: 0o600}
				f.Create(nil, in, "f", &out)
				f.Answered(unique)
				f.Release(nil, &fuse.ReleaseIn{Fh: out.Fh})
				unique += 2
				f.Unlink(nil, &fuse.InHeader{Unique: unique, NodeId: Root}, "f")
				f.Answered(unique)
				f.Forget(out.NodeId, 1)
			}
		})
	}
}

// void is a journal that costs next to nothing.
type void struct{ buf [4096]byte }

func (v *void) Room(n, reserve int) error { return nil }
func (v *void) Append(kind uint8, data []byte) (uint64, error) {
	copy(v.buf[:], data)
	return 0, nil
}

// Restarting must not be felt.
func TestResumeIsQuick(t *testing.T) {
	c, m, dir := inherit(t)
	const n = 10_000
	var lim unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &lim))
	fhs := make([]uint64, min(n, int(lim.Cur)*2/3)) // the rest is for paths
	for i := range fhs {
		_, fhs[i] = c.create(Root, fmt.Sprint("file", i), 0o600)
	}
	for _, way := range []string{"log", "snapshot"} {
		c.f.Close()
		f, err := New(Config{Dir: dir, Log: m, Store: m, Passthrough: m})
		require.NoError(t, err)
		records := m.log
		start := time.Now()
		for _, r := range records {
			require.NoError(t, f.Replay(r.kind, r.data))
		}
		replayed := time.Since(start)
		require.NoError(t, f.Resume())
		t.Logf("%s: %d records in %v, %d handles in %v", way, len(records), replayed, len(fhs), time.Since(start)-replayed)
		require.Less(t, time.Since(start), 2*time.Second)
		c.f = f
		m.compact(t, f)
	}
	for _, fh := range fhs {
		c.expect(fh, "")
	}
}
