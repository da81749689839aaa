package lockengine

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The owners of the model tests. Of 2 and 4 nothing is told; who asks is told
// the truth by kinds.
var (
	modelKinds = map[Owner]OwnerKind{
		{1, 1}: KindProcess, {1, 2}: KindProcess, {1, 3}: KindDescription, {1, 4}: KindDescription,
	}
	modelTold = map[uint64]OwnerKind{1: KindProcess, 3: KindDescription}
)

const (
	modelOwners = 4
	modelNames  = 3
)

// duel gives the same commands to the core and to the model, and compares.
type duel struct {
	t     *testing.T
	data  []byte
	core  *core
	model *model
	now   Instant
	ids   []WaiterID
	step  string
}

func newDuel(t *testing.T, data []byte) *duel {
	d := &duel{t: t, data: data, core: newCore(64), model: newModel(modelKinds), now: Instant{Boot: 1e9, Wall: 1_700_000_000e9}}
	d.model.now = d.now
	d.core.advance(d.now)
	return d
}

// n is a number below limit from the data, 0 at its end.
func (d *duel) n(limit int) int {
	if len(d.data) == 0 {
		return 0
	}
	b := d.data[0]
	d.data = d.data[1:]
	return int(b) % limit
}

func (d *duel) run() {
	for len(d.data) > 0 {
		d.one()
		d.compare()
	}
	d.dropAll()
}

func (d *duel) one() {
	switch k := d.n(20); {
	case k < 4:
		d.try()
	case k < 10:
		d.wait()
	case k < 13:
		d.unlock()
	case k < 14:
		d.cancel()
	case k < 15:
		d.dropOwner()
	case k < 16:
		d.dropHandle()
	case k < 17:
		d.release()
	case k < 18:
		d.renew()
	default:
		d.pass()
	}
}

func (d *duel) name() string { return string(rune('a' + d.n(modelNames))) }
func (d *duel) owner() Owner { return Owner{1, uint64(1 + d.n(modelOwners))} }

func (d *duel) rng() Range {
	start := d.n(cells)
	return Range{uint64(start), uint64(start + 1 + d.n(cells-start))}
}

func (d *duel) request() Request {
	r := Request{Class: Class(1 + d.n(3)), Name: d.name(), Owner: d.owner(), Mode: Mode(1 + d.n(2))}
	if r.Class != Named || d.n(2) == 0 {
		r.Class = []Class{Record, Record, Record, Flock}[d.n(4)]
	}
	r.Range = d.rng()
	r.Kind = modelTold[r.Owner.ID]
	r.Handle = 10 * r.Owner.ID
	if modelKinds[r.Owner] == KindProcess {
		r.Handle += uint64(d.n(2))
	}
	if k := int32(d.n(4)); k > 0 {
		r.Who = Who{PID: int32(r.Owner.ID), TID: k, UID: uint32(k)}
	}
	if r.Class == Named {
		r.Timeout = time.Duration(d.n(4)) * 700 * time.Millisecond
	}
	return r
}

// apply gives the core a command, and compares what it completes.
func (d *duel) apply(cmd command) result {
	d.t.Helper()
	res := d.core.apply(&cmd, d.now)
	for res.ask != nil {
		answer := command{op: opClassify}
		for _, q := range res.ask {
			answer.kinds = append(answer.kinds, ownerKind{q.owner, modelKinds[q.owner]})
		}
		d.core.apply(&answer, d.now)
		res = d.core.apply(&cmd, d.now)
	}
	return res
}

func (d *duel) try() {
	r := d.request()
	d.step = fmt.Sprintf("try %+v", r)
	token, err := d.model.try(r)
	res := d.apply(command{op: opTry, req: r})
	require.True(d.t, sameError(err, res.err), "%s: %v, want %v", d.step, res.err, err)
	require.Equal(d.t, token, res.grant.Token, d.step)
}

func (d *duel) wait() {
	r := d.request()
	d.step = fmt.Sprintf("wait %+v", r)
	token, id, err := d.model.wait(r)
	res := d.apply(command{op: opWait, req: r})
	require.True(d.t, sameError(err, res.err), "%s: %v, want %v", d.step, res.err, err)
	require.Equal(d.t, id, res.waiter, d.step)
	require.Equal(d.t, token, res.grant.Token, d.step)
	if id != 0 {
		d.ids = append(d.ids, id)
	}
}

func (d *duel) unlock() {
	class, name, owner, rng := []Class{Record, Record, Flock}[d.n(3)], d.name(), d.owner(), d.rng()
	if d.n(2) == 0 {
		rng = Whole
	}
	d.step = fmt.Sprintf("unlock %v %q %v %v", class, name, owner, rng)
	d.model.unlock(class, name, owner, rng)
	d.apply(command{op: opUnlock, req: Request{Class: class, Name: name, Owner: owner, Range: rng}})
}

func (d *duel) cancel() {
	if len(d.ids) == 0 {
		return
	}
	id, keep := d.ids[len(d.ids)-1-d.n(min(len(d.ids), 8))], d.n(3) > 0
	d.step = fmt.Sprintf("cancel %d %v", id, keep)
	want := d.model.cancel(id, keep)
	require.Equal(d.t, want, d.apply(command{op: opCancel, waiter: id, keep: keep}).ok, d.step)
}

func (d *duel) dropOwner() {
	name, owner := d.name(), Owner{1, uint64(1 + d.n(2))}
	d.step = fmt.Sprintf("drop owner %q %v", name, owner)
	d.model.dropOwner(name, owner)
	d.apply(command{op: opDropOwner, req: Request{Name: name, Owner: owner}})
}

func (d *duel) dropHandle() {
	handle := uint64(10*(1+d.n(modelOwners)) + d.n(2))
	d.step = fmt.Sprintf("drop handle %d", handle)
	d.model.dropHandle(handle)
	d.apply(command{op: opDropHandle, req: Request{Handle: handle}})
}

func (d *duel) release() {
	name, token := d.name(), uint64(0)
	if n := d.model.names[name]; n != nil && d.n(2) == 0 {
		token = n.token - uint64(d.n(2))
	}
	d.step = fmt.Sprintf("release %q %d", name, token)
	err := d.model.release(name, token)
	res := d.apply(command{op: opRelease, req: Request{Name: name}, token: token, how: Released})
	require.True(d.t, sameError(err, res.err), "%s: %v, want %v", d.step, res.err, err)
}

func (d *duel) renew() {
	name, extend := d.name(), d.n(2) == 0
	timeout, limit := time.Duration(d.n(4))*500*time.Millisecond, time.Duration(d.n(3))*time.Second
	d.step = fmt.Sprintf("renew %q %v %v %v", name, timeout, extend, limit)
	err := d.model.renew(name, timeout, extend, limit)
	cmd := command{op: opRenew, req: Request{Name: name, Timeout: timeout}, extend: extend, max: int64(limit)}
	res := d.apply(cmd)
	require.True(d.t, sameError(err, res.err), "%s: %v, want %v", d.step, res.err, err)
}

// pass lets time pass; the wall clock may be stepped.
func (d *duel) pass() {
	by := int64(d.n(12)) * 100e6
	d.now.Boot += by
	d.now.Wall += by
	switch d.n(8) {
	case 0:
		d.now.Wall += 3600e9
	case 1:
		d.now.Wall -= 3600e9
	}
	d.step = fmt.Sprintf("pass %v", time.Duration(by))
	d.model.advance(d.now)
	d.apply(command{op: opTick})
}

func (d *duel) compare() {
	d.t.Helper()
	require.NoError(d.t, d.core.checkInvariants(), d.step)
	var out []mOutcome
	for _, c := range d.core.done {
		if c.name == "" { // an expiry is in the events too
			out = append(out, mOutcome{c.waiter, c.grant.Token, c.err})
		}
	}
	byErr := func(o mOutcome) bool { return o.err == nil }
	if !slices.ContainsFunc(out, byErr) { // those dropped with a handle are in no order
		slices.SortFunc(d.model.out, func(a, b mOutcome) int { return int(a.id) - int(b.id) })
		slices.SortFunc(out, func(a, b mOutcome) int { return int(a.id) - int(b.id) })
	}
	require.ElementsMatch(d.t, d.model.out, out, d.step)
	granted := func(all []mOutcome) []mOutcome {
		return slices.DeleteFunc(slices.Clone(all), func(o mOutcome) bool { return o.err != nil })
	}
	require.Equal(d.t, granted(d.model.out), granted(out), d.step)
	d.model.out, d.core.done = nil, nil
	require.Equal(d.t, d.model.deadlocks, d.core.stats.Deadlocks, d.step)
	require.Equal(d.t, d.model.possible, d.core.stats.Possible, d.step)
	d.compareLocks()
	d.compareNames()
	d.compareTest()
}

func (d *duel) compareLocks() {
	got := map[mKey]*[cells]mCell{}
	for _, s := range d.core.segsInOrder() {
		l := s.lock()
		key := mKey{l.Class, l.Name, l.Owner}
		if got[key] == nil {
			got[key] = &[cells]mCell{}
		}
		for i := range cells {
			if l.Range.Start <= uint64(i) && uint64(i) < l.Range.End {
				got[key][i] = mCell{l.Mode, l.Handle, l.Who.PID, l.Who.TID}
			}
		}
	}
	want := map[mKey]*[cells]mCell{}
	for key, row := range d.model.locks {
		if *row != ([cells]mCell{}) {
			want[key] = row
		}
	}
	require.Equal(d.t, want, got, d.step)
}

func (d *duel) compareNames() {
	require.Len(d.t, d.core.names.byName, len(d.model.names), d.step)
	for name, want := range d.model.names {
		l, ok := d.core.get(name)
		require.True(d.t, ok, d.step)
		got := mName{l.Token, l.Handle, l.Owner, l.Expiry.Boot, l.Start, l.PrevStart, l.Who.PID, l.Who.TID}
		require.Equal(d.t, *want, got, "%s: %q", d.step, name)
	}
}

func (d *duel) compareTest() {
	r := d.request()
	if r.Class == Named {
		return
	}
	owner, start, found := d.model.test(r)
	l, ok := d.core.test(&r)
	require.Equal(d.t, found, ok, "%s; test %+v", d.step, r)
	if ok {
		require.Equal(d.t, owner, l.Owner, "%s; test %+v", d.step, r)
		require.Equal(d.t, start, l.Range.Start, "%s; test %+v", d.step, r)
	}
}

// dropAll ends everything there is; then nothing may be left.
func (d *duel) dropAll() {
	for _, w := range slices.Clone(d.model.waits) {
		d.apply(command{op: opCancel, waiter: w.id})
	}
	for key := range d.model.locks {
		d.apply(command{op: opUnlock, req: Request{Class: key.class, Name: key.name, Owner: key.owner, Range: Whole}})
	}
	for name := range d.model.names {
		d.apply(command{op: opRelease, req: Request{Name: name}, how: Released})
	}
	d.now.Boot += 3e9
	d.apply(command{op: opTick})
	require.NoError(d.t, d.core.checkInvariants())
	require.True(d.t, d.core.empty())
	require.Empty(d.t, d.core.names.ended)
	require.Zero(d.t, d.core.deadline())
}

func TestModel(t *testing.T) {
	rounds := 400
	if testing.Short() {
		rounds = 50
	}
	var seen Stats
	for seed := range uint64(rounds) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		data := make([]byte, 3000)
		for i := range data {
			data[i] = byte(rnd.Uint32())
		}
		d := newDuel(t, data)
		d.run()
		seen.Deadlocks += d.core.stats.Deadlocks
		seen.Possible += d.core.stats.Possible
		seen.Expired += d.core.stats.Expired
		for class, n := range d.core.stats.Waited {
			seen.Waited[class] += n
		}
	}
	t.Logf("deadlocks %d, possible %d, expired %d, waited %v", seen.Deadlocks, seen.Possible, seen.Expired, seen.Waited)
	for _, n := range []uint64{seen.Deadlocks, seen.Possible, seen.Expired, seen.Waited[Named], seen.Waited[Record], seen.Waited[Flock]} {
		require.NotZero(t, n, "the sequences must come to everything")
	}
}

func FuzzModel(f *testing.F) {
	f.Add([]byte("locks, waits, unlocks, cancels, drops, releases, renews, passes"))
	f.Fuzz(func(t *testing.T, data []byte) { newDuel(t, data[:min(len(data), 4000)]).run() })
}
