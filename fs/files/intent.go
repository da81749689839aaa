package files

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// resent is the bit of a request's number by which the kernel says that it sends the request again, because the
// process that took it died before it answered (FUSE_UNIQUE_RESEND).
const resent = 1 << 63

func again(in *fuse.InHeader) bool { return in.Unique&resent != 0 }

// number is the same each time the request is sent, and never that of another.
func number(in *fuse.InHeader) uint64 { return in.Unique &^ resent }

// state is what a request that must not be done twice found before it began: the files that its names stood for.
// The kernel lets nobody else change those names meanwhile, so if they are different when the request is sent again,
// it was done.
type state [2]ident

// nothing is what a name stands for that does not exist.
var nothing ident

// look finds out what a name stands for now, if anybody wants to know.
func (f *FS) look(dir *pathFD, name string) ident {
	if f.journal == nil && f.store == nil {
		return nothing
	}
	var st unix.Statx_t
	if f.statAt(dir.fd, name, &st) != nil {
		return nothing
	}
	return identOf(&st)
}

// once runs op unless a predecessor did, and leaves word for a successor first. hopeless: op can only fail, so there
// is nothing to leave. done tells that op was not run, since it had been.
func (f *FS) once(in *fuse.InHeader, now state, hopeless bool, op func() error) (done bool, err error) {
	if f.journal == nil {
		return false, op()
	}
	if seen, ok := f.intention(in); ok && seen != now {
		return true, nil
	}
	if !hopeless {
		f.intend(number(in), now)
	}
	return false, op()
}

// intention is the state that a request found when it was sent before; !ok: there is no word of it.
func (f *FS) intention(in *fuse.InHeader) (seen state, ok bool) {
	if !again(in) {
		return seen, false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	seen, ok = f.inherited[number(in)]
	return seen, ok
}

func (f *FS) intend(unique uint64, now state) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.intents[unique] = now
	f.note(recordIntent, func(b []byte) []byte { return now.record(b, unique) })
}

// Answered forgets what was kept of a request in case it is sent again. Call it when its answer has been written.
func (f *FS) Answered(unique uint64) {
	if f.journal == nil {
		return
	}
	f.mu.Lock()
	delete(f.intents, unique&^resent)
	f.mu.Unlock()
}

// Claimed forgets what predecessors left for requests that are sent again. Call it when all of them were answered.
func (f *FS) Claimed() {
	f.mu.Lock()
	clear(f.inherited)
	f.mu.Unlock()
}
