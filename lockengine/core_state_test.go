package lockengine

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// script gives random commands of every kind to cores, and keeps the commands
// of the first one that changed it, as bytes, as a log would.
type script struct {
	t      *testing.T
	rnd    *rand.Rand
	bound  int // of the event log
	live   *core
	now    Instant
	log    commandLog
	record recorder
	ids    []WaiterID
	key    uint64
	done   map[op]int // commands of each kind that changed something
}

// commandLog is a log that keeps the commands.
type commandLog [][]byte

func (l *commandLog) Room(int, int) error { return nil }

func (l *commandLog) Append(_ uint8, data []byte) (uint64, error) {
	*l = append(*l, slices.Clone(data))
	return uint64(len(*l)), nil
}

func (l *commandLog) Synced(_ uint64, done func(error)) { go done(nil) }

func newScript(t *testing.T, seed uint64) *script {
	rnd := rand.New(rand.NewPCG(seed, 7))
	bound := []int{16, 600, 8192}[rnd.IntN(3)]
	s := &script{
		t: t, rnd: rnd, bound: bound, live: newCore(bound),
		now: Instant{Boot: 1e9, Wall: 1_700_000_000e9}, done: map[op]int{},
	}
	s.record.log = &s.log
	return s
}

func (s *script) name() string { return string(rune('a' + s.rnd.IntN(modelNames))) }
func (s *script) owner() Owner { return Owner{1, uint64(1 + s.rnd.IntN(modelOwners))} }

func (s *script) rng() Range {
	if s.rnd.IntN(4) == 0 {
		return Whole
	}
	start := s.rnd.IntN(cells)
	return Range{uint64(start), uint64(start + 1 + s.rnd.IntN(cells-start))}
}

func (s *script) request() Request {
	owner := s.owner()
	r := Request{
		Class: Class(1 + s.rnd.IntN(3)), Name: s.name(), Owner: owner, Mode: Mode(1 + s.rnd.IntN(2)), Range: s.rng(),
		Kind: modelTold[owner.ID], Handle: 10*owner.ID + uint64(s.rnd.IntN(2)), Meta: s.name(),
	}
	if pid := int32(s.rnd.IntN(4)); pid > 0 {
		r.Who = Who{PID: pid, TID: pid, UID: 1000 + uint32(pid)}
	}
	if r.Class == Named {
		r.Timeout = time.Duration(s.rnd.IntN(3)) * 700 * time.Millisecond
		if s.rnd.IntN(4) == 0 {
			r.Guard = s.name()
		}
	}
	if s.rnd.IntN(2) == 0 {
		s.key++
		r.Key = s.key - uint64(s.rnd.IntN(int(min(s.key, 4))))
	}
	return r
}

// next is some command.
func (s *script) next() command {
	switch k := s.rnd.IntN(100); {
	case k < 20:
		return command{op: opTry, req: new(s.request())}
	case k < 45:
		return command{op: opWait, req: new(s.request())}
	case k < 55:
		return command{op: opUnlock, req: new(s.request())}
	case k < 62:
		if len(s.ids) == 0 {
			return command{op: opTick}
		}
		return command{op: opCancel, waiter: s.ids[max(0, len(s.ids)-1-s.rnd.IntN(8))], keep: s.rnd.IntN(3) > 0}
	case k < 64:
		return command{op: opDropOwner, req: new(s.request())}
	case k < 67:
		return command{op: opDropHandle, req: new(s.request())}
	case k < 72:
		return command{op: opWatch, req: &Request{Name: s.name()}, watch: s.live.lastWatch + 1}
	case k < 74:
		return command{op: opUnwatch, watch: WatchID(s.rnd.IntN(int(s.live.lastWatch) + 2))}
	case k < 99:
		return s.nextNamed()
	}
	return command{op: opResume, fresh: s.rnd.IntN(3) == 0, boot: string(rune('A' + s.rnd.IntN(2))), token: s.live.names.last + uint64(s.rnd.IntN(9))}
}

func (s *script) nextNamed() command {
	cmd := command{req: &Request{Name: s.name(), Timeout: time.Duration(s.rnd.IntN(2000)) * time.Millisecond}}
	if n := s.live.names.byName[cmd.req.Name]; n != nil && s.rnd.IntN(2) == 0 {
		cmd.token = n.token
	}
	cmd.op = []op{opRelease, opRenew, opSetNote, opSetStart, opSetSpan, opSetHolder, opDetach, opTick}[s.rnd.IntN(8)]
	cmd.how, cmd.note, cmd.extend = End(1+s.rnd.IntN(4)), s.name(), s.rnd.IntN(2) == 0
	cmd.req.Who.UID = s.rnd.Uint32()
	if cmd.second = int64(s.rnd.IntN(3)); cmd.op == opSetStart {
		cmd.second += s.now.Wall / 1e9
	}
	if s.rnd.IntN(3) == 0 {
		cmd.max = 1e9
	}
	return cmd
}

// pass lets time pass; the wall clock may be stepped, and a machine that
// starts anew has a new clock.
func (s *script) pass(cmd *command) {
	by := int64(s.rnd.IntN(3)) * int64(s.rnd.IntN(4)) * 100e6
	s.now.Boot += by
	s.now.Wall += by + []int64{0, 0, 0, 0, 0, 3600e9, -3600e9}[s.rnd.IntN(7)]
	if cmd.op == opResume && cmd.boot != s.live.boot {
		s.now.Boot = int64(s.rnd.IntN(10)) * 1e9
	}
}

// come is what a command came to.
type come struct {
	result
	completions []completion
	events      []Event
}

func apply(c *core, cmd command, now Instant) come {
	from := c.log.last
	var got come
	c.apply(&cmd, now, &got.result)
	got.completions, c.done = c.done, nil
	got.events, _ = c.log.after(from, 1000)
	return got
}

// do gives one random command to the live core and the others, which must
// come to the same.
func (s *script) do(others ...*core) {
	cmd := s.next()
	s.pass(&cmd)
	for {
		got := s.one(cmd, others)
		if got.waiter != 0 {
			s.ids = append(s.ids, got.waiter)
		}
		if got.ask == nil {
			return
		}
		answer := command{op: opClassify}
		for _, q := range got.ask {
			answer.kinds = append(answer.kinds, ownerKind{q.owner, modelKinds[q.owner]})
		}
		s.one(answer, others)
	}
}

func (s *script) one(cmd command, others []*core) come {
	before := s.live.changes
	got := apply(s.live, cmd, s.now)
	if s.live.changes != before {
		s.done[cmd.op]++
		s.record.command(&cmd, s.live.now)
	}
	for _, c := range others {
		require.Equal(s.t, got, apply(c, cmd, s.now), "%+v", cmd)
	}
	return got
}

// restored is the live core by way of its bytes.
func (s *script) restored() *core {
	c, err := decode(stateOf(s.live), s.bound)
	require.NoError(s.t, err)
	return c
}

// stateOf is the bytes of the state.
func stateOf(c *core) (chunks [][]byte) {
	k := c.startCut(true)
	k.rest()
	return encoded(k, k.ready)
}

func encoded(k *cut, all ...copies) (chunks [][]byte) {
	e := newStateEncoder(func(chunk []byte) error {
		chunks = append(chunks, chunk)
		return nil
	})
	e.head(&k.head)
	for i := range all {
		e.copies(&all[i])
	}
	e.rest(k)
	return chunks
}

func decode(chunks [][]byte, bound int) (c *core, err error) {
	d := stateDecoder{core: newCore(bound)}
	for _, chunk := range chunks {
		if c, err = d.chunk(chunk); err != nil {
			return nil, err
		}
	}
	if c == nil {
		return nil, fmt.Errorf("no end")
	}
	return c, nil
}

// replayed is a core that was given the log.
func (s *script) replayed() *core {
	c := newCore(s.bound)
	var before told
	for _, data := range s.log {
		d := decoder{buf: data}
		cmd, at := d.command(&before)
		require.NoError(s.t, d.end())
		c.apply(&cmd, at, new(result))
	}
	c.done = nil
	return c
}

// same demands that all states are that of the live core, once all are at the
// same moment. Refusals of record and flock locks are counted but change nothing.
func (s *script) same(others ...*core) {
	s.t.Helper()
	s.one(command{op: opTick}, others)
	want := bytes.Join(stateOf(s.live), nil)
	for _, c := range others {
		require.NoError(s.t, c.checkInvariants())
		require.Equal(s.t, s.live.snapshot(), c.snapshot())
		copy(c.stats.Refused[Record:], s.live.stats.Refused[Record:])
		require.Equal(s.t, s.live.statsNow(), c.statsNow())
		require.Equal(s.t, s.live.names.ended, c.names.ended)
		require.True(s.t, bytes.Equal(want, bytes.Join(stateOf(c), nil)), "state differs")
	}
}

// At any moment the state by way of its bytes, and a replay of the log, are
// the state, and behave like it from there on.
func TestStateAndReplay(t *testing.T) {
	rounds := 150
	if testing.Short() {
		rounds = 20
	}
	done := map[op]int{}
	for seed := range uint64(rounds) {
		s := newScript(t, seed)
		for range 8 {
			for range s.rnd.IntN(100) {
				s.do()
			}
			// To look must not change what a replay comes to: only some are at
			// the same moment before they go on.
			restored, replayed := s.restored(), s.replayed()
			if s.rnd.IntN(2) == 0 {
				s.same(restored, replayed)
			}
			for range 30 {
				s.do(restored, replayed)
			}
			s.same(restored, replayed)
		}
		require.NoError(t, s.live.checkInvariants())
		for op, n := range s.done {
			done[op] += n
		}
	}
	t.Log(done)
	for o := range opResume + 1 {
		require.True(t, done[o] > 0 || o == opClose, "nothing was changed by %d", o)
	}
}

// Who waits again in its old place is behind in what is done to all of a
// handle's waits, and a state keeps that.
func TestStateKeepsOrder(t *testing.T) {
	c := newCore(64)
	now := Instant{1e9, 1_700_000_000e9}
	req := func(name string) Request {
		return Request{Class: Flock, Name: name, Owner: Owner{1, 2}, Mode: Exclusive, Handle: 20}
	}
	for _, name := range []string{"a", "b"} {
		other := req(name)
		other.Owner.ID, other.Handle = 1, 10
		apply(c, command{op: opTry, req: &other}, now)
		apply(c, command{op: opWait, req: new(req(name))}, now)
	}
	apply(c, command{op: opCancel, waiter: 1, keep: true}, now)
	require.EqualValues(t, 1, apply(c, command{op: opWait, req: new(req("a"))}, now).waiter)
	again, err := decode(stateOf(c), 64)
	require.NoError(t, err)
	drop := command{op: opDropHandle, req: &Request{Handle: 20}}
	want := apply(c, drop, now)
	require.EqualValues(t, 2, want.completions[0].waiter)
	require.Equal(t, want, apply(again, drop, now))
}

// What is remembered of a name for a while does not depend on who looks
// meanwhile.
func TestLooksChangeNothing(t *testing.T) {
	at := func(boot int64) Instant { return Instant{boot, 1_700_000_000e9 + boot} }
	looked, other := newCore(64), newCore(64)
	for _, c := range []*core{looked, other} {
		apply(c, command{op: opTry, req: &Request{Class: Named, Name: "guard", Owner: Owner{1, 1}, Timeout: 10 * time.Second}}, at(1))
		apply(c, command{op: opTry, req: &Request{Class: Named, Name: "x", Owner: Owner{1, 1}}}, at(1))
		apply(c, command{op: opRelease, req: &Request{Name: "x"}, how: Released}, at(2))
		guarded := Request{Class: Named, Name: "x", Owner: Owner{1, 2}, Guard: "guard"}
		require.NotZero(t, apply(c, command{op: opWait, req: &guarded}, at(3)).waiter)
	}
	apply(looked, command{op: opTick}, at(5e9))
	for _, c := range []*core{looked, other} {
		apply(c, command{op: opTick}, at(11e9))
	}
	require.Equal(t, looked.snapshot(), other.snapshot())
	require.Equal(t, stateOf(looked), stateOf(other))
}

// Every command comes back from its bytes as it was.
func TestCommandBytes(t *testing.T) {
	s := newScript(t, 1)
	for n := range 5000 {
		cmd, req := s.next(), &noRequest
		if cmd.req != nil {
			req = cmd.req
		}
		if n%10 == 0 && req.Name != "" {
			req.Name = strings.Repeat("long", 100*(1+n%30))
		}
		before := []told{
			{}, {at: s.now}, {at: Instant{s.now.Boot + 1e9, s.now.Wall - 3}, name: req.Name},
			{at: s.now, owner: req.Owner}, {at: s.now, name: req.Name, owner: req.Owner},
			{at: s.now, handle: req.Handle, who: req.Who},
		}[n%6]
		var log commandLog
		e, e2, read := recorder{log: &log, told: before}, recorder{log: &log, told: before}, before
		e.command(&cmd, s.now)
		buf := log[0]
		d := decoder{buf: buf}
		again, at := d.command(&read)
		require.NoError(t, d.end())
		require.Equal(t, s.now, at)
		require.Equal(t, e.told, read)
		e2.command(&again, at)
		require.Equal(t, buf, log[1])
		if fieldsOf[cmd.op]&hasReq == hasReq {
			require.Equal(t, cmd, again)
		}
		if before == (told{}) { // what comes first is the same whatever was before
			d, other := decoder{buf: buf}, told{Instant{7, 8}, "other", Owner{9, 9}, 9, Who{PID: 9}}
			first, _ := d.command(&other)
			require.NoError(t, d.end())
			require.Equal(t, again, first)
		}
		for cut := range buf {
			d := decoder{buf: buf[:cut]}
			part := before
			d.command(&part)
			require.Error(t, d.end(), "cut at %d of %d", cut, len(buf))
		}
	}
}

// What programs of the formats before wrote is read: a command, and the state
// that it led to; and what was told of commands only if it differed.
func TestOldFormat(t *testing.T) {
	const (
		aCommand = "01010015cd5b070000000015cd853dfe9c971702110e666530303a31323a363734302e31011032547698badcfe6400000000000000000000000000" +
			"0080090a0b0c0d80a8d6b9070167016d05"
		aState = "010301050000000000000000002a36fe9c97170a000000000001000100020e666530303a31323a363734302e31050210010110325476" +
			"98badcfe64000000000000000000000000000080090a0b0c0d050000000000000000002a36fe9c9717080201011032547698badcfe01000909" +
			"01050000000000000000002a36fe9c97170102100e666530303a31323a363734302e31640000000000000000000000000000800110325476" +
			"98badcfe0a0b0c0d00000000000a366190e591ce077b000001000000000000000000000000000000000000000000"
	)
	const aState2 = "020301050000000000000000002a36fe9c97170a000000000001000100020e666530303a31323a363734302e3105021001011032547698ba" +
		"dcfe6401090a0b0c0d050000000000000000002a36fe9c9717080201011032547698badcfe0100090901050000000000000000002a36fe9c" +
		"97170102100e666530303a31323a363734302e316401011032547698badcfe0a0b0c0d00000000000a76606e02b9eef064000001000000000000000000000000000000000000000000"
	commands := []string{
		"02010015cd5b070000000015cd853dfe9c97170e666530303a31323a363734302e310211011032547698badcfe6401090a0b0c0d80a8d6b9070167016d05",
		"0202f8c0b802d00f022180808080802080808080808001",
		"020418c0b802d00f02000203000000000000000064",
		"02080ac0b802d00f016e0100020080e0ba84bf034d0110",
		"020309c0b802d00fac02",
		"02120cc0b802d00f050162",
	}
	bytesOf := func(text string) []byte {
		b, err := hex.DecodeString(text)
		require.NoError(t, err)
		return b
	}
	want := command{op: opTry, req: &Request{
		Class: Record, Mode: Shared, Kind: KindProcess, Name: "fe00:12:6740.1", Owner: Owner{1, 0xfedcba9876543210},
		Range: Range{100, MaxEnd}, Handle: 9, Who: Who{10, 11, 12, 13}, Timeout: time.Second, Guard: "g", Meta: "m", Key: 5,
	}}
	d := decoder{buf: bytesOf(aCommand)}
	cmd, at := d.command(&told{})
	require.NoError(t, d.end())
	require.Equal(t, want, cmd)
	require.Equal(t, Instant{123456789, 1700000000123456789}, at)

	plain := command{op: opWait, req: new(*want.req)}
	plain.req.Timeout, plain.req.Guard, plain.req.Meta, plain.req.Key = 0, "", "", 0
	plain.req.Mode, plain.req.Range = Exclusive, Range{1 << 40, 1 << 41}
	var before told
	for i, want := range []command{
		want,
		plain,
		{op: opUnlock, req: &Request{Class: Record, Name: "fe00:12:6740.1", Owner: Owner{2, 3}, Range: Range{0, 50}}},
		{op: opRenew, extend: true, req: &Request{Name: "n", Who: Who{PID: 1, UID: 2}, Timeout: time.Minute}, token: 77, max: -1, second: 8},
		{op: opCancel, req: &noRequest, keep: true, waiter: 300},
		{op: opResume, req: &noRequest, fresh: true, token: 5, boot: "b"},
	} {
		d := decoder{buf: bytesOf(commands[i])}
		cmd, at := d.command(&before)
		require.NoError(t, d.end())
		require.Equal(t, want, cmd)
		require.Equal(t, Instant{123456789 + int64(i)*20_000, 1700000000123456789 + int64(i)*21_000}, at)
	}

	live := newCore(10)
	live.apply(&want, Instant{5, 1700000000000000000}, new(result))
	for _, state := range []string{aState, aState2} {
		read, err := decode([][]byte{bytesOf(state)}, 10)
		require.NoError(t, err)
		live.rand = read.rand // priorities that are drawn no more
		require.Equal(t, stateOf(live), stateOf(read))
	}
}

// A state that was cut anywhere is no state.
func TestStateCut(t *testing.T) {
	s := newScript(t, 3)
	for range 100 {
		s.do()
	}
	chunks := stateOf(s.live)
	require.Len(t, chunks, 1)
	for cut := range chunks[0] {
		_, err := decode([][]byte{chunks[0][:cut]}, 64)
		require.Error(t, err)
	}
}

// Large states come in chunks that are not too large, and in their order only.
func TestStateChunks(t *testing.T) {
	c := newCore(64)
	now := Instant{1e9, 1_700_000_000e9}
	for i := range 30_000 {
		apply(c, command{op: opTry, req: &Request{Class: Named, Name: fmt.Sprint("lock-", i), Timeout: time.Hour}}, now)
	}
	chunks := stateOf(c)
	require.Greater(t, len(chunks), 2)
	for _, chunk := range chunks {
		require.LessOrEqual(t, len(chunk), chunkMax)
	}
	again, err := decode(chunks, 64)
	require.NoError(t, err)
	require.Equal(t, chunks, stateOf(again))
	_, err = decode(chunks[1:], 64)
	require.ErrorIs(t, err, errOrder)
	_, err = decode(append(chunks[:1:1], chunks...), 64)
	require.ErrorIs(t, err, errOrder)
	_, err = decode(chunks[:len(chunks)-1], 64)
	require.Error(t, err)
}

// Bytes that are no state or command are refused; what is taken for a state is
// one.
func FuzzReplay(f *testing.F) {
	for seed := range uint64(6) {
		s := newScript(nil, seed)
		for range 60 {
			s.do()
		}
		f.Add(recordState, stateOf(s.live)[0])
		for _, data := range s.log[:min(len(s.log), 20)] {
			f.Add(recordCommand, data)
		}
	}
	f.Add(recordTokens, []byte{format, 1, 2, 3, 4, 5, 6, 7, 8})
	f.Fuzz(func(t *testing.T, kind uint8, data []byte) {
		l, err := NewLocal(Config{Clock: stillClock{}})
		require.NoError(t, err)
		if l.Replay(kind, data) != nil || l.replay.state != nil {
			return
		}
		require.NoError(t, l.Resume(Resumption{Same: true}))
		l.Claimed()
		require.NoError(t, l.core.checkInvariants())
		require.NoError(t, l.Close())
	})
}

// Records of any bytes, one after the other, are refused or lead to a state
// that is sound, goes on from its own bytes as it is, and is empty once all that
// is in it was given back. Each comes with its kind, and two bytes for its
// length, before it.
func FuzzReplayLog(f *testing.F) {
	put := func(b []byte, kind uint8, data []byte) []byte {
		return append(append(b, kind, byte(len(data)), byte(len(data)>>8)), data...)
	}
	for seed := range uint64(12) {
		s := newScript(nil, seed)
		var log []byte
		for range 10 * (1 + seed) {
			s.do()
		}
		if seed%2 == 0 {
			log = put(nil, recordState, stateOf(s.live)[0])
			s.log = nil
			for range 40 {
				s.do()
			}
		}
		for i, data := range s.log {
			log = put(log, recordCommand, data)
			if i%10 == 9 {
				f.Add(log)
			}
		}
		f.Add(put(log, recordTokens, []byte{format, 1, 2, 3, 4, 5, 6, 7, 8}))
	}
	f.Fuzz(func(t *testing.T, log []byte) {
		l, err := NewLocal(Config{Clock: stillClock{}, EventLog: 64})
		require.NoError(t, err)
		for len(log) >= 3 {
			kind, n := log[0], min(int(log[1])|int(log[2])<<8, len(log)-3)
			if l.Replay(kind, log[3:3+n]) != nil {
				return
			}
			log = log[3+n:]
		}
		if l.replay.state != nil {
			return
		}
		require.NoError(t, l.Resume(Resumption{Same: true}))
		l.Claimed()
		require.NoError(t, l.core.checkInvariants())
		again, err := decode(stateOf(l.core), 64)
		require.NoError(t, err)
		require.Equal(t, stateOf(l.core), stateOf(again))
		require.NoError(t, again.checkInvariants())
		again.apply(&command{op: opResume, fresh: true, boot: again.boot}, again.now, new(result))
		for name := range again.names.byName {
			again.apply(&command{op: opRelease, req: &Request{Name: name}, how: Lost}, again.now, new(result))
		}
		require.NoError(t, again.checkInvariants())
		require.True(t, again.empty())
		require.NoError(t, l.Close())
	})
}

// stillClock stands still.
type stillClock struct{}

func (stillClock) Now() Instant        { return Instant{Boot: 2e9, Wall: 1_700_000_001e9} }
func (stillClock) Alarm(int64, func()) {}
func (stillClock) Close() error        { return nil }
