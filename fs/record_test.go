package fs

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lockfs/lockengine"
	"lockfs/lockengine/journal"
)

// inheritor is a server that reads the journal of another.
func inheritor(k *kernel) *Server {
	s := &Server{cfg: k.s.cfg, host: k.s.host, engine: k.engine, log: k.s.log, files: k.s.files}
	s.expectRecords()
	return s
}

// dumped is the state of a server as records, in an order of their own.
func dumped(t testing.TB, s *Server) (out []string) {
	require.NoError(t, s.dump(func(kind uint8, data []byte) error {
		out = append(out, string([]byte{kind})+string(data))
		return nil
	}))
	slices.Sort(out)
	return out
}

// Records of any bytes are refused, or lead to a state. A snapshot of that
// leads to it too.
func FuzzRecords(f *testing.F) {
	k := newKernel(f, f.TempDir())
	f.Cleanup(k.finish)
	add := func(records ...keptRecord) {
		var data []byte
		for _, r := range records {
			data = append(append(data, r.kind, byte(len(r.data))), r.data...)
		}
		f.Add(data)
	}
	held, _ := k.engine.Get("held")
	wait, take := lockNode(held.Token, plain, lockRow.child("wait"), 0), k.s.dynamic.lookup(takeFileRow, "t+5m")
	events, note := staticNode(viewRow.child("events")), lockNode(held.Token, byToken, noteRow, 0)
	known := numbered(take.id)
	(&dynamicNode{dynamicKey: dynamicKey{takeFileRow, "t+5m"}}).encode(&known)
	open := func(fh uint64, n node, st *stream, tk *taking) keptRecord {
		h := &handle{fh: synthetic | fh, node: n, flags: 2, data: []byte("text"), written: []byte("w"), lastWrite: 7, stream: st, taking: tk}
		return keptRecord{recHandle, h.encode()}
	}
	streamed := &stream{watch: 3, lastRead: 9, at: position{cursor: 4, rest: "rest"}, polls: map[uint64]bool{8: true}}
	instance := instance{id: "i", init: []byte("init"), restarts: 2}
	all := []keptRecord{{recInstance, instance.encode()}, {recDynamic, known}, {recDynamicLast, numbered(9)},
		{recRemoved, encodeRemoved(held.Token, 3)}, {recIntent, intent{token: 5, name: "n", how: lockengine.Forced, expiry: -1}.encode(12)},
		{recJanitor, encodeJanitor(1, 5)}, {recSweep, encodeSweep("gone", 17)}, open(1, note, nil, nil), open(2, wait, streamed, nil),
		open(3, events, streamed, nil), open(4, take, nil, &taking{name: "t", token: 3, hold: true, pid: 7})}
	add(all...)
	for _, r := range all {
		add(r)
		add(all[0], keptRecord{r.kind, r.data[:len(r.data)-1]}, r, r)
	}
	other := numbered(take.id)
	(&dynamicNode{dynamicKey: dynamicKey{holdFileRow, "h"}}).encode(&other)
	again := numbered(take.id + 1)
	(&dynamicNode{dynamicKey: dynamicKey{takeFileRow, "t+5m"}}).encode(&again)
	wild := numbered(take.id)
	wild.uint(200)
	wild.text("no row has this number")
	add(keptRecord{recDynamic, wild})
	add(all[1], keptRecord{recDynamic, other}) // one number, two names
	add(all[1], keptRecord{recDynamic, again}, keptRecord{recDynamicGone, numbered(take.id)})
	add(all[1], keptRecord{recDynamicGone, numbered(take.id)}, all[7], keptRecord{recHandleGone, numbered(synthetic | 1)},
		all[6], keptRecord{recSweep, encodeSweep("gone", 0)})
	f.Fuzz(func(t *testing.T, data []byte) {
		s := inheritor(k)
		for len(data) >= 2 {
			size := min(int(data[1]), len(data)-2)
			_ = s.replay(data[0], data[2:2+size])
			data = data[2+size:]
		}
		require.NoError(t, s.restoreHandles())
		again, want := inheritor(k), dumped(t, s)
		for _, r := range want {
			require.NoError(t, again.replay(r[0], []byte(r[1:])), "%q", r)
		}
		require.NoError(t, again.restoreHandles())
		require.Equal(t, want, dumped(t, again))
		for key, d := range s.dynamic.byKey {
			require.Equal(t, key, d.dynamicKey)
			require.Equal(t, d, s.dynamic.byID[d.id], "%q is kept for nobody", key.name)
		}
	})
}

// A number that the kernel knows means the same for as long as it does, also
// if there was no room to record what it means.
func TestNumbersAreNotGivenOutAgain(t *testing.T) {
	state, dir := t.TempDir(), t.TempDir()
	start := func() (*Server, func()) {
		j, err := journal.Open(state, journal.Options{Boot: "boot"})
		require.NoError(t, err)
		engine, err := lockengine.NewLocal(lockengine.Config{Log: j, Boot: "boot"})
		require.NoError(t, err)
		s, err := NewServer(Config{FD: -1, Engine: engine, Now: engine.Now, Files: dir, Journal: j, Instance: "i",
			DefaultTimeout: time.Hour, MaxTimeout: time.Hour})
		require.NoError(t, err)
		return s, func() {
			s.close(nil)
			require.NoError(t, j.Close())
		}
	}
	seen := map[uint64]bool{}
	for i := range 3 {
		s, end := start()
		require.Equal(t, i > 0, s.resumed)
		s.dynamic.keep = nil // as on a full disk
		n := s.dynamic.lookup(takeFileRow, "x")
		require.False(t, seen[n.id], "%x", n.id)
		seen[n.id] = true
		end()
	}
}
