package fs

import (
	"bufio"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"lockfs/lockengine"
)

// startNested runs a shell in a pid namespace of its own, and one more in a
// namespace below that, until the test ends. It returns their numbers here.
func startNested(t *testing.T) (outer, inner int32) {
	t.Helper()
	cmd := exec.Command("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "sh", "-c",
		`unshare --pid --fork --kill-child sh -c 'echo here; read line; :'; :`)
	hold, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		hold.Close()
		cmd.Process.Kill()
		cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "here\n", line)
	outer = onlyChild(t, int32(cmd.Process.Pid))
	return outer, onlyChild(t, onlyChild(t, outer))
}

func onlyChild(t *testing.T, pid int32) int32 {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	require.NoError(t, err)
	for _, e := range entries {
		var child int32
		for _, c := range e.Name() {
			child = 10*child + c - '0'
		}
		if _, runs := statOf(child); runs && e.Name()[0] <= '9' && procField(child, "PPid") == strconv.Itoa(int(pid)) {
			return child
		}
	}
	t.Fatalf("process %d has no child", pid)
	return 0
}

// A process is shown by its number in the reader's namespace, 0 where it has none.
func TestPidSpace(t *testing.T) {
	outer, inner := startNested(t)
	stranger, _ := startNested(t)
	self, now := int32(os.Getpid()), lockengine.Instant{Boot: 1 << 62}

	assert.Equal(t, pidSpace{}, spaceOf(self))
	for _, pid := range []int32{self, outer, inner, 1 << 30} {
		assert.Equal(t, pid, spaceOf(self).pid(pid, now), "our own numbers are what they are, also of who is gone")
	}
	assert.EqualValues(t, 1, spaceOf(outer).pid(outer, now))
	assert.EqualValues(t, 3, spaceOf(outer).pid(inner, now), "after a shell and unshare")
	assert.EqualValues(t, 1, spaceOf(inner).pid(inner, now))
	for _, pid := range []int32{self, outer, stranger, 1 << 30, 0} {
		assert.Zero(t, spaceOf(inner).pid(pid, now), "%d is not below", pid)
	}
	assert.Zero(t, spaceOf(outer).pid(stranger, now), "as deep, but another namespace")
	assert.Zero(t, spaceOf(outer).pid(outer, lockengine.Instant{Boot: 1}), "its number was another's then")
	assert.Zero(t, spaceOf(0).pid(self, now), "the reader is outside")
}

// Of callers that we cannot see, the mkdirs of one user are one owner, and
// nothing else is.
func TestOwnersOutside(t *testing.T) {
	header := func(unique uint64, uid uint32) *fuse.InHeader {
		h := &fuse.InHeader{Unique: unique}
		h.Uid = uid
		return h
	}
	first := ownerID(0, "mkdir", header(2, 0))
	assert.Equal(t, first, ownerID(0, "mkdir", header(4, 0)))
	assert.Equal(t, ownerID(0, "take", header(6, 0)), ownerID(0, "take", header(6|resentBit, 0)), "sent again")
	others := map[uint64]bool{first: true}
	for _, id := range []uint64{
		ownerID(0, "mkdir", header(8, 1000)), ownerID(0, "take", header(10, 0)), ownerID(0, "hold", header(12, 0)),
		ownerID(8, "mkdir", header(14, 0)), ownerID(int32(syscall.Getpid()), "take", header(16, 0)),
	} {
		assert.False(t, others[id], "%x is another's", id)
		others[id] = true
	}
}

// A stream goes on for its reader in the process that comes after this one.
func TestStreamKeepsItsReadersNamespace(t *testing.T) {
	s := &Server{}
	n := staticNode(viewRow.child("events"))
	h := &handle{fh: 1, node: n, stream: newEventStream(s, n)}
	h.stream.space = pidSpace{depth: 2, inode: 4026531836}
	record := h.encode()
	got := s.decodeHandle(&decoder{rest: record})
	assert.Equal(t, h.stream.space, got.stream.space)

	h.stream.space = pidSpace{}
	before := &decoder{rest: h.encode()[:len(h.encode())-2]} // as versions before wrote it
	assert.Equal(t, pidSpace{}, s.decodeHandle(before).stream.space)
	assert.NoError(t, before.err)
}
