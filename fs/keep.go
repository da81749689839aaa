package fs

import (
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"

	"lockfs/lockengine"
)

// What a successor of this process must know of the synthetic tree is kept in
// the journal as records that set or delete one thing each. So a record
// replayed twice does no harm, and a snapshot may be taken while they come: it
// only has to begin after the new log did.
//
// The kinds are part of the journal's format.
const (
	recInstance    = 10 // the kernel's connection: its id, when it began, its INIT request
	recHandle      = 11 // an open synthetic file
	recHandleGone  = 12
	recDynamic     = 13 // a node with a name
	recDynamicGone = 14
	recDynamicLast = 15 // the last number of such a node
	recRemoved     = 16 // how often the d of a lock was removed
	recIntent      = 17 // something that must not be done twice is about to be
	recJanitor     = 18 // the process whose rmdir shows an expiry to inotify
	recSweep       = 19 // a lock that ran out and has to be shown so
	recDeadly      = 20 // a request of which the process died
)

// engineKeeper is an engine that keeps its state in the journal.
type engineKeeper interface {
	Replay(kind uint8, data []byte) error
	Resume(lockengine.Resumption) error
	Rewatch(id lockengine.WatchID, done func(lockengine.End)) bool
	Expect(keys map[uint64]bool)
	Claimed()
	NamedHandles() []uint64
	WaitsSince(id lockengine.WaiterID) (since lockengine.Instant, ok bool)
	Checkpoint(switchLog func(), add func(chunk []byte) error) error
}

// stateKind is the kind of the engine's records in a snapshot.
const stateKind = 2

// record appends to the journal. It fails only at the very end of a full disk,
// as what grows asks for room first; then a crash would lose this one thing.
func (s *Server) record(kind uint8, e encoder) {
	if s.host.journal == nil {
		return
	}
	_, err := s.host.journal.Append(kind, e)
	if was := s.journalFailed.Swap(err != nil); err != nil && !was {
		s.log.Error("the journal takes no more records: open files and the like would be lost in a crash now", "error", err)
	}
}

// room reports whether there is room for a record that adds something, so that
// those that take away will always find some.
func (s *Server) room(n int) bool {
	return s.host.journal == nil || s.host.journal.Room(n, journalReserve) == nil
}

// journalReserve is what is left to records that take away, in bytes.
const journalReserve = 64 << 10

// instance is the kernel's connection.
type instance struct {
	id      string
	started lockengine.Instant
	init    []byte // the INIT request, which the kernel sends once
	// restarts counts the processes that went on with it.
	restarts uint64
}

// minor is the minor number of the kernel's FUSE protocol; 0: there was no INIT.
func (i *instance) minor() uint32 {
	in := request[fuse.InitIn](i.init)
	if in == nil {
		return 0
	}
	return in.Minor
}

func (i *instance) encode() encoder {
	var e encoder
	e.text(i.id)
	e.int(i.started.Boot)
	e.int(i.started.Wall)
	e.bytes(i.init)
	e.uint(i.restarts)
	return e
}

func (i *instance) decode(d *decoder) {
	i.id, i.started.Boot, i.started.Wall, i.init = d.text(), d.int(), d.int(), d.bytes()
	i.restarts = d.uint()
}

// dynamicRows have the nodes with names; their places here are in the journal.
var dynamicRows = []*row{takeFileRow, holdFileRow, viewDirRow, viewFileRow, viewPidRow}

func (s *Server) keepDynamic(d *dynamicNode, gone bool) {
	var e encoder
	e.uint(d.id)
	if gone {
		if d.kept {
			s.record(recDynamicGone, e)
		}
		return
	}
	d.encode(&e)
	if d.kept = s.room(len(e)); d.kept {
		s.record(recDynamic, e)
	}
}

func (d *dynamicNode) encode(e *encoder) {
	for i, r := range dynamicRows {
		if r == d.row {
			e.uint(uint64(i))
		}
	}
	e.text(d.name)
}

func (s *Server) restoreDynamic(d *decoder) error {
	id, i, name := d.uint(), d.uint(), d.text()
	if d.err != nil || i >= uint64(len(dynamicRows)) {
		return errShort
	}
	s.dynamic.restore(id, dynamicRows[i], name)
	return nil
}

// intents are the changes of locks that must not be made twice though their
// request may come twice: a release without a token could hit the next holder.
//
// Concurrency: safe for use from any goroutine.
type intents struct {
	mu sync.Mutex
	m  map[uint64]intent // by the number of the request
	// inherited are those of processes before, until all that is sent again was answered.
	inherited map[uint64]intent
}

// before is what was about to be done for a request when it came before.
// Needs mu.
func (t *intents) before(id uint64) (intent, bool) {
	if in, ok := t.m[id]; ok {
		return in, true
	}
	in, ok := t.inherited[id]
	return in, ok
}

// claimed forgets what was inherited.
func (t *intents) claimed() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.inherited = nil
}

// intent is a change about to be made, and the state it found.
type intent struct {
	token  uint64
	name   string
	how    lockengine.End // a release
	expiry int64          // a renewal: the one before, by Boot
}

func (in intent) encode(id uint64) encoder {
	var e encoder
	e.uint(id)
	e.uint(in.token)
	e.text(in.name)
	e.uint(uint64(in.how))
	e.int(in.expiry)
	return e
}

func decodeIntent(d *decoder) (id uint64, in intent) {
	id = d.uint()
	in.token, in.name, in.how, in.expiry = d.uint(), d.text(), lockengine.End(d.uint()), d.int()
	return id, in
}

// intend records what is about to be done for a request. found is what was
// about to be done when this request came before.
func (s *Server) intend(unique uint64, in intent) (found intent, again bool) {
	if s.host.journal == nil {
		return in, false
	}
	id := requestID(unique)
	s.intents.mu.Lock()
	defer s.intents.mu.Unlock()
	if found, again = s.intents.before(id); again {
		return found, true
	}
	if s.intents.m == nil {
		s.intents.m = map[uint64]intent{}
	}
	s.intents.m[id] = in
	if e := in.encode(id); s.room(len(e)) { // else releases have the room that is left
		s.record(recIntent, e)
	}
	return in, false
}

// intended is what was about to be done when this request came before.
func (s *Server) intended(unique uint64) (in intent, again bool) {
	if !isResent(unique) {
		return in, false
	}
	s.intents.mu.Lock()
	defer s.intents.mu.Unlock()
	return s.intents.before(requestID(unique))
}

// answered forgets an intent: its request will not come again.
func (s *Server) answered(unique uint64) {
	s.intents.mu.Lock()
	defer s.intents.mu.Unlock()
	delete(s.intents.m, requestID(unique))
}

// replay takes one record of the journal.
func (s *Server) replay(kind uint8, data []byte) error {
	d := &decoder{rest: data}
	switch kind {
	case recInstance:
		was := s.instance.id
		if s.instance.decode(d); s.instance.id != was {
			s.reset()
		}
	case recHandle:
		s.found[decodedNumber(data)] = append([]byte(nil), data...)
	case recHandleGone:
		delete(s.found, d.uint())
	case recDynamic:
		return s.restoreDynamic(d)
	case recDynamicGone:
		s.dynamic.drop(d.uint())
	case recDynamicLast:
		s.dynamic.last = max(s.dynamic.last, d.uint())
	case recRemoved:
		s.removed.set(d.uint(), d.uint())
	case recIntent:
		id, in := decodeIntent(d)
		s.intents.inherited[id] = in
	case recJanitor:
		s.janitors.restore(int32(d.int()), d.int())
	case recDeadly:
		s.deadly[d.uint()] = true
	case recSweep:
		s.janitors.restoreSweep(d.text(), d.uint())
	}
	return d.err
}

func decodedNumber(data []byte) uint64 { return (&decoder{rest: data}).uint() }

// dump gives the state as records, for a snapshot. They are made first and
// written later: nobody who needs what they are made of waits for the disk.
func (s *Server) dump(add func(kind uint8, data []byte) error) error {
	all := []keptRecord{{recInstance, s.instance.encode()}}
	all = append(all, s.dynamic.records()...)
	all = append(all, s.removed.records()...)
	all = append(all, s.handles.records()...)
	all = append(all, s.janitors.records()...)
	all = append(all, s.intents.records()...)
	for _, r := range all {
		if err := add(r.kind, r.data); err != nil {
			return err
		}
	}
	return nil
}

// keptRecord is a record for a snapshot.
type keptRecord struct {
	kind uint8
	data encoder
}

func (t *intents) records() (out []keptRecord) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, m := range []map[uint64]intent{t.inherited, t.m} {
		for id, in := range m {
			out = append(out, keptRecord{recIntent, in.encode(id)})
		}
	}
	return out
}

func (t *dynamicNodes) records() (out []keptRecord) {
	t.mu.Lock()
	defer t.mu.Unlock()
	out = append(out, keptRecord{recDynamicLast, numbered(t.last)})
	for _, d := range t.byID {
		if d.kept {
			var e encoder
			e.uint(d.id)
			d.encode(&e)
			out = append(out, keptRecord{recDynamic, e})
		}
	}
	return out
}

// A request that the kernel sends again has this bit in its number
// (FUSE_UNIQUE_RESEND, include/uapi/linux/fuse.h).
const resentBit = 1 << 63

func isResent(unique uint64) bool { return unique&resentBit != 0 }

// requestID is the number of a request, however often it is sent.
func requestID(unique uint64) uint64 { return unique &^ resentBit }

// keepInit records the INIT request, before it is answered: a successor has to
// be told what was agreed on.
func (s *Server) keepInit(in []byte) {
	s.instance.init = append([]byte(nil), in...)
	s.record(recInstance, s.instance.encode())
}
