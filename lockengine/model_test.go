package lockengine

import (
	"errors"
	"slices"
	"time"
)

// The model is a second engine that is as simple as can be: one cell for each
// of eight bytes, and a linear search for everything. It shares the vocabulary
// with the engine and no code.

const cells = 8

type mCell struct {
	mode     Mode
	handle   uint64
	pid, tid int32
}

type mName struct {
	token, handle    uint64
	owner            Owner
	expiry           int64 // 0: a hold
	start, prevStart int64
	pid, tid         int32
}

type mWait struct {
	id  WaiterID
	req Request
	due int64 // of a place kept
}

type mKey struct {
	class Class
	name  string
	owner Owner
}

// mOutcome is what a step brings to one who waits.
type mOutcome struct {
	id    WaiterID
	token uint64
	err   error
}

type model struct {
	now       Instant
	kinds     map[Owner]OwnerKind
	locks     map[mKey]*[cells]mCell // Record, Flock
	names     map[string]*mName
	ended     map[string][2]int64 // start, at
	waits     []mWait
	places    []mWait
	lastID    WaiterID
	lastToken uint64
	out       []mOutcome

	deadlocks, possible uint64
}

func newModel(kinds map[Owner]OwnerKind) *model {
	return &model{kinds: kinds, locks: map[mKey]*[cells]mCell{}, names: map[string]*mName{}, ended: map[string][2]int64{}}
}

// mHolder is one who holds something that is in the way.
type mHolder struct {
	owner    Owner
	pid, tid int32
}

// conflicts lists who is in the way of a request, once a cell.
func (m *model) conflicts(r Request) (out []mHolder) {
	if r.Class == Named {
		if n := m.names[r.Name]; n != nil {
			h := mHolder{owner: n.owner}
			if n.expiry == 0 {
				h.pid, h.tid = n.pid, n.tid
			}
			out = append(out, h)
		}
		return out
	}
	for key, row := range m.locks {
		if key.class != r.Class || key.name != r.Name || key.owner == r.Owner {
			continue
		}
		for i, c := range row {
			if r.covers(i) && c.mode != 0 && (c.mode == Exclusive || r.Mode == Exclusive) {
				out = append(out, mHolder{key.owner, c.pid, c.tid})
			}
		}
	}
	return out
}

func (r Request) covers(i int) bool {
	return r.Class == Flock || r.Range.Start <= uint64(i) && uint64(i) < r.Range.End
}

func (m *model) give(r Request, id WaiterID) (token uint64) {
	if r.Class == Named {
		token = max(uint64(m.now.Wall/1000), m.lastToken+1)
		m.lastToken = token
		n := &mName{token: token, handle: r.Handle, owner: r.Owner, pid: r.Who.PID, tid: r.Who.TID}
		n.start = m.now.Wall / 1e9
		if r.Timeout > 0 {
			n.expiry = m.now.Boot + int64(r.Timeout)
		}
		if e, ok := m.ended[r.Name]; ok && m.now.Boot-e[1] <= 2e9 {
			n.prevStart = e[0]
		}
		m.names[r.Name] = n
	} else {
		m.set(r)
	}
	if id != 0 {
		m.out = append(m.out, mOutcome{id: id, token: token})
	}
	return token
}

func (m *model) set(r Request) {
	key := mKey{r.Class, r.Name, r.Owner}
	row := m.locks[key]
	if row == nil {
		row = &[cells]mCell{}
		m.locks[key] = row
	}
	c := mCell{r.Mode, r.Handle, r.Who.PID, r.Who.TID}
	first, last := -1, -1
	for i := range row {
		if r.covers(i) {
			row[i] = c
			last = i
			if first < 0 {
				first = i
			}
		}
	}
	for i := first - 1; i >= 0 && row[i].mode == r.Mode; i-- {
		row[i] = c
	}
	for i := last + 1; i < cells && row[i].mode == r.Mode; i++ {
		row[i] = c
	}
}

// settle is the rule: grant the earliest that nothing is in the way of, and
// start again.
func (m *model) settle() {
	for {
		i := slices.IndexFunc(m.waits, func(w mWait) bool { return len(m.conflicts(w.req)) == 0 })
		if i < 0 {
			return
		}
		w := m.waits[i]
		m.waits = slices.Delete(m.waits, i, i+1)
		m.give(w.req, w.id)
	}
}

func (m *model) advance(now Instant) {
	m.now = now
	for {
		var due string
		for name, n := range m.names {
			if n.expiry == 0 || n.expiry > now.Boot {
				continue
			}
			if d := m.names[due]; d == nil || n.expiry < d.expiry || n.expiry == d.expiry && n.token < d.token {
				due = name
			}
		}
		if due == "" {
			break
		}
		m.end(due)
		m.settle()
	}
	m.places = slices.DeleteFunc(m.places, func(p mWait) bool { return p.due <= now.Boot })
}

func (m *model) end(name string) {
	m.ended[name] = [2]int64{m.names[name].start, m.now.Boot}
	delete(m.names, name)
}

// now grants at once if it can.
func (m *model) grantNow(r Request) (token uint64, ok bool) {
	if r.Class == Flock {
		if row := m.locks[mKey{Flock, r.Name, r.Owner}]; row != nil && row[0].mode != 0 {
			if row[0].mode == r.Mode {
				return 0, true
			}
			*row = [cells]mCell{}
			m.settle()
		}
	}
	if len(m.conflicts(r)) > 0 {
		return 0, false
	}
	return m.give(r, 0), true
}

func (m *model) try(r Request) (uint64, error) {
	token, ok := m.grantNow(r)
	if !ok {
		return 0, ErrHeld
	}
	m.settle()
	return token, nil
}

func (m *model) samePlace(r Request) int {
	best := -1
	for i, p := range m.places {
		same := p.req.Class == r.Class && p.req.Name == r.Name && p.req.Owner == r.Owner &&
			(r.Class == Named || p.req.Mode == r.Mode && p.req.Handle == r.Handle) &&
			(r.Class != Record || p.req.Range == r.Range)
		if same && (best < 0 || p.id < m.places[best].id) {
			best = i
		}
	}
	return best
}

func (m *model) wait(r Request) (uint64, WaiterID, error) {
	token, ok := m.grantNow(r)
	if !ok && r.Class == Record && m.cycle(r, false) {
		m.dropPlace(r)
		m.deadlocks++
		return 0, 0, ErrDeadlock
	}
	if ok {
		m.dropPlace(r)
		m.settle()
		return token, 0, nil
	}
	if r.Class == Record && m.cycle(r, true) || m.partyCycle(r) {
		m.possible++
	}
	id := m.dropPlace(r)
	if id == 0 {
		m.lastID++
		id = m.lastID
	}
	m.waits = append(m.waits, mWait{id: id, req: r})
	slices.SortFunc(m.waits, func(a, b mWait) int { return int(a.id) - int(b.id) })
	return 0, id, nil
}

func (m *model) dropPlace(r Request) WaiterID {
	i := m.samePlace(r)
	if i < 0 {
		return 0
	}
	id := m.places[i].id
	m.places = slices.Delete(m.places, i, i+1)
	return id
}

// cycle: waiting would close a cycle of record owners, of processes only or of
// any kind.
func (m *model) cycle(r Request, any bool) bool {
	if !any && m.kinds[r.Owner] == KindDescription {
		return false
	}
	seen := map[Owner]bool{}
	var reaches func(h mHolder) bool
	reaches = func(h mHolder) bool {
		if h.owner == r.Owner {
			return true
		}
		if seen[h.owner] || !any && m.kinds[h.owner] == KindDescription {
			return false
		}
		seen[h.owner] = true
		for _, w := range m.waits {
			if w.req.Class == Record && w.req.Owner == h.owner && slices.ContainsFunc(m.conflicts(w.req), reaches) {
				return true
			}
		}
		return false
	}
	return slices.ContainsFunc(m.conflicts(r), reaches)
}

func (m *model) partyCycle(r Request) bool {
	if r.Who.PID == 0 {
		return false
	}
	seen := map[int32]bool{}
	var reaches func(from int32) func(h mHolder) bool
	reaches = func(from int32) func(h mHolder) bool {
		return func(h mHolder) bool {
			if h.pid == r.Who.PID {
				return from != r.Who.PID || h.tid == r.Who.TID
			}
			if h.pid == 0 || seen[h.pid] {
				return false
			}
			seen[h.pid] = true
			for _, w := range m.waits {
				if w.req.Who.PID == h.pid && slices.ContainsFunc(m.conflicts(w.req), reaches(h.pid)) {
					return true
				}
			}
			return false
		}
	}
	return slices.ContainsFunc(m.conflicts(r), reaches(r.Who.PID))
}

func (m *model) cancel(id WaiterID, keep bool) bool {
	i := slices.IndexFunc(m.waits, func(w mWait) bool { return w.id == id })
	if i < 0 {
		return false
	}
	if keep {
		w := m.waits[i]
		w.due = m.now.Boot + int64(time.Second)
		m.places = append(m.places, w)
	}
	m.waits = slices.Delete(m.waits, i, i+1)
	return true
}

func (m *model) unlock(class Class, name string, owner Owner, rng Range) {
	row := m.locks[mKey{class, name, owner}]
	if row == nil {
		return
	}
	for i := range row {
		if (Request{Class: class, Range: rng}).covers(i) {
			row[i] = mCell{}
		}
	}
	m.settle()
}

func (m *model) dropOwner(name string, owner Owner) {
	m.places = slices.DeleteFunc(m.places, func(p mWait) bool {
		return p.req.Class == Record && p.req.Name == name && p.req.Owner == owner
	})
	m.unlock(Record, name, owner, Whole)
}

func (m *model) dropHandle(handle uint64) {
	of := func(w mWait) bool { return w.req.Handle == handle }
	for _, w := range m.waits {
		if of(w) {
			m.out = append(m.out, mOutcome{id: w.id, err: ErrCanceled})
		}
	}
	m.waits = slices.DeleteFunc(m.waits, of)
	m.places = slices.DeleteFunc(m.places, of)
	for _, row := range m.locks {
		for i := range row {
			if row[i].handle == handle {
				row[i] = mCell{}
			}
		}
	}
	for name, n := range m.names {
		if n.handle == handle {
			m.end(name)
		}
	}
	m.settle()
}

func (m *model) release(name string, token uint64) error {
	n := m.names[name]
	if n == nil || token != 0 && n.token != token {
		return ErrNotHeld
	}
	m.end(name)
	m.settle()
	return nil
}

func (m *model) renew(name string, timeout time.Duration, extend bool, limit time.Duration) error {
	n := m.names[name]
	if n == nil {
		return ErrNotHeld
	}
	at := m.now.Boot + int64(timeout)
	if extend {
		at = n.expiry + int64(timeout)
	}
	if n.expiry == 0 || timeout <= 0 || limit != 0 && at-m.now.Boot > int64(limit) {
		return ErrInvalid
	}
	n.expiry = at
	return nil
}

// test returns who is in the way with the lowest start, and there with the
// lowest owner.
func (m *model) test(r Request) (owner Owner, start uint64, found bool) {
	for key, row := range m.locks {
		if key.class != r.Class || key.name != r.Name || key.owner == r.Owner {
			continue
		}
		for i, c := range row {
			if !r.covers(i) || c.mode == 0 || c.mode == Shared && r.Mode == Shared {
				continue
			}
			from := i
			for from > 0 && row[from-1].mode == c.mode {
				from--
			}
			at := uint64(from)
			if !found || at < start || at == start && key.owner.ID < owner.ID {
				owner, start, found = key.owner, at, true
			}
		}
	}
	return owner, start, found
}

var errAny = []error{ErrHeld, ErrDeadlock, ErrInvalid, ErrNotHeld, ErrCanceled}

// sameError: both are nil or the same of the engine's errors.
func sameError(a, b error) bool {
	for _, e := range errAny {
		if errors.Is(a, e) != errors.Is(b, e) {
			return false
		}
	}
	return (a == nil) == (b == nil)
}
