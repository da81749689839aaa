package lockengine_test

import (
	"bytes"
	"errors"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"lockfs/lockengine"
	"lockfs/lockengine/enginetest"
)

// memLog is a log in memory. Syncs are done at once, or when sync is called if
// it is slow.
type memLog struct {
	mu      sync.Mutex
	records []memRecord
	pos     uint64
	slow    bool
	asked   []func(error) // of slow syncs
	syncs   int
	full    bool // there is no room
	broken  bool // not even the reserve is left
	failing error
}

type memRecord struct {
	kind uint8
	data []byte
}

var errFull = errors.New("disk full")

func (m *memLog) Room(n, reserve int) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.full || n <= 0 || reserve < 64<<10 {
		return errFull
	}
	return nil
}

func (m *memLog) Append(kind uint8, data []byte) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.broken {
		return 0, errFull
	}
	m.records = append(m.records, memRecord{kind, bytes.Clone(data)})
	m.pos++
	return m.pos, nil
}

func (m *memLog) Synced(_ uint64, done func(error)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.syncs++
	if m.slow {
		m.asked = append(m.asked, done)
		return
	}
	go done(m.failing)
}

// sync ends the syncs that were asked for, with this outcome, and returns how
// many there were.
func (m *memLog) sync(err error) int {
	m.mu.Lock()
	asked := m.asked
	m.asked = nil
	m.mu.Unlock()
	for _, done := range asked {
		done(err)
	}
	return len(asked)
}

// checkpoint puts the state in the place of the records before.
func (m *memLog) checkpoint(l *lockengine.Local) {
	at := 0
	chunks, _ := checkpoint(l, func() { m.set(func() { at = len(m.records) }) })
	var records []memRecord
	for _, chunk := range chunks {
		records = append(records, memRecord{2, chunk})
	}
	m.set(func() { m.records = append(records, m.records[at:]...) })
}

func (m *memLog) set(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
}

// copy is the log as a new engine finds it.
func (m *memLog) copy() *memLog {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &memLog{records: append([]memRecord(nil), m.records...)}
}

func (m *memLog) len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.records)
}

const boot = "boot-1"

// start starts an engine from a log; with a nil clock by that of the machine.
func start(t *testing.T, clock lockengine.Clock, m *memLog, r lockengine.Resumption, edit ...func(*lockengine.Config)) *lockengine.Local {
	t.Helper()
	cfg := lockengine.Config{Clock: clock, Log: m, Boot: boot}
	for _, e := range edit {
		e(&cfg)
	}
	l, err := lockengine.NewLocal(cfg)
	require.NoError(t, err)
	for _, r := range m.copy().records {
		require.NoError(t, l.Replay(r.kind, r.data))
	}
	require.NoError(t, l.Resume(r))
	t.Cleanup(func() { l.Close() })
	return l
}

// The suite holds for an engine with a log too, and what the log makes in the
// end is what there is.
func TestLocalWithLog(t *testing.T) {
	enginetest.Run(t, func(t *testing.T, clock lockengine.Clock) lockengine.Engine {
		m := &memLog{}
		l := start(t, clock, m, lockengine.Resumption{})
		t.Cleanup(func() {
			again := start(t, clock, m.copy(), lockengine.Resumption{Same: true})
			require.Equal(t, l.Snapshot(), again.Snapshot())
			want, _ := l.Events(0, 1e6)
			got, _ := again.Events(0, 1e6)
			require.Equal(t, want, got)
		})
		return l
	})
}
