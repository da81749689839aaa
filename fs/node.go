package fs

import (
	"container/list"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// Node numbers of the synthetic part need no table: they are computed from
// what the node is, so that they are the same after a restart.
//
//	bit 62  set for every synthetic node but the root
//	bit 61  set for nodes with a name of their own (dynamic), see names
//
//	of a lock:  token<<9 | generation of d<<7 | spelling<<5 | row of lockTable
//	of others:  row of staticTable, with token 0
//
// A token is microseconds since the epoch, below 2^52 until the year 2112.
const (
	synthetic = uint64(1) << 62
	dynamic   = uint64(1) << 61

	tokenShift    = 9
	genShift      = 7
	spellingShift = 5
	rowMask       = 1<<spellingShift - 1
	twoBits       = 3
)

// node is a node of the synthetic tree, decoded.
type node struct {
	id       uint64
	row      *row
	token    uint64   // of a lock's nodes: its incarnation
	spelling spelling // of a lock's nodes
	gen      uint64   // of a lock's d: how often it was removed, modulo 4
	name     string   // of a dynamic node
	ended    bool     // a lock that ran out, as the janitor sees it
}

func isSynthetic(id uint64) bool { return id == fuse.FUSE_ROOT_ID || id&synthetic != 0 }

// lockNode is the node of one row of lockTable below a spelling of a lock.
func lockNode(token uint64, sp spelling, r *row, gen uint64) node {
	if !r.generations {
		gen = 0
	}
	id := synthetic | token<<tokenShift | gen&twoBits<<genShift | uint64(sp)<<spellingShift | r.index
	return node{id: id, row: r, token: token, spelling: sp, gen: gen & twoBits}
}

// sibling is another row of the same incarnation and spelling.
func (n node) sibling(r *row, gen uint64) node { return lockNode(n.token, n.spelling, r, gen) }

func staticNode(r *row) node {
	if r == rootRow {
		return node{id: fuse.FUSE_ROOT_ID, row: r}
	}
	return node{id: synthetic | r.index, row: r}
}

// node decodes a synthetic node number. ok is false for a number never given
// out, or forgotten.
func (s *Server) node(id uint64) (n node, ok bool) {
	switch {
	case id == fuse.FUSE_ROOT_ID:
		return staticNode(rootRow), true
	case id&synthetic == 0:
		return node{}, false
	case id&dynamic != 0:
		return s.dynamic.get(id)
	}
	token := id &^ synthetic >> tokenShift
	index := id & rowMask
	if token == 0 {
		if id &= synthetic - 1; id >= uint64(len(staticTable)) {
			return node{}, false
		}
		return staticNode(staticTable[id]), true
	}
	if index >= uint64(len(lockTable)) {
		return node{}, false
	}
	return node{id: id, row: lockTable[index], token: token,
		spelling: spelling(id >> spellingShift & twoBits), gen: id >> genShift & twoBits}, true
}

// dynamicNodes are the nodes below take/, hold/, view/files and view/pid: a row
// and a name each, kept while the kernel knows them.
//
// take/ and hold/ have every name there can be, and the kernel keeps what was
// looked up for as long as it has memory. So when there are many it is asked to
// forget the oldest; those in use it keeps.
type dynamicNodes struct {
	// keep records one that came, or went; nil: nothing is recorded. Called with mu held.
	keep func(d *dynamicNode, gone bool)
	// prune asks the kernel to forget nodes; nil: nobody does.
	prune func(ids []uint64)

	mu    sync.Mutex
	last  uint64
	byID  map[uint64]*dynamicNode
	byKey map[dynamicKey]*dynamicNode
	names list.List // of *dynamicNode: those of take/ and hold/, the oldest first
	fresh int       // how many came since the kernel was asked last
}

const (
	// maxNames is from how many names on the kernel is asked.
	maxNames = 4096
	// pruneEach is after how many names that came it is. It is asked for twice
	// as many, so that it can keep half of them and there are still no more.
	pruneEach = 64
)

type dynamicKey struct {
	row  *row
	name string
}

type dynamicNode struct {
	dynamicKey
	id      uint64
	lookups uint64
	kept    bool          // its record is in the journal, and goes with it
	at      *list.Element // in names
}

// pinned is the count of lookups of a node that the kernel may have looked up
// any number of times, before this process was there.
const pinned = 1 << 62

func (t *dynamicNodes) get(id uint64) (node, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	d, ok := t.byID[id]
	if !ok {
		return node{}, false
	}
	return node{id: id, row: d.row, name: d.name}, true
}

// lookup returns the node of a row and name and counts one more reference of
// the kernel to it.
func (t *dynamicNodes) lookup(r *row, name string) node {
	n, old := t.meet(r, name)
	if len(old) > 0 && t.prune != nil {
		t.prune(old)
	}
	return n
}

// meet is lookup, and tells which nodes the kernel should forget.
func (t *dynamicNodes) meet(r *row, name string) (n node, old []uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	key := dynamicKey{r, name}
	d := t.byKey[key]
	if d == nil {
		if t.byID == nil {
			t.byID, t.byKey = map[uint64]*dynamicNode{}, map[dynamicKey]*dynamicNode{}
		}
		t.last++
		d = &dynamicNode{dynamicKey: key, id: synthetic | dynamic | t.last}
		t.enter(d)
		if t.keep != nil {
			t.keep(d, false)
		}
		old = t.oldest()
	}
	d.lookups++
	return node{id: d.id, row: r, name: name}, old
}

// enter puts in a node. Needs mu.
func (t *dynamicNodes) enter(d *dynamicNode) {
	t.byID[d.id], t.byKey[d.dynamicKey] = d, d
	if d.row.take {
		d.at = t.names.PushBack(d)
		t.fresh++
	}
}

// oldest returns nodes that there are too many of, and makes them the latest: if
// the kernel keeps them, others have their turn first. Needs mu.
func (t *dynamicNodes) oldest() (ids []uint64) {
	if t.names.Len() <= maxNames || t.fresh < pruneEach {
		return nil
	}
	t.fresh = 0
	for range 2 * pruneEach {
		e := t.names.Front()
		ids = append(ids, e.Value.(*dynamicNode).id)
		t.names.MoveToBack(e)
	}
	return ids
}

func (t *dynamicNodes) forget(id, lookups uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	d := t.byID[id]
	if d == nil {
		return
	}
	if d.lookups -= min(lookups, d.lookups); d.lookups == 0 {
		t.remove(d)
		if t.keep != nil {
			t.keep(d, true)
		}
	}
}

// remove takes out a node. Its name may have got another one meanwhile. Needs mu.
func (t *dynamicNodes) remove(d *dynamicNode) {
	if d.at != nil {
		t.names.Remove(d.at)
	}
	delete(t.byID, d.id)
	if t.byKey[d.dynamicKey] == d {
		delete(t.byKey, d.dynamicKey)
	}
}

// restore enters a node that a process before gave out.
func (t *dynamicNodes) restore(id uint64, r *row, name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byID == nil {
		t.byID, t.byKey = map[uint64]*dynamicNode{}, map[dynamicKey]*dynamicNode{}
	}
	if old := t.byID[id]; old != nil {
		t.remove(old)
	}
	t.enter(&dynamicNode{dynamicKey: dynamicKey{r, name}, id: id, lookups: pinned, kept: true})
	t.last = max(t.last, id&^(synthetic|dynamic))
}

// beyond leaves out the numbers that a process before may have given out with no
// room to record it: each process has its own, 1<<32 of them.
func (t *dynamicNodes) beyond(restarts uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last = max(t.last, restarts<<32)
}

// drop undoes restore.
func (t *dynamicNodes) drop(id uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last = max(t.last, id&^(synthetic|dynamic))
	if d := t.byID[id]; d != nil {
		t.remove(d)
	}
}

// reset forgets all nodes.
func (t *dynamicNodes) reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.byID, t.byKey = nil, nil
	t.names.Init()
}

func (t *dynamicNodes) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.byID)
}

// pinned counts the nodes restored.
func (t *dynamicNodes) pinned() (n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, d := range t.byID {
		if d.lookups >= pinned/2 {
			n++
		}
	}
	return n
}
