package lockengine

import "hash/maphash"

// op says what a command does.
type op uint8

const (
	opTick       op = iota // nothing but let time pass
	opTry                  // req
	opWait                 // req
	opCancel               // waiter, keep
	opUnlock               // req.Class, Name, Owner, Range
	opDropOwner            // req.Name, Owner
	opDropHandle           // req.Handle
	opRelease              // req.Name, token, how
	opRenew                // req.Name, token, req.Timeout, extend, max
	opSetNote              // req.Name, token, note
	opSetStart             // req.Name, token, second, max
	opSetSpan              // req.Name, token, second, max
	opSetHolder            // req.Name, token, req.Who
	opWatch                // req.Name, token, watch
	opUnwatch              // watch
	opClassify             // kinds
	opClose                // nothing: ends all waits
	opDetach               // req.Name, token
	opResume               // fresh, boot, token
)

// command is a change asked for, as plain data: the same commands at the same
// instants give the same state, whoever gives them.
type command struct {
	op     op
	keep   bool
	extend bool
	fresh  bool
	how    End
	req    *Request // nil: of those that have none
	waiter WaiterID
	watch  WatchID
	token  uint64
	max    int64 // nanoseconds
	second int64
	note   string
	boot   string
	kinds  []ownerKind
	tell   func(Grant, error) // see waiter
}

// ownerKind is an answer to a question.
type ownerKind struct {
	owner Owner
	kind  OwnerKind
}

// question is an owner of which must be known what it is.
type question struct {
	owner Owner
	who   Who // of its wait
}

// result is what a command came to.
type result struct {
	grant  Grant
	waiter WaiterID // the request waits
	ok     bool     // opCancel, opUnwatch: it was there
	cycle  verdict  // opWait: what waiting would do, or does
	err    error
	// ask: nothing was done yet. Answer with opClassify, then give the command again.
	ask []question
}

// completion is the outcome of an earlier request to wait, or the end of a
// lock watched.
type completion struct {
	waiter WaiterID           // 0: a watch, or an expiry
	tell   func(Grant, error) // as the waiter had it
	grant  Grant
	err    error
	watch  WatchID
	end    End
	name   string // an expiry: of the lock with grant's token
}

// core is the state machine: all locks, waiters, leases and places kept, and
// the log of events. It has no goroutine, no clock and does no I/O.
//
// INVARIANT between two commands: no two locks held conflict; no waiter could
// be granted (a name may be free and waited for while its guard is held); what
// nobody holds or waits for is in no map, but for the few that are parked.
type core struct {
	now     Instant // of the last command; Boot never goes back within one boot
	known   int64   // Boot as of the last change
	boot    string  // id of the boot that now.Boot counts from, if it was told
	rand    uint64  // state of the priorities' generator
	changes uint64  // grows with each change of state that is not made by time alone

	resources [4]map[string]*resource // by class: Record, Flock
	lastFound *resource               // by the last lookup: in resources, or zero
	owners    [4]map[Owner]*owner     // by class: Record, Flock
	// lastOwners are found without a search, by the low bits of their IDs: in
	// owners, or zero.
	lastOwners [lastOwners]*owner
	handles    map[uint64]*handle
	parties    map[int32]*party
	waiters    waiterTable
	line       list[waiter] // all waiters, as they were linked
	segs       list[seg]    // all segments, as they were made
	names      namedTable
	places     placeTable
	watches    map[WatchID]*watch
	guarded    map[string]map[*named]int // by guard: for what it is waited, and by how many
	quota      quota

	nextWaiter WaiterID
	lastWatch  WatchID
	ready      groupHeap // groups with a waiter that may be granted
	shrunk     []shrink  // where locks were given back in this command

	// How many owners of record locks, and how many parties, both hold and
	// wait: without another one no cycle can be.
	stuckOwners, stuckParties int
	searches                  uint64 // number of the last graph search
	groups                    uint64 // how many groups of files ever came

	births uint64 // how many segments, waits and places ever came
	cuts   uint64 // how many cuts were started
	cut    *cut   // that is made now; nil: none

	log   eventLog
	stats Stats
	metas texts
	shrinking
	done []completion // for the driver to take

	lots struct {
		resource lot[resource]
		owner    lot[owner]
		handle   lot[handle]
		party    lot[party]
	}
	pools struct {
		seg      pool[seg]
		nodes    segNodes
		holding  pool[holding]
		resource pool[resource]
		owner    pool[owner]
		handle   pool[handle]
		party    pool[party]
		group    pool[group]
		waiter   pool[waiter]
		named    pool[named]
	}
}

const lastOwners = 64

func newCore(eventLog int) *core {
	c := &core{
		rand:      0x9e3779b97f4a7c15,
		handles:   map[uint64]*handle{},
		parties:   map[int32]*party{},
		watches:   map[WatchID]*watch{},
		guarded:   map[string]map[*named]int{},
		metas:     texts{seed: maphash.MakeSeed()},
		lastFound: new(resource),
	}
	for i := range c.lastOwners {
		c.lastOwners[i] = several // nobody's
	}
	for _, class := range fileClasses {
		c.resources[class] = map[string]*resource{}
		c.owners[class] = map[Owner]*owner{}
	}
	c.quota.used = map[uint32]int{}
	c.names.init()
	c.places.init()
	c.log.bound = eventLog
	return c
}

// apply brings the state to now and then does the command, which comes to res,
// the zero result before. It is the only way to change the state. What it
// completes is appended to c.done. It returns the command that makes the same of
// the state before: nil if nothing was changed.
func (c *core) apply(cmd *command, now Instant, res *result) *command {
	before := c.changes
	if cmd.op == opResume {
		c.resume(cmd, now) // first: what time is it, and who is still there?
	}
	c.now = Instant{max(now.Boot, c.now.Boot), now.Wall}
	if c.timed() {
		c.pass()
	}
	switch cmd.op {
	case opTry, opWait:
		c.request(cmd, res)
	case opUnlock:
		c.unlock(cmd.req, res)
	default:
		c.do(cmd, res)
	}
	if len(c.shrunk)+len(c.ready) > 0 {
		c.wake()
	}
	if c.changes == before {
		return nil
	}
	c.known = c.now.Boot
	if res.err == ErrQuota {
		return &tick // nothing is refused in a replay, so that must not see the request
	}
	return cmd
}

// tick only lets time pass.
var tick = command{op: opTick}

// do does the commands that come less often than those above.
func (c *core) do(cmd *command, res *result) {
	switch cmd.op {
	case opCancel:
		res.ok = c.cancel(cmd.waiter, cmd.keep)
	case opDropOwner:
		c.dropOwner(cmd.req.Name, cmd.req.Owner)
	case opDropHandle:
		c.dropHandle(cmd.req.Handle)
	case opRelease:
		res.err = c.release(cmd.req.Name, cmd.token, cmd.how)
	case opRenew:
		res.grant, res.err = c.renew(cmd)
	case opSetNote:
		res.err = c.setNote(cmd.req.Name, cmd.token, cmd.note)
	case opSetStart, opSetSpan:
		res.err = c.setTimes(cmd)
	case opSetHolder:
		res.err = c.setHolder(cmd)
	case opWatch:
		res.err = c.addWatch(cmd.req.Name, cmd.token, cmd.watch)
	case opUnwatch:
		res.ok = c.dropWatch(cmd.watch)
	case opClassify:
		c.classified(cmd.kinds)
	case opClose:
		c.close()
	case opDetach:
		res.err = c.detach(cmd.req.Name, cmd.token)
	}
}

// taken says that the driver has taken what was done.
func (c *core) taken() {
	clear(c.done)
	c.done = c.done[:0]
}

// timed: time alone may change the state.
func (c *core) timed() bool {
	return len(c.names.leases)+len(c.names.endedFIFO) > 0 || !c.places.queue.empty()
}

// pass lets time pass: what was remembered long enough is forgotten, and leases
// that ran out end, one after the other. To forget comes first, so that the
// state at an instant does not depend on who looked at it before.
func (c *core) pass() {
	c.forgetEnded()
	c.forgetPlaces(c.now.Boot)
	for n := c.names.due(c.now.Boot); n != nil; n = c.names.due(c.now.Boot) {
		c.endNamed(n, Expired)
		c.wake()
	}
}

// deadline is when, by Boot, the state changes next without a command; 0:
// never.
func (c *core) deadline() int64 {
	d := c.names.deadline()
	if p := c.places.deadline(); p != 0 && (d == 0 || p < d) {
		d = p
	}
	return d
}

// close ends all waits.
func (c *core) close() {
	c.changes++
	for _, w := range c.waitersInOrder() {
		c.complete(w).err = ErrClosed
		c.unlink(w)
	}
}

// prio is the next priority for a treap: xorshift64 (Marsaglia, "Xorshift
// RNGs", 2003), a part of the state so that a replay gives the same trees.
func (c *core) prio() uint32 {
	c.rand ^= c.rand << 13
	c.rand ^= c.rand >> 7
	c.rand ^= c.rand << 17
	return uint32(c.rand >> 32)
}
