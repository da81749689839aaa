package journal

import (
	"fmt"
	"log/slog"
)

// waiter waits for all up to pos.
type waiter struct {
	pos  uint64
	done func(error)
}

// Synced calls done from another goroutine once all up to pos, which Append
// returned, is on disk, or with the error if that cannot be. All that wait at
// one moment share one sync. done must not block for long: it holds up the next.
func (j *Journal) Synced(pos uint64, done func(error)) {
	j.mu.Lock()
	if j.cur == nil || j.closing {
		j.mu.Unlock()
		go done(ErrClosed)
		return
	}
	j.waiting = append(j.waiting, waiter{pos, done})
	j.mu.Unlock()
	signal(j.wakeSync)
}

// Sync returns once all that was appended up to now is on disk.
func (j *Journal) Sync() error {
	j.mu.Lock()
	pos := j.last
	j.mu.Unlock()
	done := make(chan error, 1)
	j.Synced(pos, func(err error) { done <- err })
	return <-done
}

// syncAll serves those who wait until the journal is closed.
func (j *Journal) syncAll() {
	for {
		select {
		case <-j.wakeSync:
			j.syncWaiting()
		case <-j.quit:
			j.syncWaiting()
			return
		}
	}
}

func (j *Journal) syncWaiting() {
	j.mu.Lock()
	waiting := j.waiting
	j.waiting = nil
	var pos uint64
	for _, w := range waiting {
		pos = max(pos, w.pos)
	}
	needed := pos > j.synced
	j.mu.Unlock()
	var err error
	if needed {
		err = j.syncAndProve()
	}
	for _, w := range waiting {
		w.done(err)
	}
}

// syncAndProve syncs, and says so in the log unless room is short: then a damage
// to what was synced could be taken for the loss of what was not.
func (j *Journal) syncAndProve() error {
	p, err := j.syncNow()
	if err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.cur.free() >= j.reserve+spare {
		b := p.bytes()
		j.cur.append(kindSynced, b[:])
	}
	return nil
}

// syncNow has all up to now on disk, and returns the proof. The logs before the
// current one count until a snapshot takes their place, and are synced once.
func (j *Journal) syncNow() (proof, error) {
	j.syncing.Lock()
	defer j.syncing.Unlock()
	j.mu.Lock()
	old, cur, end := j.old, j.cur, j.cur.end
	j.mu.Unlock()
	for _, l := range old {
		if err := j.syncLog(l, l.end); err != nil {
			return proof{}, err
		}
	}
	if err := j.syncLog(cur, end); err != nil {
		return proof{}, err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.synced = max(j.synced, cur.base+uint64(end))
	return proof{cur.seq, end}, nil
}

// syncLog has a log on disk up to end. A failure stays: the kernel reports it
// once and takes what it could not write for written. Only a snapshot mends it.
func (j *Journal) syncLog(l *log, end int64) error {
	if l.syncErr != nil || l.synced >= end {
		return l.syncErr
	}
	step("sync " + l.name())
	if err := l.sync(); err != nil {
		l.syncErr = fmt.Errorf("sync %s: %w", l.f.Name(), err)
		signal(j.full) // a snapshot mends it
		j.opts.Log.Error("the journal cannot be synced", slog.Any("error", err), slog.String("file", l.f.Name()))
		return l.syncErr
	}
	l.synced = end
	j.syncs.Add(1)
	return nil
}
