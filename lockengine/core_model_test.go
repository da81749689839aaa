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
	boot  byte
	steps int
	done  map[op]int // commands of each kind that succeeded
}

func newDuel(t *testing.T, data []byte) *duel {
	d := &duel{t: t, data: data, core: newCore(64), model: newModel(modelKinds), now: Instant{Boot: 1e9, Wall: 1_700_000_000e9},
		done: map[op]int{}}
	d.model.now = d.now
	d.core.apply(&command{op: opTick}, d.now, new(result))
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
	switch k := d.n(32); {
	case k < 5:
		d.try()
	case k < 13:
		d.wait()
	case k < 17:
		d.unlock()
	case k < 18:
		d.cancel()
	case k < 19:
		d.dropOwner()
	case k < 20:
		d.dropHandle()
	case k < 22:
		d.release()
	case k < 23:
		d.renew()
	case k < 25:
		d.setTimes()
	case k < 26:
		d.change()
	case k < 27:
		d.watch()
	case k < 28:
		d.rare()
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
		if k := d.n(8); k < 3 {
			r.Guard = string(rune('a' + k))
		}
		r.Key = uint64(max(0, d.n(6)-2))
	}
	return r
}

// apply gives the core a command, and compares what it completes.
func (d *duel) apply(cmd command) result {
	d.t.Helper()
	var res result
	d.core.apply(&cmd, d.now, &res)
	for res.ask != nil {
		answer := command{op: opClassify}
		for _, q := range res.ask {
			answer.kinds = append(answer.kinds, ownerKind{q.owner, modelKinds[q.owner]})
		}
		d.core.apply(&answer, d.now, new(result))
		d.done[opClassify]++
		res = result{}
		d.core.apply(&cmd, d.now, &res)
	}
	if res.err == nil {
		d.done[cmd.op]++
	}
	return res
}

// fails demands that a command came to the error that the model came to.
func (d *duel) fails(want error, got result) {
	d.t.Helper()
	require.True(d.t, sameError(want, got.err), "%s: %v, want %v", d.step, got.err, want)
}

func (d *duel) try() {
	r := d.request()
	d.step = fmt.Sprintf("try %+v", r)
	token, err := d.model.try(r)
	res := d.apply(command{op: opTry, req: &r})
	d.fails(err, res)
	require.Equal(d.t, token, res.grant.Token, d.step)
}

func (d *duel) wait() {
	r := d.request()
	d.step = fmt.Sprintf("wait %+v", r)
	token, id, err := d.model.wait(r)
	res := d.apply(command{op: opWait, req: &r})
	d.fails(err, res)
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
	d.apply(command{op: opUnlock, req: &Request{Class: class, Name: name, Owner: owner, Range: rng}})
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
	d.apply(command{op: opDropOwner, req: &Request{Name: name, Owner: owner}})
}

func (d *duel) dropHandle() {
	handle := uint64(10*(1+d.n(modelOwners)) + d.n(2))
	d.step = fmt.Sprintf("drop handle %d", handle)
	d.model.dropHandle(handle)
	d.apply(command{op: opDropHandle, req: &Request{Handle: handle}})
}

// held is a name, and a token, which may be 0, that of the lock held on it, or
// that of none.
func (d *duel) held() (name string, token uint64) {
	name = d.name()
	if n := d.model.names[name]; n != nil && d.n(2) == 0 {
		token = n.token - uint64(d.n(4)/3)
	}
	return name, token
}

func (d *duel) release() {
	name, token := d.held()
	how := End(1 + d.n(4))
	d.step = fmt.Sprintf("release %q %d %d", name, token, how)
	err := d.model.release(name, token, how)
	d.fails(err, d.apply(command{op: opRelease, req: &Request{Name: name}, token: token, how: how}))
}

func (d *duel) renew() {
	name, token := d.held()
	extend := d.n(2) == 0
	timeout, limit := time.Duration(d.n(4))*500*time.Millisecond, time.Duration(d.n(3))*time.Second
	d.step = fmt.Sprintf("renew %q %d %v %v %v", name, token, timeout, extend, limit)
	err := d.model.renew(name, token, timeout, extend, limit)
	cmd := command{op: opRenew, req: &Request{Name: name, Timeout: timeout}, token: token, extend: extend, max: int64(limit)}
	res := d.apply(cmd)
	d.fails(err, res)
	if err == nil {
		n := d.model.names[name]
		require.Equal(d.t, Grant{n.token, n.since, n.expiry}, res.grant, d.step)
	}
}

// setTimes is SetStart and SetSpan. What they end ends at the next moment.
func (d *duel) setTimes() {
	name, token := d.held()
	cmd := command{op: opSetSpan, req: &Request{Name: name}, token: token, second: int64(d.n(5) - 1), max: int64(d.n(3)) * 2e9}
	if d.n(2) == 0 {
		cmd.op = opSetStart
		cmd.second += d.now.Wall/1e9 - 2
	}
	d.step = fmt.Sprintf("set times %q %d, op %d, %d s, max %d", name, token, cmd.op, cmd.second, cmd.max)
	err := d.model.setTimes(name, token, cmd.op == opSetStart, cmd.second, time.Duration(cmd.max))
	d.fails(err, d.apply(cmd))
	d.model.advance(d.now)
	d.apply(command{op: opTick})
}

// change changes what is only kept with a lock.
func (d *duel) change() {
	name, token := d.held()
	cmd := command{req: &Request{Name: name, Who: Who{UID: uint32(d.n(3)), GID: 7}}, token: token, note: d.name()}
	var do func(*mName)
	switch d.n(3) {
	case 0:
		cmd.op, do = opSetNote, func(n *mName) { n.note = cmd.note }
	case 1:
		cmd.op, do = opSetHolder, func(n *mName) { n.who.UID, n.who.GID = cmd.req.Who.UID, cmd.req.Who.GID }
	default:
		cmd.op, do = opDetach, func(n *mName) { n.handle = 0 }
	}
	d.step = fmt.Sprintf("change %q %d, op %d", name, token, cmd.op)
	err := d.model.change(name, token, do)
	d.fails(err, d.apply(cmd))
}

func (d *duel) watch() {
	if d.n(4) == 0 {
		id := WatchID(d.n(int(d.model.lastWatch%200) + 2))
		d.step = fmt.Sprintf("unwatch %d", id)
		require.Equal(d.t, d.model.unwatch(id), d.apply(command{op: opUnwatch, watch: id}).ok, d.step)
		return
	}
	name, token := d.held()
	id := d.model.lastWatch + 1 - WatchID(d.n(8)/7)
	d.step = fmt.Sprintf("watch %q %d %d", name, token, id)
	err := d.model.watch(name, token, id)
	d.fails(err, d.apply(command{op: opWatch, req: &Request{Name: name}, token: token, watch: id}))
}

// rare is what does not happen often in a life, and would leave little to do
// if it did.
func (d *duel) rare() {
	switch k := d.n(16); {
	case k == 0:
		d.step = "close"
		d.model.close()
		d.apply(command{op: opClose})
	case k == 1:
		d.restart(true, d.boot)
	case k == 2:
		d.restart(d.n(2) == 0, d.boot+1)
	case k < 8:
		d.restart(false, d.boot)
	default:
		d.reread()
	}
}

// reread goes on with the state as it comes back from its bytes.
func (d *duel) reread() {
	d.step = "reread"
	before := stateOf(d.core)
	again, err := decode(before, 64)
	require.NoError(d.t, err)
	require.Equal(d.t, before, stateOf(again))
	again.done, d.core = d.core.done, again
}

// restart goes on with another process: with the same clients or not, and
// perhaps in another boot.
func (d *duel) restart(fresh bool, boot byte) {
	d.reread()
	token := d.model.lastToken + uint64(d.n(3))
	d.step = fmt.Sprintf("restart, fresh %v, boot %d, token %d", fresh, boot, token)
	was, cmd := d.now, command{op: opResume, fresh: fresh, boot: string(boot), token: token}
	d.model.lastToken = max(d.model.lastToken, token)
	if boot == d.boot && d.core.boot == string(boot) {
		if fresh {
			d.model.forgetClients()
		}
		d.apply(cmd)
		return
	}
	d.boot = boot
	d.now = Instant{int64(d.n(4)) * 1e9, d.now.Wall + int64(d.n(6)-2)*500e6}
	d.apply(cmd)
	expired := map[string]bool{}
	for _, done := range d.core.done {
		expired[done.name] = true
	}
	expiry := map[string]Instant{}
	for name, n := range d.model.names {
		if n.timeout != 0 {
			expiry[name] = d.rebased(name, n, was, expired[name])
		}
	}
	d.model.reboot(d.now, expiry)
	d.model.advance(d.now)
}

// rebased is when a lease ends on the clocks of another boot, as the core has
// it: it has left what the wall clock says, but not more than when it was last
// set, and not less than at the end of the boot before.
func (d *duel) rebased(name string, n *mName, was Instant, expired bool) Instant {
	byWall := n.expiry.Wall - d.now.Wall
	least := max(0, min(byWall, n.expiry.Boot-was.Boot))
	most := max(0, min(byWall, n.expiry.Boot-n.set))
	left := int64(0)
	if !expired {
		l, ok := d.core.get(name)
		require.True(d.t, ok, "%s: %q is gone", d.step, name)
		left = l.Expiry.Boot - d.now.Boot
		require.Equal(d.t, d.now.Wall+left, l.Expiry.Wall, d.step)
	}
	require.True(d.t, least <= left && left <= most, "%s: %q has %d left, not %d to %d", d.step, name, left, least, most)
	return Instant{d.now.Boot + left, d.now.Wall + left}
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
		out = append(out, mOutcome{c.waiter, c.grant.Token, c.err, c.watch, c.end, c.name})
	}
	require.ElementsMatch(d.t, d.model.out, out, d.step)
	// What ends with a handle ends in no order; grants are in order.
	granted := func(all []mOutcome) []mOutcome {
		return slices.DeleteFunc(slices.Clone(all), func(o mOutcome) bool { return o.err != nil || o.watch != 0 })
	}
	require.Equal(d.t, granted(d.model.out), granted(out), d.step)
	d.model.out, d.core.done = nil, nil
	require.Equal(d.t, d.model.deadlocks, d.core.stats.Deadlocks, d.step)
	require.Equal(d.t, d.model.possible, d.core.stats.Possible, d.step)
	require.Equal(d.t, d.model.expired, d.core.stats.Expired, d.step)
	require.Equal(d.t, d.model.forced, d.core.stats.Forced, d.step)
	d.compareLocks()
	d.compareNames()
	d.compareWaits()
	d.compareTest()
	if d.steps++; d.steps%64 == 0 {
		require.NoError(d.t, d.core.checkVerdicts(), d.step)
	}
}

// compareWaits compares who waits, where, since when, and the places kept.
func (d *duel) compareWaits() {
	type wait struct {
		id    WaiterID
		since Instant
		due   int64
		place placeKey
	}
	var want, got []wait
	for _, w := range slices.Concat(d.model.waits, d.model.places) {
		r := w.req
		switch r.Class {
		case Named:
			r.Mode, r.Range, r.Handle = Exclusive, Whole, 0
		case Flock:
			r.Range = Whole
		}
		want = append(want, wait{w.id, w.since, w.due, placeKey{r.Class, r.Mode, r.Name, r.Owner, r.Range, r.Handle}})
	}
	for _, w := range d.core.waitersInOrder() {
		got = append(got, wait{w.id, w.since, 0, placeKeyOf(&w.req)})
	}
	for p := range d.core.places.queue.all {
		got = append(got, wait{p.id, p.since, p.due, p.key})
	}
	require.ElementsMatch(d.t, want, got, d.step)
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
				got[key][i] = mCell{l.Mode, l.Handle, l.Who.PID, l.Who.TID, l.Since}
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
	held := 0
	for name, n := range d.core.names.byName {
		if n.held() {
			held++
			require.Contains(d.t, d.model.names, name, d.step)
		}
	}
	require.Equal(d.t, len(d.model.names), held, d.step)
	for name, want := range d.model.names {
		l, ok := d.core.get(name)
		require.True(d.t, ok, "%s: %q", d.step, name)
		got := mName{token: l.Token, handle: l.Handle, key: d.core.names.byName[name].key, owner: l.Owner, since: l.Since,
			expiry: l.Expiry, timeout: l.Timeout, start: l.Start, prevStart: l.PrevStart, who: l.Who, note: l.Note, set: want.set}
		if m := d.core.names.byName[name].more; m != nil {
			for w := range m.watches.all {
				got.watches = append(got.watches, w.id)
			}
		}
		if len(want.watches) == 0 {
			want.watches = nil
		}
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
	for id := range d.core.watches {
		d.apply(command{op: opUnwatch, watch: id})
	}
	for key := range d.model.locks {
		d.apply(command{op: opUnlock, req: &Request{Class: key.class, Name: key.name, Owner: key.owner, Range: Whole}})
	}
	for name := range d.model.names {
		d.apply(command{op: opRelease, req: &Request{Name: name}, how: Released})
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
	done := map[op]int{}
	for seed := range uint64(rounds) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		data := make([]byte, 3000)
		for i := range data {
			data[i] = byte(rnd.Uint32())
		}
		d := newDuel(t, data)
		d.run()
		for op, n := range d.done {
			done[op] += n
		}
		seen.Deadlocks += d.core.stats.Deadlocks
		seen.Possible += d.core.stats.Possible
		seen.Expired += d.core.stats.Expired
		for class, n := range d.core.stats.Waited {
			seen.Waited[class] += n
		}
	}
	t.Logf("deadlocks %d, possible %d, expired %d, waited %v, commands %v", seen.Deadlocks, seen.Possible, seen.Expired, seen.Waited, done)
	for _, n := range []uint64{seen.Deadlocks, seen.Possible, seen.Expired, seen.Waited[Named], seen.Waited[Record], seen.Waited[Flock]} {
		require.NotZero(t, n, "the sequences must come to everything")
	}
	for o := range opResume + 1 {
		require.NotZero(t, done[o], "no command %d succeeded", o)
	}
}

func FuzzModel(f *testing.F) {
	f.Add([]byte("locks, waits, unlocks, cancels, drops, releases, renews, passes"))
	f.Fuzz(func(t *testing.T, data []byte) { newDuel(t, data[:min(len(data), 4000)]).run() })
}

// A guard is for named locks; a request for a lock on a file that has one is as
// if it had none.
func TestGuardOfAFile(t *testing.T) {
	c := newCore(10)
	req := func(owner uint64) *Request {
		return &Request{Class: Record, Name: "f", Owner: Owner{1, owner}, Mode: Exclusive, Range: Whole, Guard: "g"}
	}
	require.NoError(t, apply(c, command{op: opTry, req: req(1)}, Instant{}).err)
	w := apply(c, command{op: opWait, req: req(2)}, Instant{}).waiter
	require.NotZero(t, w)
	require.True(t, apply(c, command{op: opCancel, waiter: w}, Instant{}).ok)
	require.NotZero(t, apply(c, command{op: opWait, req: req(3)}, Instant{}).waiter)
	require.NoError(t, apply(c, command{op: opUnlock, req: req(1)}, Instant{}).err)
	require.NotNil(t, c.find(req(3)))
	require.NoError(t, c.checkInvariants())
}
