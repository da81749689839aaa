package fs

import (
	"strconv"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Node numbers must lead back to what they were made of: no table keeps it.
func TestNodeNumbers(t *testing.T) {
	s := &Server{}
	seen := map[uint64]node{}
	check := func(n node) {
		got, ok := s.node(n.id)
		require.True(t, ok, "%+v", n)
		assert.Equal(t, n, got)
		before, twice := seen[n.id]
		assert.False(t, twice, "%+v and %+v", n, before)
		assert.True(t, isSynthetic(n.id))
		seen[n.id] = n
	}
	for _, r := range staticTable {
		check(staticNode(r))
	}
	for _, token := range []uint64{1, 1732190000123456, 1<<52 - 1} {
		for _, r := range lockTable {
			for _, sp := range []spelling{plain, byToken, bySpan, byStart} {
				check(lockNode(token, sp, r, 0))
			}
		}
		check(lockNode(token, plain, durationRow, 1))
	}
	_, ok := s.node(3)
	assert.False(t, ok, "a number of files/")
	_, ok = s.node(synthetic | uint64(len(staticTable)))
	assert.False(t, ok)
	_, ok = s.node(synthetic | 1<<tokenShift | uint64(len(lockTable)))
	assert.False(t, ok)
}

func TestTablesFitNodeNumbers(t *testing.T) {
	assert.LessOrEqual(t, len(lockTable), rowMask+1)
	assert.Less(t, len(staticTable), 1<<tokenShift)
}

func TestDynamicNodesAreForgotten(t *testing.T) {
	s := &Server{}
	a := s.dynamic.lookup(takeFileRow, "x")
	b := s.dynamic.lookup(takeFileRow, "x")
	c := s.dynamic.lookup(holdFileRow, "x")
	assert.Equal(t, a.id, b.id, "one node for one name")
	assert.NotEqual(t, a.id, c.id)
	s.dynamic.forget(a.id, 1)
	_, ok := s.node(a.id)
	assert.True(t, ok, "the kernel still knows it once")
	s.dynamic.forget(a.id, 1)
	_, ok = s.node(a.id)
	assert.False(t, ok)
	s.dynamic.forget(a.id, 7)
	s.dynamic.forget(c.id, 99)
	assert.Empty(t, s.dynamic.byID)
	assert.Empty(t, s.dynamic.byKey)
}

// However many names are looked up, the table stays small if the kernel forgets
// those it is asked to. What is in use it keeps, and so does the table.
func TestNamesAreBounded(t *testing.T) {
	s := &Server{}
	used := map[uint64]bool{}
	s.dynamic.prune = func(ids []uint64) {
		for _, id := range ids {
			if !used[id] {
				s.dynamic.forget(id, 1)
			}
		}
	}
	for i := range 10 * maxNames {
		n := s.dynamic.lookup(takeFileRow, strconv.Itoa(i))
		if i%16 == 0 {
			used[n.id] = true
		}
		idle := len(s.dynamic.byID) - len(used)
		require.LessOrEqual(t, idle, maxNames+pruneEach)
	}
	for id := range used {
		_, ok := s.node(id)
		require.True(t, ok)
	}
	assert.Equal(t, len(s.dynamic.byID), s.dynamic.names.Len())
}

// A name that has got another number keeps it when the old one goes.
func TestNameOfTwoNumbers(t *testing.T) {
	s := &Server{}
	a, b := synthetic|dynamic|1, synthetic|dynamic|2
	s.dynamic.restore(a, takeFileRow, "x")
	s.dynamic.restore(b, takeFileRow, "x")
	s.dynamic.drop(a)
	assert.Equal(t, b, s.dynamic.lookup(takeFileRow, "x").id)
}

// What the kernel may believe for longer than an answer takes: fixed names, and attributes that never change. The root's
// attributes are not among them: by these a dead mount shows.
func TestWhatIsBelieved(t *testing.T) {
	k := newKernel(t, t.TempDir())
	k.s.instance.init = newRequest(opInit, 0, words(7|35<<32, 0, 0, 0, 0, 0, 0, 0))
	const never, long = 0, uint64(staticTimeout / time.Second)
	node := map[string]uint64{"": fuse.FUSE_ROOT_ID}
	for _, c := range []struct {
		dir, name   string
		entry, attr uint64
	}{
		{"", "tlock", long, long}, {"", "hold", long, long}, {"", "take", long, long}, {"", "README", long, never},
		{"hold", "x", never, long}, {"take", "x+5m", never, long},
		{"tlock", "held", never, never}, {"held", "token", never, never}, {"held", "d", never, never},
	} {
		reply := k.send(newRequest(opLookup, node[c.dir], append([]byte(c.name), 0)))
		require.Zero(t, errnoIn(reply), c.name)
		node[c.name] = word(reply, 0)
		assert.Equal(t, []uint64{c.entry, c.attr}, []uint64{word(reply, 16), word(reply, 24)}, c.name)
		reply = k.send(newRequest(opGetattr, node[c.name], words(0, 0)))
		require.Zero(t, errnoIn(reply), c.name)
		assert.Equal(t, c.attr, word(reply, 0), c.name)
	}
	assert.Zero(t, word(k.send(newRequest(opGetattr, fuse.FUSE_ROOT_ID, words(0, 0))), 0))
	k.s.instance.init = newRequest(opInit, 0, words(7|34<<32, 0, 0, 0, 0, 0, 0, 0)) // Linux 5.15
	assert.Zero(t, word(k.send(newRequest(opGetattr, node["x"], words(0, 0))), 0))
	k.finish()
}
