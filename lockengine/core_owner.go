package lockengine

// owner is what is known of an owner of locks of one class, as long as it has
// a lock, waits, or has a place kept. Of one that is parked all is forgotten when
// it is back: see learn.
type owner struct {
	key     Owner
	class   Class
	parked  bool // in the lot
	kind    OwnerKind
	told    bool   // kind is from a request, which nothing overrides
	assumed bool   // nobody could say what it is: counts as a process
	mixed   bool   // its segments may be of other parties than came tells
	handle  uint64 // through which it asked last; 0: none yet
	came    hint
	segs    int
	waits   treap[waiter, waitersByGroup]
	places  list[place]

	seen uint64 // number of the last search that came here
	from *owner // who waits for it, in that search; nil: the newcomer

	copied uint64 // number of the last cut that has its facts
}

// hint is what an owner's last lock came with, to be found without a search. It
// may have been forgotten since, and then be zero or somebody else's: its number
// tells.
type hint struct {
	handle *handle
	party  *party
}

// with says whether they are those of a request.
func (h *hint) with(req *Request) bool {
	return h.handle != nil && h.handle.id == req.Handle && req.Handle != 0 &&
		h.party != nil && h.party.pid == req.Who.PID && req.Who.PID != 0
}

// cameWith sets the owner's hint to the states of the handle and the party of a
// request, new if need be; nil for 0.
func (c *core) cameWith(o *owner, req *Request) {
	if h := o.came.handle; h == nil || h.id != req.Handle || h.id == 0 {
		o.came.handle = c.handleOf(req.Handle)
	}
	if p := o.came.party; p == nil || p.pid != req.Who.PID || p.pid == 0 {
		o.came.party, o.mixed = c.partyOf(req.Who.PID), o.segs > 0
	}
}

// stuck: it holds and waits.
func (o *owner) stuck() bool { return o.segs > 0 && !o.waits.empty() }

func (o *owner) idle() bool { return o.segs == 0 && o.waits.empty() && o.places.empty() }

// isProcess: for all that can be known it is a process.
func (o *owner) isProcess() bool { return o.kind == KindProcess || o.kind == KindUnknown && o.assumed }

// learn takes from a request what it tells of its owner: its kind, or that it
// asks through two handles, which only a process can (a description is one).
func (c *core) learn(o *owner, req *Request) {
	if c.cut != nil {
		c.cut.ownerChanges(o)
	}
	if o.idle() { // and as good as new
		o.kind, o.told, o.assumed, o.handle, o.mixed = req.Kind, req.Kind != KindUnknown, false, req.Handle, false
		return
	}
	switch {
	case req.Kind != KindUnknown:
		if o.kind != req.Kind || !o.told {
			o.kind, o.told = req.Kind, true
			c.changes++
		}
	case req.Handle != 0 && o.handle != 0 && req.Handle != o.handle:
		c.learnProcess(o)
	}
	if req.Handle != 0 && req.Handle != o.handle {
		o.handle = req.Handle
		c.changes++
	}
}

// ownerFacts is what can be learnt of an owner.
type ownerFacts struct {
	kind   OwnerKind
	told   bool
	handle uint64
}

func (c *core) learnProcess(o *owner) {
	if !o.told && o.kind != KindProcess {
		c.cut.ownerChanges(o)
		o.kind = KindProcess
		c.changes++
	}
}

// ownerOf returns the state of the request's owner, new if need be, with what
// the request tells of it.
func (c *core) ownerOf(req *Request) *owner {
	o := c.ownerNamed(req.Class, req.Owner)
	c.learn(o, req)
	return o
}

func (c *core) ownerNamed(class Class, key Owner) *owner {
	o := c.owner(class, key)
	if o == nil {
		o = c.newOwner(class, key)
	}
	return o
}

//go:noinline
func (c *core) newOwner(class Class, key Owner) *owner {
	o := c.pools.owner.get()
	o.key, o.class = key, class
	c.owners[class][key] = o
	return o
}

// owner returns the state of an owner of locks on files, nil if there is none.
func (c *core) owner(class Class, key Owner) *owner {
	if o := c.lastOwners[key.ID%lastOwners]; o.key == key && o.class == class {
		return o
	}
	return c.lookupOwner(class, key)
}

//go:noinline
func (c *core) lookupOwner(class Class, key Owner) *owner {
	o := c.owners[class][key]
	if o != nil {
		c.lastOwners[key.ID%lastOwners] = o
	}
	return o
}

// freeOwner forgets an idle owner.
func (c *core) freeOwner(o *owner) {
	if !o.parked && o.segs == 0 {
		c.parkOwner(o)
	}
}

func (c *core) parkOwner(o *owner) {
	if !o.idle() {
		return
	}
	o.parked = true
	if old := c.lots.owner.park(o); old != nil {
		old.parked = false
		if old.idle() {
			m := &c.owners[old.class]
			*m = without(&c.shrinking, mapOwners+int(old.class), *m, old.key)
			c.pools.owner.put(old)
		}
	}
}

// classified takes answers to questions.
func (c *core) classified(kinds []ownerKind) {
	for _, k := range kinds {
		o := c.owner(Record, k.owner)
		c.cut.ownerChanges(o)
		switch {
		case o == nil || o.idle() || o.told:
		case k.kind == KindUnknown:
			o.assumed = true
			c.changes++
		default:
			o.kind = k.kind
			c.changes++
		}
	}
}

// handle is all that came through one handle.
type handle struct {
	id     uint64
	parked bool // in the lot
	segs   list[seg]
	waits  list[waiter]
	places list[place]
	names  list[named]
}

// handleOf returns the state of a handle, new if need be; nil for 0.
//
//go:noinline
func (c *core) handleOf(id uint64) *handle {
	if id == 0 {
		return nil
	}
	h := c.handles[id]
	if h == nil {
		h = c.pools.handle.get()
		h.id = id
		c.handles[id] = h
	}
	return h
}

func (h *handle) idle() bool {
	return h.segs.empty() && h.waits.empty() && h.places.empty() && h.names.empty()
}

// freeHandle forgets a handle if it is idle.
func (c *core) freeHandle(h *handle) {
	if !h.parked && h.segs.empty() {
		c.parkHandle(h)
	}
}

func (c *core) parkHandle(h *handle) {
	if !h.idle() {
		return
	}
	h.parked = true
	if old := c.lots.handle.park(h); old != nil {
		old.parked = false
		if old.idle() {
			c.handles = without(&c.shrinking, mapHandles, c.handles, old.id)
			c.pools.handle.put(old)
		}
	}
}

// party is one process, as far as it is known by its number, with what it
// holds and waits for in all classes.
type party struct {
	pid    int32
	parked bool // in the lot
	held   int  // segments, and named locks without a lease
	waits  list[waiter]
	seen   uint64
}

func (p *party) stuck() bool { return p.held > 0 && !p.waits.empty() }

// partyOf returns the state of a party, new if need be; nil for pid 0.
//
//go:noinline
func (c *core) partyOf(pid int32) *party {
	if pid == 0 {
		return nil
	}
	p := c.parties[pid]
	if p == nil {
		p = c.pools.party.get()
		p.pid = pid
		c.parties[pid] = p
	}
	return p
}

// knownParty returns the state of the request's party, nil if there is none. That
// of the owner's last lock is at hand.
func (c *core) knownParty(req *Request) *party {
	if o := c.owner(req.Class, req.Owner); o != nil {
		if p := o.came.party; p != nil && p.pid == req.Who.PID && p.pid != 0 {
			return p
		}
	}
	return c.parties[req.Who.PID]
}

// partyHolds counts n more (or fewer) locks for the party, nil if it is unknown.
func (c *core) partyHolds(p *party, n int) {
	if p != nil {
		p.held += n
		if !p.parked || !p.waits.empty() {
			c.partyHeld(p, n)
		}
	}
}

func (c *core) partyHeld(p *party, n int) {
	if !p.waits.empty() {
		c.stuckParties += change(p.held-n > 0, p.held > 0)
	}
	c.freeParty(p)
}

func (p *party) idle() bool { return p.held == 0 && p.waits.empty() }

// freeParty forgets a party if it is idle.
func (c *core) freeParty(p *party) {
	if !p.parked && p.held == 0 {
		c.parkParty(p)
	}
}

func (c *core) parkParty(p *party) {
	if !p.idle() {
		return
	}
	p.parked = true
	if old := c.lots.party.park(p); old != nil {
		old.parked = false
		if old.idle() {
			c.parties = without(&c.shrinking, mapParties, c.parties, old.pid)
			c.pools.party.put(old)
		}
	}
}

// ownerHolds counts n more (or fewer) segments for the owner. The owner is
// not freed.
func (c *core) ownerHolds(o *owner, n int) {
	if o.segs += n; !o.waits.empty() {
		c.ownerHeld(o, n)
	}
}

//go:noinline
func (c *core) ownerHeld(o *owner, n int) {
	if o.class == Record {
		c.stuckOwners += change(o.segs-n > 0, o.segs > 0)
	}
}

// change is by how much a count of those who are changes.
func change(was, is bool) int {
	switch {
	case is && !was:
		return 1
	case was && !is:
		return -1
	}
	return 0
}
