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
	since    Instant
}

type mName struct {
	token, handle, key uint64
	owner              Owner
	since, expiry      Instant // expiry zero: a hold
	timeout            time.Duration
	start, prevStart   int64
	who                Who
	note               string
	set                int64 // Boot at which the expiry was last set
	watches            []WatchID
}

type mWait struct {
	id    WaiterID
	req   Request
	since Instant
	due   int64 // of a place kept
}

type mKey struct {
	class Class
	name  string
	owner Owner
}

// mOutcome is what a step brings to one who waits or watches, or a lease that
// ran out.
type mOutcome struct {
	id    WaiterID
	token uint64
	err   error
	watch WatchID
	end   End
	name  string
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
	lastWatch WatchID
	lastToken uint64
	out       []mOutcome

	deadlocks, possible, expired, forced uint64
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
		n := m.names[r.Name]
		if guard := m.names[r.Guard]; n == nil && guard != nil && guard.owner != r.Owner {
			n = guard
		}
		if n != nil {
			h := mHolder{owner: n.owner}
			if n.timeout == 0 {
				h.pid, h.tid = n.who.PID, n.who.TID
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
		n := &mName{token: token, handle: r.Handle, key: r.Key, owner: r.Owner, who: r.Who, since: m.now, timeout: r.Timeout}
		n.start, n.set = m.now.Wall/1e9, m.now.Boot
		if r.Timeout > 0 {
			n.expiry = Instant{m.now.Boot + int64(r.Timeout), m.now.Wall + int64(r.Timeout)}
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
	c := mCell{r.Mode, r.Handle, r.Who.PID, r.Who.TID, m.now}
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
			if n.timeout == 0 || n.expiry.Boot > now.Boot {
				continue
			}
			at := n.expiry.Boot
			if d := m.names[due]; d == nil || at < d.expiry.Boot || at == d.expiry.Boot && n.token < d.token {
				due = name
			}
		}
		if due == "" {
			break
		}
		m.expired++
		m.out = append(m.out, mOutcome{name: due, token: m.names[due].token})
		m.end(due, Expired)
		m.settle()
	}
	m.places = slices.DeleteFunc(m.places, func(p mWait) bool { return p.due <= now.Boot })
}

func (m *model) end(name string, how End) {
	for _, id := range m.names[name].watches {
		m.out = append(m.out, mOutcome{watch: id, end: how})
	}
	m.ended[name] = [2]int64{m.names[name].start, m.now.Boot}
	delete(m.names, name)
}

// again is the token of a Named lock that this very request took.
func (m *model) again(r Request) (token uint64, ok bool) {
	n := m.names[r.Name]
	if r.Class != Named || r.Key == 0 || n == nil || n.key != r.Key || n.owner != r.Owner {
		return 0, false
	}
	return n.token, true
}

// grantNow grants at once if it can.
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
	if token, ok := m.again(r); ok {
		return token, nil
	}
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
	if token, ok := m.again(r); ok {
		return token, 0, nil
	}
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
	place := m.dropPlace(r)
	w := mWait{id: place.id, req: r, since: place.since}
	if w.id == 0 {
		m.lastID++
		w.id = m.lastID
	}
	if place.id == 0 || r.Class == Named { // an open made again is another call
		w.since = m.now
	}
	m.waits = append(m.waits, w)
	slices.SortFunc(m.waits, func(a, b mWait) int { return int(a.id) - int(b.id) })
	return 0, w.id, nil
}

func (m *model) dropPlace(r Request) (place mWait) {
	if i := m.samePlace(r); i >= 0 {
		place = m.places[i]
		m.places = slices.Delete(m.places, i, i+1)
	}
	return place
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
		if handle != 0 && n.handle == handle {
			m.end(name, Released)
		}
	}
	m.settle()
}

// held is the lock on a name, if it has this token (0: any).
func (m *model) held(name string, token uint64) *mName {
	n := m.names[name]
	if n == nil || token != 0 && n.token != token {
		return nil
	}
	return n
}

func (m *model) release(name string, token uint64, how End) error {
	if how == Expired {
		return ErrInvalid
	}
	if m.held(name, token) == nil {
		return ErrNotHeld
	}
	if how == Forced {
		m.forced++
	}
	m.end(name, how)
	m.settle()
	return nil
}

func (m *model) renew(name string, token uint64, timeout time.Duration, extend bool, limit time.Duration) error {
	n := m.held(name, token)
	if n == nil {
		return ErrNotHeld
	}
	at := m.now.Boot + int64(timeout)
	if extend {
		at = n.expiry.Boot + int64(timeout)
	}
	left := at - m.now.Boot
	if n.timeout == 0 || timeout <= 0 || limit != 0 && left > int64(limit) {
		return ErrInvalid
	}
	n.timeout, n.expiry, n.set = timeout, Instant{at, m.now.Wall + left}, m.now.Boot
	return nil
}

// setTimes moves a lease: with its start, or to so many seconds after it.
func (m *model) setTimes(name string, token uint64, ofStart bool, second int64, limit time.Duration) error {
	n := m.held(name, token)
	if n == nil {
		return ErrNotHeld
	}
	wall := (n.start + second) * 1e9
	if ofStart {
		wall = n.expiry.Wall + (second-n.start)*1e9
	}
	left := wall - m.now.Wall
	if n.timeout == 0 || second < 0 || limit != 0 && left > int64(limit) {
		return ErrInvalid
	}
	if ofStart {
		n.start = second
	} else {
		for n.timeout = time.Second; int64(n.timeout) < left; n.timeout += time.Second {
		}
	}
	n.expiry, n.set = Instant{m.now.Boot + left, wall}, m.now.Boot
	return nil
}

// change does to the lock on a name what is no matter to anything else.
func (m *model) change(name string, token uint64, do func(*mName)) error {
	n := m.held(name, token)
	if n == nil {
		return ErrNotHeld
	}
	do(n)
	return nil
}

func (m *model) watch(name string, token uint64, id WatchID) error {
	n := m.held(name, token)
	switch {
	case n == nil:
		return ErrNotHeld
	case id <= m.lastWatch:
		return ErrInvalid
	}
	n.watches = append(n.watches, id)
	m.lastWatch = id
	return nil
}

func (m *model) unwatch(id WatchID) bool {
	for _, n := range m.names {
		if i := slices.Index(n.watches, id); i >= 0 {
			n.watches = slices.Delete(n.watches, i, i+1)
			return true
		}
	}
	return false
}

// close ends all waits.
func (m *model) close() {
	for _, w := range m.waits {
		m.out = append(m.out, mOutcome{id: w.id, err: ErrClosed})
	}
	m.waits = nil
}

// forgetClients leaves only what lives without them: timed locks, which are
// nobody's any more.
func (m *model) forgetClients() {
	m.waits, m.places, m.locks = nil, nil, map[mKey]*[cells]mCell{}
	for name, n := range m.names {
		n.watches, n.handle, n.key = nil, 0, 0
		if n.timeout == 0 {
			m.end(name, Lost)
		}
	}
}

// reboot moves what is left to new clocks; what leases there are then is given.
func (m *model) reboot(now Instant, expiry map[string]Instant) {
	m.now = now
	m.ended = map[string][2]int64{}
	m.forgetClients()
	for name, n := range m.names {
		n.since.Boot = now.Boot - max(0, now.Wall-n.since.Wall)
		n.expiry, n.set = expiry[name], now.Boot
	}
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

var errAny = []error{ErrHeld, ErrDeadlock, ErrInvalid, ErrNotHeld, ErrCanceled, ErrClosed}

// sameError: both are nil or the same of the engine's errors.
func sameError(a, b error) bool {
	for _, e := range errAny {
		if errors.Is(a, e) != errors.Is(b, e) {
			return false
		}
	}
	return (a == nil) == (b == nil)
}
