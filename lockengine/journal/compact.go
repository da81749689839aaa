package journal

import (
	"bufio"
	"encoding/binary"
	"errors"
	"log/slog"
	"os"
)

// Compaction replaces what was appended so far by a snapshot. One goroutine at a
// time uses it: [Journal.Compact], then Switch, then Add for each record of the
// state as it is at Switch or has become since, then Commit; or else Abort.
type Compaction struct {
	j        *Journal
	seq      uint64
	switched bool // GUARDED_BY(j.mu)
	done     bool // GUARDED_BY(j.mu): committed or aborted
	snapshot snapshot
	err      error // of an Add: the snapshot is not whole
}

// Compact prepares the next log. Records are still appended to the old one. It
// fails with [ErrNoSpace] if the disk is full, and [ErrCompacting] if one runs.
func (j *Journal) Compact() (*Compaction, error) {
	j.committing.Lock()
	defer j.committing.Unlock()
	seq, need, err := j.startCompaction()
	if err != nil {
		return nil, err
	}
	next, err := j.createLog(seq, need)
	j.mu.Lock()
	defer j.mu.Unlock()
	if err == nil {
		if err = j.prepare(next); err == nil {
			return &Compaction{j: j, seq: seq}, nil
		}
		j.next = nil
		err = errors.Join(err, next.close(), j.dir.remove(j.dir.path(next.file)))
	}
	j.compacting = false
	return nil, err
}

// prepare makes next the next log. The seal must fit into the current one, and
// what Room promised must hold for both.
func (j *Journal) prepare(next *log) error {
	if j.closing {
		return ErrClosed
	}
	j.next = next
	if err := j.ensure(&j.cur, 0); err != nil {
		return err
	}
	return j.ensure(&j.next, j.reserve)
}

func (j *Journal) startCompaction() (seq uint64, need int64, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.cur == nil || j.closing:
		return 0, 0, ErrClosed
	case j.compacting:
		return 0, 0, ErrCompacting
	}
	j.compacting, j.limit = true, 0
	return j.cur.seq + 1, j.reserve, nil
}

// Switch makes the next log the one that records are appended to. It is quick:
// no system call is made. The owner calls it under the mutex that guards its state.
func (c *Compaction) Switch() {
	j := c.j
	j.mu.Lock()
	defer j.mu.Unlock()
	if c.done || c.switched || j.next == nil {
		return // given up, or closed meanwhile
	}
	j.cur.seal()
	j.next.base = j.cur.base + uint64(j.cur.end)
	j.old = append(j.old[:len(j.old):len(j.old)], j.cur)
	j.cur, j.next, c.switched = j.next, nil, true
}

// ready returns an error unless the snapshot can be written.
func (c *Compaction) ready() error {
	c.j.mu.Lock()
	defer c.j.mu.Unlock()
	switch {
	case c.j.closing || c.done:
		return ErrClosed
	case !c.switched:
		return ErrNotSwitched
	case c.snapshot.f != nil:
		return nil
	}
	h, err := c.j.newHeader(snapshotFile, c.seq)
	if err != nil {
		return err
	}
	return c.snapshot.create(c.j.dir, h)
}

// Add adds a record to the snapshot.
func (c *Compaction) Add(kind uint8, data []byte) error {
	err := c.ready()
	if err == nil {
		err = valid(kind, data)
	}
	if err == nil {
		err = c.snapshot.add(kind, data)
	}
	if err != nil {
		c.err = err
	}
	return err
}

// Commit ends the compaction: the snapshot takes the place of all that was
// appended before Switch. If it fails, the old logs stay, as after Abort. It
// waits for the disk.
func (c *Compaction) Commit() error {
	c.j.committing.Lock()
	defer c.j.committing.Unlock()
	err := c.write()
	if err != nil {
		return errors.Join(err, c.abort())
	}
	c.snapshot.f.Close() // it was synced
	c.j.replaced(c)
	if err := c.j.removeBefore(c.seq); err != nil {
		c.j.opts.Log.Warn("files that a snapshot took the place of cannot be removed", slog.Any("error", err))
	}
	return nil
}

func (c *Compaction) write() error {
	if err := errors.Join(c.err, c.ready()); err != nil {
		return err
	}
	if c.j.opts.Sync {
		// Whoever waits for a sync until the snapshot is there has less to wait
		// for. A failure is logged, and mended by the snapshot.
		_, _ = c.j.syncNow()
	}
	return c.snapshot.finish(c.j.dir)
}

// replaced forgets the old logs.
func (j *Journal) replaced(c *Compaction) {
	j.syncing.Lock()
	defer j.syncing.Unlock()
	j.mu.Lock()
	old := j.old
	j.old, j.compacting, c.done = nil, false, true
	j.due = uint64(c.snapshot.end) + slack
	j.stats.Snapshot = c.snapshot.end
	j.stats.Compactions++
	select {
	case <-j.full: // of before
	default:
	}
	j.mu.Unlock()
	for _, l := range old {
		l.close() // its records no longer count
	}
}

// removeBefore removes the files that snapshot seq took the place of. What
// cannot be removed now is by the next compaction.
func (j *Journal) removeBefore(seq uint64) error {
	logs, snapshots, _, err := j.dir.files()
	for _, f := range append(logs, snapshots...) {
		if f.seq < seq {
			err = errors.Join(err, j.dir.remove(j.dir.path(f)))
		}
	}
	return err
}

// Abort gives the compaction up. If records were appended after Switch, they and
// those before stay where they are.
func (c *Compaction) Abort() {
	c.j.committing.Lock()
	defer c.j.committing.Unlock()
	if err := c.abort(); err != nil {
		c.j.opts.Log.Warn("what a compaction left cannot be removed", slog.Any("error", err))
	}
}

func (c *Compaction) abort() error {
	j := c.j
	j.mu.Lock()
	defer j.mu.Unlock()
	if c.done {
		return nil
	}
	c.done, j.compacting = true, false
	var errs []error
	if f := c.snapshot.f; f != nil {
		f.Close() // nothing in it counts
	}
	if j.closing {
		return nil // the directory may be another's by now
	}
	if c.snapshot.f != nil {
		errs = append(errs, j.dir.remove(j.dir.path(c.snapshot.file)+tmp))
	}
	for _, l := range j.old {
		l.unmap()
	}
	if l := j.next; l != nil {
		j.next = nil
		errs = append(errs, l.close(), j.dir.remove(j.dir.path(l.file)))
	}
	return errors.Join(errs...)
}

// snapshot is a snapshot file that is being written.
type snapshot struct {
	tail // its mem is a buffer
	file
	f       *os.File // nil: not yet made
	w       *bufio.Writer
	records uint64
}

func (s *snapshot) create(d dir, h header) error {
	f, err := d.create(h.file)
	if err != nil {
		return noSpace(err)
	}
	s.tail, s.file, s.f, s.w = tail{id: h.id, end: headerSize}, h.file, f, bufio.NewWriterSize(f, 256<<10)
	_, err = s.w.Write(h.bytes())
	return noSpace(err)
}

func (s *snapshot) add(kind uint8, data []byte) error {
	if size := recordSize(len(data)); int64(len(s.mem)) < size {
		s.mem = make([]byte, size)
	}
	s.from = s.end
	s.append(kind, data)
	s.records++
	_, err := s.w.Write(s.mem[:s.end-s.from]) // an error stays
	return noSpace(err)
}

// finish marks the end, and gives the file its name.
func (s *snapshot) finish(d dir) error {
	var n [8]byte
	binary.LittleEndian.PutUint64(n[:], s.records)
	if err := s.add(kindEnd, n[:]); err != nil {
		return err
	}
	step("write " + s.name())
	if err := s.w.Flush(); err != nil {
		return noSpace(err)
	}
	return d.publish(s.file, s.f)
}
