package integration

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestViews shows one set of locks in every view.
func TestViews(t *testing.T) {
	m := newMount(t)
	s := newScene(t, m)
	rel := "files/" + filepath.Base(s.dir)
	s.play(`
		a open f
		b open f
		c open g
		a setlk f w 0 10
		a setlk f r 100 0
		c flock g ex
		b setlkw f w 5 1 ...`)
	a, b, c := s.client("a").pid(), s.client("b").pid(), s.client("c").pid()
	require.NoError(t, unix.Mkdir(m.path("tlock/x+1h"), 0o755))

	t.Run("locks.jsonl", func(t *testing.T) { requireLocksJSON(t, m, rel, a, b, c) })
	t.Run("locks", func(t *testing.T) {
		table := readFile(t, m.path("view/locks"))
		for _, want := range []string{"CLASS", "PID", "PATH", rel + "/f", rel + "/g", "tlock/x", "lockclient", "root",
			strconv.Itoa(a), strconv.Itoa(b), strconv.Itoa(c), "EOF"} {
			assert.Contains(t, table, want)
		}
	})
	t.Run("files", func(t *testing.T) {
		text := readFile(t, m.path("view", rel, "f"))
		assert.Contains(t, text, fmt.Sprintf("held exclusive 0-9 pid %d", a))
		assert.Contains(t, text, fmt.Sprintf("held shared 100-EOF pid %d", a))
		assert.Contains(t, text, fmt.Sprintf("waiting exclusive 5-5 pid %d", b))
		assert.Contains(t, readFile(t, m.path("view", rel, "g")), "flock")
		assert.Equal(t, []string{"f", "g"}, entries(t, m.path("view", rel)))
	})
	t.Run("pid", func(t *testing.T) {
		assert.Contains(t, readFile(t, m.path("view/pid", strconv.Itoa(a))), rel+"/f")
		assert.Contains(t, readFile(t, m.path("view/pid", strconv.Itoa(b))), "waiting")
		assert.Contains(t, entries(t, m.path("view/pid")), strconv.Itoa(c))
		assert.NoFileExists(t, m.path("view/pid/1"))
	})
	t.Run("stats", func(t *testing.T) {
		stats := m.stats(t)
		for key, want := range map[string]string{"held_named": "1", "held_record": "2", "held_flock": "1",
			"waiting_named": "0", "waiting_record": "1", "waiting_flock": "0", "deadlocks": "0"} {
			assert.Equal(t, want, stats[key], key)
		}
		assert.Contains(t, stats, "handles")
		assert.Contains(t, stats, "nodes")
	})
	t.Run("graph.dot", func(t *testing.T) {
		dot := readFile(t, m.path("view/graph.dot"))
		assert.True(t, strings.HasPrefix(dot, "digraph locks {"), dot)
		assert.Contains(t, dot, fmt.Sprintf("p%d -> p%d", b, a))
		assert.NotContains(t, dot, "color=red")
	})
	t.Run("lockfs ls", func(t *testing.T) {
		assert.Contains(t, lockfs(t, "ls", "--dir", m.dir).out, rel+"/f")
		assert.Equal(t, 4, strings.Count(lockfs(t, "ls", "--json", "--dir", m.dir).out, `"held"`))
	})

	s.play("a close f\nb gets ok\nb close f\nc close g")
	assert.NoFileExists(t, m.path("view", rel, "f"))
	assert.NoFileExists(t, m.path("view/pid", strconv.Itoa(a)))
	require.Len(t, m.locks(t), 1)
}

func requireLocksJSON(t *testing.T, m *mount, rel string, a, b, c int) {
	t.Helper()
	n := func(v uint64) *uint64 { return &v }
	type row struct {
		Class, State, Mode, Path string
		Start, End               *uint64
		PID                      int
	}
	var rows []row
	for _, l := range m.locks(t) {
		rows = append(rows, row{l.Class, l.State, l.Mode, l.Path, l.Start, l.End, l.PID})
		assert.Zero(t, l.UID)
		assert.NotEmpty(t, l.Command)
		assert.InDelta(t, float64(time.Now().Unix()), l.Since, 60)
		if assert.NotNil(t, l.Seconds) {
			assert.InDelta(t, float64(time.Now().UnixMicro())/1e6-l.Since, *l.Seconds, 5)
		}
		switch {
		case l.State == "waiting":
			assert.Equal(t, []int{a}, l.Blockers)
		case l.Class == "named":
			assert.Equal(t, "x", l.Name)
			assert.EqualValues(t, readInt(t, m.path("tlock/x/token")), l.Token)
			assert.Equal(t, "mkdir", l.Kind)
			if assert.NotNil(t, l.Left) && assert.NotNil(t, l.Expiry) {
				assert.InDelta(t, 3600, *l.Left, 30)
				assert.InDelta(t, float64(time.Now().Unix())+3600, *l.Expiry, 30)
			}
		}
	}
	pid := unix.Getpid()
	assert.ElementsMatch(t, []row{
		{"named", "held", "exclusive", "tlock/x", nil, nil, pid},
		{"record", "held", "exclusive", rel + "/f", n(0), n(9), a},
		{"record", "held", "shared", rel + "/f", n(100), nil, a},
		{"record", "waiting", "exclusive", rel + "/f", n(5), n(5), b},
		{"flock", "held", "exclusive", rel + "/g", nil, nil, c},
	}, rows)
}

// TestViewsAreReadOnly: whatever would change view/ is refused with EROFS.
func TestViewsAreReadOnly(t *testing.T) {
	m := newMount(t)
	view := m.path("view")
	open := func(path string, flags int) error {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o644)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
	for what, err := range map[string]error{
		"open for writing":  open(view+"/locks", unix.O_WRONLY),
		"open for both":     open(view+"/stats", unix.O_RDWR),
		"open to truncate":  open(view+"/locks.jsonl", unix.O_WRONLY|unix.O_TRUNC),
		"open for append":   open(view+"/events", unix.O_WRONLY|unix.O_APPEND),
		"create":            open(view+"/new", unix.O_WRONLY|unix.O_CREAT),
		"mkdir":             unix.Mkdir(view+"/new", 0o755),
		"unlink":            unix.Unlink(view + "/locks"),
		"rmdir":             unix.Rmdir(view + "/pid"),
		"rename":            unix.Rename(view+"/locks", view+"/blocks"),
		"chmod":             unix.Chmod(view+"/locks", 0o777),
		"truncate":          unix.Truncate(view+"/locks", 0),
		"symlink":           unix.Symlink("locks", view+"/link"),
		"mknod":             unix.Mknod(view+"/fifo", unix.S_IFIFO|0o644, 0),
		"mkdir in files/":   unix.Mkdir(view+"/files/new", 0o755),
		"create under pid/": open(view+"/pid/new", unix.O_WRONLY|unix.O_CREAT),
	} {
		assert.Equal(t, "EROFS", errnoName(err), what)
	}
}

// TestEvents follows the life of each kind of lock.
func TestEvents(t *testing.T) {
	m := newMount(t)
	s := newScene(t, m)
	rel := "files/" + filepath.Base(s.dir)
	events := m.events(t)
	s.play(`
		a open f
		b open f
		a setlk f w 0 10
		b setlk f w 0 10 = EAGAIN
		b setlkw f w 5 1 ...
		a setlk f u 0 10
		b gets ok
		b flock f ex
		b kill`)
	require.NoError(t, unix.Mkdir(m.path("tlock/x"), 0o755))
	require.NoError(t, unix.Rmdir(m.path("tlock/x")))
	a := s.client("a").pid()
	for _, want := range []event{
		{Event: "granted", Class: "record", Mode: "exclusive", Path: rel + "/f", PID: a},
		{Event: "waiting", Class: "record", Path: rel + "/f"},
		{Event: "released", Class: "record", Path: rel + "/f"},
		{Event: "granted", Class: "flock", Path: rel + "/f"},
		{Event: "released", Class: "flock", Path: rel + "/f"},
		{Event: "granted", Class: "named", Path: "tlock/x", PID: unix.Getpid()},
		{Event: "released", Class: "named", Path: "tlock/x"},
	} {
		e := events.find(t, want.Event+" "+want.Class, func(e event) bool {
			return e.Event == want.Event && e.Class == want.Class && e.Path == want.Path &&
				(want.Mode == "" || want.Mode == e.Mode) && (want.PID == 0 || want.PID == e.PID)
		})
		require.NotZero(t, e.Seq)
		require.InDelta(t, float64(time.Now().Unix()), e.At, 60)
	}
	events.mu.Lock()
	defer events.mu.Unlock()
	for i := 1; i < len(events.events); i++ {
		require.Greater(t, events.events[i].Seq, events.events[i-1].Seq, "in order")
	}
}

// TestSlowEventReaderGetsAGap: a reader that falls behind loses events, is told how many, and holds up nobody.
func TestSlowEventReaderGetsAGap(t *testing.T) {
	m := newMount(t)
	fd, err := unix.Open(m.path("view/events"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	s := newScene(t, m)
	s.play("a open f")
	lock, err := unix.Open(s.dir+"/f", unix.O_RDWR|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(lock)
	deadline := time.Now().Add(time.Minute)
	var last uint64
	for gap := false; !gap; {
		require.True(t, time.Now().Before(deadline), "no gap seen")
		for range 40_000 {
			require.NoError(t, unix.Flock(lock, unix.LOCK_EX))
			require.NoError(t, unix.Flock(lock, unix.LOCK_UN))
		}
		gap, last = readUntilGap(t, fd)
	}
	require.NotZero(t, last)
}

// readUntilGap reads events that are there already and says whether a gap is among the first of them.
func readUntilGap(t *testing.T, fd int) (gap bool, last uint64) {
	t.Helper()
	buf := make([]byte, 1<<16)
	n, err := unix.Read(fd, buf)
	require.NoError(t, err)
	for line := range strings.Lines(string(buf[:n])) {
		var e event
		require.NoError(t, json.Unmarshal([]byte(line), &e), "%q", line)
		if e.Event == "gap" {
			require.NotZero(t, e.Missed)
			return true, e.Missed
		}
	}
	return false, 0
}

// TestCyclesThatAreNotRefused: through OFD locks Linux lets a cycle hang; lockfs lets it too, and says so.
func TestCyclesThatAreNotRefused(t *testing.T) {
	m := newMount(t)
	s := newScene(t, m)
	events := m.events(t)
	s.play(`
		a open f
		a open g
		b open f
		b open g
		a ofd_setlk f w 0 0
		b ofd_setlk g w 0 0
		a ofd_setlkw g w 0 0 ...
		b ofd_setlkw f w 0 0 ...`)
	e := events.find(t, "deadlock", func(e event) bool { return e.Event == "deadlock" })
	require.NotNil(t, e.Refused, e.raw)
	require.False(t, *e.Refused)
	dot := readFile(t, m.path("view/graph.dot"))
	require.Contains(t, dot, "color=red")
	s.play("a kill\nb gets ok")
	require.NotContains(t, readFile(t, m.path("view/graph.dot")), "color=red")
}

// TestRefusedDeadlockIsReported in the events and the statistics.
func TestRefusedDeadlockIsReported(t *testing.T) {
	m := newMount(t)
	s := newScene(t, m)
	events := m.events(t)
	s.play(cycle(3))
	e := events.find(t, "deadlock", func(e event) bool { return e.Event == "deadlock" })
	require.NotNil(t, e.Refused, e.raw)
	require.True(t, *e.Refused)
	require.Equal(t, "1", m.stats(t)["deadlocks"])
}

// TestUnlinkedFileInViews shows as its inode number.
func TestUnlinkedFileInViews(t *testing.T) {
	m := newMount(t)
	s := newScene(t, m)
	s.play("a open f\na setlk f w 0 10\na unlink f")
	locks := m.locks(t)
	require.Len(t, locks, 1)
	require.Regexp(t, `#[0-9]+ \(deleted\)$`, locks[0].Path)
	require.Contains(t, readFile(t, m.path("view/locks")), "(deleted)")
}

// TestRenamedFileInViews shows under its new name.
func TestRenamedFileInViews(t *testing.T) {
	m := newMount(t)
	s := newScene(t, m)
	s.play("a open f\na setlk f w 0 10\na rename f g")
	locks := m.locks(t)
	require.Len(t, locks, 1)
	require.Equal(t, "files/"+filepath.Base(s.dir)+"/g", locks[0].Path)
}

// TestViewMode hides the views from other users.
func TestViewMode(t *testing.T) {
	m := newMount(t, "--view-mode", "0500")
	user := newClient(t, m.dir, asUser(stranger))
	require.Equal(t, "EACCES", user.do("read view/stats"))
	require.Equal(t, "ok", user.do("mkdir tlock/x"))
}
