package integration

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestTimedLocksSurvive the end of lockfs as a whole: the next mount on the directory has them again, and nothing else.
func TestTimedLocksSurvive(t *testing.T) {
	for _, tc := range []struct {
		name  string
		clean bool
		end   func(*mount)
	}{
		{"kill -9", false, (*mount).crash},
		{"kill -9 of the worker, then of all", false, func(m *mount) { m.killWorker(); m.crash() }},
		{"SIGTERM", true, (*mount).stop},
	} {
		for _, sync := range []string{"os", "always"} {
			t.Run(fmt.Sprintf("%s, --sync %s", tc.name, sync), func(t *testing.T) {
				timedLocksSurvive(t, newCrashMount(t, "--sync", sync), tc.end, tc.clean)
			})
		}
	}
}

func timedLocksSurvive(t *testing.T, m *mount, end func(*mount), clean bool) {
	user, root := newClient(t, m.dir, asUser(stranger)), newClient(t, m.dir)
	require.Equal(t, "ok", user.do("mkdir tlock/users+1h"))
	require.Equal(t, "ok", user.do("write tlock/users/note nightly backup"))
	require.Equal(t, "ok", root.do("mkdir tlock/roots"))
	require.Equal(t, "ok", root.do("write tlock/roots/timeout 30m"))
	require.NotEmpty(t, root.do("read take/taken+2h"))
	others, waiter := takeOthers(t, m, root)
	names, tokens := []string{"roots", "taken", "users"}, []uint64{others}
	before := make(map[string]timedState)
	for _, name := range names {
		before[name] = timedStateOf(t, m, name)
		tokens = append(tokens, before[name].token)
	}
	if clean { // these would keep the mount busy
		for _, c := range []*client{user, root, waiter.client} {
			c.kill()
		}
		end(m)
	} else {
		end(m)
		require.NotEqual(t, "ok", await(t, "the wait", waiter.answer), "granted by the end of lockfs")
	}

	time.Sleep(time.Until(waiter.briefEnds)) // while nobody serves
	next := m.remount()
	require.Equal(t, names, entries(t, next.path("tlock")))
	require.Len(t, next.locks(t), len(names), "holds, locks on files, and waiters are gone")
	for _, name := range names {
		before[name].requireSame(t, timedStateOf(t, next, name))
	}
	require.NoError(t, unix.Mkdir(next.path("tlock/later"), 0o755))
	require.Greater(t, uint64(readInt(t, next.path("tlock/later/token"))), slices.Max(tokens), "tokens only grow")
	requireStillTheirs(t, next, before["users"].token)
}

type othersWaiter struct {
	client    *client
	answer    <-chan string
	briefEnds time.Time
}

// takeOthers takes what ends with its holder, or meanwhile, and returns the last token, and one who waits.
func takeOthers(t *testing.T, m *mount, c *client) (token uint64, w othersWaiter) {
	t.Helper()
	require.NoError(t, os.WriteFile(m.path("files/f"), nil, 0o666))
	for _, request := range []string{"open hold/held r", "open files/f", "setlk files/f w 0 10", "open files/f:2",
		"ofd_setlk files/f:2 w 20 10", "flock files/f ex"} {
		require.Equal(t, "ok", c.do("%s", request), request)
	}
	w.client = newClient(t, m.dir)
	w.answer = w.client.begin("open hold/users r")
	m.awaitQueue(t, "users", w.client.pid())
	require.Equal(t, "ok", c.do("mkdir tlock/brief+1"))
	w.briefEnds = time.Now().Add(time.Second)
	return uint64(readInt(t, m.path("tlock/brief/token"))), w
}

// A timedState is what has to be the same in the next mount.
type timedState struct {
	token                  uint64
	expiry, timeout, start string
	note                   string
	holder                 map[string]string
	left                   float64
	at                     time.Time
}

func timedStateOf(t *testing.T, m *mount, name string) timedState {
	t.Helper()
	file := func(file string) string { return m.path("tlock", name, file) }
	var all struct{ Left float64 }
	require.NoError(t, json.Unmarshal([]byte(readFile(t, file("json"))), &all))
	holder := flatKeyed(t, readFile(t, file("holder")))
	delete(holder, "alive")
	return timedState{
		token: uint64(readInt(t, file("token"))), expiry: readValue(t, file("expiry")), timeout: readValue(t, file("timeout")),
		start: readValue(t, file("tstart")), note: readFile(t, file("note")), holder: holder, left: all.Left, at: time.Now(),
	}
}

func (s timedState) requireSame(t *testing.T, now timedState) {
	t.Helper()
	assert.Equal(t, s.token, now.token, "token")
	assert.Equal(t, s.expiry, now.expiry, "expiry")
	assert.Equal(t, s.timeout, now.timeout, "timeout")
	assert.Equal(t, s.start, now.start, "tstart")
	assert.Equal(t, s.note, now.note, "note")
	assert.True(t, maps.Equal(s.holder, now.holder), "holder: before %v, now %v", s.holder, now.holder)
	assert.InDelta(t, s.left-now.at.Sub(s.at).Seconds(), now.left, 1, "seconds left")
}

// requireStillTheirs: the next mount knows whose a lock is.
func requireStillTheirs(t *testing.T, m *mount, token uint64) {
	t.Helper()
	user, other := newClient(t, m.dir, asUser(stranger)), newClient(t, m.dir, asUser(stranger+1))
	require.Equal(t, "EEXIST", user.do("mkdir tlock/users"))
	require.Equal(t, "EPERM", other.do("rmdir tlock/users@%d", token))
	require.Equal(t, "ok", user.do("write tlock/users@%d/timeout 2h", token))
	require.Equal(t, "ok", user.do("rmdir tlock/users@%d", token))
	require.Equal(t, "ok", other.do("mkdir tlock/users"))
}

// TestTokensGrowOverCrashes: whatever ends, a token given out later is greater.
func TestTokensGrowOverCrashes(t *testing.T) {
	m := newCrashMount(t)
	last := uint64(0)
	for i := range 6 {
		name := m.path("tlock", fmt.Sprint("n", i))
		require.NoError(t, unix.Mkdir(name, 0o755))
		token := uint64(readInt(t, name+"/token"))
		require.Greater(t, token, last)
		last = token
		switch i {
		case 0, 3:
			m.killWorker()
		case 1:
			m.crash()
			m = m.remount()
		case 4:
			m.stop()
			m = m.remount()
		}
	}
	require.Len(t, m.held(t), 6)
}

// TestExpiryOverKills: a lock ends in time although the worker is killed before, and one whose time comes while nobody
// serves ends as soon as somebody does.
func TestExpiryOverKills(t *testing.T) {
	m := newCrashMount(t)
	c := newClient(t, m.dir)
	began := time.Now()
	require.NoError(t, unix.Mkdir(m.path("tlock/x+1.5"), 0o755))
	call := c.begin("read hold/x")
	m.awaitQueue(t, "x", c.pid())
	m.killWorker()
	require.Regexp(t, `^\d+$`, await(t, "the waiter's turn", call))
	require.InDelta(t, 1.5, time.Since(began).Seconds(), 1, "seconds after the mkdir")
}
