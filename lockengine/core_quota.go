package lockengine

// quota bounds what one user, by the uid of who asked, has at once: locks held
// and requests that wait, counted together. The counts are part of the state;
// the bound is not, and a replay has none: what was granted stays granted, also
// if the bound is lower now.
type quota struct {
	max  int            // 0: no bound
	root bool           // uid 0 is bound too
	all  int            // of all users
	used map[uint32]int // by uid, but for the last user; nobody has 0
	last struct {       // the user counted last: mostly the next one too
		uid uint32
		n   int
	}
}

// count counts n more (or fewer) for a user.
func (q *quota) count(uid uint32, n int) {
	if uid != q.last.uid {
		q.turn(uid)
	}
	q.last.n += n
	q.all += n
}

// tight says whether a user could be over the bound by one request at all: it adds
// a lock, and at most one more by making a hole in another.
func (q *quota) tight() bool { return q.max > 0 && q.all+2 > q.max }

// turn makes a user the last one.
//
//go:noinline
func (q *quota) turn(uid uint32) {
	if q.last.n != 0 {
		q.used[q.last.uid] = q.last.n
	}
	q.last.uid, q.last.n = uid, q.used[uid]
	delete(q.used, uid)
}

// of is how many a user has.
func (q *quota) of(uid uint32) int {
	if uid == q.last.uid {
		return q.last.n
	}
	return q.used[uid]
}

// over says whether n more would be too many. Who is over the bound already
// may still have fewer, or the same.
func (q *quota) over(uid uint32, n int) bool {
	return q.max > 0 && n > 0 && (uid != 0 || q.root) && q.of(uid)+n > q.max
}

// overQuota says whether the request, granted now, or waiting if it is
// blocked, would be too much for a user. What it replaces makes room for it.
// (What a wait ends with is not asked for again: a lock in the middle of
// another one then makes one more than was counted.)
// It is asked only if the quota is tight.
func (c *core) overQuota(req *Request, blocked bool) bool {
	uid, n := req.Who.UID, 1
	h := c.find(req)
	if h == nil || blocked && req.Class == Record {
		return c.quota.over(uid, n)
	}
	// A flock that is converted is dropped first, also if the request then waits.
	for s := h.touching(req.Range.Start); s != nil && s.Start <= req.Range.End; s = h.after(s.End) {
		d := s.pieces(req.Range, req.Mode) - 1
		if s.who.UID == uid {
			n += d
		} else if c.quota.over(s.who.UID, d) {
			return true
		}
	}
	return c.quota.over(uid, n)
}

// refusesQuota: the request would be too much for a user, and is refused.
func (c *core) refusesQuota(cmd *command, res *result) bool {
	req := cmd.req
	blocked := c.blocked(req)
	if blocked && cmd.op == opTry || !c.overQuota(req, blocked) {
		return false
	}
	c.refuseQuota(res)
	return true
}

func (c *core) refuseQuota(res *result) {
	c.stats.OverQuota++
	res.err = ErrQuota
}

// pieces is how many segments are left of one that a new one of its owner
// overlaps or touches.
func (s *seg) pieces(rng Range, mode Mode) (n int) {
	switch {
	case s.mode == mode:
		return 0 // merged
	case !s.overlaps(rng):
		return 1
	}
	return s.around(rng)
}

// around is how many pieces of a segment are left without rng, which overlaps it.
func (s *seg) around(rng Range) (n int) {
	if s.Start < rng.Start {
		n++
	}
	if s.End > rng.End {
		n++
	}
	return n
}

// splitsOverQuota says whether to give back rng would leave a user with more
// locks than before, and too many: this alone, a hole in one lock, can fail.
// Else locks without end could be had by making holes. It is asked only if the
// quota is tight.
func (c *core) splitsOverQuota(h *holding, rng Range) bool {
	s := h.touching(rng.Start + 1)
	return s != nil && s.overlaps(rng) && c.quota.over(s.who.UID, s.around(rng)-1)
}
