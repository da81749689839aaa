package journal

import (
	"log/slog"
	"os"
	"time"
)

// Report tells what [Journal.Replay] found.
type Report struct {
	Records  int   // replayed
	Bytes    int64 // of their payload
	Fresh    bool  // there was no journal: all else is zero
	Clean    bool  // it was closed, by Close
	SameBoot bool  // it was last written in this boot of the machine
	Torn     *Torn // what was cut off; nil: nothing
}

// Replay calls apply for each record of the snapshot, then of the logs, in the
// order in which they were appended, and opens the journal for appending. It is
// called once. data is valid during the call only. An error of apply ends the
// replay; nothing was changed then.
func (j *Journal) Replay(apply func(kind uint8, data []byte) error) (Report, error) {
	c := j.chain
	j.chain = nil
	if c == nil {
		return Report{}, ErrClosed
	}
	began := time.Now()
	rep := Report{Fresh: len(c.logs) == 0, Clean: c.clean, SameBoot: sameBoot(c.boot, j.opts.Boot), Torn: c.torn}
	err := c.each(func(r record) error {
		rep.Records++
		rep.Bytes += int64(len(r.data))
		return apply(r.kind, r.data)
	})
	if err != nil {
		return rep, err
	}
	if t := rep.Torn; t != nil {
		j.opts.Log.Warn("the journal's end was not whole and is cut off", slog.String("file", t.File),
			slog.Int64("offset", t.Offset), slog.Int64("bytes", t.Bytes), slog.Int("records", t.Records))
	}
	if err := j.start(c); err != nil {
		j.closeFiles()
		return rep, err
	}
	j.stats.Replayed, j.stats.ReplayTime = rep.Records, time.Since(began)
	return rep, nil
}

// start opens the files of c for appending, and starts the goroutines.
func (j *Journal) start(c *chain) error {
	if err := c.mend(j.dir); err != nil {
		return err
	}
	if err := j.openLogs(c); err != nil {
		return err
	}
	if len(c.logs) > 0 && !sameBoot(c.boot, j.opts.Boot) {
		if err := j.enterBoot(); err != nil {
			return err
		}
	}
	for _, path := range c.obsolete {
		if err := j.dir.remove(path); err != nil {
			return err
		}
	}
	if c.snapshot != nil {
		j.stats.Snapshot = int64(len(c.snapshot.data))
	}
	j.due = uint64(j.stats.Snapshot) + slack
	j.mu.Lock()
	j.checkFull(0)
	j.mu.Unlock()
	j.tasks.Go(j.syncAll)
	j.tasks.Go(j.growAhead)
	return nil
}

func (j *Journal) openLogs(c *chain) error {
	if len(c.logs) == 0 {
		l, err := j.createLog(1, 0)
		j.cur = l
		return err
	}
	for i, im := range c.logs {
		end := int64(len(im.data))
		if i == len(c.logs)-1 {
			end = c.end
		}
		l, err := openLog(im, end)
		if err != nil {
			return err
		}
		if j.cur != nil {
			l.base = j.cur.base + uint64(j.cur.end)
			j.old = append(j.old, j.cur)
		}
		j.cur = l
	}
	return j.adopt(int64(len(c.logs[len(c.logs)-1].data)))
}

// adopt makes sure that the disk has the whole log, which a copy may have left
// out. If it has not, what is there is used up.
func (j *Journal) adopt(size int64) error {
	l := j.cur
	size = size &^ int64(os.Getpagesize()-1)
	if size > l.end {
		if err := l.extend(l.end, size); err == nil {
			return l.extended(size)
		}
	}
	return l.remap(l.end)
}

// enterBoot has all that was replayed on disk, and says so, and which boot it is
// from here on. It says so twice: were the only record that does damaged, what
// is behind it would be taken for remains of a power failure.
func (j *Journal) enterBoot() error {
	p, err := j.syncNow()
	if err != nil {
		return err
	}
	for range 2 {
		if err := j.prove(kindOpened, p, []byte(j.opts.Boot)); err != nil {
			return err
		}
	}
	return nil
}
