package fs

import (
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"

	"lockfs/fs/files"
)

const (
	opSymlink       = 6
	opMknod         = 8
	opLink          = 13
	opCreate        = 35
	opOpendir       = 27
	opGetxattr      = 22
	opListxattr     = 23
	opIoctl         = 39
	opFallocate     = 43
	opCopyFileRange = 47
	opTmpfile       = 51
)

// fixedPart is the length of each request's fixed part behind the header, by
// opcode, and names how many names come behind it (linux/fuse.h).
var requests = []struct {
	opcode    uint32
	fixedPart int
	names     int
}{
	{opLookup, 0, 1}, {opForget, 8, 0}, {opGetattr, 16, 0}, {opSetattr, 88, 0}, {opReadlink, 0, 0}, {opSymlink, 0, 2},
	{opMknod, 16, 1}, {opMkdir, 8, 1}, {10, 0, 1}, {opRmdir, 0, 1}, {12, 8, 2}, {opLink, 8, 1}, {opOpen, 8, 0},
	{opRead, 40, 0}, {opWrite, 40, 1}, {opStatfs, 0, 0}, {opRelease, 24, 0}, {20, 16, 0}, {21, 8, 2}, {opGetxattr, 8, 1},
	{opListxattr, 8, 0}, {24, 0, 1}, {opFlush, 24, 0}, {opInit, 64, 0}, {opOpendir, 8, 0}, {opReaddir, 40, 0},
	{opReleasedir, 24, 0}, {30, 16, 0}, {opGetlk, 48, 0}, {opSetlk, 48, 0}, {opSetlkw, 48, 0}, {opAccess, 8, 0},
	{opCreate, 16, 1}, {opInterrupt, 8, 0}, {37, 16, 0}, {opDestroy, 0, 0}, {opIoctl, 32, 0}, {opPoll, 24, 0}, {41, 40, 0},
	{opBatchForget, 8, 1}, {opFallocate, 32, 0}, {opReaddirplus, 40, 0}, {45, 16, 2}, {46, 24, 0}, {opCopyFileRange, 56, 0},
	{48, 40, 0}, {49, 8, 0}, {50, 8, 0}, {opTmpfile, 16, 1}, {52, 24, 0}, {53, 56, 0}, {54, 16, 1}, {4096, 8, 0},
}

// harmless keeps a request from filling the disk, or a reply from filling the
// socket. Sizes that no buffer would hold stay.
func harmless(in []byte) []byte {
	if len(in) < sizeofInHeader {
		return in
	}
	bound := func(off, size int, max uint64) {
		at := sizeofInHeader + off
		switch {
		case len(in) < at+size:
		case size == 4 && uint64(binary.NativeEndian.Uint32(in[at:])) < bufferSize:
			binary.NativeEndian.PutUint32(in[at:], binary.NativeEndian.Uint32(in[at:])&uint32(max))
		case size == 8:
			binary.NativeEndian.PutUint64(in[at:], binary.NativeEndian.Uint64(in[at:])&(1<<63|max))
		}
	}
	const short, small = 1<<16 - 1, 1<<20 - 1
	switch binary.NativeEndian.Uint32(in[4:]) {
	case opRead, opReaddir, opReaddirplus:
		bound(16, 4, short)
	case opGetxattr, opListxattr:
		bound(0, 4, short)
	case opIoctl:
		bound(28, 4, short)
	case opSetattr:
		bound(16, 8, small)
	case opWrite:
		bound(8, 8, small)
	case opFallocate:
		bound(8, 8, small)
		bound(16, 8, small)
	case opCopyFileRange:
		bound(40, 8, small)
	}
	return in
}

// FuzzRequestBytes gives the server requests of any bytes. Each comes with two
// bytes for its length before it.
func FuzzRequestBytes(f *testing.F) {
	log.SetOutput(io.Discard) // go-fuse tells it of each request that is cut short
	one := func(in []byte) []byte { return append([]byte{byte(len(in)), byte(len(in) >> 8)}, in...) }
	var whole, short, named []byte
	for _, r := range requests {
		in := newRequest(r.opcode, files.Root, make([]byte, r.fixedPart))
		whole, short = append(whole, one(in)...), append(short, one(in[:len(in)-r.fixedPart/2])...)
		in = newRequest(r.opcode, fuse.FUSE_ROOT_ID, append(make([]byte, r.fixedPart), "tlock\x00x"...))
		named = append(append(named, one(in)...), one(in[:len(in)-1])...)
	}
	f.Add(whole)
	f.Add(short)
	f.Add(named)
	f.Add(one([]byte("short")))
	f.Add(one(newRequest(opLookup, fuse.FUSE_ROOT_ID, []byte(".go-fuse-epoll-hack\x00"))))
	f.Add(one(newRequest(opBatchForget, 0, words(9, 2, 1))))
	extended := newRequest(opMkdir, files.Root, []byte("\x00\x00\x00\x00\x00\x00\x00\x00n\x00\x10\x00\x00\x00\x20\x00\x00\x00"))
	extended[36] = 2
	f.Add(one(extended))
	base := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		k := newKernel(t, tempBelow(t, base))
		for range 2 * len(requests) {
			if len(data) < 2 {
				break
			}
			n := min(int(binary.LittleEndian.Uint16(data)), len(data)-2)
			k.send(harmless(append([]byte(nil), data[2:2+n]...)))
			data = data[2+n:]
		}
		k.finish()
	})
}

func tempBelow(t testing.TB, base string) string {
	dir, err := os.MkdirTemp(base, "")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// The root has what is in its table, and no file of go-fuse's.
func TestNoPhantom(t *testing.T) {
	k := newKernel(t, t.TempDir())
	reply := k.send(newRequest(opLookup, fuse.FUSE_ROOT_ID, []byte(".go-fuse-epoll-hack\x00")))
	require.Equal(t, syscall.ENOENT, errnoIn(reply))
	k.finish()
}

// client makes requests of fields that mean something, most of the time, from
// data.
type client struct {
	*kernel
	data    []byte
	nodes   []uint64
	handles []uint64
	names   []string
}

func newClient(t testing.TB, dir string, data []byte) *client {
	c := &client{kernel: newKernel(t, dir), data: data}
	root, synth := uint64(fuse.FUSE_ROOT_ID), []string{"README", "tlock", "take", "hold", "files", "view"}
	c.nodes = []uint64{root}
	for _, name := range synth {
		c.nodes = append(c.nodes, c.lookup(root, name))
	}
	held, _ := c.engine.Get("held")
	for _, name := range []string{"held", "hold", fmt.Sprintf("held@%d", held.Token), "m_.x"} {
		c.nodes = append(c.nodes, c.lookup(c.nodes[2], name))
	}
	for _, name := range []string{"timeout", "note", "wait", "d", "json"} {
		c.nodes = append(c.nodes, c.lookup(c.nodes[7], name))
	}
	c.nodes = append(c.nodes, c.lookup(c.nodes[3], "t+5m"), c.lookup(c.nodes[4], "held"), c.lookup(c.nodes[6], "events"),
		c.lookup(c.nodes[6], "locks"), c.lookup(c.nodes[6], "files"), c.lookup(c.nodes[6], "pid"))
	for _, name := range []string{"f", "dir", "link", "fifo"} {
		c.nodes = append(c.nodes, c.lookup(files.Root, name))
	}
	for _, n := range c.nodes {
		require.NotZero(t, n)
	}
	c.nodes = append(c.nodes, 0, 99, 1<<40, synthetic, synthetic|1<<tokenShift|31, synthetic|dynamic|99, synthetic|(synthetic-1), 1<<63, ^uint64(0))
	c.handles = []uint64{0, 1, synthetic | 1, ^uint64(0)}
	c.names = []string{"f", "dir", "g", "new", "link", "fifo", "held", "hold", "m.x", "m_.x", "free+5m", "t,wait=0.01", "t,wait=0",
		fmt.Sprintf("held@%d", held.Token), "held@", "d", "timeout", "wait", "tlock", "events", "1", "user.x", "security.capability",
		"", ".", "..", "a/b", "\xff", ".go-fuse-epoll-hack", strings.Repeat("n", 256), strings.Repeat("n", 5000), "1h", "+5m\n"}
	return c
}

// n is a number below limit from the data, 0 at its end.
func (c *client) n(limit int) int {
	if len(c.data) == 0 {
		return 0
	}
	b := c.data[0]
	c.data = c.data[1:]
	return int(b) % limit
}

func pick[T any](c *client, from []T) T { return from[c.n(len(from))] }

// word is a field: a small number, an extreme one, a node or a handle.
func (c *client) word() uint64 {
	switch c.n(8) {
	case 0, 1:
		return uint64(c.n(4))
	case 2:
		return uint64(c.n(256)) | uint64(c.n(4))<<32
	case 3:
		return 1 << (c.n(64))
	case 4:
		return ^uint64(0) >> c.n(64)
	case 5:
		return pick(c, c.nodes)
	}
	return pick(c, c.handles)
}

// flags are of open(2), where they are the first field.
var flags = []uint64{syscall.O_RDONLY, syscall.O_WRONLY, syscall.O_RDWR | syscall.O_APPEND, syscall.O_RDWR | syscall.O_TRUNC,
	syscall.O_RDONLY | syscall.O_NONBLOCK}

// common are the requests that half of all are, by their place in requests.
var common = []int{0, 3, 7, 9, 12, 12, 13, 13, 14, 16, 22, 29, 30, 30, 33, 37}

// first is the first field of a request, which is often a handle.
func (c *client) first(opcode uint32, fixedPart int) uint64 {
	switch {
	case opcode == opOpen || opcode == opCreate:
		return pick(c, flags) | 0o644<<32
	case opcode == opInterrupt && c.n(4) > 0:
		return c.unique - uint64(c.n(8)*numberStep)
	case opcode != opSetattr && fixedPart >= 16 && c.n(4) > 0:
		return c.handles[len(c.handles)-1-c.n(len(c.handles))]
	}
	return c.word()
}

func (c *client) one() {
	r := pick(c, requests)
	if c.n(2) == 0 {
		r = requests[pick(c, common)]
	}
	body := []byte{}
	if r.fixedPart > 0 {
		body = words(c.first(r.opcode, r.fixedPart))
	}
	for len(body) < r.fixedPart {
		body = append(body, words(c.word())...)
	}
	for i := range r.names {
		body = append(body, pick(c, c.names)...)
		if i+1 < r.names || r.opcode != opWrite {
			body = append(body, 0)
		}
	}
	in := newRequest(r.opcode, pick(c, c.nodes), body)
	switch c.n(16) {
	case 0:
		in = in[:len(in)-c.n(len(body)+1)]
	case 1:
		in[36] = byte(c.n(4)) // the length of an extension
	case 2:
		in[15] |= 1 << 7 // sent again
	}
	binary.NativeEndian.PutUint32(in[24:], uint32(c.n(3)*1000))
	binary.NativeEndian.PutUint32(in[32:], uint32([]int{os.Getpid(), 0, 1, -1}[c.n(4)]))
	c.learn(r.opcode, in, c.send(harmless(in)))
}

// learn keeps the nodes and handles that a reply gives out, and looks at what
// must not be answered so.
func (c *client) learn(opcode uint32, in, reply []byte) {
	if reply == nil {
		return
	}
	switch opcode {
	case opOpen, opFlush, opPoll, opRelease, opGetlk, opSetlk, opSetlkw:
		// The kernel would never ask again.
		require.NotEqual(c.t, syscall.ENOSYS, errnoIn(reply), "opcode %d: %x", opcode, in)
	}
	if errnoIn(reply) != 0 {
		return
	}
	const handleAt = 128 // behind struct fuse_entry_out
	switch opcode {
	case opLookup, opMknod, opMkdir, opSymlink, opLink:
		c.nodes = append(c.nodes, word(reply, 0))
	case opCreate, opTmpfile:
		c.nodes = append(c.nodes, word(reply, 0))
		c.handles = append(c.handles, word(reply, handleAt))
	case opOpen, opOpendir:
		c.handles = append(c.handles, word(reply, 0))
	}
}

// FuzzRequests gives the server whole requests, of every kind, with fields
// that make some sense.
func FuzzRequests(f *testing.F) {
	log.SetOutput(io.Discard)
	for i := range uint64(24) {
		rnd := rand.New(rand.NewPCG(i, 1))
		seed := make([]byte, 3000)
		for j := range seed {
			seed[j] = byte(rnd.Uint32())
		}
		f.Add(seed)
	}
	base := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		c := newClient(t, tempBelow(t, base), data[:min(len(data), 4000)])
		for range 300 {
			if len(c.data) == 0 {
				break
			}
			c.one()
		}
		c.finish()
	})
}
