package journal

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
)

// chain is the state a directory holds: a snapshot, then the logs behind it.
type chain struct {
	snapshot *image   // nil: nothing was before the first log
	logs     []*image // those that count, in order; none if the directory is new
	end      int64    // of the records of the last one
	boot     string   // the last records are of this boot
	clean    bool
	torn     *Torn
	dropped  []string // logs behind the end, last first
	obsolete []string // what else need not be there
}

// Torn tells of records that were cut off because they were never whole on disk.
type Torn struct {
	File    string
	Offset  int64 // where File was cut
	Bytes   int64 // from there to the last that is not zero
	Records int   // that were whole, but behind one that was not, after a power failure
}

// readChain reads a directory and judges it. It changes nothing.
func readChain(d dir, boot string) (*chain, error) {
	logs, snapshots, leftovers, err := d.files()
	if err != nil {
		return nil, err
	}
	c := &chain{obsolete: leftovers}
	first := uint64(1)
	if n := len(snapshots); n > 0 {
		first = snapshots[n-1].seq
		if err := c.readSnapshot(d, snapshots[n-1]); err != nil {
			return nil, err
		}
		snapshots = snapshots[:n-1]
	} else if len(logs) == 0 {
		return c, nil
	}
	for len(logs) > 0 && logs[0].seq < first {
		c.obsolete = append(c.obsolete, d.path(logs[0]))
		logs = logs[1:]
	}
	for _, f := range snapshots {
		c.obsolete = append(c.obsolete, d.path(f))
	}
	return c, c.readLogs(d, logs, first, boot)
}

// readSnapshot reads a snapshot, which was whole on disk when it got its name.
func (c *chain) readSnapshot(d dir, f file) error {
	im, err := readImage(d, f)
	if err != nil {
		return err
	}
	end, n := int64(headerSize), uint64(0)
	for r := range records(im.data, im.id) {
		end = r.end
		if r.kind != kindEnd {
			n++
			continue
		}
		if len(r.data) != 8 || binary.LittleEndian.Uint64(r.data) != n || r.end != int64(len(im.data)) {
			return &CorruptError{im.path, r.off, "bad end of a snapshot"}
		}
		c.snapshot = im
		return nil
	}
	return &CorruptError{im.path, end, "bad record in a snapshot"}
}

func (c *chain) readLogs(d dir, files []file, first uint64, boot string) error {
	if len(files) == 0 || files[0].seq != first {
		return &CorruptError{d.path(file{logFile, first}), 0, "the file is missing"}
	}
	images := make([]*image, 0, len(files))
	for i, f := range files {
		if f.seq != first+uint64(i) {
			return &CorruptError{d.path(file{logFile, first + uint64(i)}), 0, "the file is missing"}
		}
		im, err := readImage(d, f)
		if err != nil {
			return err
		}
		images = append(images, im)
	}
	for i, im := range images {
		c.logs = images[:i+1]
		if sealed := c.walk(im); !sealed {
			return c.judge(im, images[i+1:], boot)
		}
	}
	return &CorruptError{d.path(file{logFile, first + uint64(len(images))}), 0, "the file is missing"}
}

// walk finds the end of a log, and whether another goes on there.
func (c *chain) walk(im *image) (sealed bool) {
	c.boot, c.clean, c.end = im.boot, false, headerSize
	for r := range records(im.data, im.id) {
		c.end, c.clean, sealed = r.end, r.kind == kindClosed, r.kind == kindSealed
		if boot, ok := r.boot(); ok {
			c.boot = boot
		}
	}
	return sealed
}

// judge decides what is behind the end of the last log: nothing, a torn tail, or
// what was acknowledged once and can no longer be read.
//
// A process that is killed leaves whole records, the last one perhaps without
// its first 8 bytes. What is valid behind such a place was damaged there. In a
// power failure however any page may be lost that was not synced, so that only a
// proof behind the place shows that the disk had it.
func (c *chain) judge(last *image, behind []*image, boot string) error {
	var e evidence
	e.gather(last, c.end)
	for _, im := range behind {
		e.gather(im, headerSize)
		c.dropped = append([]string{im.path}, c.dropped...)
	}
	switch {
	case e.proof.covers(last.seq, c.end):
		return &CorruptError{last.path, c.end, "bad record, which was whole on disk once"}
	case e.valid > 0 && (sameBoot(c.boot, boot) || sameBoot(e.boot, boot)):
		return &CorruptError{last.path, c.end, fmt.Sprintf("bad record, with %d valid ones behind it", e.valid)}
	}
	if rest := used(last.data[c.end:]); rest > 0 || e.valid > 0 {
		c.torn, c.clean = &Torn{last.path, c.end, rest, e.valid}, false
	}
	return nil
}

// evidence is what the records behind a bad one tell.
type evidence struct {
	valid int    // how many there are
	proof proof  // the best among them
	boot  string // in which the last of them were written, if they tell
}

// gather adds what is valid at or behind off.
func (e *evidence) gather(im *image, off int64) {
	for r := range survivors(im.data, im.id, off) {
		e.valid++
		if p := r.proof(); p.covers(e.proof.seq, e.proof.off) {
			e.proof = p
		}
		if boot, ok := r.boot(); ok {
			e.boot = boot
		}
	}
}

// sameBoot reports whether two boots are known to be one.
func sameBoot(a, b string) bool { return a == b && a != "" }

// used is the length of b without zeros at its end.
func used(b []byte) int64 {
	for len(b) >= block && bytes.Equal(b[len(b)-block:], zeros[:block]) {
		b = b[:len(b)-block]
	}
	for len(b) > 0 && b[len(b)-1] == 0 {
		b = b[:len(b)-1]
	}
	return int64(len(b))
}

const block = 4096

// each calls f for the records of the owner, in order.
func (c *chain) each(f func(r record) error) error {
	images := c.logs
	if c.snapshot != nil {
		images = append([]*image{c.snapshot}, images...)
	}
	for _, im := range images {
		for r := range records(im.data, im.id) {
			if r.kind > MaxKind {
				continue
			}
			if err := f(r); err != nil {
				return fmt.Errorf("%s, offset %d: record of kind %d: %w", im.path, r.off, r.kind, err)
			}
		}
	}
	return nil
}

// mend removes what does not count, so that what is appended behind the end
// cannot be mistaken. The logs behind go first, last first: were the rest zeroed
// before, a crash between would make them count.
func (c *chain) mend(d dir) error {
	for _, path := range c.dropped {
		if err := d.remove(path); err != nil {
			return err
		}
	}
	if len(c.dropped) > 0 {
		if err := d.sync(); err != nil {
			return err
		}
	}
	if c.torn == nil {
		return nil
	}
	last := c.logs[len(c.logs)-1]
	f, err := os.OpenFile(last.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	step("cut " + last.name())
	if err := writeZeros(f, c.end, int64(len(last.data))); err != nil {
		return noSpace(err)
	}
	return f.Sync()
}
