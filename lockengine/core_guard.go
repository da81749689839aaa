package lockengine

// A Named request may have a guard: another name, whose holder alone may take
// it while that is held. (In the protocol of Perl's Sys::Tlock a lock is only
// taken under its master lock; whoever takes it without must not come in
// between.)

// guard notes that the end of its guard may free a waiter that has one.
func (c *core) guard(w *waiter) {
	names := c.guarded[w.req.Guard]
	if names == nil {
		names = map[*named]int{}
		c.guarded[w.req.Guard] = names
	}
	names[w.group.name]++
}

//go:noinline
func (c *core) dropGuard(w *waiter) {
	names, n := c.guarded[w.req.Guard], w.group.name
	if names[n]--; names[n] == 0 {
		delete(names, n)
	}
	if len(names) == 0 {
		delete(c.guarded, w.req.Guard)
	}
}

// unguard considers those who wait for a name that was guarded by the lock
// that ended. There is one such name for a guard, or few; the heap of ready
// groups puts them in order.
func (c *core) unguard(guard string) {
	for n := range c.guarded[guard] {
		c.consider(n.more.queue)
	}
}

// unguardedOf returns the earliest waiter for a free name whose guard is not
// held by another.
func (c *core) unguardedOf(g *group) *waiter {
	for w := range g.queue.all {
		if c.blockerOf(&w.req) == nil {
			return w
		}
	}
	return nil
}
