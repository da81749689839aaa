// Package journal keeps records on disk so that a process that is killed at any
// instruction, and started again, finds all that it appended, in order. It knows
// nothing of what the records mean.
//
// # Files
//
// The directory holds logs and snapshots, numbered. snapshot-N is the state at
// the beginning of log-N. The greatest N with a snapshot counts (before the first
// snapshot: 1), with its log and, after a crash during a compaction, the logs
// behind it; all else is left over and removed. A log that another follows ends
// with a seal. A file gets its name when it is whole and on disk.
//
// # Appending
//
// A log is mapped into memory: to append is to copy, no system call is made, and
// what the process wrote is the kernel's when it dies. Its room on disk is
// allocated ahead, so that to append cannot fail where [Journal.Room] agreed.
//
// # Damage
//
// A kill loses nothing that was appended. A power failure loses what was not
// synced, any page of it; what a sync had covered is told by records of proof.
// What could be lost that way is cut off and reported. Any other damage is a
// [CorruptError], and nothing is changed.
//
// # Concurrency
//
// All methods of a Journal may be called from any goroutine. One process at a
// time may have a directory open; the caller must see to that.
package journal

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// slack is by how much the logs may be longer than the snapshot before a
// compaction is due.
const slack = 4 << 20

// Options say how to keep a journal. The zero value is usable.
type Options struct {
	// Boot is the id of this boot of the machine, at most 64 bytes. What another
	// boot wrote and did not sync may be lost. Empty: not known, as if another.
	Boot string
	// Sync says that the owner waits for [Journal.Synced] where it matters.
	Sync bool
	// Log is told of what was cut off and of errors. Nil: nobody is.
	Log *slog.Logger
}

// Journal is an open journal.
type Journal struct {
	mu  sync.Mutex // what each record needs comes first: it has short addresses
	cur *log       // GUARDED_BY(mu): appended to; nil before Replay and after Close
	// limit is up to where cur may grow with nothing to look after: it has room for
	// what was promised, no compaction or growing is due, and no record is too long.
	// It is 0 unless that is known, and while next may have to have room too.
	limit   int64  // GUARDED_BY(mu)
	reserve int64  // GUARDED_BY(mu): the greatest that Room was asked for
	last    uint64 // GUARDED_BY(mu): position behind the owner's last record
	appends uint64 // GUARDED_BY(mu)

	dir   dir
	opts  Options
	chain *chain // what Open found, for Replay

	wakeSync, wakeGrow chan struct{}
	full               chan struct{}
	quit               chan struct{}
	tasks              sync.WaitGroup
	syncs              atomic.Uint64

	// committing is held while a compaction makes, names or removes files, syncing
	// while files are synced. They are taken in this order, then mu.
	committing, syncing sync.Mutex

	old        []*log   // GUARDED_BY(mu): sealed, not yet replaced by a snapshot; never changed in place
	next       *log     // GUARDED_BY(mu): from Compact to Switch; keeps what Room promised too
	compacting bool     // GUARDED_BY(mu)
	closing    bool     // GUARDED_BY(mu)
	waiting    []waiter // GUARDED_BY(mu)
	synced     uint64   // GUARDED_BY(mu): all up to this position is on disk
	growing    bool     // GUARDED_BY(mu): growOnce is at work; grown tells when it is done
	grown      sync.Cond
	starved    bool   // GUARDED_BY(mu): no growing ahead until growing succeeds
	due        uint64 // GUARDED_BY(mu): logs longer than that are to be compacted
	stats      Stats  // GUARDED_BY(mu)
}

// Stats are figures of a journal.
type Stats struct {
	Log         int64 // bytes of the logs in use
	Allocated   int64 // bytes on disk of the log that is appended to
	Snapshot    int64 // bytes of the snapshot
	Appends     uint64
	Syncs       uint64 // of log files
	Compactions uint64
	Replayed    int // records
	ReplayTime  time.Duration
}

// Open finds the journal in a directory, which it makes if need be, and checks
// it: [CorruptError], [VersionError]. Nothing is changed before Replay.
func Open(path string, o Options) (*Journal, error) {
	if len(o.Boot) > maxBoot {
		return nil, fmt.Errorf("boot id of %d bytes, at most %d are known", len(o.Boot), maxBoot)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	d := dir(path)
	if err := d.make(); err != nil {
		return nil, err
	}
	c, err := readChain(d, o.Boot)
	if err != nil {
		return nil, err
	}
	j := &Journal{
		dir: d, opts: o, chain: c,
		wakeSync: make(chan struct{}, 1), wakeGrow: make(chan struct{}, 1),
		full: make(chan struct{}, 1), quit: make(chan struct{}),
	}
	j.grown.L = &j.mu
	return j, nil
}

// Append appends a record, and returns the position behind it. Positions grow as
// long as the journal is open. It fails only if there is no room ([ErrNoSpace]),
// which [Journal.Room] rules out.
func (j *Journal) Append(kind uint8, data []byte) (pos uint64, err error) {
	j.mu.Lock()
	if kind-1 < MaxKind && j.within(len(data)) {
		pos = j.put(kind, data)
	} else {
		pos, err = j.appendMore(kind, data)
	}
	j.mu.Unlock()
	return pos, err
}

// put appends a record of the owner for which there must be room.
func (j *Journal) put(kind uint8, data []byte) (pos uint64) {
	j.appends++
	j.last = j.cur.append(kind, data)
	return j.last
}

// within reports whether a payload of n bytes leaves the log within the limit.
func (j *Journal) within(n int) bool {
	return j.cur != nil && j.cur.end+recordSize(n) <= j.limit
}

// appendMore is the rest of Append: it makes room for a record, does what is due
// then, and sets the limit anew.
func (j *Journal) appendMore(kind uint8, data []byte) (pos uint64, err error) {
	if err := valid(kind, data); err != nil {
		return 0, err
	}
	if err := j.makeRoom(len(data)); err != nil {
		return 0, err
	}
	if j.closing { // perhaps only while it waited for room
		return 0, ErrClosed
	}
	size := recordSize(len(data))
	j.checkFull(size)
	if j.short(size) && !j.starved {
		signal(j.wakeGrow)
	}
	j.limit = 0
	if !j.compacting {
		j.limit = j.cur.end + min(j.ahead(), int64(j.due-j.logSize()), MaxRecord)
	}
	return j.put(kind, data), nil
}

// ahead is how much can be appended until it is time to grow.
func (j *Journal) ahead() int64 { return j.cur.free() - j.reserve - growth/2 }

// short reports whether it is time to grow with size bytes more.
func (j *Journal) short(size int64) bool { return j.ahead() < size }

// valid returns an error unless an owner may append a record.
func valid(kind uint8, data []byte) error {
	if kind == 0 || kind > MaxKind {
		return fmt.Errorf("record of kind %d, want 1 to %d", kind, MaxKind)
	}
	if len(data) > MaxRecord {
		return ErrTooLong
	}
	return nil
}

// makeRoom makes room for a payload of n bytes in the current log.
func (j *Journal) makeRoom(n int) error {
	if err := j.ensure(&j.cur, recordSize(n)); err != nil {
		return err
	}
	if j.cur == nil {
		return ErrClosed
	}
	return nil
}

// prove appends a proof, and boot.
func (j *Journal) prove(kind uint8, p proof, boot []byte) error {
	b := p.bytes()
	data := append(b[:], boot...)
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.makeRoom(len(data)); err != nil {
		return err
	}
	j.cur.append(kind, data)
	return nil
}

// Room returns nil if a record with a payload of n bytes can be appended, and
// then records of reserve bytes in all (each takes up to 19 more than its
// payload), even if the disk is full and a compaction switches logs meanwhile.
// Else it returns [ErrNoSpace], and nothing changed. It costs a comparison while
// there is room.
func (j *Journal) Room(n, reserve int) error {
	var err error
	j.mu.Lock()
	if int64(reserve) > j.reserve || !j.within(n) {
		err = j.moreRoom(n, reserve)
	}
	j.mu.Unlock()
	return err
}

// moreRoom is the rest of Room: what is behind the limit is not known to have
// room.
func (j *Journal) moreRoom(n, reserve int) error {
	switch {
	case n > MaxRecord:
		return ErrTooLong
	case j.cur == nil || j.closing:
		return ErrClosed
	}
	if int64(reserve) > j.reserve {
		j.reserve, j.limit = int64(reserve), 0 // one reserve for all who ask
	}
	need := recordSize(n) + j.reserve
	if err := j.ensure(&j.next, need); err != nil {
		return err
	}
	return j.ensure(&j.cur, need)
}

// createLog makes log number seq, with room for need bytes.
func (j *Journal) createLog(seq uint64, need int64) (*log, error) {
	h, err := j.newHeader(logFile, seq)
	if err != nil {
		return nil, err
	}
	return createLog(j.dir, h, need)
}

func (j *Journal) newHeader(what fileType, seq uint64) (header, error) {
	var id [8]byte
	_, err := rand.Read(id[:])
	return header{file{what, seq}, binary.LittleEndian.Uint64(id[:]), j.opts.Sync, j.opts.Boot}, err
}

// ensure makes room for need bytes in *l, which may become another log, or nil,
// while it waits.
func (j *Journal) ensure(l **log, need int64) error {
	for *l != nil && (*l).free() < need {
		if j.growing {
			j.grown.Wait()
			continue
		}
		err := (*l).grow(need)
		if j.starved = err != nil; err != nil {
			return err
		}
	}
	return nil
}

// growAhead has room allocated before it is needed, until the journal is closed.
func (j *Journal) growAhead() {
	for {
		select {
		case <-j.wakeGrow:
			j.growOnce()
		case <-j.quit:
			return
		}
	}
}

// growOnce grows the current log without holding up who appends meanwhile. It
// zeroes what it adds, so that nobody else may grow until it is done.
func (j *Journal) growOnce() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.short(0) {
		return // somebody could not wait
	}
	l, from := j.cur, j.cur.allocated
	to := roundUp(max(from, l.end+j.reserve)+growth, growth)
	j.growing = true
	j.mu.Unlock()
	err := l.extend(from, to)
	j.mu.Lock()
	j.growing = false
	j.grown.Broadcast()
	if l != j.cur {
		return // switched meanwhile
	}
	if err == nil {
		err = l.extended(to)
	}
	j.starved = err != nil
}

// Full is sent a value when a compaction is due.
func (j *Journal) Full() <-chan struct{} { return j.full }

// checkFull tells when a compaction is due with size bytes more; if it did not
// help, again when the logs have grown some more.
func (j *Journal) checkFull(more int64) {
	size := j.logSize() + uint64(more)
	if size <= j.due || j.compacting {
		return
	}
	j.due = size + growth
	signal(j.full)
}

// logSize is the length of all logs in use.
func (j *Journal) logSize() uint64 {
	if len(j.old) > 0 {
		return j.cur.base + uint64(j.cur.end) - j.old[0].base
	}
	return uint64(j.cur.end)
}

// Stats returns the figures of this moment.
func (j *Journal) Stats() Stats {
	j.mu.Lock()
	defer j.mu.Unlock()
	s := j.stats
	s.Appends, s.Syncs = j.appends, j.syncs.Load()
	if j.cur != nil {
		s.Log, s.Allocated = int64(j.logSize()), j.cur.allocated
	}
	return s
}

// spare is the room beyond what was promised that proofs of a sync leave, and
// that Close does, so that a journal on a full disk can be opened again and what
// is recorded there be given back.
const spare = 64 << 10

// Close syncs all, marks the journal as closed cleanly, and closes it. Who still
// waits for a sync is told; a compaction that was not committed is as if there
// had been none.
func (j *Journal) Close() error {
	j.mu.Lock()
	opened := j.cur != nil && !j.closing
	j.closing, j.limit = true, 0
	j.mu.Unlock()
	if !opened {
		return nil
	}
	close(j.quit)
	j.tasks.Wait()
	j.committing.Lock()
	defer j.committing.Unlock()
	err := j.markClosed()
	return errors.Join(err, j.closeFiles())
}

func (j *Journal) markClosed() error {
	p, err := j.syncNow()
	if err != nil {
		return err
	}
	if err := j.prove(kindClosed, p, nil); err != nil {
		return err
	}
	l := j.cur
	step("trim " + l.name())
	if size := roundUp(l.end+j.reserve+spare, block); size < l.allocated {
		if err := l.f.Truncate(size); err != nil {
			return err
		}
	}
	step("sync " + l.name())
	return l.f.Sync()
}

func (j *Journal) closeFiles() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	var errs []error
	for _, l := range j.old {
		errs = append(errs, l.close())
	}
	for _, l := range []*log{j.cur, j.next} {
		if l != nil {
			errs = append(errs, l.close())
		}
	}
	j.cur, j.old, j.next = nil, nil, nil
	return errors.Join(errs...)
}

// signal wakes whoever receives from c, if it is not about to look anyway.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
