package lockengine

import (
	"fmt"
	"iter"
	"maps"
	"reflect"
	"slices"
)

// checkInvariants says what is wrong with the state between two commands, nil
// if nothing is. It is slow, and looks at everything.
func (c *core) checkInvariants() error {
	k := checker{core: c, segsOf: map[*owner]int{}, handleSegs: map[*handle]int{}, held: map[*party]int{}, used: map[uint32]int{}}
	k.resources()
	k.names()
	k.waiters()
	k.places()
	k.membership()
	k.graph()
	k.counts()
	k.idle()
	k.pools()
	k.births()
	if len(k.wrong) == 0 {
		return nil
	}
	return fmt.Errorf("%d broken: %q", len(k.wrong), k.wrong)
}

type checker struct {
	*core
	wrong      []string
	segsOf     map[*owner]int
	handleSegs map[*handle]int
	held       map[*party]int
	used       map[uint32]int
	segs       [4]int
}

func (k *checker) is(ok bool, format string, args ...any) {
	if !ok {
		k.wrong = append(k.wrong, fmt.Sprintf(format, args...))
	}
}

func (k *checker) resources() {
	for _, class := range fileClasses {
		for name, r := range k.core.resources[class] {
			k.is(r.name == name && r.class == class, "resource %q under %q", r.name, name)
			k.is(!r.idle() || r.parked, "resource %q is idle", name)
			k.resource(r)
		}
	}
	k.is(len(k.shrunk) == 0 && len(k.ready) == 0, "work left over")
}

func (k *checker) resource(r *resource) {
	var all []*seg
	for _, mode := range []Mode{Shared, Exclusive} {
		from := len(all)
		for s := range r.tree(mode).all {
			k.is(s.mode == mode && s.by.res == r, "segment %v in the wrong tree", s.Range)
			all = append(all, s)
		}
		k.ordered(all[from:])
		k.segTree(r.tree(mode))
	}
	for i, a := range all {
		for _, b := range all[i+1:] {
			clash := a.by == b.by || a.mode == Exclusive || b.mode == Exclusive
			k.is(!clash || !a.overlaps(b.Range), "%v of %v and %v of %v conflict", a.Range, a.by.owner.key, b.Range, b.by.owner.key)
			k.is(a.by != b.by || a.mode != b.mode || a.End != b.Start && b.End != a.Start, "%v and %v not merged", a.Range, b.Range)
		}
	}
	n := 0
	k.holdings(r)
	for _, h := range r.holdings.all() {
		k.is(h.res == r && (h.segs.empty() || k.owners[r.class][h.owner.key] == h.owner), "owner of a holding unknown")
		before := n
		for s := range h.segs.all {
			k.is(s.by == h, "segment of another")
			k.seg(s)
			n++
		}
		k.is(int(h.n) == n-before && (h.many || h.n <= fewSegs), "a holding of %d segments counts %d", n-before, h.n)
	}
	k.is(n == len(all), "%d segments by owner, %d by range", n, len(all))
	k.segs[r.class] += n
	for g := range r.groups.all {
		k.is(g.res == r && g.n > 0, "empty group")
		k.group(g)
	}
	k.groupTree(r.groups.root)
}

func (k *checker) holdings(r *resource) {
	few := 0
	for h := r.holdings.few; h != nil; h = h.next {
		few++
		k.is(r.holdings.of(h.owner) == h, "two holdings of one owner")
	}
	k.is(few <= fewHoldings, "%d are not few", few)
	k.is(len(r.holdings.more) <= r.holdings.most, "a map that was never so large")
	for o, h := range r.holdings.more {
		k.is(h.owner == o && !h.segs.empty() && r.holdings.of(o) == h && h.next == nil, "holding of %v out of place", o.key)
	}
}

func (t *holdings) all() []*holding {
	all := slices.Collect(maps.Values(t.more))
	for h := t.few; h != nil; h = h.next {
		all = append(all, h)
	}
	return all
}

func (k *checker) ordered(segs []*seg) {
	k.is(slices.IsSortedFunc(segs, bySegStart), "segments out of order")
}

func (k *checker) seg(s *seg) {
	o := s.by.owner
	k.segsOf[o]++
	k.is(o.mixed || o.came.party == nil || o.came.party == s.party, "owner %v is not told to be of several parties", o.key)
	k.used[s.who.UID]++
	if s.handle != nil {
		k.handleSegs[s.handle]++
		k.is(k.handles[s.handle.id] == s.handle, "handle of a segment unknown")
	}
	if s.party != nil {
		k.held[s.party]++
		k.is(k.parties[s.who.PID] == s.party, "party of a segment unknown")
	}
}

func (k *checker) segTree(t *segTree) {
	for s := t.few; s != nil; s = s.next {
		k.is(t.root == nil, "list and tree at once")
	}
	if t.root == nil {
		k.is(count(t.all) <= fewSegs, "%d are not few", count(t.all))
		return
	}
	k.is(count(t.all) > fewSegs/2, "%d are few", count(t.all))
	k.is(t.root.kids == nil || t.root.n > 1, "root with one child")
	k.segNode(t.root, true)
}

// segNode checks what is below n, which is the last of its level or not, and
// returns how many levels there are.
func (k *checker) segNode(n *segNode, last bool) (levels int) {
	k.is(n.n > 0 && n.n <= fanout && (n.n >= minFill || last), "node with %d entries", n.n)
	for i := range n.n {
		if n.kids == nil {
			s := n.seg[i]
			k.is(n.start[i] == s.Start && n.end[i] == s.End && n.sum[i] == s.by.owner && s.next == nil, "wrong entry of %v", s.Range)
			continue
		}
		c := n.kids[i]
		l := k.segNode(c, last && i == n.n-1)
		k.is(levels == 0 || levels == l, "leaves at different levels")
		levels = l
		end, sum := uint64(0), (*owner)(nil)
		for j := range c.n {
			end, sum = max(end, c.end[j]), either(sum, c.sum[j])
		}
		k.is(n.start[i] == c.start[0] && n.seg[i] == c.seg[0], "wrong first")
		k.is(n.end[i] == end, "end %d, want %d", n.end[i], end)
		k.is(n.sum[i] == sum, "wrong summary of owners")
	}
	for i := n.n; i < fanout; i++ {
		k.is(n.start[i] == 0 && n.end[i] == 0 && n.sum[i] == nil && n.seg[i] == nil && (n.kids == nil || n.kids[i] == nil), "more than the entries")
	}
	return levels + 1
}

func (k *checker) groupTree(n *group) uint64 {
	if n == nil {
		return 0
	}
	end := max(n.End, k.groupTree(n.links.left), k.groupTree(n.links.right))
	k.is(n.maxEnd == end, "group's maxEnd %d, want %d", n.maxEnd, end)
	return end
}

func (k *checker) group(g *group) {
	k.is(k.eligible(g) == nil, "a waiter for %v could be granted", g.Range)
	k.is(g.pos == 0, "group left in the heap")
	n := 0
	last := WaiterID(0)
	for w := range g.queue.all {
		n++
		k.is(w.group == g && k.core.waiters.get(w.id) == w && w.id > last, "waiter %d out of place", w.id)
		last = w.id
	}
	k.is(n == g.n, "group of %d: %d by id", g.n, n)
}

func (k *checker) names() {
	t := &k.core.names
	leases, live := 0, 0
	for name, n := range t.byName {
		k.is(n.name == name, "named %q under %q, token %d", n.name, name, n.token)
		if !n.held() {
			k.is(n.more != nil && n.more.queue != nil && n.pos == 0, "%q is kept for nobody", name)
			k.named(n, n.more)
			continue
		}
		k.used[n.who.UID]++
		i := t.byToken.after(n.token) - 1
		k.is(i >= 0 && t.byToken.entries[i].named == n, "%q not listed", name)
		k.is((n.pos != 0) == (n.timeout > 0), "%q: lease and position", name)
		if n.pos != 0 {
			leases++
			k.is(t.leases[n.pos-1] == n && n.expiry.Boot > k.now.Boot, "%q: lease", name)
		} else if n.who.PID != 0 {
			k.held[k.parties[n.who.PID]]++
		}
		if m := n.more; m != nil {
			k.named(n, m)
		}
	}
	for i, e := range t.byToken.entries {
		if e.named != nil {
			live++
			k.is(t.byName[e.named.name] == e.named && e.token == e.named.token, "listed but not held")
		}
		k.is(i == 0 || t.byToken.entries[i-1].token < e.token, "tokens out of order")
	}
	k.is(leases == len(t.leases) && live == k.stats.Held[Named], "%d leases of %d, %d names of %d", leases, len(t.leases), live, len(t.byName))
	k.is(len(t.byToken.entries)-live == t.byToken.gaps, "gaps miscounted")
	for i := 2; i <= len(t.leases); i++ {
		k.is(!endsBefore(t.leases[i-1], t.leases[i/2-1]), "leases out of order")
	}
}

func (k *checker) named(n *named, m *namedMore) {
	if m.queue != nil {
		k.is(m.queue.n > 0 && m.queue.name == n, "empty queue")
		k.group(m.queue)
	}
	for w := range m.watches.all {
		k.is(k.watches[w.id] == w && w.named == n, "watch out of place")
	}
	if m.handle != nil {
		k.is(k.handles[m.handle.id] == m.handle, "handle of a name unknown")
	}
}

func (k *checker) waiters() {
	counts := [4]int{}
	for w := range k.core.line.all {
		id := w.id
		counts[w.req.Class]++
		k.used[w.req.Who.UID]++
		k.is(k.core.waiters.get(id) == w, "waiter %d is not found", id)
		k.is(w.owner == nil || k.owners[w.req.Class][w.req.Owner] == w.owner, "owner of waiter %d", id)
		k.is(w.handle == nil || k.handles[w.req.Handle] == w.handle, "handle of waiter %d", id)
		k.is(w.party == nil || k.parties[w.req.Who.PID] == w.party, "party of waiter %d", id)
	}
	k.is(counts == k.stats.Waiting, "Waiting %v, want %v", k.stats.Waiting, counts)
}

func (k *checker) places() {
	n, last := 0, int64(0)
	for p := range k.core.places.queue.all {
		n++
		k.is(p.due > k.now.Boot && p.due >= last, "place kept too long")
		k.is(k.core.waiters.get(p.id) == nil, "place of one who waits")
		last = p.due
	}
	for key, head := range k.core.places.byKey {
		for p := head; p != nil; p = p.later {
			n--
			k.is(p.key == key && (p.later == nil || p.id < p.later.id), "places out of order")
		}
	}
	k.is(n == 0, "%d places lost", n)
}

func (k *checker) counts() {
	stuck := 0
	for _, class := range fileClasses {
		for _, o := range k.owners[class] {
			k.is(o.segs == k.segsOf[o], "owner %v has %d segments, not %d", o.key, k.segsOf[o], o.segs)
			stuck += change(false, class == Record && o.stuck())
		}
		k.is(k.stats.Held[class] == k.segs[class], "Held[%d]", class)
	}
	k.is(stuck == k.stuckOwners, "%d owners stuck, not %d", stuck, k.stuckOwners)
	stuck = 0
	for _, p := range k.parties {
		k.is(p.held == k.held[p], "party %d holds %d, not %d", p.pid, k.held[p], p.held)
		stuck += change(false, p.stuck())
	}
	used := maps.Clone(k.quota.used)
	if last := k.quota.last; last.n != 0 {
		used[last.uid] = last.n
	}
	k.is(maps.Equal(k.used, used), "users have %v, not %v", k.used, used)
	all := 0
	for _, n := range k.used {
		all += n
	}
	k.is(all == k.quota.all, "all users have %d, not %d", all, k.quota.all)
	k.is(stuck == k.stuckParties, "%d parties stuck, not %d", stuck, k.stuckParties)
	for _, h := range k.handles {
		n := 0
		for s := range h.segs.all {
			n++
			k.is(s.handle == h, "segment of another handle")
		}
		k.is(n == k.handleSegs[h], "handle %d has %d segments, not %d", h.id, k.handleSegs[h], n)
	}
}

func (k *checker) idle() {
	for _, class := range fileClasses {
		for _, o := range k.owners[class] {
			k.is(!o.idle() || o.parked, "idle owner %v", o.key)
		}
	}
	for id, h := range k.handles {
		k.is(!h.idle() || h.parked, "idle handle %d", id)
	}
	for pid, p := range k.parties {
		k.is(!p.idle() || p.parked, "idle party %d", pid)
	}
}

// membership counts what each owner, handle and party has, against what there
// is, and what is indexed by guard.
func (k *checker) membership() {
	type has struct{ waits, places, names int }
	owners, hands, parties := map[*owner]has{}, map[*handle]has{}, map[*party]has{}
	guarded := map[string]map[*named]int{}
	last := WaiterID(0)
	for _, w := range k.waitersInOrder() {
		o, h, p := owners[w.owner], hands[w.handle], parties[w.party]
		o.waits, h.waits, p.waits = o.waits+1, h.waits+1, p.waits+1
		owners[w.owner], hands[w.handle], parties[w.party] = o, h, p
		k.is((w.owner == nil) == (w.req.Class == Named) && (w.handle == nil) == (w.req.Handle == 0) &&
			(w.party == nil) == (w.req.Who.PID == 0), "waiter %d belongs to nobody", w.id)
		if g := w.req.Guard; g != "" {
			if guarded[g] == nil {
				guarded[g] = map[*named]int{}
			}
			guarded[g][w.group.name]++
		}
		last = w.id
	}
	k.is(last <= k.nextWaiter, "waiter %d, but the last one is %d", last, k.nextWaiter)
	k.is(maps.EqualFunc(guarded, k.guarded, maps.Equal), "guarded %v, want %v", k.guarded, guarded)
	for p := range k.core.places.queue.all {
		o, h := owners[p.owner], hands[p.handle]
		o.places, h.places = o.places+1, h.places+1
		owners[p.owner], hands[p.handle] = o, h
	}
	watches := 0
	for _, n := range k.core.names.byName {
		if m := n.more; m != nil {
			h := hands[m.handle]
			h.names++
			hands[m.handle] = h
			watches += count(m.watches.all)
		}
	}
	k.is(watches == len(k.watches), "%d watches of %d", watches, len(k.watches))
	for _, class := range fileClasses {
		for _, o := range k.owners[class] {
			k.is(owners[o] == has{waits: count(o.waits.all), places: count(o.places.all)}, "owner %v: waits or places", o.key)
			k.is(k.owners[class][o.key] == o && o.class == class, "owner %v out of place", o.key)
			k.byGroup(o)
		}
	}
	for _, h := range k.handles {
		got := has{count(h.waits.all), count(h.places.all), count(h.names.all)}
		k.is(hands[h] == got, "handle %d has %v, want %v", h.id, got, hands[h])
	}
	for _, p := range k.parties {
		k.is(parties[p] == has{waits: count(p.waits.all)}, "party %d: waits", p.pid)
	}
	k.is(count(k.line.all) == k.core.waiters.n, "waiters out of line")
	k.is(k.lastFound.class == 0 || k.core.resources[k.lastFound.class][k.lastFound.name] == k.lastFound, "found last, but gone")
}

// byGroup: each wait of an owner is found through its group.
func (k *checker) byGroup(o *owner) {
	var last *waiter
	first := map[*group]*waiter{}
	for w := range o.waits.all {
		k.is(w.owner == o, "waiter %d is with owner %v", w.id, o.key)
		k.is(last == nil || waitersByGroup{}.less(last, w), "waiter %d of owner %v out of order", w.id, o.key)
		last = w
		if f := first[w.group]; f == nil || w.id < f.id {
			first[w.group] = w
		}
	}
	for g, w := range first {
		k.is(o.firstIn(g) == w, "owner %v: first waiter for %v", o.key, g.Range)
	}
}

func count[T any](all iter.Seq[*T]) (n int) {
	for range all {
		n++
	}
	return n
}

// graph compares who waits for whom, as it is shown, with what is in the way
// of each who waits, one by one. Nobody waits for nothing.
func (k *checker) graph() {
	snap := k.snapshot()
	for i := range snap.Waiting {
		w := &snap.Waiting[i]
		var want []int
		for j := range snap.Locks {
			if inTheWay(&snap.Locks[j], &k.core.waiters.get(w.ID).req, snap.Locks) {
				want = append(want, j)
			}
		}
		k.is(len(want) > 0, "waiter %d waits for nothing", w.ID)
		k.is(slices.Equal(want, w.Blockers), "waiter %d waits for %v, not %v", w.ID, want, w.Blockers)
	}
}

// inTheWay: the lock is what keeps the request from being granted, as it is
// written down: see Request and the package's doc.
func inTheWay(l *Lock, r *Request, all []Lock) bool {
	switch {
	case l.Class != r.Class:
		return false
	case l.Class != Named:
		overlap := l.Range.Start < r.Range.End && r.Range.Start < l.Range.End
		return l.Name == r.Name && l.Owner != r.Owner && overlap && (l.Mode == Exclusive || r.Mode == Exclusive)
	case l.Name == r.Name:
		return true
	}
	free := !slices.ContainsFunc(all, func(o Lock) bool { return o.Class == Named && o.Name == r.Name })
	return free && r.Guard == l.Name && l.Owner != r.Owner
}

// checkVerdicts says for which new wait, of all that there could be of those
// who hold or wait now, the search for cycles comes to something else than one
// that tries every path.
func (c *core) checkVerdicts() error {
	snap := c.snapshot()
	asks := map[Request]bool{}
	add := func(owner Owner, who Who) {
		for _, l := range snap.Locks {
			for _, mode := range []Mode{Shared, Exclusive} {
				asks[Request{Class: l.Class, Name: l.Name, Owner: owner, Mode: mode, Range: l.Range, Who: who}] = true
			}
		}
	}
	for _, l := range snap.Locks {
		add(l.Owner, l.Who)
		add(l.Owner, Who{})
	}
	for _, w := range snap.Waiting {
		add(w.Owner, w.Who)
	}
	for r := range asks {
		if !normalize(&r) || !c.blocked(&r) {
			continue
		}
		p := paths{core: c, snap: &snap, newcomer: &r}
		certain, possible := p.owners(false), p.owners(true) || p.parties()
		v, ask := c.judge(&r)
		switch {
		case (v == cycleCertain || ask != nil) != certain:
			return fmt.Errorf("%+v: verdict %d, questions %v, but a deadlock: %v", r, v, ask, certain)
		case !certain && (v == cyclePossible) != possible:
			return fmt.Errorf("%+v: verdict %d, but a possible deadlock: %v", r, v, possible)
		}
	}
	return nil
}

// paths tries every path of who waits for whom.
type paths struct {
	core     *core
	snap     *Snapshot
	newcomer *Request
}

// blockers are the locks in the way of a request.
func (p *paths) blockers(r *Request) (out []Lock) {
	for _, l := range p.snap.Locks {
		if inTheWay(&l, r, p.snap.Locks) {
			out = append(out, l)
		}
	}
	return out
}

// owners: there is a path of record locks back to the newcomer, through owners
// that are no open file descriptions, or through any.
func (p *paths) owners(any bool) bool {
	entered := func(o Owner) bool {
		at := p.core.owners[Record][o]
		return any || at == nil || at.kind != KindDescription
	}
	seen := map[Owner]bool{}
	var back func(r *Request) bool
	back = func(r *Request) bool {
		for _, l := range p.blockers(r) {
			if l.Owner == p.newcomer.Owner {
				return true
			}
			if seen[l.Owner] || !entered(l.Owner) {
				continue
			}
			seen[l.Owner] = true
			for w := range p.core.line.all {
				if w.req.Class == Record && w.req.Owner == l.Owner && back(&w.req) {
					return true
				}
			}
		}
		return false
	}
	return p.newcomer.Class == Record && entered(p.newcomer.Owner) && back(p.newcomer)
}

// parties: there is a path back to the newcomer's process, or it waits for a
// lock that its own thread took.
func (p *paths) parties() bool {
	me := p.newcomer.Who
	seen := map[int32]bool{}
	var back func(r *Request) bool
	back = func(r *Request) bool {
		from := r.Who.PID
		for _, l := range p.blockers(r) {
			to := l.Who.PID
			switch {
			case to == 0 || l.Class == Named && l.Timeout != 0:
				continue
			case to == me.PID && (from != me.PID || l.Who.TID == me.TID && me.TID != 0):
				return true
			case to == me.PID || seen[to]:
				continue
			}
			seen[to] = true
			for w := range p.core.line.all {
				if w.req.Who.PID == to && back(&w.req) {
					return true
				}
			}
		}
		return false
	}
	return me.PID != 0 && back(p.newcomer)
}

// pools must have nothing in them that was used again or not cleared.
func (k *checker) pools() {
	for _, s := range k.core.pools.seg.free {
		k.is(*s == seg{}, "segment in use is free")
	}
	for _, n := range k.core.pools.nodes.node.free {
		k.is(*n == segNode{}, "node in use is free")
	}
	for _, n := range k.core.pools.nodes.kids.free {
		k.is(*n == segKids{}, "node in use is free")
	}
	for _, w := range k.core.pools.waiter.free {
		k.is(reflect.ValueOf(*w).IsZero(), "waiter in use is free")
	}
	for _, o := range k.core.pools.owner.free {
		k.is(*o == owner{}, "owner in use is free")
	}
	for _, r := range k.core.pools.resource.free {
		k.is(reflect.ValueOf(*r).IsZero(), "resource in use is free")
	}
	for _, h := range k.core.pools.holding.free {
		k.is(*h == holding{}, "holding in use is free")
	}
	for _, g := range k.core.pools.group.free {
		k.is(*g == group{}, "group in use is free")
	}
	for _, h := range k.core.pools.handle.free {
		k.is(*h == handle{}, "handle in use is free")
	}
	for _, p := range k.core.pools.party.free {
		k.is(*p == party{}, "party in use is free")
	}
	for _, n := range k.core.pools.named.free {
		k.is(*n == named{}, "name in use is free")
	}
}

// births: what is in a line of the core is in the order in which it came.
func (k *checker) births() {
	n, last := 0, uint64(0)
	for s := range k.core.segs.all {
		k.is(s.born > last && s.born <= k.core.births, "segment born at %d after one at %d", s.born, last)
		n, last = n+1, s.born
	}
	k.is(n == k.segs[Record]+k.segs[Flock], "%d segments as they were made, %d by range", n, k.segs[Record]+k.segs[Flock])
	last = 0
	for w := range k.core.line.all {
		k.is(w.born > last && w.born <= k.core.births, "waiter born at %d after one at %d", w.born, last)
		last = w.born
	}
	last = 0
	for p := range k.core.places.queue.all {
		k.is(p.born > last && p.born <= k.core.births, "place born at %d after one at %d", p.born, last)
		last = p.born
	}
	for _, class := range fileClasses {
		for name, r := range k.core.resources[class] {
			n := len(r.appendSegs(nil)) + len(r.appendWaiting(nil))
			k.is(r.n == n, "%d locks and waiters on %q, counted %d", n, name, r.n)
		}
	}
}

// empty says whether nothing is left of what was held and waited for.
func (c *core) empty() bool {
	n := c.waiters.n + len(c.watches) + len(c.places.byKey) + len(c.names.byName) + len(c.names.leases)
	for _, h := range c.handles {
		n += change(h.idle(), true)
	}
	for _, p := range c.parties {
		n += change(p.idle(), true)
	}
	for _, class := range fileClasses {
		for _, r := range c.resources[class] {
			n += change(r.idle(), true)
		}
		for _, o := range c.owners[class] {
			n += change(o.idle(), true)
		}
	}
	return n == 0
}
