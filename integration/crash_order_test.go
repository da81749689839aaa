package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestWaitersKeepOrderOverKills: twenty that came one after the other are served in that order, although the worker is
// killed while they wait and between their turns.
func TestWaitersKeepOrderOverKills(t *testing.T) {
	const waiters = 20
	for _, kind := range []string{"posix", "flock", "take", "hold"} {
		t.Run(kind, func(t *testing.T) {
			m := newCrashMount(t)
			l := newLine(t, m, kind)
			for i := range waiters {
				l.join("restart")
				if i == waiters/2 {
					m.killWorker()
				}
			}
			for range 3 {
				m.killWorker()
				l.awaitWaiting(l.waiters...)
			}
			l.serveOverKills(5)
			require.Empty(t, l.waiting())
		})
	}
}

// serveOverKills is serve for all, with a kill after every so many turns: in half of them while the one whose turn it
// is still holds the lock, in the others as it lets go.
func (l *line) serveOverKills(every int) {
	l.t.Helper()
	l.free()
	for i, s := range l.waiters {
		require.Equal(l.t, "got", s.next(fmt.Sprintf("turn %d", i+1)))
		for _, later := range l.waiters[i+1:] {
			require.Empty(l.t, later.lines, "out of turn %d", i+1)
		}
		switch i % (2 * every) {
		case every - 1:
			l.m.killWorker()
			s.in.Close()
		case 2*every - 1:
			s.in.Close()
			l.m.killWorker()
		default:
			s.in.Close()
		}
	}
}

// crowdOfWaiters forks $2 processes of each kind of wait in the directory $1, which say what came of it. A fork of
// Python's is the cheapest client there is.
const crowdOfWaiters = `
import errno, fcntl, os, struct, sys
mount, n = sys.argv[1], int(sys.argv[2])
def opened(name): return os.open(mount + "/files/" + name, os.O_RDWR)
record = struct.pack("hhxxxxqqixxxx", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
waits = {
    "posix": lambda: fcntl.lockf(opened("posix"), fcntl.LOCK_EX),
    "ofd": lambda: fcntl.fcntl(opened("ofd"), 38, record),
    "flock": lambda: fcntl.flock(opened("flock"), fcntl.LOCK_EX),
    "take": lambda: os.open(mount + "/take/take", os.O_RDONLY),
    "hold": lambda: os.open(mount + "/hold/hold", os.O_RDONLY),
}
for kind, wait in waits.items():
    for _ in range(n):
        if os.fork() == 0:
            try:
                wait()
                said = "got"
            except OSError as e:
                said = errno.errorcode[e.errno]
            os.write(1, f"{kind} {said}\n".encode())
            os._exit(0)
sys.stdin.read()
`

// TestCrowdOverKills: two hundred that wait, in every way, go on waiting when the worker is killed, and then are all
// served.
func TestCrowdOverKills(t *testing.T) {
	const each = 40
	kinds := []string{"posix", "ofd", "flock", "take", "hold"}
	m := newCrashMount(t)
	holder := newClient(t, m.dir)
	for _, name := range kinds[:3] {
		require.Equal(t, "ok", holder.do("open files/%s", name))
	}
	require.Equal(t, "ok", holder.do("setlk files/posix w 0 0"))
	require.Equal(t, "ok", holder.do("ofd_setlk files/ofd w 0 0"))
	require.Equal(t, "ok", holder.do("flock files/flock ex"))
	require.Equal(t, "ok", holder.do("mkdir tlock/take"))
	require.Equal(t, "ok", holder.do("mkdir tlock/hold"))
	crowd := startScript(t, newProgram(t, hangLimit, "python3", "-c", crowdOfWaiters, m.dir, strconv.Itoa(each)))
	allWait := func() {
		eventually(t, time.Minute, "all wait", func() bool { return len(m.waiting(t)) == each*len(kinds) })
	}
	allWait()
	before := waitersOf(m.waiting(t))
	for range 3 {
		m.killWorker()
		allWait()
		require.Equal(t, before, waitersOf(m.waiting(t)), "who waits for what since when")
		require.Empty(t, crowd.lines, "a wait has ended")
	}
	for _, free := range []string{"close files/posix", "close files/ofd", "close files/flock", "rmdir tlock/take", "rmdir tlock/hold"} {
		require.Equal(t, "ok", holder.do("%s", free))
		m.killWorker()
	}
	got := make(map[string]int)
	for range each * len(kinds) {
		got[crowd.next("the end of a wait")]++
	}
	for _, kind := range kinds {
		require.Equal(t, each, got[kind+" got"], "%v", got)
	}
	holder.kill()
	eventually(t, waitLimit, "no lock is left", func() bool { return len(m.locks(t)) == 0 })
}

// waitersOf tells waiters apart by what stays as it is while they wait.
func waitersOf(lines []lockLine) (waiters []string) {
	for _, line := range lines {
		waiters = append(waiters, fmt.Sprintf("%s since %f", line.brief(), line.Since))
	}
	slices.Sort(waiters)
	return waiters
}

// TestRestartIsQuick: with 10,000 locks held a killed worker is replaced within a moment.
func TestRestartIsQuick(t *testing.T) {
	const timed, clients, ranges, kills = 5000, 5, 1000, 5
	const limit = 2 * time.Second // on any machine; the aim is 100 ms
	binary, err := plainBinary()
	require.NoError(t, err)
	base := tempDir(t)
	m := mountAt(t, binary, filepath.Join(base, "mnt"), filepath.Join(base, "state"))
	for i := range timed {
		require.NoError(t, unix.Mkdir(m.path("tlock", fmt.Sprint("lock", i)), 0o755))
	}
	for i := range clients {
		lockRanges(t, m, i, ranges)
	}
	require.Len(t, m.held(t), timed+clients*ranges)
	var times []time.Duration
	for range kills {
		began := time.Now()
		m.strikeWorker()
		var st unix.Stat_t
		require.NoError(t, unix.Stat(m.path("README"), &st), "the stat is answered by the next worker")
		times = append(times, time.Since(began))
		m.awaitAnswer()
	}
	slices.Sort(times)
	t.Logf("with %d locks held, from kill -9 to the answer of a stat: median %v, longest %v", timed+clients*ranges,
		times[kills/2].Round(time.Millisecond), times[kills-1].Round(time.Millisecond))
	require.Less(t, times[kills-1], limit)
	require.Len(t, m.held(t), timed+clients*ranges)
}

// lockRanges starts a client that locks every other byte of a file of its own.
func lockRanges(t *testing.T, m *mount, i, n int) {
	t.Helper()
	file := fmt.Sprintf("files/ranges%d", i)
	require.NoError(t, os.WriteFile(m.path(file), nil, 0o644))
	c := newClient(t, m.dir)
	require.Equal(t, "ok", c.do("open %s", file))
	for k := range n {
		require.Equal(t, "ok", c.do("setlk %s w %d 1", file, 2*k))
	}
}
