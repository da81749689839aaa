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

func (c *core) try(req *Request, res *result) {
	if res.err = normalize(req); res.err != nil {
		return
	}
	if req.Class == Named && c.grantedBefore(req, res) {
		return
	}
	if c.quota.tight() && c.overQuota(req, false) && !c.blocked(req) {
		res.err = c.refuseQuota()
		return
	}
	if c.grantNow(req, res) {
		return
	}
	c.stats.Refused[req.Class]++
	if req.Class == Named {
		c.emitRequest(EventRefused, req)
	}
	res.err = ErrHeld
}

func (c *core) wait(req *Request, tell func(Grant, error), res *result) {
	if res.err = normalize(req); res.err != nil {
		return
	}
	if req.Class == Named && c.grantedBefore(req, res) {
		return
	}
	if c.quota.tight() && c.overQuota(req, c.blocked(req)) {
		res.err = c.refuseQuota()
		return
	}
	if c.grantNow(req, res) {
		c.answered(req)
		return
	}
	res.cycle, res.ask = c.judge(req)
	switch {
	case res.ask != nil:
		return
	case res.cycle == cycleCertain:
		c.answered(req)
		c.stats.Deadlocks++
		c.emitRequest(EventDeadlock, req).Refused = true
		res.err = ErrDeadlock
		return
	}
	w := c.enqueue(req)
	w.tell, res.waiter = tell, w.id
	c.emitRequest(EventWaiting, req)
	if res.cycle == cyclePossible {
		c.stats.Possible++
		c.emitRequest(EventDeadlock, req)
	}
}

// grantedBefore: this is a Named request made again, since its answer got lost,
// and its lock is still held. It is granted that, as res tells.
func (c *core) grantedBefore(req *Request, res *result) bool {
	if req.Key == 0 {
		return false
	}
	n := c.lookup(req.Name, 0)
	if n == nil || n.key != req.Key || n.owner != req.Owner {
		return false
	}
	res.grant = n.grant()
	return true
}

// grantNow grants the request, as res then tells, if it conflicts with no lock
// held.
func (c *core) grantNow(req *Request, res *result) bool {
	if req.Class == Flock {
		if s := c.convert(req); s != nil {
			res.grant.Since = s.since
			return true
		}
	}
	if c.blocked(req) && !c.grantsWrongly(req) {
		return false
	}
	res.grant = c.grant(req, 0)
	return true
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
	if r == nil || r.holdings.empty() {
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
