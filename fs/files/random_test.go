package files

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// file is what a file has to be, whatever process serves it.
type file struct {
	node  uint64
	refs  uint64 // the kernel's, over all processes
	data  []byte
	links int
	open  map[uint64]uint32 // handles, with their access mode
	names map[string]*file  // of a directory; nil for a regular file
}

// life is a client with a model beside it.
type life struct {
	*client
	m      *memory
	r      *rand.Rand
	dir    string
	change func(*Config)
	root   *file
	files  []*file // all that the kernel knows, but the root
}

func (l *life) dirs() []*file {
	ds := []*file{l.root}
	for _, f := range l.files {
		if f.names != nil && f.links > 0 {
			ds = append(ds, f)
		}
	}
	return ds
}

func pick[T any](r *rand.Rand, from []T) (x T, ok bool) {
	if len(from) == 0 {
		return x, false
	}
	return from[r.IntN(len(from))], true
}

// name picks a directory and a name in it, with what is there.
func (l *life) name() (dir *file, name string, there *file) {
	dir, _ = pick(l.r, l.dirs())
	name = fmt.Sprint(l.r.IntN(5))
	return dir, name, dir.names[name]
}

func (l *life) know(dir *file, name string, f *file, node uint64) {
	if f.node == 0 {
		l.files = append(l.files, f)
	}
	f.node = node
	f.refs++
	dir.names[name] = f
}

// ops change both the files and the model; what cannot be done is passed over.
var ops = []func(*life){
	(*life).opCreate, (*life).opCreate, (*life).opOpen, (*life).opWrite, (*life).opWrite, (*life).opRelease,
	(*life).opUnlink, (*life).opRename, (*life).opMkdir, (*life).opLink, (*life).opTmpfile, (*life).opLookup,
	(*life).opForget, (*life).opTruncate,
}

func (l *life) opCreate() {
	dir, name, there := l.name()
	if there != nil {
		return
	}
	mode := []uint32{0o600, 0o400, 0}[l.r.IntN(3)]
	node, fh := l.create(dir.node, name, mode)
	f := &file{links: 1, open: map[uint64]uint32{fh: unix.O_RDWR}}
	l.know(dir, name, f, node)
}

func (l *life) opTmpfile() {
	var out fuse.CreateOut
	in := &fuse.CreateIn{InHeader: l.header(Root), Flags: unix.O_RDWR, Mode: 0o600}
	require.Equal(l.t, fuse.OK, l.f.Tmpfile(nil, in, &out))
	f := &file{node: out.NodeId, refs: 1, open: map[uint64]uint32{out.Fh: unix.O_RDWR}}
	l.files = append(l.files, f)
}

func (l *life) opOpen() {
	f, ok := pick(l.r, l.files)
	if !ok || f.node == 0 || f.links == 0 && len(f.open) == 0 || len(f.open) > 3 {
		return
	}
	if f.names != nil {
		f.open[l.opendir(f.node)] = unix.O_RDONLY
		return
	}
	flags := []uint32{unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR}[l.r.IntN(3)]
	fh, code := l.open(f.node, flags)
	if code == fuse.EACCES {
		require.NotZero(l.t, os.Geteuid())
		return
	}
	if code == fuse.Status(unix.ESTALE) && l.mayLose(f) {
		return
	}
	require.Equal(l.t, fuse.OK, code)
	f.open[fh] = flags
}

func (l *life) handle() (f *file, fh uint64, ok bool) {
	if f, ok = pick(l.r, l.files); !ok {
		return nil, 0, false
	}
	fh, ok = pick(l.r, slices.Sorted(maps.Keys(f.open)))
	return f, fh, ok
}

func (l *life) opWrite() {
	f, fh, ok := l.handle()
	if !ok || f.names != nil || f.open[fh] == unix.O_RDONLY {
		return
	}
	off, text := l.r.IntN(100), fmt.Sprint(l.r.Uint64())
	require.Equal(l.t, fuse.OK, l.write(fh, off, text))
	if end := off + len(text); end > len(f.data) {
		f.data = append(f.data, make([]byte, end-len(f.data))...)
	}
	copy(f.data[off:], text)
}

func (l *life) opTruncate() {
	f, fh, ok := l.handle()
	if !ok || f.names != nil || f.open[fh] == unix.O_RDONLY {
		return
	}
	in := &fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{InHeader: l.header(f.node), Valid: fuse.FATTR_SIZE | fuse.FATTR_FH, Fh: fh, Size: 3}}
	require.Equal(l.t, fuse.OK, l.f.SetAttr(nil, in, &fuse.AttrOut{}))
	f.data = append(f.data, 0, 0, 0)[:3]
}

func (l *life) opRelease() {
	f, fh, ok := l.handle()
	if !ok {
		return
	}
	if f.names != nil {
		l.f.ReleaseDir(&fuse.ReleaseIn{Fh: fh})
	} else {
		l.release(fh)
	}
	delete(f.open, fh)
}

func (l *life) opUnlink() {
	dir, name, there := l.name()
	if there == nil || len(there.names) > 0 {
		return
	}
	l.find(dir, name)
	h := l.header(dir.node)
	if there.names != nil {
		require.Equal(l.t, fuse.OK, l.f.Rmdir(nil, &h, name))
	} else {
		require.Equal(l.t, fuse.OK, l.f.Unlink(nil, &h, name))
	}
	there.links--
	delete(dir.names, name)
}

func (l *life) opRename() {
	from, name, a := l.name()
	to, newName, b := l.name()
	exchange := l.r.IntN(3) == 0
	switch {
	case a == nil || a.names != nil || (b != nil && b.names != nil): // directories are moved by tests of their own
		return
	case b == nil && exchange:
		return
	}
	l.find(from, name)
	if b != nil {
		l.find(to, newName)
	}
	flags := uint32(0)
	if exchange {
		flags = unix.RENAME_EXCHANGE
	}
	require.Equal(l.t, fuse.OK, l.rename(from.node, name, to.node, newName, flags))
	switch {
	case a == b:
	case exchange:
		from.names[name], to.names[newName] = b, a
	default:
		delete(from.names, name)
		to.names[newName] = a
		if b != nil {
			b.links--
		}
	}
}

func (l *life) opMkdir() {
	dir, name, there := l.name()
	if there != nil || len(l.dirs()) > 4 {
		return
	}
	f := &file{links: 1, open: map[uint64]uint32{}, names: map[string]*file{}}
	l.know(dir, name, f, l.mkdir(dir.node, name))
}

func (l *life) opLink() {
	dir, name, there := l.name()
	f, ok := pick(l.r, l.files)
	if !ok || there != nil || f.names != nil || f.node == 0 || f.links == 0 && len(f.open) == 0 {
		return
	}
	var out fuse.EntryOut
	code := l.f.Link(nil, &fuse.LinkIn{InHeader: l.header(dir.node), Oldnodeid: f.node}, name, &out)
	if code == fuse.ENOENT {
		require.Zero(l.t, f.links, "only what was unlinked cannot be linked")
		return
	}
	if code == fuse.Status(unix.ESTALE) && l.mayLose(f) {
		return
	}
	require.Equal(l.t, fuse.OK, code)
	f.links++
	l.know(dir, name, f, out.NodeId)
}

func (l *life) opLookup() {
	if dir, name, there := l.name(); there != nil {
		l.find(dir, name)
	}
}

// mayLose says whether a file can be one that is known by a name it no longer has, and by nothing else.
func (l *life) mayLose(f *file) bool { return f.node != 0 && l.f.mountFD < 0 && len(f.open) == 0 }

// find looks a name up, as the kernel does before it uses it.
func (l *life) find(dir *file, name string) {
	node, code := l.lookup(dir.node, name)
	require.Equal(l.t, fuse.OK, code)
	f := dir.names[name]
	if f.node != node && l.mayLose(f) {
		l.f.Forget(f.node, f.refs)
		f.node, f.refs = node, 0
	}
	if f.node != 0 {
		require.Equal(l.t, f.node, node)
	}
	l.know(dir, name, f, node)
}

// opForget is the kernel dropping an inode from its cache.
func (l *life) opForget() {
	f, ok := pick(l.r, l.files)
	if !ok || len(f.open) > 0 || f.names != nil {
		return
	}
	l.f.Forget(f.node, f.refs)
	f.refs, f.node = 0, 0
	l.files = slices.DeleteFunc(l.files, func(o *file) bool { return o == f })
}

// check compares all there is with the model.
func (l *life) check() {
	l.t.Helper()
	for _, dir := range l.dirs() {
		for name := range dir.names {
			l.find(dir, name) // a file may be known by none of its names, and then not be found
		}
	}
	open := 0
	for _, f := range l.files {
		open += len(f.open)
		for fh, mode := range f.open {
			switch {
			case f.names != nil:
				var want []string
				if f.links > 0 {
					want = append(slices.Sorted(maps.Keys(f.names)), ".", "..")
				}
				names, _ := l.names(fh, 0, 4096)
				require.ElementsMatch(l.t, want, names)
			case mode == unix.O_WRONLY:
			default:
				got, code := l.read(fh)
				require.Equal(l.t, fuse.OK, code)
				require.True(l.t, bytes.Equal(f.data, []byte(got)), "%q instead of %q", got, f.data)
			}
		}
		if len(f.open) > 0 || f.links > 0 {
			var out fuse.AttrOut
			require.Equal(l.t, fuse.OK, l.f.GetAttr(nil, &fuse.GetAttrIn{InHeader: l.header(f.node)}, &out))
			if f.names == nil {
				require.EqualValues(l.t, f.links, out.Nlink)
				require.EqualValues(l.t, len(f.data), out.Size)
			}
		}
	}
	require.Equal(l.t, open, l.f.NumHandles())
	checkTables(l.t, l.f)
}

func TestRandomLives(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"handles": func(*Config) {}, "names": func(c *Config) { c.noHandles, c.MaxFDs = true, 16 },
		"cached": func(c *Config) { c.Passthrough = nil },
	} {
		t.Run(name, func(t *testing.T) {
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			lives := 0
			for end := time.Now().Add(time.Second); time.Now().Before(end); lives++ {
				live(t, rand.New(rand.NewPCG(seed, uint64(lives))), change)
			}
			t.Logf("%d lives", lives)
		})
	}
}

func live(t *testing.T, r *rand.Rand, change func(*Config)) {
	dir, err := os.MkdirTemp(t.TempDir(), "")
	require.NoError(t, err)
	m := newMemory(t)
	l := &life{client: &client{t: t, f: m.start(t, dir, change)}, m: m, r: r, dir: dir, change: change,
		root: &file{node: Root, links: 1, names: map[string]*file{}}}
	defer func() { l.f.Close() }()
	for range 300 {
		ops[r.IntN(len(ops))](l)
		switch r.IntN(20) {
		case 0:
			want := image(l.f)
			l.restart(m, dir, change)
			require.Equal(t, want, image(l.f))
			l.check()
		case 1:
			m.compact(t, l.f)
		}
	}
	l.check()
	for _, f := range l.files {
		for fh := range f.open {
			l.release(fh)
		}
	}
	require.Empty(t, m.fds)
	require.Empty(t, m.ids)
}

// A snapshot is made while requests run; with the log behind it, it says what the tables say in the end.
func TestSnapshotBesideRequests(t *testing.T) {
	c, m, dir := inherit(t)
	var dirs [3]uint64
	for i := range dirs {
		dirs[i] = c.mkdir(Root, fmt.Sprint(i))
	}
	f := c.f
	var wg sync.WaitGroup
	stop := time.Now().Add(2 * time.Second)
	for w := range 4 {
		wg.Go(func() { rush(t, f, uint64(w+1)<<40, dirs[:], stop) })
	}
	snapshots := 0
	for ; time.Now().Before(stop); snapshots++ {
		m.compact(t, f)
	}
	wg.Wait()
	require.Greater(t, snapshots, 10)
	require.Greater(t, f.NumHandles(), 0)
	want := image(f)
	c.restart(m, dir)
	require.Equal(t, want, image(c.f))
	checkTables(t, c.f)
	t.Logf("%d snapshots, %d records", snapshots, len(m.log))
}

func rush(t *testing.T, f *FS, unique uint64, dirs []uint64, stop time.Time) {
	c := &client{t: t, f: f, unique: unique}
	r := rand.New(rand.NewPCG(unique, 1))
	var open []uint64
	for time.Now().Before(stop) {
		dir, other := dirs[r.IntN(len(dirs))], dirs[r.IntN(len(dirs))]
		name, newName := fmt.Sprint(r.IntN(20)), fmt.Sprint(r.IntN(20))
		switch r.IntN(6) {
		case 0, 1:
			var out fuse.CreateOut
			in := &fuse.CreateIn{InHeader: c.header(dir), Flags: unix.O_RDWR, Mode: 0o600}
			if f.Create(nil, in, name, &out) == fuse.OK {
				open = append(open, out.Fh)
			}
		case 2:
			c.unlink(dir, name)
		case 3:
			c.rename(dir, name, other, newName, uint32(r.IntN(2))*unix.RENAME_EXCHANGE)
		case 4:
			if node, code := c.lookup(dir, name); code == fuse.OK {
				if fh, code := c.open(node, unix.O_RDONLY); code == fuse.OK {
					open = append(open, fh)
				}
				f.Forget(node, 1)
			}
		case 5:
			if len(open) > 10 {
				i := r.IntN(len(open))
				c.release(open[i])
				open = slices.Delete(open, i, i+1)
			}
		}
		f.Answered(c.unique)
	}
}

func FuzzReplay(f *testing.F) {
	var one []byte
	put := func(kind uint8, data []byte) { one = append(append(one, kind, byte(len(data))), data...) }
	n := &node{id: 7, fmt: unix.S_IFREG}
	put(recordNode, n.record(nil))
	put(recordName, nameKey{Root, "name"}.record(nil, n))
	put(recordHandle, (&handle{fh: 9, node: n}).record(nil))
	put(recordBacking, n.backingRecord(nil))
	put(recordIntent, state{}.record(nil, 11))
	put(recordClosed, appendU64(nil, 9))
	put(recordNodeGone, appendU64(nil, 7))
	put(recordCounters, make([]byte, 12))
	f.Add(one)
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		fs, err := New(Config{Dir: dir})
		require.NoError(t, err)
		defer fs.Close()
		for len(data) >= 2 {
			size := min(int(data[1]), len(data)-2)
			_ = fs.Replay(data[0], data[2:2+size])
			data = data[2+size:]
		}
		require.NoError(t, fs.Dump(func(uint8, []byte) error { return nil }))
		fs.Path(ident{}.key())
	})
}

func TestBrokenRecordsAreRefused(t *testing.T) {
	c, _, _ := inherit(t)
	for kind := range recordCounters - firstRecord + 1 {
		for _, size := range []int{0, 3, 9} {
			require.Error(t, c.f.Replay(uint8(firstRecord+kind), make([]byte, size)), "kind %d, %d bytes", firstRecord+kind, size)
		}
	}
	require.Error(t, c.f.Replay(lastRecord, nil))
}
