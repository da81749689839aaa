package lockengine

// placeKey tells whether a request is the same one made again.
type placeKey struct {
	class  Class
	mode   Mode
	name   string
	owner  Owner
	rng    Range
	handle uint64 // 0 for Named: an open made again has a new one
}

// place is the place in a queue of a wait given up for the moment. Nothing
// but the same request made again, and what drops its owner or handle, sees it.
type place struct {
	key    placeKey
	id     WaiterID
	born   uint64 // grows from one to the next
	since  Instant
	due    int64 // Boot
	owner  *owner
	handle *handle
	later  *place // the next one with the same key, by id

	inTable  hook[place]
	ofOwner  hook[place]
	ofHandle hook[place]
}

// placeTable has all places kept. As all are kept for the same time, the list
// is also the order in which they are forgotten.
type placeTable struct {
	byKey map[placeKey]*place // the earliest one with this key
	queue list[place]
}

func (t *placeTable) init() { t.byKey = map[placeKey]*place{} }

func (t *placeTable) deadline() int64 {
	if t.queue.empty() {
		return 0
	}
	return t.queue.first().due
}

func placeKeyOf(req *Request) placeKey {
	k := placeKey{req.Class, req.Mode, req.Name, req.Owner, req.Range, req.Handle}
	if req.Class == Named {
		k.handle = 0
	}
	return k
}

// keepPlace keeps the place of a waiter that is about to be unlinked.
func (c *core) keepPlace(w *waiter) {
	p := &place{key: placeKeyOf(&w.req), id: w.id, since: w.since, due: c.now.Boot + int64(GhostTime)}
	p.owner, p.handle = w.owner, w.handle
	c.addPlace(p)
}

func (c *core) addPlace(p *place) {
	if p.owner != nil {
		p.owner.places.push(p, &p.ofOwner)
	}
	if p.handle != nil {
		p.handle.places.push(p, &p.ofHandle)
	}
	c.births++
	p.born = c.births
	c.places.queue.push(p, &p.inTable)
	head := c.places.byKey[p.key]
	c.places.byKey[p.key] = chainPlace(head, p)
}

// chainPlace puts p in the chain by id and returns the new head.
func chainPlace(head, p *place) *place {
	if head == nil || p.id < head.id {
		p.later = head
		return p
	}
	at := head
	for at.later != nil && at.later.id < p.id {
		at = at.later
	}
	p.later, at.later = at.later, p
	return head
}

// dropPlace takes p out of the chain and returns the new head.
func dropPlace(head, p *place) *place {
	if head == p {
		return p.later
	}
	at := head
	for at.later != p {
		at = at.later
	}
	at.later = p.later
	return head
}

func (c *core) forgetPlace(p *place) {
	c.cut.placeGoes(p)
	if head := dropPlace(c.places.byKey[p.key], p); head == nil {
		delete(c.places.byKey, p.key)
	} else {
		c.places.byKey[p.key] = head
	}
	c.places.queue.remove(&p.inTable)
	if p.owner != nil {
		p.owner.places.remove(&p.ofOwner)
		c.freeOwner(p.owner)
	}
	if p.handle != nil {
		p.handle.places.remove(&p.ofHandle)
		c.freeHandle(p.handle)
	}
}

func (c *core) forgetPlaces(boot int64) {
	for p := c.places.queue.first(); p != nil && p.due <= boot; p = c.places.queue.first() {
		c.forgetPlace(p)
	}
}

// placeOf returns the earliest place kept for the request, nil if there is none.
func (c *core) placeOf(req *Request) *place {
	if c.places.queue.empty() {
		return nil
	}
	return c.keptPlace(req)
}

//go:noinline
func (c *core) keptPlace(req *Request) *place { return c.places.byKey[placeKeyOf(req)] }

// answered forgets the place of a request that got its answer without it.
func (c *core) answered(req *Request) {
	if p := c.placeOf(req); p != nil {
		c.forgetPlace(p)
		c.changes++ // also when the answer itself changes nothing
	}
}
