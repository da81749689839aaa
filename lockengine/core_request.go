package lockengine

import "time"

// normalize fills in what is ignored in a request of this class and says
// whether it makes sense.
func normalize(req *Request) bool {
	switch req.Class {
	case Named:
		req.Mode, req.Range = Exclusive, Whole
	case Flock:
		req.Range = Whole
	case Record:
	default:
		return false
	}
	return (req.Mode == Shared || req.Mode == Exclusive) && req.Range.valid() && req.Name != "" && req.Timeout >= 0
}

// request does opTry and opWait.
func (c *core) request(cmd *command, res *result) {
	req := cmd.req
	if !normalize(req) {
		res.err = ErrInvalid
		return
	}
	if req.Class == Named && c.grantedBefore(req, res) {
		return
	}
	if c.quota.tight() && c.refusesQuota(cmd, res) {
		return
	}
	switch {
	case c.grantNow(req, res):
		if cmd.op == opWait {
			c.answered(req)
		}
	case cmd.op == opWait:
		c.wait(cmd, res)
	default:
		c.refuse(req, res)
	}
}

//go:noinline
func (c *core) refuse(req *Request, res *result) {
	c.stats.Refused[req.Class]++
	if req.Class == Named {
		c.emitRequest(EventRefused, req)
	}
	res.err = ErrHeld
}

// wait makes the request, which conflicts with a lock held, wait, unless that
// would be a deadlock.
func (c *core) wait(cmd *command, res *result) {
	req := cmd.req
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
	w.tell, res.waiter = cmd.tell, w.id
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
	if req.Class == Named {
		if c.blockerOf(req) != nil && !c.grantsWrongly(req) {
			return false
		}
		c.grant(nil, nil, req, 0, &res.grant)
		return true
	}
	r := c.resourceOf(req.Class, req.Name)
	if !r.idle() {
		if req.Class == Flock && c.convert(req, res) {
			return true
		}
		if r.blocks(req) && !c.grantsWrongly(req) {
			return false
		}
	}
	c.grant(r, c.ownerOf(req), req, 0, &res.grant)
	return true
}

// convert does what flock(2) does first: a lock of the owner in the other mode
// is dropped, and who waits for it goes ahead; one in this mode stays, and is
// what is granted.
func (c *core) convert(req *Request, res *result) bool {
	h := c.find(req)
	if h == nil {
		return false
	}
	s := h.segs.first()
	if s.mode == req.Mode {
		c.learn(h.owner, req)
		res.grant.Since = s.since
		return true
	}
	c.giveBackAll(h, Whole)
	c.wake()
	return false
}

// blocked: the request conflicts with a lock held.
func (c *core) blocked(req *Request) bool {
	if req.Class == Named {
		return c.blockerOf(req) != nil
	}
	r := c.resource(req.Class, req.Name)
	return r != nil && r.blocks(req)
}

// blocks: the request conflicts with a lock held here.
func (r *resource) blocks(req *Request) bool {
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

// grant gives the request, which conflicts with nothing, its lock on r for its
// owner (both nil: a named one), as g then tells.
func (c *core) grant(r *resource, o *owner, req *Request, waited time.Duration, g *Grant) {
	if r == nil {
		*g = c.takeName(req)
	} else {
		c.take(r, o, req)
		g.Since = c.now
	}
	c.stats.Granted[req.Class]++
	e := c.emitRequest(EventGranted, req)
	e.Token, e.Waited = g.Token, waited
}
