package lockengine

import (
	"fmt"
	"maps"
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
	k.counts()
	k.idle()
	k.pools()
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
	for _, class := range []Class{Record, Flock} {
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
		k.segTree(r.tree(mode).root)
	}
	for i, a := range all {
		for _, b := range all[i+1:] {
			clash := a.by == b.by || a.mode == Exclusive || b.mode == Exclusive
			k.is(!clash || !a.overlaps(b.Range), "%v of %v and %v of %v conflict", a.Range, a.by.owner.key, b.Range, b.by.owner.key)
			k.is(a.by != b.by || a.mode != b.mode || a.End != b.Start && b.End != a.Start, "%v and %v not merged", a.Range, b.Range)
		}
	}
	n := 0
	for h := range r.holdings.all {
		k.is(h.res == r && !h.segs.empty(), "empty holding")
		k.is(k.owners[r.class][h.owner.key] == h.owner, "owner of a holding unknown")
		for s := range h.segs.all {
			k.is(s.by == h, "segment of another")
			k.seg(s)
			n++
		}
	}
	k.is(n == len(all), "%d segments by owner, %d by range", n, len(all))
	k.segs[r.class] += n
	for g := range r.groups.all {
		k.is(g.res == r && g.n > 0, "empty group")
		k.group(g)
	}
	k.groupTree(r.groups.root)
}

func (k *checker) ordered(segs []*seg) {
	k.is(slices.IsSortedFunc(segs, bySegStart), "segments out of order")
}

func (k *checker) seg(s *seg) {
	k.segsOf[s.by.owner]++
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

func (k *checker) segTree(n *seg) (end uint64, sum *owner) {
	if n == nil {
		return 0, nil
	}
	e1, s1 := k.segTree(n.tree.left)
	e2, s2 := k.segTree(n.tree.right)
	end, sum = max(n.End, e1, e2), either(n.by.owner, either(s1, s2))
	k.is(n.maxEnd == end, "maxEnd %d, want %d", n.maxEnd, end)
	k.is(n.sum == sum, "wrong summary of owners")
	return end, sum
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
		k.is(w.group == g && k.core.waiters[w.id] == w && w.id > last, "waiter %d out of place", w.id)
		last = w.id
	}
	byOwner := 0
	for range g.owners.all {
		byOwner++
	}
	k.is(n == g.n && (g.res == nil || byOwner == n), "group of %d: %d by id, %d by owner", g.n, n, byOwner)
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
		k.handleSegs[m.handle] += 0
	}
}

func (k *checker) waiters() {
	counts := [4]int{}
	for id, w := range k.core.waiters {
		counts[w.req.Class]++
		k.used[w.req.Who.UID]++
		k.is(w.id == id, "waiter %d under %d", w.id, id)
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
		k.is(k.core.waiters[p.id] == nil, "place of one who waits")
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
	for _, class := range []Class{Record, Flock} {
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
	k.is(maps.Equal(k.used, k.quota.used), "users have %v, not %v", k.used, k.quota.used)
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
	for _, class := range []Class{Record, Flock} {
		for _, o := range k.owners[class] {
			k.is(!o.idle() || *o == owner{key: o.key, class: o.class, parked: true}, "idle owner %v", o.key)
		}
	}
	for id, h := range k.handles {
		k.is(!h.idle() || h.parked, "idle handle %d", id)
	}
	for pid, p := range k.parties {
		k.is(!p.idle() || p.parked, "idle party %d", pid)
	}
}

// pools must have nothing in them that was used again or not cleared.
func (k *checker) pools() {
	for _, s := range k.core.pools.seg.free {
		k.is(*s == seg{}, "segment in use is free")
	}
	for _, w := range k.core.pools.waiter.free {
		k.is(*w == waiter{}, "waiter in use is free")
	}
	for _, o := range k.core.pools.owner.free {
		k.is(*o == owner{}, "owner in use is free")
	}
	for _, r := range k.core.pools.resource.free {
		k.is(*r == resource{}, "resource in use is free")
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

// empty says whether nothing is left of what was held and waited for.
func (c *core) empty() bool {
	n := len(c.waiters) + len(c.watches) + len(c.places.byKey) + len(c.names.byName) + len(c.names.leases)
	for _, h := range c.handles {
		n += change(h.idle(), true)
	}
	for _, p := range c.parties {
		n += change(p.idle(), true)
	}
	for _, class := range []Class{Record, Flock} {
		for _, r := range c.resources[class] {
			n += change(r.idle(), true)
		}
		for _, o := range c.owners[class] {
			n += change(o.idle(), true)
		}
	}
	return n == 0
}
