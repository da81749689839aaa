// Package lockengine grants locks on names to owners. It knows nothing of
// FUSE, files or processes.
//
// # Model
//
// A lock is held on a name, in a class. Classes never conflict with each
// other: a [Record] lock, a [Flock] lock and a [Named] lock on the same name
// do not see one another. Within a class two locks conflict when their owners
// differ, their ranges overlap and at least one of them is [Exclusive].
//
//   - Record locks cover byte ranges, half-open, of the 63-bit offset space.
//     What one owner holds on one name never overlaps itself: a new lock
//     replaces what it covers, splitting what it covers in part and merging
//     with what it touches, so that it is also how locks are up- and
//     downgraded (fcntl(2)).
//   - Flock locks cover the whole name. Converting one drops it first and then
//     asks anew, so a conversion that fails has lost it (flock(2)).
//   - Named locks are exclusive, even against their own owner, and carry a
//     fencing token and a lease. A lease without a timeout is a hold.
//
// # Granting
//
// A request that conflicts with no lock held is granted at once, also past
// requests that wait. Requests that wait are granted in order of arrival, by
// hand-off: the call that frees a lock grants it before it returns. Waiting
// costs no goroutine: the engine calls back.
//
// # Deadlock
//
// A record request that would wait is refused with [ErrDeadlock] exactly when
// waiting would close a cycle of owners that are processes (see [OwnerKind]).
// Cycles through anything else are never refused, only reported as an
// [Event] with [EventDeadlock].
//
// # Concurrency
//
// All methods of an [Engine] may be called from any goroutine. Callbacks run
// without a lock of the engine held, on the goroutine whose call brought the
// outcome about (or the engine's timer, or a goroutine of its own when they
// waited for the disk), and must not block.
//
// # Restarts
//
// An engine with a [Log] can end at any moment, as by kill -9, and another one
// go on from that log as if nothing had happened: same locks, waiters, places,
// order, tokens and events. What is recorded are the commands that changed the
// state, each in the critical section in which it did, with its instant, and
// at times the whole state ([Local.Checkpoint]). See [Local.Replay] and
// [Local.Resume] for the other end.
package lockengine

import (
	"errors"
	"log/slog"
	"time"
)

// Class says which locks can conflict: only those of one class.
type Class uint8

const (
	// Named locks are exclusive leases with fencing tokens.
	Named Class = iota + 1
	// Record locks are byte ranges: POSIX record locks and open file
	// description locks (fcntl(2)).
	Record
	// Flock locks cover a whole name (flock(2)).
	Flock
)

// Classes are all classes.
var Classes = [...]Class{Named, Record, Flock}

// fileClasses are those of locks on files.
var fileClasses = [...]Class{Record, Flock}

// String is the class as users read it: named, record or flock.
func (c Class) String() string {
	switch c {
	case Named:
		return "named"
	case Record:
		return "record"
	case Flock:
		return "flock"
	}
	return "none"
}

// Mode is shared or exclusive.
type Mode uint8

const (
	// Shared locks exclude exclusive ones of other owners.
	Shared Mode = iota + 1
	// Exclusive locks exclude all others of other owners.
	Exclusive
)

// MaxEnd is the end of the range space: one past the largest file offset,
// 2^63-1. A range with this end reaches to the end of the file, however it grows.
const MaxEnd = uint64(1) << 63

// Range is the half-open interval [Start, End) of bytes. It is valid when
// Start < End <= MaxEnd. Whole is what Flock and Named locks cover.
type Range struct{ Start, End uint64 }

// Whole is the range of every byte.
var Whole = Range{0, MaxEnd}

// Owner is who can conflict with whom: locks of one owner never conflict with
// each other (except Named ones). Session tells apart the engine's clients
// (mounts), ID is unique in it.
type Owner struct{ Session, ID uint64 }

// OwnerKind says what an owner of record locks is, which decides whether a
// cycle through it is a deadlock (fcntl(2), "Deadlock detection": not for open
// file description locks).
type OwnerKind uint8

const (
	// KindUnknown: not known yet. See [Config.Classify].
	KindUnknown OwnerKind = iota
	// KindProcess: a process, the owner of POSIX record locks.
	KindProcess
	// KindDescription: an open file description; several processes or none
	// may be behind it.
	KindDescription
)

// Who is what is reported of the one who asks; nothing is decided by it, but
// that locks and waits of one PID (not 0) are taken for one party when
// possible deadlocks are looked for.
type Who struct {
	PID int32 // process (thread group); 0 if unknown
	TID int32 // thread that asked; 0 if unknown
	UID uint32
	GID uint32
}

// Instant is a moment on two clocks, both in nanoseconds. Boot (CLOCK_BOOTTIME)
// decides when leases end; Wall (CLOCK_REALTIME, since the epoch) is shown to
// people and makes tokens.
type Instant struct{ Boot, Wall int64 }

// Request asks for a lock.
type Request struct {
	Class  Class
	Name   string
	Owner  Owner
	Kind   OwnerKind // of Owner, if known (Record)
	Mode   Mode      // Named: ignored, always Exclusive
	Range  Range     // Flock, Named: ignored, always Whole
	Handle uint64    // what the lock comes through and goes with (DropHandle); 0: none
	Who    Who
	// Timeout of a Named lock's lease; 0 makes a hold, which never expires.
	Timeout time.Duration
	// Guard is another Named lock: while that is held by another owner, a Named
	// request is refused or waits as if its own name were held. "": none.
	Guard string
	// Meta is kept with the lock and reported, never looked at.
	Meta string
	// Key names the request: 0 none. The same request again, with the same
	// Key, after a restart, is the same request: if it was granted a Named lock
	// that is still held, it is granted that again, and if it waits, it goes on
	// waiting in its place (see [Local.Resume]).
	Key uint64
}

// Grant is a request granted.
type Grant struct {
	Token  uint64  // Named only: fencing token, strictly growing over all names
	Since  Instant // when it was granted
	Expiry Instant // Named with a timeout: when it ends; else zero
}

// WaiterID identifies a request that waits, and its place: a smaller one came
// earlier. 0 is none.
type WaiterID uint64

// WatchID identifies a [Engine.Watch].
type WatchID uint64

// End says how a named lock ended.
type End uint8

const (
	// Released by its holder.
	Released End = iota + 1
	// Expired: its lease ran out.
	Expired
	// Forced: released by somebody else's hand.
	Forced
	// Lost: given up by the engine.
	Lost
)

// Lock is a lock held, as reported.
type Lock struct {
	Class  Class
	Name   string
	Owner  Owner
	Kind   OwnerKind
	Mode   Mode
	Range  Range
	Handle uint64
	Who    Who
	Since  Instant
	// The rest for Named locks only.
	Token     uint64
	Timeout   time.Duration // last asked for; 0: a hold
	Expiry    Instant       // zero: a hold
	Start     int64         // epoch seconds: when it was taken, unless SetStart moved it
	PrevStart int64         // Start of the name's incarnation before, if that ended within the last two seconds; else 0
	Note      string
	Meta      string
	Waiters   int // how many wait for this name (Named)
}

// Waiting is a request that waits, as reported.
type Waiting struct {
	ID     WaiterID
	Class  Class
	Name   string
	Owner  Owner
	Kind   OwnerKind
	Mode   Mode
	Range  Range
	Handle uint64
	Who    Who
	Since  Instant // when it began to wait
	Meta   string
	// Blockers are indexes into Snapshot.Locks: what it conflicts with, the
	// first 256 of them.
	// Filled in by Snapshot only.
	Blockers []int
}

// Snapshot is one state of the whole engine.
type Snapshot struct {
	Now     Instant
	Locks   []Lock    // Named by token; then Record and Flock by name, start, owner
	Waiting []Waiting // in order of arrival
}

// NameToken is one named lock in a listing.
type NameToken struct {
	Name  string
	Token uint64
}

// EventKind says what happened.
type EventKind uint8

const (
	// EventGranted: a lock was granted, at once or after a wait.
	EventGranted EventKind = iota + 1
	// EventReleased: a lock, or part of a record lock, was given back.
	EventReleased
	// EventWaiting: a request began to wait.
	EventWaiting
	// EventCanceled: a wait was given up.
	EventCanceled
	// EventRefused: a Named request was refused since the name is held.
	EventRefused
	// EventRenewed: a lease was given a new expiry.
	EventRenewed
	// EventExpired: a lease ran out.
	EventExpired
	// EventForced: a named lock was released by somebody else's hand.
	EventForced
	// EventLost: a named lock was given up by the engine.
	EventLost
	// EventDeadlock: a wait closed a cycle. Refused says whether the request
	// was refused with ErrDeadlock or the cycle is only possible.
	EventDeadlock
)

// Event is a change of state, or a refusal worth telling.
type Event struct {
	Seq     uint64 // 1, 2, 3, ... without holes
	At      Instant
	Kind    EventKind
	Class   Class
	Name    string
	Mode    Mode
	Range   Range
	Owner   Owner
	Who     Who
	Token   uint64
	Waited  time.Duration // EventGranted: how long it waited; EventReleased...: unused
	Held    time.Duration // EventReleased, Expired, Forced, Lost: how long it was held
	Refused bool          // EventDeadlock
	Meta    string        // Named: the request's
}

// Stats counts since the start of the engine, also over restarts with a Log
// (where refusals of Record and Flock, which are not recorded, may be lost),
// but for Held and Waiting, which are as of now. Arrays are indexed by Class.
type Stats struct {
	Held, Waiting              [4]int
	Granted, Released, Refused [4]uint64
	Waited, Canceled           [4]uint64
	Deadlocks, Possible        uint64 // refused; only possible
	Expired, Forced            uint64
	Events                     uint64 // last Seq
	LastToken                  uint64
	Unrecorded                 int    // changes that the Log had no room for, as of now
	OverQuota                  uint64 // requests that got ErrQuota since this engine started
}

// Errors of an Engine, to be told apart with errors.Is.
var (
	// ErrHeld: the lock conflicts with one held.
	ErrHeld = errors.New("lock is held")
	// ErrNotHeld: no such lock is held, or no longer with that token.
	ErrNotHeld = errors.New("lock is not held")
	// ErrDeadlock: waiting would never end.
	ErrDeadlock = errors.New("deadlock")
	// ErrInvalid: a request that makes no sense: class, mode, range, name, timeout.
	ErrInvalid = errors.New("invalid request")
	// ErrCanceled: the wait was given up.
	ErrCanceled = errors.New("wait canceled")
	// ErrNoSpace: there is no room to record it, and nothing was changed.
	ErrNoSpace = errors.New("no room to record it")
	// ErrQuota: the user would have more than [Config.MaxPerUser], and nothing
	// was changed.
	ErrQuota = errors.New("over the limit of a user")
	// ErrClosed: the engine is closed.
	ErrClosed = errors.New("engine closed")
)

// Engine grants locks. Implementations pass the shared suite enginetest.Run.
//
// A Request stays its caller's, to be used again once the method returns. What
// is ignored in one of its class, the method may fill in.
type Engine interface {
	// Try grants req now or fails with ErrHeld.
	Try(req *Request) (Grant, error)

	// Wait grants req now (WaiterID 0), or queues it (WaiterID not 0, zero
	// Grant), or fails. When it was queued, done is called exactly once with
	// the outcome, unless Cancel returned true.
	Wait(req *Request, done func(Grant, error)) (Grant, WaiterID, error)

	// Cancel ends a wait and reports whether it did; then done is never
	// called. With keepPlace the place in the queue is kept for GhostTime: the
	// same request (class, name, owner, mode, range and, but for Named, handle)
	// made again by then has it back. A place kept is in no graph and is never
	// granted.
	Cancel(id WaiterID, keepPlace bool) bool

	// Test returns the conflicting lock with the lowest start that would keep
	// req from being granted now, if any.
	Test(req *Request) (Lock, bool)

	// TestOwn returns req.Owner's own lock with the lowest start that overlaps
	// req.Range, if any (F_OFD_GETLK with F_UNLCK).
	TestOwn(req *Request) (Lock, bool)

	// Unlock gives back what req.Owner holds of req.Range (Record) or at all
	// (Flock). To unlock what is not locked is fine. Only a hole, which makes two
	// locks of one, can be refused: with ErrQuota if that is one too many.
	Unlock(req *Request) error

	// DropOwner gives back every record lock of owner on name, and places
	// kept there: the owner closed a descriptor of the file. It also tells
	// that owner is a KindProcess.
	DropOwner(name string, owner Owner)

	// DropHandle gives back every lock that came through the handle, ends
	// waits made through it with ErrCanceled, and forgets places kept.
	DropHandle(handle uint64)

	// Release ends the named lock. Token 0 releases whatever its token;
	// otherwise ErrNotHeld if it is not held with that token. how is Released
	// or Forced (or Lost).
	Release(name string, token uint64, how End) error

	// Renew sets the lease to end timeout from now, or, with extend, timeout
	// later than it would. The new expiry must not be further away than max
	// (0: no bound), else ErrInvalid and nothing changes. Renewing a hold is
	// ErrInvalid.
	Renew(name string, token uint64, timeout time.Duration, extend bool, max time.Duration) (Grant, error)

	// SetStart moves the start of a lease, and its expiry with it, to start in
	// epoch seconds. SetSpan makes it end span seconds after its start. In both
	// the expiry must not come to be further away than max (0: no bound), else
	// ErrInvalid and nothing changes, as for a hold.
	SetStart(name string, token uint64, start int64, max time.Duration) error
	SetSpan(name string, token uint64, span int64, max time.Duration) error

	// SetHolder changes whose a named lock is reported to be.
	SetHolder(name string, token uint64, uid, gid uint32) error

	// SetNote sets the note kept with a named lock.
	SetNote(name string, token uint64, note string) error

	// Detach makes that a named lock no longer goes with its handle, if it did.
	// ErrNotHeld if it is not held with that token (0: whatever its token).
	Detach(name string, token uint64) error

	// Get returns the named lock held on name.
	Get(name string) (Lock, bool)

	// GetToken returns the named lock held with this token.
	GetToken(token uint64) (Lock, bool)

	// Waiters returns who waits for a name, in order of arrival.
	Waiters(class Class, name string) []Waiting

	// List returns up to max named locks with tokens after the one given, in
	// order of token.
	List(after uint64, max int) []NameToken

	// Watch calls done once when the named lock with this token ends, unless
	// Unwatch returned true before. ErrNotHeld if it is not held now.
	Watch(name string, token uint64, done func(End)) (WatchID, error)
	Unwatch(id WatchID) bool

	// Snapshot copies the whole state.
	Snapshot() Snapshot
	// Each tells of one state what Snapshot does, in the same order: begin is
	// called first, with its time, then held for each lock and waits for each that
	// waits, with its blockers. Named locks are not kept for it, of which there
	// may be many, and held is not told of their Waiters. What the callbacks are
	// given is theirs until they return. They must not call the engine: who copies
	// its state waits for them, as a checkpoint does, and nobody else.
	Each(begin func(now Instant), held func(*Lock), waits func(w *Waiting, blockers []*Lock))

	// Locks returns the locks held and the waiters on one name of the classes
	// Record and Flock, and Names those names that have any.
	Locks(name string) ([]Lock, []Waiting)
	Names() []string

	// Events returns up to max events after seq, in order, and how many were
	// missed between seq and the first one returned since the log is bounded.
	Events(after uint64, max int) (events []Event, missed uint64)

	// OnEvents calls ready once, at the next event after seq (at once if there
	// is one already), unless Unwatch returned true before.
	OnEvents(after uint64, ready func()) WatchID

	Stats() Stats

	// Close ends all waits with ErrClosed and stops timers.
	Close() error
}

// GhostTime is for how long a canceled wait's place is kept.
const GhostTime = time.Second

// Config of an engine. The zero value is usable.
type Config struct {
	// Clock; default the machine's (CLOCK_BOOTTIME by timerfd).
	Clock Clock
	// EventLog bounds how many events are kept; default 8192.
	EventLog int
	// Classify is asked what an owner is that waits in a record request,
	// before a cycle through it is called a deadlock. who is that of its wait.
	// It is called with the engine's mutex held, must be quick and must not
	// call the engine. nil, or an answer of KindUnknown, counts as KindProcess.
	Classify func(owner Owner, who Who) OwnerKind
	// MaxPerUser bounds how many locks a user (Who.UID) holds and waits for at
	// once, all together; 0: no bound. What would be more fails with ErrQuota.
	// What replaces a lock held (a renewal, an upgrade that need not wait) never
	// does, nor what was granted by an engine with a larger bound, nor
	// SetHolder; what is granted after a wait may be one more than the bound for
	// each wait, if it splits a lock in three.
	MaxPerUser int
	// LimitRoot makes that MaxPerUser is for uid 0 too.
	LimitRoot bool
	// Log keeps what another engine needs to go on where this one ended; nil:
	// nothing is kept. Close it after the engine.
	Log Log
	// Boot is an id of this boot of the machine. It is recorded, and leases are
	// moved to new clocks when it has changed.
	Boot string
	// SyncGrants makes that of a Named lock with a timeout a grant, a renewal
	// and a change of times are told only when they are on disk. Wait never
	// returns such a grant, but calls done then. If that fails the caller gets
	// the error of the Log, and a grant is released again (Lost).
	SyncGrants bool
	// Logger is told, once, when the Log fails; nil: nobody is.
	Logger *slog.Logger
}

// Log is where an engine keeps its changes (package journal). A record has a
// kind, of which the engine uses 1 to 9. All methods are called with the mutex
// of the engine held: they must not call the engine, or wait for it.
type Log interface {
	// Room returns nil if n+reserve bytes can be appended.
	Room(n, reserve int) error
	// Append appends a record, and returns its position: later ones have greater
	// ones.
	Append(kind uint8, data []byte) (pos uint64, err error)
	// Synced calls done, once and from another goroutine, when everything up to
	// pos, also what was there before this process, is on disk, or cannot be.
	Synced(pos uint64, done func(error))
}

// Clock is the time and one alarm.
type Clock interface {
	Now() Instant
	// Alarm calls fire from another goroutine when Boot reaches boot;
	// a later call replaces an earlier one; boot 0 disarms.
	Alarm(boot int64, fire func())
	Close() error
}
