package lockengine

import "time"

// normalize fills in what is ignored in a request of this class and says
// whether it makes sense.
func normalize(req *Request) error {
	switch req.Class {
	case Named:
		req.Mode, req.Range = Exclusive, Whole
	case Flock:
		req.Range = Whole
	case Record:
	default:
		return ErrInvalid
	}
	mode := req.Mode == Shared || req.Mode == Exclusive
	if !mode || !req.Range.valid() || req.Name == "" || req.Timeout < 0 {
		return ErrInvalid
	}
	return nil
}

func (c *core) try(req *Request) result {
	if err := normalize(req); err != nil {
		return result{err: err}
	}
	if g, ok := c.granted(req); ok {
		return result{grant: g}
	}
	if c.overQuota(req, false) && !c.blocked(req) {
		return result{err: c.refuseQuota()}
	}
	g, ok := c.grantNow(req)
	if ok {
		return result{grant: g}
	}
	c.stats.Refused[req.Class]++
	if req.Class == Named {
		c.emitRequest(EventRefused, req)
	}
	return result{err: ErrHeld}
}

func (c *core) wait(req *Request) result {
	if err := normalize(req); err != nil {
		return result{err: err}
	}
	if g, ok := c.granted(req); ok {
		return result{grant: g}
	}
	if c.quota.tight() && c.overQuota(req, c.blocked(req)) {
		return result{err: c.refuseQuota()}
	}
	if g, ok := c.grantNow(req); ok {
		c.answered(req)
		return result{grant: g}
	}
	verdict, ask := c.judge(req)
	switch {
	case ask != nil:
		return result{ask: ask}
	case verdict == cycleCertain:
		c.answered(req)
		c.stats.Deadlocks++
		c.emitRequest(EventDeadlock, req).Refused = true
		return result{err: ErrDeadlock, cycle: verdict}
	}
	w := c.enqueue(req)
	c.emitRequest(EventWaiting, req)
	if verdict == cyclePossible {
		c.stats.Possible++
		c.emitRequest(EventDeadlock, req)
	}
	return result{waiter: w.id, cycle: verdict}
}

// granted returns the grant of a Named request that is made again, since its
// answer got lost, as long as its lock is held.
func (c *core) granted(req *Request) (Grant, bool) {
	if req.Class != Named || req.Key == 0 {
		return Grant{}, false
	}
	n := c.lookup(req.Name, 0)
	if n == nil || n.key != req.Key || n.owner != req.Owner {
		return Grant{}, false
	}
	return n.grant(), true
}

// grantNow grants the request if it conflicts with no lock held.
func (c *core) grantNow(req *Request) (Grant, bool) {
	if req.Class == Flock {
		if s := c.convert(req); s != nil {
			return Grant{Since: s.since}, true
		}
	}
	if c.blocked(req) && !c.grantsWrongly(req) {
		return Grant{}, false
	}
	return c.grant(req, 0), true
}

// convert does what flock(2) does first: a lock of the owner in the other mode
// is dropped, and who waits for it goes ahead; one in this mode stays, and is
// returned.
func (c *core) convert(req *Request) *seg {
	h := c.find(Flock, req.Name, req.Owner)
	if h == nil {
		return nil
	}
	s := h.segs.first()
	if s.mode == req.Mode {
		c.learn(h.owner, req)
		return s
	}
	c.giveBackAll(h, Whole)
	c.wake()
	return nil
}

// blocked: the request conflicts with a lock held.
func (c *core) blocked(req *Request) bool {
	if req.Class == Named {
		return c.blockerOf(req) != nil
	}
	r := c.resource(req.Class, req.Name)
	if r == nil {
		return false
	}
	b := r.blockers(req.Range, req.Mode)
	return b != nil && (b == several || b.key != req.Owner)
}

// blockerOf returns the lock held that keeps a Named request from being
// granted: that of its name, else its guard; nil if there is none.
func (c *core) blockerOf(req *Request) *named {
	if n := c.lookup(req.Name, 0); n != nil {
		return n
	}
	if req.Guard == "" {
		return nil
	}
	if g := c.lookup(req.Guard, 0); g != nil && g.owner != req.Owner {
		return g
	}
	return nil
}

// grant gives the request, which conflicts with nothing, its lock.
func (c *core) grant(req *Request, waited time.Duration) Grant {
	g := Grant{Since: c.now}
	if req.Class == Named {
		g = c.takeName(req)
	} else {
		c.take(req)
	}
	c.stats.Granted[req.Class]++
	e := c.emitRequest(EventGranted, req)
	e.Token, e.Waited = g.Token, waited
	return g
}
