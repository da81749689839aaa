package files

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// Kinds of the records in the journal. Each is an upsert or a delete by its first number, so that one may be
// replayed twice, and a snapshot may hold what the log behind it says once more. Numbers are little-endian.
const (
	firstRecord = 30
	lastRecord  = 49

	recordNode     = 30 // id, ident, type of file, then its file handle: type and bytes, or nothing
	recordNodeGone = 31 // id
	recordName     = 32 // parent, node or 0, name
	recordHandle   = 33 // fh, node, flags of open(2), uid, passed through
	recordClosed   = 34 // fh
	recordBacking  = 35 // node, backing id or 0
	recordIntent   = 36 // number of the request, two idents
	recordCounters = 37 // the last node number, the highest backing id
)

// Owns says whether records of a kind are this package's.
func (f *FS) Owns(kind uint8) bool { return kind >= firstRecord && kind <= lastRecord }

// The journal may need this much for one request; and this much is left to those that only give back.
const (
	requestRoom = 4 << 10
	reserve     = 64 << 10
)

// room fails with ENOSPC when the journal could not hold what a request will leave in it.
func (f *FS) room() error {
	if f.journal == nil || f.journal.Room(requestRoom, reserve) == nil {
		return nil
	}
	return unix.ENOSPC
}

// note appends the record of a change to the tables. Needs mu, since before the change, so that the order of the
// records is that of the changes and a snapshot misses none.
func (f *FS) note(kind uint8, encode func([]byte) []byte) {
	if f.journal == nil {
		return
	}
	f.scratch = encode(f.scratch[:0])
	if _, err := f.journal.Append(kind, f.scratch); err != nil && !f.journalFailed {
		f.journalFailed = true
		f.log.Error("the journal takes no more records: what changes now is lost if this process is killed", "error", err)
	}
}

func appendU64(b []byte, v ...uint64) []byte {
	for _, x := range v {
		b = binary.LittleEndian.AppendUint64(b, x)
	}
	return b
}

func appendU32(b []byte, v uint32) []byte { return binary.LittleEndian.AppendUint32(b, v) }

func appendIdent(b []byte, id ident) []byte {
	return appendU32(appendU64(b, id.dev, id.ino, uint64(id.sec)), id.nsec)
}

func (n *node) record(b []byte) []byte {
	b = appendU32(appendIdent(appendU64(b, n.id), n.ident), uint32(n.fmt))
	if n.handle != nil {
		b = append(appendU32(b, uint32(n.handle.Type())), n.handle.Bytes()...)
	}
	return b
}

func (k nameKey) record(b []byte, n *node) []byte {
	var id uint64
	if n != nil {
		id = n.id
	}
	return append(appendU64(b, k.parent, id), k.name...)
}

func (h *handle) record(b []byte) []byte {
	var passed byte
	if h.passed {
		passed = 1
	}
	return append(appendU32(appendU32(appendU64(b, h.fh, h.node.id), uint32(h.flags)), h.uid), passed)
}

func (s state) record(b []byte, unique uint64) []byte {
	return appendIdent(appendIdent(appendU64(b, unique), s[0]), s[1])
}

// decoder takes a record apart. What is missing is read as 0 and makes it bad.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) take(n int) []byte {
	if len(d.b) < n {
		d.bad, d.b = true, nil
		return make([]byte, n)
	}
	head := d.b[:n]
	d.b = d.b[n:]
	return head
}

func (d *decoder) u64() uint64 { return binary.LittleEndian.Uint64(d.take(8)) }
func (d *decoder) u32() uint32 { return binary.LittleEndian.Uint32(d.take(4)) }

func (d *decoder) ident() ident {
	return ident{dev: d.u64(), ino: d.u64(), sec: int64(d.u64()), nsec: d.u32()}
}

// rest is all that is left.
func (d *decoder) rest() []byte { return d.take(len(d.b)) }

// Replay takes one record of a predecessor that served this very mount. Call it for each, in order, before Resume.
func (f *FS) Replay(kind uint8, data []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := &decoder{b: data}
	var err error
	switch kind {
	case recordNode:
		err = f.replayNode(d)
	case recordNodeGone:
		f.replayNodeGone(d)
	case recordName:
		f.replayName(d)
	case recordHandle:
		f.replayHandle(d)
	case recordClosed:
		f.replayClosed(d)
	case recordBacking:
		f.replayBacking(d)
	case recordIntent:
		f.replayIntent(d)
	case recordCounters:
		f.replayCounters(d)
	default:
		return fmt.Errorf("files: a record of kind %d, which this version does not know", kind)
	}
	if err == nil && (d.bad || len(d.b) > 0) {
		err = fmt.Errorf("files: a record of kind %d has %d bytes, which cannot be", kind, len(data))
	}
	return err
}

func (f *FS) replayNode(d *decoder) error {
	id, file, format := d.u64(), d.ident(), uint16(d.u32())
	var fileHandle *unix.FileHandle
	if len(d.b) > 0 && !d.bad {
		typ := int32(d.u32())
		h := unix.NewFileHandle(typ, d.rest())
		fileHandle = &h
	}
	if d.bad {
		return nil
	}
	if id == Root {
		f.otherRoot = nil
		if file != f.root.ident {
			f.otherRoot = fmt.Errorf("files: the backing directory is inode %d, but the mount was made with inode %d",
				f.root.ident.ino, file.ino)
		}
		return nil
	}
	n := f.nodes[id]
	if n == nil {
		n = &node{id: id, ident: file, key: file.key(), fmt: format, handle: fileHandle, pinned: true}
		f.nodes[id] = n
		f.pinned++
	}
	if old := f.idents[file]; old == nil || old.id < id {
		f.idents[file] = n // the other has become a ghost
	}
	f.lastNode = max(f.lastNode, id)
	return nil
}

func (f *FS) replayNodeGone(d *decoder) {
	if n := f.nodes[d.u64()]; n != nil && n != f.root {
		f.discard(n)
	}
}

// A name of a node that is not there is none: a later record will say what has become of it.
func (f *FS) replayName(d *decoder) {
	parent, n := f.nodes[d.u64()], f.nodes[d.u64()]
	name := string(d.rest())
	if parent != nil && !d.bad {
		f.bind(parent, name, n)
	}
}

// reopenFlags are those of open(2) with which a handle is opened again.
const reopenFlags = unix.O_ACCMODE | unix.O_NOATIME | unix.O_DIRECTORY | unix.O_CLOEXEC

func (f *FS) replayHandle(d *decoder) {
	h := &handle{fh: d.u64(), node: f.nodes[d.u64()], fd: -1}
	h.flags, h.uid, h.passed = int(d.u32())&reopenFlags, d.u32(), d.take(1)[0] != 0
	if h.node == nil || d.bad || f.open[h.fh] != nil {
		return
	}
	if h.node.isDir() {
		h.dir = &dirStream{}
	}
	f.enter(h)
}

func (f *FS) replayClosed(d *decoder) {
	if h := f.open[d.u64()]; h != nil {
		f.leave(h)
	}
}

func (f *FS) replayBacking(d *decoder) {
	n, id := f.nodes[d.u64()], int32(d.u32())
	f.highestID = max(f.highestID, id)
	if n != nil {
		n.io.id = id
	}
}

func (f *FS) replayIntent(d *decoder) {
	unique, seen := d.u64(), state{d.ident(), d.ident()}
	if !d.bad {
		f.inherited[unique] = seen
	}
}

func (f *FS) replayCounters(d *decoder) {
	f.lastNode = max(f.lastNode, d.u64())
	f.highestID = max(f.highestID, int32(d.u32()))
}

// Dump gives the state that a successor needs as records, for a snapshot that began before the call. Requests may
// run meanwhile: what they change is in the log behind the snapshot, which is replayed after it.
func (f *FS) Dump(add func(kind uint8, data []byte) error) error {
	f.mu.Lock()
	nodes, handles, intents := keys(f.nodes), keys(f.open), append(keys(f.intents), keys(f.inherited)...)
	counters := appendU32(appendU64(nil, f.lastNode), uint32(f.highestID))
	f.mu.Unlock()
	if err := add(recordCounters, counters); err != nil {
		return err
	}
	// Nodes first, since the others speak of them.
	for _, part := range []struct {
		ids  []uint64
		dump func(*piece, uint64)
	}{{nodes, f.dumpNode}, {nodes, f.dumpNames}, {handles, f.dumpHandle}, {intents, f.dumpIntent}} {
		if err := f.dumpAll(part.ids, part.dump, add); err != nil {
			return err
		}
	}
	return nil
}

func keys[V any](m map[uint64]V) []uint64 {
	ks := make([]uint64, 0, len(m))
	for k := range m {
		ks = append(ks, k)
	}
	return ks
}

// piece holds the records of some ids, made under one hold of mu.
type piece struct {
	buf  []byte
	ends []int
	kind []uint8
}

func (p *piece) add(kind uint8, encode func([]byte) []byte) {
	p.buf = encode(p.buf)
	p.ends = append(p.ends, len(p.buf))
	p.kind = append(p.kind, kind)
}

// pieceSize keeps one hold of mu well under a millisecond.
const pieceSize = 512

func (f *FS) dumpAll(ids []uint64, dump func(*piece, uint64), add func(uint8, []byte) error) error {
	var p piece
	for len(ids) > 0 {
		now := ids[:min(len(ids), pieceSize)]
		ids = ids[len(now):]
		p.buf, p.ends, p.kind = p.buf[:0], p.ends[:0], p.kind[:0]
		f.mu.Lock()
		for _, id := range now {
			dump(&p, id)
		}
		f.mu.Unlock()
		from := 0
		for i, end := range p.ends {
			if err := add(p.kind[i], p.buf[from:end]); err != nil {
				return err
			}
			from = end
		}
	}
	return nil
}

func (f *FS) dumpNode(p *piece, id uint64) {
	if n := f.nodes[id]; n != nil {
		p.add(recordNode, n.record)
	}
}

func (f *FS) dumpNames(p *piece, id uint64) {
	n := f.nodes[id]
	if n == nil {
		return
	}
	for _, l := range n.links {
		p.add(recordName, func(b []byte) []byte { return l.key().record(b, n) })
	}
	if n.io.id != 0 {
		p.add(recordBacking, n.backingRecord)
	}
}

func (n *node) backingRecord(b []byte) []byte { return appendU32(appendU64(b, n.id), uint32(n.io.id)) }

func (f *FS) dumpHandle(p *piece, fh uint64) {
	if h := f.open[fh]; h != nil {
		p.add(recordHandle, h.record)
	}
}

func (f *FS) dumpIntent(p *piece, unique uint64) {
	for _, m := range []map[uint64]state{f.inherited, f.intents} { // the later one wins
		if seen, ok := m[unique]; ok {
			p.add(recordIntent, func(b []byte) []byte { return seen.record(b, unique) })
		}
	}
}
