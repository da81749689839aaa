package lockengine

import (
	"slices"
	"time"
)

// What a restart does to the state is a command too, so that whoever replays
// the commands comes to the same.

// resume goes on after a restart. If it is another boot, its clocks are new,
// and nobody who was there is there any more; nor if cmd.fresh. No token up to
// cmd.token is given out again.
func (c *core) resume(cmd *command, now Instant) {
	if c.cut != nil {
		c.cut.rest()
	}
	c.changes++
	c.names.last = max(c.names.last, cmd.token)
	if reboot := cmd.boot != c.boot; reboot {
		c.rebase(now)
		c.boot, c.now = cmd.boot, now
		c.forgetClients()
		return
	}
	c.now = Instant{max(c.now.Boot, now.Boot), now.Wall}
	if cmd.fresh {
		c.forgetClients()
	}
}

// rebase moves all instants to the clocks of another boot. A lease has left
// what its wall clock says, but not more than at the last change of state: a wall
// clock that was set back does not make it longer.
func (c *core) rebase(now Instant) {
	for _, n := range slices.Clone(c.names.leases) {
		left := max(0, min(n.expiry.Wall-now.Wall, n.expiry.Boot-c.known))
		n.expiry = Instant{later(now.Boot, time.Duration(left)), now.Wall + left}
		c.names.fixLease(n)
	}
	for _, n := range c.names.byName {
		n.since = n.since.rebased(now)
	}
	for s := range c.segs.all {
		s.since = s.since.rebased(now)
	}
	for w := range c.line.all {
		w.since = w.since.rebased(now)
	}
	clear(c.names.ended)
	c.names.endedFIFO = nil
}

// rebased is an instant of the past of another boot on the clocks of this one.
func (i Instant) rebased(now Instant) Instant {
	return Instant{now.Boot - max(0, now.Wall-i.Wall), i.Wall}
}

// forgetClients ends everything but timed locks, and these belong to no handle
// or request any more.
func (c *core) forgetClients() {
	for id := range c.watches {
		c.dropWatch(id)
	}
	for _, w := range c.waitersInOrder() {
		c.cancel(w.id, false)
	}
	for p := c.places.queue.first(); p != nil; p = c.places.queue.first() {
		c.forgetPlace(p)
	}
	for _, s := range c.segsInOrder() {
		h := s.by
		c.giveBack(s, s.Range)
		c.freeHolding(h)
	}
	for _, e := range slices.Clone(c.names.byToken.entries) {
		switch n := e.named; {
		case n == nil:
		case n.timeout == 0:
			c.endNamed(n, Lost)
		default:
			n.key = 0
			c.dropNameHandle(n)
		}
	}
}
