package lockengine

// verdict says what waiting would do to the graph of who waits for whom.
type verdict uint8

const (
	cycleNone verdict = iota
	// cyclePossible: a cycle through somebody who may be more than one, or
	// whose lock others can give back.
	cyclePossible
	// cycleCertain: a cycle of processes through record locks.
	cycleCertain
)

// judge says whether the request, which conflicts with a lock held, would
// close a cycle by waiting. If that depends on what some owners are, it asks. As long
// as nobody both holds and waits it can only be in its own way.
func (c *core) judge(req *Request) (verdict, []question) {
	if c.stuckOwners+c.stuckParties == 0 && !c.inOwnWay(req) {
		return cycleNone, nil
	}
	return c.search(req)
}

// inOwnWay: the request's party may hold something as another owner than that of the
// request.
func (c *core) inOwnWay(req *Request) bool {
	o := c.owner(req.Class, req.Owner)
	if o == nil || o.mixed {
		return true
	}
	p := o.came.party
	return p == nil || p.pid != req.Who.PID || p.held != o.segs
}

// search is judge when there may be a cycle.
//
//go:noinline
func (c *core) search(req *Request) (verdict, []question) {
	v, ask := c.judgeOwners(req)
	if v == cycleNone && ask == nil && c.partyCycle(req) {
		v = cyclePossible
	}
	return v, ask
}

// judgeOwners searches the owners of record locks. Most that wait hold
// nothing, or are the only one who does both: then nothing is searched.
func (c *core) judgeOwners(req *Request) (verdict, []question) {
	if req.Class != Record {
		return cycleNone, nil
	}
	o := c.owner(Record, req.Owner)
	if o == nil || o.segs == 0 || c.stuckOwners-change(false, o.stuck()) == 0 {
		return cycleNone, nil
	}
	c.learn(o, req)
	s := ownerSearch{core: c, newcomer: o}
	if o.kind != KindDescription && s.run(req) {
		ask := s.unknown(req)
		if ask == nil {
			return cycleCertain, nil
		}
		return cycleNone, ask
	}
	s.descriptions = true
	if (o.kind == KindDescription || s.avoided) && s.run(req) {
		return cyclePossible, nil
	}
	return cycleNone, nil
}

// ownerSearch searches from the newcomer's blockers along what they wait for
// until it comes back to the newcomer.
type ownerSearch struct {
	core         *core
	newcomer     *owner
	descriptions bool // may lead through open file descriptions
	avoided      bool // one was met and not entered
	stack        []*owner
	last         *owner // of the cycle found: who waits for the newcomer
}

func (s *ownerSearch) run(req *Request) bool {
	c := s.core
	c.searches++
	s.stack, s.last = s.stack[:0], nil
	if s.expand(nil, c.resource(Record, req.Name), req) {
		return true
	}
	for len(s.stack) > 0 {
		o := s.stack[len(s.stack)-1]
		s.stack = s.stack[:len(s.stack)-1]
		for w := range o.waits.all {
			if s.expand(o, w.group.res, &w.req) {
				s.last = o
				return true
			}
		}
	}
	return false
}

// expand goes on to the owners that a request of o's (nil: the newcomer's)
// waits for, and reports whether the newcomer is one of them.
func (s *ownerSearch) expand(o *owner, r *resource, req *Request) (found bool) {
	skip := func(h *owner) bool {
		return h == o || o == nil && h == s.newcomer || h.seen == s.core.searches
	}
	r.conflicts(req.Range, req.Mode, skip, func(seg *seg) bool {
		h := seg.by.owner
		if h == s.newcomer {
			found = true
			return false
		}
		h.seen, h.from = s.core.searches, o
		switch {
		case h.waits.empty():
		case h.kind == KindDescription && !s.descriptions:
			s.avoided = true
		default:
			s.stack = append(s.stack, h)
		}
		return true
	})
	return found
}

// unknown returns the owners on the cycle found of which must be asked what
// they are, nil if all are processes.
func (s *ownerSearch) unknown(req *Request) (ask []question) {
	if !s.newcomer.isProcess() {
		ask = append(ask, question{s.newcomer.key, req.Who})
	}
	for o := s.last; o != nil; o = o.from {
		if !o.isProcess() {
			ask = append(ask, question{o.key, o.waits.first().req.Who})
		}
	}
	return ask
}

// partyCycle says whether waiting would close a cycle of parties, over locks
// of all classes.
//
// A named lock with a lease counts for nobody: its taker is gone by design
// (mkdir has ended) and its number may be anybody's. That a party waits for
// itself counts only if one thread does both, since threads of one process do
// wait for each other in good order.
func (c *core) partyCycle(req *Request) bool {
	p := c.knownParty(req)
	if p == nil || p.held == 0 {
		return false
	}
	c.searches++
	s := partySearch{core: c, newcomer: p, tid: req.Who.TID}
	if s.expand(nil, req) {
		return true
	}
	if c.stuckParties-change(false, p.stuck()) == 0 {
		return false
	}
	for len(s.stack) > 0 {
		q := s.stack[len(s.stack)-1]
		s.stack = s.stack[:len(s.stack)-1]
		for w := range q.waits.all {
			if s.expand(q, &w.req) {
				return true
			}
		}
	}
	return false
}

type partySearch struct {
	core     *core
	newcomer *party
	tid      int32
	stack    []*party
}

// expand goes on to the parties that a request of q's (nil: the newcomer's)
// waits for, and reports whether that closes the cycle.
func (s *partySearch) expand(q *party, req *Request) (found bool) {
	c := s.core
	if req.Class == Named {
		n := c.blockerOf(req)
		return n != nil && n.pos == 0 && s.reach(q, c.parties[n.who.PID], n.who)
	}
	skip := func(o *owner) bool { return o != several && o.key == req.Owner }
	c.resource(req.Class, req.Name).conflicts(req.Range, req.Mode, skip, func(seg *seg) bool {
		found = s.reach(q, seg.party, seg.who)
		return !found
	})
	return found
}

func (s *partySearch) reach(from, p *party, who Who) bool {
	switch {
	case p == nil || p == from:
		return false
	case p == s.newcomer:
		return from != nil || s.tid != 0 && s.tid == who.TID
	case p.seen != s.core.searches:
		p.seen = s.core.searches
		if p.stuck() {
			s.stack = append(s.stack, p)
		}
	}
	return false
}
