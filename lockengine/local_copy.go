package lockengine

import (
	"runtime"
	"slices"
)

// copyStep is how many things are copied at once, with the mutex held: few
// enough that nobody waits for longer than some tens of microseconds.
const copyStep = 128

// copyState gives take a copy of the state, a part after the other, as of the
// moment at which it calls begin with the mutex held. Others get at the mutex
// between any two parts. The parts are taken in the order of the state, and can
// be used until take returns. One copy is made at a time.
func (l *Local) copyState(whole bool, begin func(*cut) error, take func(*copies) error) error {
	l.copying.Lock()
	defer l.copying.Unlock()
	l.mu.Lock()
	l.tick()
	k := l.core.startCut(whole)
	err := begin(k)
	if err != nil {
		k.end()
	}
	l.settle()
	var part copies
	for more := true; more && err == nil; {
		l.mu.Lock()
		more = k.step(copyStep)
		part = k.take(&part)
		l.mu.Unlock()
		runtime.Gosched() // who waits for the mutex has it first
		err = take(&part)
	}
	l.mu.Lock()
	k.end()
	l.mu.Unlock()
	return err
}

// Checkpoint gives add the whole state, as of the moment at which it calls
// switchLog, in pieces: each is for one record of kind 2, in this order. The
// first and the last are marked as such, and reading them all replaces what was
// read before. switchLog must make that what is recorded from now on comes
// after them; it must be quick and must not call the engine. add may take its
// time: others are served meanwhile. If it fails, so does Checkpoint.
//
// It fails, before it calls switchLog, if something is not recorded yet for want
// of room: the log so far would be needed without it if the snapshot failed.
func (l *Local) Checkpoint(switchLog func(), add func(chunk []byte) error) error {
	var k *cut
	e := newStateEncoder(add)
	err := l.copyState(true, func(begun *cut) error {
		k = begun
		if err := l.record.settle(); err != nil {
			return err
		}
		k.head.reserved = l.tokens.reserved
		l.record.told = told{} // what comes is read without what was before
		switchLog()
		return nil
	}, func(part *copies) error {
		if e.entry == 0 {
			e.head(&k.head)
		}
		e.copies(part)
		return e.err
	})
	if err != nil {
		return err
	}
	e.rest(k)
	return e.err
}

// Snapshot implements [Engine].
func (l *Local) Snapshot() Snapshot {
	return l.snapshotOf(nil)
}

// Each implements [Engine].
func (l *Local) Each(begin func(Instant), held func(*Lock), waits func(*Waiting, []*Lock)) {
	b := snapshotBuilder{kinds: map[ownerKey]OwnerKind{}, held: held}
	_ = l.copyState(false, func(k *cut) error { // neither fails
		b.cut = k
		return nil
	}, func(part *copies) error {
		if begin != nil {
			begin(b.cut.head.now)
			begin = nil
		}
		b.add(part, nil)
		return nil
	})
	b.each(waits)
}

// snapshotOf is a snapshot of the locks and waiters on the names wanted; nil: all.
func (l *Local) snapshotOf(wanted func(Class, string) bool) Snapshot {
	b := snapshotBuilder{kinds: map[ownerKey]OwnerKind{}}
	_ = l.copyState(false, func(k *cut) error { // neither fails
		b.cut = k
		if wanted == nil {
			b.out.Locks = make([]Lock, 0, k.head.held())
		}
		return nil
	}, func(part *copies) error {
		b.add(part, wanted)
		return nil
	})
	return b.snapshot()
}

// few is of how many locks and waiters a view is made with the mutex held.
const few = 256

// Waiters implements [Engine].
func (l *Local) Waiters(class Class, name string) (waiting []Waiting) {
	small := false
	l.look(func(c *core) {
		if small = c.waitersOn(class, name) <= few; small {
			waiting = c.waitersOf(class, name)
		}
	})
	if small {
		return waiting
	}
	all := l.snapshotOf(func(c Class, n string) bool { return c == class && n == name })
	for i := range all.Waiting {
		all.Waiting[i].Blockers = nil // as if they had been looked at alone
	}
	return all.Waiting
}

// Locks implements [Engine]. Locks are by start, then owner; waiters in order
// of arrival.
func (l *Local) Locks(name string) (locks []Lock, waiting []Waiting) {
	small := false
	l.look(func(c *core) {
		if small = c.locksOn(name) <= few; small {
			locks, waiting = c.locksOf(name)
		}
	})
	if small {
		return locks, waiting
	}
	all := l.snapshotOf(func(c Class, n string) bool { return c != Named && n == name })
	for i := range all.Waiting {
		all.Waiting[i].Blockers = nil
	}
	return all.Locks, all.Waiting
}

// Names implements [Engine]. They are sorted.
func (l *Local) Names() (names []string) {
	small := false
	l.look(func(c *core) {
		if small = len(c.resources[Record])+len(c.resources[Flock]) <= few; small {
			names = c.resourceNames()
		}
	})
	if small {
		return names
	}
	seen := map[string]bool{}
	_ = l.copyState(false, func(*cut) error { return nil }, func(part *copies) error {
		for i := range part.segs {
			seen[part.segs[i].Name] = true
		}
		for i := range part.waits {
			if req := &part.waits[i].req; req.Class != Named {
				seen[req.Name] = true
			}
		}
		return nil
	})
	return sorted(seen)
}

func sorted(set map[string]bool) []string {
	names := make([]string, 0, len(set))
	for name := range set {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
