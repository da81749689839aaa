package files

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

type rec struct {
	kind uint8
	data []byte
}

// memory is a journal, a store and a kernel's table of backing ids, which outlive the FS that uses them.
type memory struct {
	mu   sync.Mutex
	log  []rec
	fds  map[uint64]int
	ids  map[int32]bool
	last int32
	full bool // the journal's disk
	step func()
}

func newMemory(t *testing.T) *memory {
	m := &memory{fds: map[uint64]int{}, ids: map[int32]bool{}}
	t.Cleanup(func() {
		for _, fd := range m.fds {
			unix.Close(fd)
		}
	})
	return m
}

// stepped runs a change; step may choose not to return before it or after it, which is how a process is killed here.
func (m *memory) stepped(change func()) {
	if m.step != nil {
		m.step()
		defer m.step()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	change()
}

func (m *memory) Room(n, reserve int) error {
	if m.full {
		return errors.New("full")
	}
	return nil
}

func (m *memory) Append(kind uint8, data []byte) (pos uint64, err error) {
	m.stepped(func() {
		m.log = append(m.log, rec{kind, slices.Clone(data)})
		pos = uint64(len(m.log))
	})
	return pos, nil
}

func (m *memory) Put(fh uint64, fd int) (err error) {
	m.stepped(func() {
		var dup int
		if dup, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err == nil {
			m.drop(fh)
			m.fds[fh] = dup
		}
	})
	return err
}

func (m *memory) Drop(fh uint64) { m.stepped(func() { m.drop(fh) }) }

func (m *memory) drop(fh uint64) {
	if fd, ok := m.fds[fh]; ok {
		unix.Close(fd)
		delete(m.fds, fh)
	}
}

func (m *memory) Take() (map[uint64]int, error) {
	ours := map[uint64]int{}
	for fh, fd := range m.fds {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		ours[fh] = dup
	}
	return ours, nil
}

func (m *memory) Register(int) (id int32, err error) {
	m.stepped(func() {
		m.last++
		id = m.last
		m.ids[id] = true
	})
	return id, nil
}

func (m *memory) Unregister(id int32) { m.stepped(func() { delete(m.ids, id) }) }

// start is a process on a directory with whatever the memory holds of its predecessors.
func (m *memory) start(t *testing.T, dir string, change ...func(*Config)) *FS {
	t.Helper()
	cfg := Config{Dir: dir, Log: m, Store: m, Passthrough: m, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))}
	for _, c := range change {
		c(&cfg)
	}
	f, err := New(cfg)
	require.NoError(t, err)
	for _, r := range m.log {
		require.True(t, f.Owns(r.kind))
		require.NoError(t, f.Replay(r.kind, r.data))
	}
	require.NoError(t, f.Resume())
	return f
}

// compact replaces the log by a snapshot and what was appended while it was made.
func (m *memory) compact(t *testing.T, f *FS) {
	m.mu.Lock()
	at := len(m.log)
	m.mu.Unlock()
	var snapshot []rec
	require.NoError(t, f.Dump(func(kind uint8, data []byte) error {
		snapshot = append(snapshot, rec{kind, slices.Clone(data)})
		return nil
	}))
	m.mu.Lock()
	m.log = append(snapshot, m.log[at:]...)
	m.mu.Unlock()
}

// image is what of the tables a successor has to have.
func image(f *FS) map[string]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	img := map[string]string{"counter": fmt.Sprint(f.lastNode)}
	for id, n := range f.nodes {
		img[fmt.Sprint("node ", id)] = fmt.Sprintf("%x io %d %d %d", n.record(nil), n.io.cached, n.io.passed, n.io.id)
	}
	for k, n := range f.names {
		img[fmt.Sprintf("name %d/%s", k.parent, k.name)] = fmt.Sprint(n.id)
	}
	for fh, h := range f.open {
		img[fmt.Sprint("handle ", fh)] = fmt.Sprintf("%x %v %v", h.record(nil), h.stored, h.dir != nil)
	}
	return img
}

// client makes requests as the kernel would.
type client struct {
	t      *testing.T
	f      *FS
	unique uint64
}

func (c *client) header(node uint64) fuse.InHeader {
	c.unique += 2
	return fuse.InHeader{Unique: c.unique, NodeId: node, Caller: fuse.Caller{
		Owner: fuse.Owner{Uid: uint32(os.Geteuid()), Gid: uint32(os.Getegid())}}}
}

func (c *client) lookup(dir uint64, name string) (uint64, fuse.Status) {
	h := c.header(dir)
	var out fuse.EntryOut
	code := c.f.Lookup(nil, &h, name, &out)
	return out.NodeId, code
}

func (c *client) create(dir uint64, name string, mode uint32) (node, fh uint64) {
	c.t.Helper()
	var out fuse.CreateOut
	in := &fuse.CreateIn{InHeader: c.header(dir), Flags: unix.O_RDWR | unix.O_CREAT, Mode: mode}
	require.Equal(c.t, fuse.OK, c.f.Create(nil, in, name, &out))
	return out.NodeId, out.Fh
}

func (c *client) open(node uint64, flags uint32) (uint64, fuse.Status) {
	var out fuse.OpenOut
	code := c.f.Open(nil, &fuse.OpenIn{InHeader: c.header(node), Flags: flags}, &out)
	return out.Fh, code
}

func (c *client) opendir(node uint64) uint64 {
	c.t.Helper()
	var out fuse.OpenOut
	require.Equal(c.t, fuse.OK, c.f.OpenDir(nil, &fuse.OpenIn{InHeader: c.header(node)}, &out))
	return out.Fh
}

func (c *client) mkdir(dir uint64, name string) uint64 {
	c.t.Helper()
	var out fuse.EntryOut
	require.Equal(c.t, fuse.OK, c.f.Mkdir(nil, &fuse.MkdirIn{InHeader: c.header(dir), Mode: 0o755}, name, &out))
	return out.NodeId
}

func (c *client) write(fh uint64, off int, text string) fuse.Status {
	_, code := c.f.Write(nil, &fuse.WriteIn{Fh: fh, Offset: uint64(off)}, []byte(text))
	return code
}

func (c *client) read(fh uint64) (string, fuse.Status) {
	buf := make([]byte, 4096)
	r, code := c.f.Read(nil, &fuse.ReadIn{Fh: fh, Size: uint32(len(buf))}, buf)
	if code != fuse.OK {
		return "", code
	}
	defer r.Done()
	got, code := r.Bytes(buf)
	return string(got), code
}

func (c *client) expect(fh uint64, want string) {
	c.t.Helper()
	got, code := c.read(fh)
	require.Equal(c.t, fuse.OK, code)
	require.Equal(c.t, want, got)
}

func (c *client) release(fh uint64) { c.f.Release(nil, &fuse.ReleaseIn{InHeader: c.header(0), Fh: fh}) }

func (c *client) unlink(dir uint64, name string) fuse.Status {
	h := c.header(dir)
	return c.f.Unlink(nil, &h, name)
}

func (c *client) rename(from uint64, name string, to uint64, newName string, flags uint32) fuse.Status {
	return c.f.Rename(nil, &fuse.RenameIn{InHeader: c.header(from), Newdir: to, Flags: flags}, name, newName)
}

// restart kills the process and starts the next one.
func (c *client) restart(m *memory, dir string, change ...func(*Config)) {
	c.t.Helper()
	c.f.Close()
	c.f = m.start(c.t, dir, change...)
}

func (c *client) names(fh uint64, off uint64, size int) (names []string, next uint64) {
	c.t.Helper()
	buf := make([]byte, size)
	list := fuse.NewDirEntryList(buf, off)
	require.Equal(c.t, fuse.OK, c.f.ReadDir(nil, &fuse.ReadIn{InHeader: c.header(0), Fh: fh, Offset: off, Size: uint32(size)}, list))
	const header = 24 // struct fuse_dirent
	for b := buf; len(b) >= header; {
		e := &decoder{b: b}
		e.u64()
		end, n := e.u64(), int(e.u32())
		if n == 0 {
			break
		}
		next = end
		names = append(names, string(b[header:header+n]))
		b = b[(header+n+7)&^7:]
	}
	return names, next
}

func inherit(t *testing.T, change ...func(*Config)) (*client, *memory, string) {
	m, dir := newMemory(t), t.TempDir()
	c := &client{t: t, f: m.start(t, dir, change...)}
	t.Cleanup(func() { c.f.Close() })
	return c, m, dir
}

func TestHandlesSurvive(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"handles": func(*Config) {}, "names": func(c *Config) { c.noHandles = true },
		"cached": func(c *Config) { c.Passthrough = nil },
	} {
		t.Run(name, func(t *testing.T) {
			c, m, dir := inherit(t, change)
			d := c.mkdir(Root, "d")
			n, a := c.create(d, "a", 0o400)
			require.Equal(t, fuse.OK, c.write(a, 0, "named"))
			_, gone := c.create(d, "gone", 0)
			require.Equal(t, fuse.OK, c.write(gone, 0, "unlinked"))
			_, over := c.create(d, "over", 0o600)
			require.Equal(t, fuse.OK, c.write(over, 0, "renamed over"))
			c.create(Root, "by", 0o600)
			var tmp fuse.CreateOut
			in := &fuse.CreateIn{InHeader: c.header(d), Flags: unix.O_RDWR, Mode: 0o600}
			require.Equal(t, fuse.OK, c.f.Tmpfile(nil, in, &tmp))
			require.Equal(t, fuse.OK, c.write(tmp.Fh, 0, "nameless"))
			require.Equal(t, fuse.OK, c.unlink(d, "gone"))
			require.Equal(t, fuse.OK, c.rename(Root, "by", d, "over", 0))
			want := image(c.f)
			for range 3 {
				c.restart(m, dir, change)
				require.Equal(t, want, image(c.f))
				require.Equal(t, len(c.f.nodes)-1, c.f.NumPinned())
				checkTables(t, c.f)
				for fh, text := range map[uint64]string{a: "named", gone: "unlinked", over: "renamed over", tmp.Fh: "nameless"} {
					c.expect(fh, text)
					require.Equal(t, fuse.OK, c.write(fh, 0, text), text)
				}
				var attr fuse.AttrOut
				get := &fuse.GetAttrIn{InHeader: c.header(tmp.NodeId)}
				require.Equal(t, fuse.OK, c.f.GetAttr(nil, get, &attr))
				require.Zero(t, attr.Nlink)
				again, code := c.lookup(d, "a")
				require.Equal(t, fuse.OK, code)
				require.Equal(t, n, again)
				m.compact(t, c.f)
			}
			var out fuse.EntryOut
			link := &fuse.LinkIn{InHeader: c.header(Root), Oldnodeid: tmp.NodeId}
			require.Equal(t, fuse.OK, c.f.Link(nil, link, "named at last", &out))
			for fh := range c.f.open {
				c.release(fh)
			}
			require.Empty(t, m.fds)
			require.Empty(t, m.ids)
		})
	}
}

// The next open of a file has to be passed through to the same id, or not at all, as the kernel remembers it.
func TestPassthroughSurvives(t *testing.T) {
	c, m, dir := inherit(t)
	n, a := c.create(Root, "a", 0o600)
	id := c.f.nodes[n].io.id
	require.NotZero(t, id)
	_, b := c.create(Root, "b", 0o600)
	c.release(b)
	m.ids[m.last+1], m.ids[m.last+5] = true, true // made by the kernel, and the process died before it could say so
	c.restart(m, dir)
	require.Equal(t, map[int32]bool{id: true}, m.ids)
	again, code := c.open(n, unix.O_RDONLY)
	require.Equal(t, fuse.OK, code)
	require.True(t, c.f.open[again].passed)
	require.Equal(t, id, c.f.nodes[n].io.id)
	c.release(a)
	c.restart(m, dir, func(c *Config) { c.Passthrough = m })
	require.Contains(t, m.ids, id)
	c.release(again)
	require.Empty(t, m.ids)
}

func TestDirectoryStreamSurvives(t *testing.T) {
	for _, plan := range []string{"log", "snapshot"} {
		t.Run(plan, func(t *testing.T) {
			c, m, dir := inherit(t)
			const n = 2000
			d := c.mkdir(Root, "d")
			for i := range n {
				require.NoError(t, os.WriteFile(fmt.Sprintf("%s/d/%d", dir, i), nil, 0o600))
			}
			fh := c.opendir(d)
			seen := map[string]int{}
			off := uint64(0)
			for {
				names, next := c.names(fh, off, 4096)
				if len(names) == 0 {
					break
				}
				for _, name := range names {
					seen[name]++
				}
				off = next
				if plan == "snapshot" {
					m.compact(t, c.f)
				}
				c.restart(m, dir)
			}
			require.Len(t, seen, n+2)
			for name, times := range seen {
				require.Equal(t, 1, times, name)
			}
			c.f.ReleaseDir(&fuse.ReleaseIn{Fh: fh})
		})
	}
}

// What lies where the file was is not the file.
func TestLostHandleIsStale(t *testing.T) {
	c, m, dir := inherit(t, func(c *Config) { c.Store = nil })
	n, fh := c.create(Root, "f", 0o600)
	in := fuse.OpenIn{InHeader: fuse.InHeader{Unique: fh | resent, NodeId: n}, Flags: unix.O_RDWR}
	c.f.Close()
	require.NoError(t, os.Remove(dir+"/f"))
	require.NoError(t, os.WriteFile(dir+"/f", []byte("another"), 0o600))
	c.f = m.start(t, dir, func(c *Config) { c.Store = nil })
	_, code := c.read(fh)
	require.Equal(t, fuse.Status(unix.ESTALE), code)
	require.Equal(t, fuse.Status(unix.ESTALE), c.write(fh, 0, "x"))
	require.Equal(t, fuse.Status(unix.ESTALE), c.f.Open(nil, &in, &fuse.OpenOut{}))
	c.release(fh)
	require.Zero(t, c.f.NumHandles())
	now, code := c.lookup(Root, "f")
	require.Equal(t, fuse.OK, code)
	require.NotEqual(t, n, now)
}

// A node number is not given to another file, even if the last record of it is long gone.
func TestNodeNumbersAreNotUsedAgain(t *testing.T) {
	c, m, dir := inherit(t)
	n, fh := c.create(Root, "f", 0o600)
	c.release(fh)
	require.Equal(t, fuse.OK, c.unlink(Root, "f"))
	c.f.Forget(n, 1)
	require.Equal(t, 1, c.f.NumNodes())
	m.compact(t, c.f)
	c.restart(m, dir)
	next, _ := c.create(Root, "g", 0o600)
	require.Greater(t, next, n)
}

func TestPinnedNodesGo(t *testing.T) {
	c, m, dir := inherit(t)
	n, fh := c.create(Root, "f", 0o600)
	other, fh2 := c.create(Root, "g", 0o600)
	c.release(fh2)
	c.restart(m, dir)
	require.Equal(t, 2, c.f.NumPinned())
	c.f.Forget(other, 1) // one of how many?
	require.Equal(t, 2, c.f.NumPinned())
	require.Equal(t, fuse.OK, c.unlink(Root, "f"))
	c.f.Forget(n, 1)
	require.Equal(t, 1, c.f.NumPinned())
	c.expect(fh, "")
	c.release(fh)
	require.Equal(t, 2, c.f.NumNodes())
	checkTables(t, c.f)
}

func TestAnotherDirectoryIsRefused(t *testing.T) {
	c, m, _ := inherit(t)
	f, err := New(Config{Dir: t.TempDir(), Log: m, Store: m})
	require.NoError(t, err)
	defer f.Close()
	m.compact(t, c.f)
	for _, r := range m.log {
		require.NoError(t, f.Replay(r.kind, r.data))
	}
	require.ErrorContains(t, f.Resume(), "backing directory")
}

func TestFullJournal(t *testing.T) {
	c, m, _ := inherit(t)
	n, fh := c.create(Root, "f", 0o600)
	require.NoError(t, os.WriteFile(c.f.rootPath("g"), nil, 0o600))
	m.full = true
	full := fuse.Status(unix.ENOSPC)
	h := c.header(Root)
	require.Equal(t, full, c.f.Mkdir(nil, &fuse.MkdirIn{InHeader: h}, "d", &fuse.EntryOut{}))
	require.Equal(t, full, c.f.Create(nil, &fuse.CreateIn{InHeader: h}, "h", &fuse.CreateOut{}))
	require.Equal(t, full, c.f.Symlink(nil, &h, "to", "l", &fuse.EntryOut{}))
	require.Equal(t, full, c.rename(Root, "f", Root, "h", 0))
	require.Equal(t, full, c.f.OpenDir(nil, &fuse.OpenIn{InHeader: h}, &fuse.OpenOut{}))
	_, code := c.open(n, unix.O_RDONLY)
	require.Equal(t, full, code)
	_, code = c.lookup(Root, "g")
	require.Equal(t, full, code)
	_, code = c.lookup(Root, "f")
	require.Equal(t, fuse.OK, code, "known")
	require.Equal(t, fuse.OK, c.write(fh, 0, "x"))
	require.Equal(t, fuse.OK, c.unlink(Root, "f"))
	c.release(fh)
	c.f.Forget(n, 2)
	require.Equal(t, 1, c.f.NumNodes())
	es, err := os.ReadDir(c.f.rootPath("."))
	require.NoError(t, err)
	require.Len(t, es, 1)
}

func (f *FS) rootPath(name string) string { return procPath(f.root.fd.fd) + "/" + name }

// The whole again as somebody who cannot open by file handle, nor what mode bits forbid.
func TestResumeAsOrdinaryUser(t *testing.T) {
	require.Zero(t, os.Geteuid(), "needs root to become somebody else")
	exe, err := os.Executable()
	require.NoError(t, err)
	f, err := os.Open(exe)
	require.NoError(t, err)
	defer f.Close()
	tmp, err := os.MkdirTemp("", "lockfs-files-")
	require.NoError(t, err)
	defer os.RemoveAll(tmp)
	require.NoError(t, os.Chown(tmp, int(alice.uid), int(alice.gid)))
	cmd := exec.Command("/proc/self/fd/3", "-test.v", "-test.timeout", "2m",
		"-test.run", "^(TestHandlesSurvive|TestExactlyOnce|TestRandomLives|TestDirectoryStreamSurvives)$")
	cmd.ExtraFiles = []*os.File{f}
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: alice.uid, Gid: alice.gid}, Pdeathsig: syscall.SIGKILL,
	}
	timer := time.AfterFunc(4*deadline, func() { cmd.Process.Kill() })
	defer timer.Stop()
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	require.Contains(t, string(out), "--- PASS: TestExactlyOnce")
	require.Contains(t, string(out), "--- PASS: TestRandomLives")
}
