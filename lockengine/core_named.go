package lockengine

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// named is a named lock. There may be a million of them: what few have is in
// more.
type named struct {
	name    string
	meta    string
	owner   Owner
	who     Who
	token   uint64 // 0: free, with waiters: for a moment, or while its guard is held
	since   Instant
	expiry  Instant // zero: a hold
	timeout time.Duration
	start   int64
	key     uint64 // of the request that took it; 0: none
	more    *namedMore
	pos     int32 // in the heap of leases, from 1; 0: not in it
	kind    OwnerKind
}

// namedMore is what few named locks have.
type namedMore struct {
	note      string
	prevStart int64
	queue     *group // nil: nobody waits
	watches   list[watch]
	handle    *handle
	ofHandle  hook[named]
}

// watch is somebody who wants to know when a lock ends.
type watch struct {
	id    WatchID
	named *named
	hook  hook[watch]
}

func (n *named) held() bool { return n.token != 0 }

func (n *named) ext() *namedMore {
	if n.more == nil {
		n.more = &namedMore{}
	}
	return n.more
}

// namedTable is all named locks: by name, by token, by expiry, and for a
// moment those that ended.
type namedTable struct {
	byName    map[string]*named
	byToken   tokenIndex
	leases    []*named // a heap by expiry, then token
	ended     map[string]ended
	endedFIFO []endedName
	last      uint64 // the last token
}

// ended is what is remembered of a name: the end of its last lock.
type ended struct {
	start int64
	at    int64 // Boot
	n     int   // how many ended then
}

// endedName is the end of a lock.
type endedName struct {
	name  string
	at    int64 // Boot
	start int64
}

const (
	// rememberEnded is for how long PrevStart is known, in nanoseconds.
	rememberEnded = int64(2 * time.Second)
	// rememberMax bounds how many are known: at more than this many ends
	// within that time the oldest are forgotten early.
	rememberMax = 1 << 16
)

func (t *namedTable) init() {
	t.byName = map[string]*named{}
	t.ended = map[string]ended{}
}

// deadline is when the next lease ends, or the last that is remembered is
// forgotten, by Boot; 0: never. To forget each at its time would need a timer for
// each lock that ends; those that are due earlier go with the next command.
func (t *namedTable) deadline() (d int64) {
	if len(t.leases) > 0 {
		d = t.leases[0].expiry.Boot
	}
	if n := len(t.endedFIFO); n > 0 {
		if e := t.endedFIFO[n-1].at + rememberEnded + 1; d == 0 || e < d {
			d = e
		}
	}
	return d
}

// due returns a lock whose lease has ended by boot, nil if none has.
func (t *namedTable) due(boot int64) *named {
	if len(t.leases) == 0 || t.leases[0].expiry.Boot > boot {
		return nil
	}
	return t.leases[0]
}

func (t *namedTable) remember(e endedName) {
	n := 1
	if last := t.ended[e.name]; last.at == e.at {
		n += last.n
	}
	t.ended[e.name] = ended{e.start, e.at, n}
	t.endedFIFO = append(t.endedFIFO, e)
}

func (t *namedTable) forgetFirstEnded() {
	e := t.endedFIFO[0]
	t.endedFIFO[0] = endedName{}
	if t.endedFIFO = t.endedFIFO[1:]; len(t.endedFIFO) == 0 {
		t.endedFIFO = nil
	}
	switch last := t.ended[e.name]; {
	case last.at != e.at:
	case last.n == 1:
		delete(t.ended, e.name)
	default:
		last.n--
		t.ended[e.name] = last
	}
}

// forgetEnded forgets what ended too long ago, or before too many others.
func (c *core) forgetEnded() {
	t := &c.names
	for n := len(t.endedFIFO); n > 0 && (n > rememberMax || t.endedFIFO[0].at+rememberEnded < c.now.Boot); n-- {
		c.cut.endedGoes()
		t.forgetFirstEnded()
	}
}

// nextToken is the fencing token of a grant at this moment.
func (t *namedTable) nextToken(now Instant) uint64 {
	t.last = t.lastToken(now) + 1
	return t.last
}

// lastToken is the one after which tokens go on at this moment.
func (t *namedTable) lastToken(now Instant) uint64 {
	return max(uint64(max(now.Wall/int64(time.Microsecond)-1, 0)), t.last)
}

// takeName grants the named lock, which is free.
func (c *core) takeName(req *Request) Grant {
	n := c.entry(req.Name)
	req.Meta = c.metas.same(req.Meta)
	n.owner, n.kind, n.who, n.meta = req.Owner, req.Kind, req.Who, req.Meta
	n.token, n.since, n.start = c.names.nextToken(c.now), c.now, floorSeconds(c.now.Wall)
	n.timeout, n.expiry, n.key = req.Timeout, c.expiry(req.Timeout), req.Key
	if prev, ok := c.names.ended[n.name]; ok {
		n.ext().prevStart = prev.start
	}
	c.addNamed(n, c.handleOf(req.Handle))
	return n.grant()
}

func (n *named) grant() Grant { return Grant{n.token, n.since, n.expiry} }

// addNamed puts a lock that is held, with the last token of all, where locks
// held are.
func (c *core) addNamed(n *named, h *handle) {
	c.names.byToken.add(n)
	c.stats.Held[Named]++
	c.quota.count(n.who.UID, 1)
	if n.timeout > 0 {
		c.names.pushLease(n)
	} else {
		c.partyHolds(c.partyOf(n.who.PID), 1)
	}
	if h != nil {
		n.ext().handle = h
		h.names.push(n, &n.more.ofHandle)
	}
}

// entry returns what there is of a name, new if need be.
func (c *core) entry(name string) *named {
	n := c.names.byName[name]
	if n == nil {
		n = c.pools.named.get()
		n.name = name
		c.names.byName[name] = n
	}
	return n
}

// freeEntry forgets a name that is not held and that nobody waits for.
func (c *core) freeEntry(n *named) {
	if n.held() || n.more != nil && n.more.queue != nil {
		return
	}
	c.names.byName = without(&c.shrinking, mapNames, c.names.byName, n.name)
	c.pools.named.put(n)
}

// expiry is when a lease of this length from now ends; zero for a hold. A
// lease too long to be told ends at the end of time.
func (c *core) expiry(timeout time.Duration) Instant {
	if timeout == 0 {
		return Instant{}
	}
	return Instant{later(c.now.Boot, timeout), later(c.now.Wall, timeout)}
}

func later(t int64, d time.Duration) int64 {
	if t > math.MaxInt64-int64(d) {
		return math.MaxInt64
	}
	return t + int64(d)
}

func floorSeconds(ns int64) int64 {
	s := ns / int64(time.Second)
	if ns%int64(time.Second) < 0 {
		s--
	}
	return s
}

// lookup returns the lock held on name, nil if there is none, or not with
// this token (0: any).
func (c *core) lookup(name string, token uint64) *named {
	n := c.names.byName[name]
	if n == nil || !n.held() || token != 0 && n.token != token {
		return nil
	}
	return n
}

func (c *core) release(name string, token uint64, how End) error {
	if how != Released && how != Forced && how != Lost {
		return ErrInvalid
	}
	n := c.lookup(name, token)
	if n == nil {
		return ErrNotHeld
	}
	c.endNamed(n, how)
	return nil
}

// endNamed ends a named lock, tells who watches it, and lets the next in line
// have it.
func (c *core) endNamed(n *named, how End) {
	c.cut.namedGoes(n)
	c.reportEnd(n, how)
	c.names.remember(endedName{n.name, c.now.Boot, n.start})
	c.forgetEnded()
	c.names.byToken.drop(n.token)
	c.stats.Held[Named]--
	c.quota.count(n.who.UID, -1)
	if n.pos != 0 {
		c.names.dropLease(n)
	} else if n.who.PID != 0 {
		c.partyHolds(c.parties[n.who.PID], -1)
	}
	n.token = 0
	c.unguard(n.name)
	if m := n.more; m != nil {
		c.endMore(n, how)
		if m.queue != nil {
			c.consider(m.queue)
		}
	}
	c.freeEntry(n)
}

func (c *core) reportEnd(n *named, how End) {
	kind := EventReleased
	switch how {
	case Expired:
		kind = EventExpired
		c.stats.Expired++
		c.done = append(c.done, completion{name: n.name, grant: Grant{Token: n.token}})
	case Forced:
		kind = EventForced
		c.stats.Forced++
	case Lost:
		kind = EventLost
	default:
		c.stats.Released[Named]++
	}
	e := c.emitNamed(kind, n)
	e.Held = since(n.since, c.now)
}

func (c *core) emitNamed(kind EventKind, n *named) *Event {
	e := c.emit(kind)
	e.Class, e.Name, e.Mode, e.Range, e.Owner, e.Who = Named, n.name, Exclusive, Whole, n.owner, n.who
	e.Token, e.Meta = n.token, n.meta
	return e
}

// endMore ends what belonged to the incarnation that ended.
func (c *core) endMore(n *named, how End) {
	m := n.more
	for w := range m.watches.all {
		c.done = append(c.done, completion{watch: w.id, end: how})
		m.watches.remove(&w.hook)
		delete(c.watches, w.id)
	}
	c.dropNameHandle(n)
	m.note, m.prevStart = "", 0
}

// dropNameHandle parts a named lock from the handle it came through, if it
// came through one.
func (c *core) dropNameHandle(n *named) {
	if n.more == nil || n.more.handle == nil {
		return
	}
	c.cut.namedChanges(n)
	h := n.more.handle
	n.more.handle = nil
	h.names.remove(&n.more.ofHandle)
	c.freeHandle(h)
	c.changes++
}

func (c *core) detach(name string, token uint64) error {
	n := c.lookup(name, token)
	if n == nil {
		return ErrNotHeld
	}
	c.dropNameHandle(n)
	return nil
}

// queueOf returns the queue for a named lock, new if need be.
func (c *core) queueOf(n *named) *group {
	m := n.ext()
	if m.queue == nil {
		m.queue = c.pools.group.get()
		m.queue.Range, m.queue.mode, m.queue.name = Whole, Exclusive, n
	}
	return m.queue
}

func (c *core) renew(cmd *command) (Grant, error) {
	n := c.lookup(cmd.req.Name, cmd.token)
	if n == nil {
		return Grant{}, ErrNotHeld
	}
	left, ok := c.newLeft(n, cmd)
	if !ok {
		return Grant{}, ErrInvalid
	}
	c.cut.namedChanges(n)
	n.timeout, n.expiry = cmd.req.Timeout, c.expiry(left)
	c.names.fixLease(n)
	c.emitNamed(EventRenewed, n)
	return n.grant(), nil
}

// newLeft is how long the lease lasts from now if it is renewed so.
func (c *core) newLeft(n *named, cmd *command) (left time.Duration, ok bool) {
	left = cmd.req.Timeout
	if left <= 0 || n.timeout == 0 {
		return 0, false
	}
	if cmd.extend {
		old := time.Duration(n.expiry.Boot - c.now.Boot)
		if left > math.MaxInt64-old {
			return 0, false
		}
		left += old
	}
	return left, cmd.max == 0 || int64(left) <= cmd.max
}

// setTimes is SetStart and SetSpan.
func (c *core) setTimes(cmd *command) error {
	n := c.lookup(cmd.req.Name, cmd.token)
	if n == nil {
		return ErrNotHeld
	}
	const bound = math.MaxInt64 / int64(time.Second) / 4
	if n.timeout == 0 || cmd.second < 0 || cmd.second > bound {
		return ErrInvalid
	}
	start, wall := n.start, (n.start+cmd.second)*int64(time.Second)
	if cmd.op == opSetStart {
		start, wall = cmd.second, n.expiry.Wall+(cmd.second-n.start)*int64(time.Second)
	}
	left := wall - c.now.Wall
	if cmd.max > 0 && left > cmd.max {
		return ErrInvalid
	}
	c.cut.namedChanges(n)
	if cmd.op == opSetSpan {
		// What was asked for just now: to the second, as the caller counts.
		n.timeout = time.Duration(max(1, -floorSeconds(-left))) * time.Second
	}
	n.start, n.expiry = start, Instant{Boot: c.now.Boot + left, Wall: wall}
	c.names.fixLease(n)
	c.emitNamed(EventRenewed, n)
	return nil
}

func (c *core) setHolder(cmd *command) error {
	n := c.lookup(cmd.req.Name, cmd.token)
	if n == nil {
		return ErrNotHeld
	}
	c.cut.namedChanges(n)
	c.quota.count(n.who.UID, -1)
	n.who.UID, n.who.GID = cmd.req.Who.UID, cmd.req.Who.GID
	c.quota.count(n.who.UID, 1)
	c.changes++
	return nil
}

func (c *core) setNote(name string, token uint64, note string) error {
	n := c.lookup(name, token)
	if n == nil {
		return ErrNotHeld
	}
	c.cut.namedChanges(n)
	n.ext().note = note
	c.changes++
	return nil
}

func (c *core) addWatch(name string, token uint64, id WatchID) error {
	n := c.lookup(name, token)
	if n == nil {
		return ErrNotHeld
	}
	if id <= c.lastWatch {
		return ErrInvalid
	}
	c.cut.namedChanges(n)
	c.watchNamed(n, id)
	c.lastWatch = id
	c.changes++
	return nil
}

func (c *core) watchNamed(n *named, id WatchID) {
	w := &watch{id: id, named: n}
	n.ext().watches.push(w, &w.hook)
	c.watches[id] = w
}

func (c *core) dropWatch(id WatchID) bool {
	w := c.watches[id]
	if w == nil {
		return false
	}
	c.cut.namedChanges(w.named)
	w.named.more.watches.remove(&w.hook)
	delete(c.watches, id)
	c.changes++
	return true
}

// tokenIndex is the named locks by token. As tokens only grow, it is a slice
// that is appended to, with gaps that are swept when they are half of it.
type tokenIndex struct {
	entries []tokenEntry
	gaps    int
}

type tokenEntry struct {
	token uint64
	named *named // nil: a gap
}

func (x *tokenIndex) add(n *named) { x.entries = append(x.entries, tokenEntry{n.token, n}) }

// after is the place of the first entry with a token after this one.
func (x *tokenIndex) after(token uint64) int {
	i, found := slices.BinarySearchFunc(x.entries, token, func(e tokenEntry, t uint64) int { return cmp.Compare(e.token, t) })
	if found {
		i++
	}
	return i
}

// get returns the lock held with this token, nil if there is none.
func (x *tokenIndex) get(token uint64) *named {
	if i := x.after(token); i > 0 && x.entries[i-1].token == token {
		return x.entries[i-1].named
	}
	return nil
}

func (x *tokenIndex) drop(token uint64) {
	x.entries[x.after(token)-1].named = nil
	x.gaps++
	if x.gaps*2 <= len(x.entries) || len(x.entries) < 64 && x.gaps < len(x.entries) {
		return
	}
	x.entries = slices.DeleteFunc(x.entries, func(e tokenEntry) bool { return e.named == nil })
	x.gaps = 0
	if cap(x.entries) > 4*len(x.entries)+64 {
		x.entries = slices.Clip(slices.Clone(x.entries))
	}
}

// list returns up to limit locks with tokens after the one given.
func (x *tokenIndex) list(after uint64, limit int) []NameToken {
	var out []NameToken
	for _, e := range x.entries[x.after(after):] {
		if len(out) >= limit {
			break
		}
		if e.named != nil {
			out = append(out, NameToken{e.named.name, e.token})
		}
	}
	return out
}
