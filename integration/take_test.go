package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// A job is a program in the background; it ends, with its children, when the test does.
type job struct {
	p    *program
	done chan struct{} // closed when it has been waited for
	err  error         // of Wait, once done is closed
}

func start(t testing.TB, p *program) *job {
	t.Helper()
	j := &job{p: p, done: make(chan struct{})}
	require.NoError(t, p.Start())
	go func() {
		j.err = p.Wait()
		close(j.done)
	}()
	t.Cleanup(func() {
		j.signal(syscall.SIGKILL)
		<-j.done // the program's own deadline bounds this
	})
	return j
}

func (j *job) pid() int { return j.p.Process.Pid }

// signal sends a signal to the whole process group.
func (j *job) signal(sig syscall.Signal) { syscall.Kill(-j.pid(), sig) }

func (j *job) ended() bool {
	select {
	case <-j.done:
		return true
	default:
		return false
	}
}

// wait waits for the program's end, which its deadline bounds.
func (j *job) wait(t testing.TB) result {
	t.Helper()
	<-j.done
	return j.p.ended(t, j.err)
}

// queue is the pids in tlock/NAME/waiters, the first in the line first.
func (m *mount) queue(t testing.TB, name string) []int {
	t.Helper()
	text, err := os.ReadFile(m.path("tlock", name, "waiters"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	require.NoError(t, err)
	var pids []int
	for line := range strings.Lines(string(text)) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
		require.Len(t, fields, 4, "pid, uid, seconds waited, command: %q", line)
		pids = append(pids, int(parseInt(fields[0])))
	}
	return pids
}

// awaitQueue waits until exactly these processes wait for a name, in this order.
func (m *mount) awaitQueue(t testing.TB, name string, pids ...int) {
	t.Helper()
	eventually(t, waitLimit, fmt.Sprintf("%v wait for %s", pids, name), func() bool {
		return slices.Equal(pids, m.queue(t, name))
	})
}

// awaitFree waits until nobody holds a name.
func (m *mount) awaitFree(t testing.TB, name string) {
	t.Helper()
	eventually(t, waitLimit, name+" is free", func() bool {
		_, err := os.Stat(m.path("tlock", name))
		return errors.Is(err, os.ErrNotExist)
	})
}

// kindOf is how a lock was taken.
func (m *mount) kindOf(t testing.TB, name string) string {
	t.Helper()
	return flatKeyed(t, readFile(t, m.path("tlock", name, "holder")))["kind"]
}

// openErrno opens a path and says how that went; what it got is closed again.
func openErrno(path string, flags int) string {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o644)
	if err == nil {
		unix.Close(fd)
	}
	return errnoName(err)
}

// TestTakeInOrderOfArrival serves 50 processes that came one after the other, each at once when the one before let go.
func TestTakeInOrderOfArrival(t *testing.T) {
	const waiters, limit = 50, 5 * time.Millisecond
	for _, kind := range []string{"take", "hold"} {
		t.Run(kind, func(t *testing.T) {
			m := newMount(t)
			require.NoError(t, unix.Mkdir(m.path("tlock/x+1h"), 0o755))
			path := kind + "/x"
			var clients []*client
			var calls []<-chan string
			var pids []int
			for range waiters {
				c := newClient(t, m.dir)
				clients, pids = append(clients, c), append(pids, c.pid())
				calls = append(calls, c.begin("open "+path+" r"))
				m.awaitQueue(t, "x", pids...)
			}
			var handOvers []time.Duration
			last := uint64(0)
			for i, call := range calls {
				require.Equal(t, pids[i:], m.queue(t, "x"))
				released := time.Now()
				require.NoError(t, unix.Rmdir(m.path("tlock/x")))
				require.Equal(t, "ok", await(t, "the next in line", call))
				handOvers = append(handOvers, time.Since(released))
				who := flatKeyed(t, readFile(t, m.path("tlock/x/holder")))
				require.Equal(t, strconv.Itoa(pids[i]), who["pid"])
				token := parseUint(t, readValue(t, m.path("tlock/x/token")))
				require.Greater(t, token, last)
				last = token
			}
			require.Equal(t, "ok", clients[waiters-1].do("close %s", path))
			m.awaitFree(t, "x")
			slices.Sort(handOvers)
			median := handOvers[waiters/2]
			t.Logf("from rmdir to the next one's open: median %v, worst %v", median, handOvers[waiters-1])
			require.Less(t, median, limit)
		})
	}
}

func parseUint(t testing.TB, s string) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(s, 10, 64)
	require.NoError(t, err)
	return n
}

// TestTakeWithoutWaiting: O_NONBLOCK and wait=0 fail at once, wait=DURATION after that time, and none stays in line.
func TestTakeWithoutWaiting(t *testing.T) {
	m := newMount(t)
	c := newClient(t, m.dir)
	require.Equal(t, "ok", c.do("mkdir tlock/x+1h"))
	for _, kind := range []string{"take", "hold"} {
		assert.Equal(t, "EAGAIN", openErrno(m.path(kind, "x"), unix.O_NONBLOCK), kind)
		assert.Equal(t, "EAGAIN", openErrno(m.path(kind, "x,wait=30"), unix.O_NONBLOCK), kind)
		assert.Equal(t, "EAGAIN", openErrno(m.path(kind, "x"), unix.O_NONBLOCK|unix.O_CREAT|unix.O_WRONLY|unix.O_TRUNC), kind)
		assert.Equal(t, "EAGAIN", c.do("open %s/x,wait=0 r", kind))
		assert.Equal(t, "EAGAIN", c.do("open %s/x,wait=0s r", kind))
		for wait, want := range map[string]time.Duration{"0.3": 300 * time.Millisecond, "1s": time.Second} {
			began := time.Now()
			assert.Equal(t, "ETIMEDOUT", c.do("open %s/x,wait=%s r", kind, wait))
			took := time.Since(began)
			assert.GreaterOrEqual(t, took, want)
			assert.Less(t, took, want+500*time.Millisecond)
		}
		assert.Empty(t, m.queue(t, "x"))
	}
	require.Equal(t, "ok", c.do("rmdir tlock/x"))
	require.Empty(t, m.locks(t), "nobody was left to get it")

	for _, free := range []string{"take/x", "take/x,wait=0", "take/x+5m,wait=1m", "hold/x", "hold/x,wait=0"} {
		assert.Equal(t, "ok", openErrno(m.path(free), unix.O_NONBLOCK), free)
		assert.Empty(t, m.locks(t), "%s: closed unread, it is released", free)
	}
}

// TestTakenInTimeIsKept: a wait that ends well is not ended by its time.
func TestTakenInTimeIsKept(t *testing.T) {
	m := newMount(t)
	require.NoError(t, unix.Mkdir(m.path("tlock/x"), 0o755))
	c := newClient(t, m.dir)
	call := c.begin("open hold/x,wait=0.4 r")
	m.awaitQueue(t, "x", c.pid())
	require.NoError(t, unix.Rmdir(m.path("tlock/x")))
	require.Equal(t, "ok", await(t, "the hold", call))
	next := newClient(t, m.dir)
	require.Equal(t, "ETIMEDOUT", next.do("open hold/x,wait=0.6 r"), "held beyond the time it was waited for")
	require.Equal(t, "hold", m.kindOf(t, "x"))
}

// TestInterruptedTakerLeavesNothing, whatever interrupts it.
func TestInterruptedTakerLeavesNothing(t *testing.T) {
	for _, kind := range []string{"take", "hold"} {
		for name, sig := range map[string]syscall.Signal{"Ctrl-C": syscall.SIGINT, "SIGTERM": syscall.SIGTERM, "kill -9": syscall.SIGKILL} {
			t.Run(kind+"/"+name, func(t *testing.T) {
				m := newMount(t)
				require.NoError(t, unix.Mkdir(m.path("tlock/x"), 0o755))
				cat := start(t, newProgram(t, time.Minute, "cat", m.path(kind, "x")))
				m.awaitQueue(t, "x", cat.pid())
				cat.signal(sig)
				eventually(t, waitLimit, "cat ends", cat.ended)
				assert.Empty(t, cat.p.out.String())
				assert.Empty(t, m.queue(t, "x"))
				requireNobodyGetsIt(t, m)
			})
		}
		t.Run(kind+"/timeout 1", func(t *testing.T) {
			m := newMount(t)
			require.NoError(t, unix.Mkdir(m.path("tlock/x"), 0o755))
			began := time.Now()
			r := newProgram(t, time.Minute, "timeout", "1", "cat", m.path(kind, "x")).run(t)
			assert.Equal(t, 124, r.code)
			assert.Empty(t, r.out)
			assert.Less(t, time.Since(began), 3*time.Second)
			assert.Empty(t, m.queue(t, "x"))
			requireNobodyGetsIt(t, m)
		})
	}
}

// requireNobodyGetsIt: when x is released it stays free, as the events say too.
func requireNobodyGetsIt(t *testing.T, m *mount) {
	t.Helper()
	assert.NotContains(t, readFile(t, m.path("view/graph.dot")), "->")
	events := m.events(t)
	require.NoError(t, unix.Rmdir(m.path("tlock/x")))
	require.NoError(t, unix.Mkdir(m.path("tlock/after"), 0o755))
	events.find(t, "what came after", func(e event) bool { return e.Path == "tlock/after" })
	events.mu.Lock()
	defer events.mu.Unlock()
	for _, e := range events.events {
		require.False(t, e.Path == "tlock/x" && e.Event == "granted", "%s", e.raw)
	}
	require.Equal(t, []string{"after"}, entries(t, m.path("tlock")))
}

// TestTakerThatReadsNoToken loses its lock at once, by death and by close; one that read it keeps it for its time.
func TestTakerThatReadsNoToken(t *testing.T) {
	m := newMount(t)
	for _, end := range []string{"kill", "close"} {
		t.Run(end, func(t *testing.T) {
			first, second := newClient(t, m.dir), newClient(t, m.dir)
			require.Equal(t, "ok", first.do("open take/x+1h r"))
			require.Equal(t, "take", m.kindOf(t, "x"))
			call := second.begin("open take/x+1h r")
			m.awaitQueue(t, "x", second.pid())
			began := time.Now()
			if end == "kill" {
				first.kill()
			} else {
				require.Equal(t, "ok", first.do("close take/x+1h"))
			}
			require.Equal(t, "ok", await(t, "the second's turn", call))
			require.Less(t, time.Since(began), time.Second)
			second.kill()
			m.awaitFree(t, "x")
		})
	}
	t.Run("after reading", func(t *testing.T) {
		reader := newClient(t, m.dir)
		token := reader.do("read take/x+2")
		require.Equal(t, token, readValue(t, m.path("tlock/x/token")))
		how := start(t, newProgram(t, time.Minute, "cat", m.path("tlock/x/wait")))
		reader.kill()
		who := flatKeyed(t, readFile(t, m.path("tlock/x/holder")))
		require.Equal(t, "no", who["alive"])
		require.Equal(t, token, readValue(t, m.path("tlock/x/token")), "it lives on")
		require.Equal(t, "expired\n", how.wait(t).out)
	})
	t.Run("without reading, by a shell", func(t *testing.T) {
		mustSh(t, `exec 9<"$1/take/x+1h" && test -d "$1/tlock/x" || exit 1
			exec 9<&- && test ! -d "$1/tlock/x"`, m.dir)
	})
}

// TestTokensThatAreRead are the lock's own, at any speed of reading.
func TestTokensThatAreRead(t *testing.T) {
	m := newMount(t)
	mustSh(t, `cd "$1"
		token=$(cat take/x+5m) && test "$token" = "$(cat tlock/x/token)" && rmdir tlock/x@$token || exit 1
		exec 9<hold/x && read token <&9 && test "$token" = "$(cat tlock/x/token)" || exit 2
		exec 9<&-
		token=$(dd if=take/x+5m bs=1 status=none) && test "$token" = "$(cat tlock/x/token)" && rmdir tlock/x || exit 3
		exec 9>hold/y && test -d tlock/y || exit 4 # whatever the redirection
		exec 9>>hold/z && test ! -d tlock/y && test -d tlock/z || exit 5
		exec 9<>hold/z2 && test -d tlock/z2 && test ! -d tlock/z || exit 6`, m.dir)
	require.Empty(t, m.locks(t))
}

// TestHoldEndsWithItsLastClose: the open file description counts, not the process.
func TestHoldEndsWithItsLastClose(t *testing.T) {
	for name, script := range map[string]string{
		"dup":       `exec 9<hold/x 8<&9 9<&-; echo held; read _; exec 8<&-; echo ended; read _`,
		"fork":      `exec 9<hold/x; sh -c 'read _' <"$1" & exec 9<&-; echo held; read _; echo >"$1"; wait; echo ended; read _`,
		"exec":      `exec 9<hold/x; exec sh -c 'echo held; read _; exec 9<&-; echo ended; read _'`,
		"exit":      `sh -c 'exec 9<hold/x; echo held; read _'; echo ended; read _`,
		"exec exit": `sh -c 'exec 9<hold/x; exec sh -c "echo held; read _"'; echo ended; read _`,
		"kill -9":   `sh -c 'exec 9<hold/x; echo held; read _; kill -9 $$' 2>/dev/null; echo ended; read _`,
		"its name":  `exec 9<hold/x,wait=5; echo held; read _; exec 9<&-; echo ended; read _`,
		"subshell":  `(echo held; read _) 9<hold/x; echo ended; read _`,
		"function":  `f() { echo held; read _; }; f 9<hold/x; echo ended; read _`,
		"by uid":    `setpriv --reuid 12345 --clear-groups sh -c 'exec 9<hold/x; echo held; read _'; echo ended; read _`,
	} {
		t.Run(name, func(t *testing.T) {
			m := newMount(t)
			fifo := tempDir(t) + "/fifo"
			require.NoError(t, unix.Mkfifo(fifo, 0o666))
			p := newProgram(t, time.Minute, "sh", "-c", script, "sh", fifo)
			p.Dir = m.dir
			s := startScript(t, p)
			require.Equal(t, "held", s.next("the hold"))
			require.Equal(t, "hold", m.kindOf(t, "x"))
			require.Equal(t, "EEXIST", errnoName(unix.Mkdir(m.path("tlock/x"), 0o755)))
			next := newClient(t, m.dir)
			call := next.begin("open hold/x r")
			m.awaitQueue(t, "x", next.pid())
			s.in.Write([]byte("\n"))
			require.Equal(t, "ended", s.next("its end"))
			require.Equal(t, "ok", await(t, "the next in line", call))
			next.kill()
			m.awaitFree(t, "x")
		})
	}
}

// TestHoldPassesToAnOrphan: a child that inherited the description keeps the lock when the shell is killed.
func TestHoldPassesToAnOrphan(t *testing.T) {
	m := newMount(t)
	p := newProgram(t, time.Minute, "sh", "-c", `exec 9<hold/x; sleep 1000 >/dev/null & echo $!; read _`)
	p.Dir = m.dir
	s := startScript(t, p)
	child := int(parseInt(s.next("the child's pid")))
	holder := flatKeyed(t, readFile(t, m.path("tlock/x/holder")))
	require.Equal(t, strconv.Itoa(p.Process.Pid), holder["pid"])
	require.NoError(t, syscall.Kill(p.Process.Pid, syscall.SIGKILL))
	eventually(t, waitLimit, "the shell is dead", func() bool {
		return flatKeyed(t, readFile(t, m.path("tlock/x/holder")))["alive"] == "no"
	})
	require.Equal(t, "EAGAIN", openErrno(m.path("hold/x"), unix.O_NONBLOCK), "its child still has it")
	require.NoError(t, syscall.Kill(child, syscall.SIGKILL))
	m.awaitFree(t, "x")
}

// TestTakeAndHoldAreSeen in tlock/ and view/, with kind and waiters, and take/ and hold/ list nothing.
func TestTakeAndHoldAreSeen(t *testing.T) {
	m := newMount(t)
	taker, holder, waiter := newClient(t, m.dir), newClient(t, m.dir), newClient(t, m.dir)
	require.NotEmpty(t, taker.do("read take/t+5m"))
	require.Equal(t, "ok", holder.do("open hold/h r"))
	waiter.begin("open take/t r")
	waiter.begin("open hold/h r")
	m.awaitQueue(t, "t", waiter.pid())
	m.awaitQueue(t, "h", waiter.pid())

	assert.Equal(t, []string{"h", "t"}, entries(t, m.path("tlock")))
	assert.Equal(t, "take", m.kindOf(t, "t"))
	assert.Equal(t, "hold", m.kindOf(t, "h"))
	assert.Equal(t, "300", readValue(t, m.path("tlock/t/timeout")))
	assert.Equal(t, []string{"age", "d", "holder", "json", "note", "status", "token", "tstart", "waiters"},
		entries(t, m.path("tlock/h")), "a hold has no time to end")
	for _, absent := range []string{"expiry", "left", "timeout"} {
		assert.NoFileExists(t, m.path("tlock/h", absent))
	}
	for _, name := range []string{"t", "h"} {
		assert.Contains(t, readValue(t, m.path("tlock", name, "status")), "1 wait")
		var all struct {
			Kind    string
			Waiters []struct{ PID int }
		}
		require.NoError(t, json.Unmarshal([]byte(readFile(t, m.path("tlock", name, "json"))), &all))
		assert.Equal(t, m.kindOf(t, name), all.Kind)
		if assert.Len(t, all.Waiters, 1) {
			assert.Equal(t, waiter.pid(), all.Waiters[0].PID)
		}
		held, waiting := m.locksOn(t, "held", "tlock/"+name), m.locksOn(t, "waiting", "tlock/"+name)
		if assert.Len(t, held, 1) && assert.Len(t, waiting, 1) {
			assert.Equal(t, all.Kind, held[0].Kind)
			assert.Equal(t, []int{held[0].PID}, waiting[0].Blockers)
		}
		assert.Contains(t, readFile(t, m.path("view/graph.dot")), fmt.Sprintf("p%d -> p%d", waiter.pid(), held[0].PID))
	}
	assert.Contains(t, readFile(t, m.path("view/pid", strconv.Itoa(waiter.pid()))), "tlock/h")
	assert.Empty(t, entries(t, m.path("take")))
	assert.Empty(t, entries(t, m.path("hold")))
}

// TestHoldReleasedByForce: rmdir by root or its own user ends a hold; its handle then answers EIO.
func TestHoldReleasedByForce(t *testing.T) {
	for _, uid := range []int{0, stranger} {
		t.Run(fmt.Sprint("by uid ", uid), func(t *testing.T) {
			m := newMount(t)
			p := newProgram(t, time.Minute, "setpriv", "--reuid", strconv.Itoa(stranger), "--clear-groups", "sh", "-c",
				`exec 9<hold/x; echo held; read _; cat <&9 2>&1; echo status $?; read _`)
			p.Dir = m.dir
			s := startScript(t, p)
			require.Equal(t, "held", s.next("the hold"))
			how := start(t, newProgram(t, time.Minute, "cat", m.path("tlock/x/wait")))
			other := newClient(t, m.dir, asUser(stranger+1))
			require.Equal(t, "EPERM", other.do("rmdir tlock/x"))
			force := newClient(t, m.dir, asUser(uint32(uid)))
			eventually(t, waitLimit, "cat waits", func() bool { return processState(t, how.pid()) != "R" })
			require.Equal(t, "ok", force.do("rmdir tlock/x"))
			require.Empty(t, entries(t, m.path("tlock")))
			if r := how.wait(t); r.code == 0 {
				require.Equal(t, "forced\n", r.out)
			} else {
				require.Contains(t, r.err, "No such file", "cat was too late to open it")
			}
			require.Equal(t, "ok", force.do("mkdir tlock/x"), "free for others")
			s.in.Write([]byte("\n"))
			require.Contains(t, s.next("the read of the handle"), "Input/output error")
			require.Equal(t, "status 1", s.next("its status"))
			p.Process.Kill()
			require.Equal(t, "mkdir", m.kindOf(t, "x"), "the close of the old handle does not end the new lock")
		})
	}
}

// waitScript opens a `wait` in the directory of $1, says so, and reads it.
const waitScript = `exec 9<"$1" && echo open && cat <&9 2>&1`

func waitFor(t *testing.T, path string) *script {
	t.Helper()
	s := startScript(t, newProgram(t, time.Minute, "sh", "-c", waitScript, "sh", path))
	require.Equal(t, "open", s.next("the open of wait"))
	return s
}

// TestWaitSaysHow a lock ended, to those who opened it before the end, by either of its names.
func TestWaitSaysHow(t *testing.T) {
	m := newMount(t)
	user := newClient(t, m.dir, asUser(stranger))
	for _, tc := range []struct {
		what, take, says string
		end              func()
	}{
		{"rmdir by its user", "mkdir tlock/x", "released", func() { user.do("rmdir tlock/x") }},
		{"rmdir of what take/ took", "read take/x+5m", "released", func() { user.do("rmdir tlock/x") }},
		{"rmdir by root", "mkdir tlock/x", "forced", func() { unix.Rmdir(m.path("tlock/x")) }},
		{"time", "mkdir tlock/x+0.5", "expired", func() {}},
		{"close of a hold", "open hold/x r", "released", func() { user.do("close hold/x") }},
		{"rmdir of a hold", "open hold/x r", "forced", func() { user.do("rmdir tlock/x") }},
		{"close of a take that was not read", "open take/x r", "released", func() { user.do("close take/x") }},
	} {
		t.Run(tc.what, func(t *testing.T) {
			require.NotRegexp(t, "^E[A-Z]+$", user.do("%s", tc.take))
			token := readValue(t, m.path("tlock/x/token"))
			plain, byToken := waitFor(t, m.path("tlock/x/wait")), waitFor(t, m.path("tlock/x@"+token, "wait"))
			tc.end()
			assert.Equal(t, tc.says, plain.next("wait"))
			assert.Equal(t, tc.says, byToken.next("wait"))
			m.awaitFree(t, "x")
		})
	}
	assert.Equal(t, "ENOENT", openErrno(m.path("tlock/x/wait"), unix.O_RDONLY), "nothing to wait for")
}

// TestWaitIsAboutOneIncarnation: it does not go on to the next holder's lock.
func TestWaitIsAboutOneIncarnation(t *testing.T) {
	m := newMount(t)
	require.NoError(t, unix.Mkdir(m.path("tlock/x"), 0o755))
	w := waitFor(t, m.path("tlock/x/wait"))
	c := newClient(t, m.dir)
	call := c.begin("open hold/x r")
	m.awaitQueue(t, "x", c.pid())
	require.NoError(t, unix.Rmdir(m.path("tlock/x")))
	require.Equal(t, "released", w.next("wait"))
	require.Equal(t, "ok", await(t, "the hold", call))
}

// crowdAtWait makes $2 processes that each read the file $1, and say when they have opened it.
const crowdAtWait = `
import os, sys
path, n = sys.argv[1], int(sys.argv[2])
for i in range(n):
    if os.fork() == 0:
        fd = os.open(path, os.O_RDONLY)
        os.write(1, b"open\n")
        os.write(1, os.read(fd, 100))
        os._exit(0)
for i in range(n):
    os.wait()
`

// TestManyReadersOfWait all wake, whether they share a description or not.
func TestManyReadersOfWait(t *testing.T) {
	const n = 100
	m := newMount(t)
	require.NoError(t, unix.Mkdir(m.path("tlock/x"), 0o755))
	crowd := startScript(t, newProgram(t, time.Minute, "python3", "-c", crowdAtWait, m.path("tlock/x/wait"), strconv.Itoa(n)))
	for i := range n {
		require.Equal(t, "open", crowd.next(fmt.Sprint("open ", i)))
	}
	began := time.Now()
	require.NoError(t, unix.Rmdir(m.path("tlock/x")))
	for i := range n {
		require.Equal(t, "released", crowd.next(fmt.Sprint("end ", i)))
	}
	t.Logf("%d readers woken in %v", n, time.Since(began))

	require.NoError(t, unix.Mkdir(m.path("tlock/x"), 0o755))
	shared := startScript(t, newProgram(t, time.Minute, "sh", "-c",
		`exec 9<"$1"; cat <&9 & cat <&9 & exec 9<&-; echo open; wait; echo both`, "sh", m.path("tlock/x/wait")))
	require.Equal(t, "open", shared.next("open"))
	require.NoError(t, unix.Rmdir(m.path("tlock/x")))
	for line := ""; line != "both"; {
		line = shared.next("the end of both readers")
	}
}

// pollScript checks with each kind of poll that the file $1 has nothing to read yet, says so, and then waits with each
// until it has.
const pollScript = `
import errno, os, select, sys
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_NONBLOCK)
def read():
    try:
        return os.read(fd, 4096).decode()
    except OSError as e:
        return errno.errorcode[e.errno]
poll, epoll = select.poll(), select.epoll()
poll.register(fd, select.POLLIN)
epoll.register(fd, select.EPOLLIN)
print("early", read(), poll.poll(100), select.select([fd], [], [], 0.1)[0], epoll.poll(0.1), flush=True)
ready = [bool(poll.poll(20000)[0][1] & select.POLLIN), select.select([fd], [], [], 20)[0] == [fd], len(epoll.poll(20)) == 1]
print("ready", *ready, flush=True)
print("text", read(), end="", flush=True)
sys.stdin.read()
print("rest", read(), flush=True)
`

// TestPoll: poll, select and epoll work on what waits, and O_NONBLOCK reads answer EAGAIN.
func TestPoll(t *testing.T) {
	for _, name := range []string{"tlock/x/wait", "view/events"} {
		t.Run(name, func(t *testing.T) {
			m := newMount(t)
			require.NoError(t, unix.Mkdir(m.path("tlock/x"), 0o755))
			s := startScript(t, newProgram(t, time.Minute, "python3", "-c", pollScript, m.path(name)))
			require.Equal(t, "early EAGAIN [] [] []", s.next("nothing yet"))
			require.NoError(t, unix.Rmdir(m.path("tlock/x")))
			require.Equal(t, "ready True True True", s.next("poll"))
			text := s.next("the text")
			s.in.Close()
			if name == "tlock/x/wait" {
				require.Equal(t, "text released", text)
				require.Equal(t, "rest ", s.next("the end of the file"))
			} else {
				require.Contains(t, text, `"event":"released"`)
				require.Equal(t, "rest EAGAIN", s.next("nothing more"))
			}
		})
	}
}

// TestPollByMany: each of two pollers of one lock is told.
func TestPollByMany(t *testing.T) {
	m := newMount(t)
	require.NoError(t, unix.Mkdir(m.path("tlock/x"), 0o755))
	var all []*script
	for range 5 {
		s := startScript(t, newProgram(t, time.Minute, "python3", "-c", pollScript, m.path("tlock/x/wait")))
		require.Contains(t, s.next("nothing yet"), "early EAGAIN")
		all = append(all, s)
	}
	require.NoError(t, unix.Rmdir(m.path("tlock/x")))
	for _, s := range all {
		require.Equal(t, "ready True True True", s.next("poll"))
	}
}

// TestStaleHandles: what was opened of one incarnation does nothing to the next.
func TestStaleHandles(t *testing.T) {
	m := newMount(t)
	require.NoError(t, unix.Mkdir(m.path("tlock/x+1h"), 0o755))
	token := readValue(t, m.path("tlock/x/token"))
	var handles []int
	for _, name := range []string{"x/timeout", "x/note", "x@" + token + "/timeout", "x@" + token + "/note"} {
		fd, err := unix.Open(m.path("tlock", name), unix.O_WRONLY|unix.O_CLOEXEC, 0)
		require.NoError(t, err)
		defer unix.Close(fd)
		handles = append(handles, fd)
	}
	require.NoError(t, unix.Rmdir(m.path("tlock/x@"+token)))
	require.NoError(t, unix.Mkdir(m.path("tlock/x+1h"), 0o755))
	for _, fd := range handles {
		_, err := unix.Write(fd, []byte("5\n"))
		assert.Equal(t, "ENOENT", errnoName(err))
	}
	assert.Equal(t, "3600", readValue(t, m.path("tlock/x/timeout")))
	assert.Empty(t, readFile(t, m.path("tlock/x/note")))
	for _, name := range []string{"", "/token", "/timeout", "/holder", "/wait", "/d", "/note", "/json"} {
		var st unix.Stat_t
		assert.Equal(t, "ENOENT", errnoName(unix.Stat(m.path("tlock/x@"+token)+name, &st)), "x@%s%s", token, name)
	}
}

// TestNote is the holder's to write, up to 1 KiB.
func TestNote(t *testing.T) {
	m := newMount(t)
	user, other := newClient(t, m.dir, asUser(stranger)), newClient(t, m.dir, asUser(stranger+1))
	require.Equal(t, "ok", user.do("mkdir tlock/x"))
	note := m.path("tlock/x/note")
	write := func(text string) string {
		fd, err := unix.Open(note, unix.O_WRONLY|unix.O_CLOEXEC, 0) // no O_TRUNC: that alone empties it
		if err != nil {
			return errnoName(err)
		}
		defer unix.Close(fd)
		_, err = unix.Write(fd, []byte(text))
		return errnoName(err)
	}
	require.Equal(t, "ok", user.do("write tlock/x/note nightly backup"))
	assert.Equal(t, "nightly backup\n", readFile(t, note))
	assert.Equal(t, "EPERM", other.do("write tlock/x/note mine"))
	full := strings.Repeat("n", 1023) + "\n"
	assert.Equal(t, "ok", write(full))
	assert.Equal(t, full, readFile(t, note))
	assert.Equal(t, "EDQUOT", write(full+"n"))
	assert.Equal(t, "EDQUOT", write(strings.Repeat("n", 100_000)))
	assert.Equal(t, full, readFile(t, note), "a note too long changes nothing")
	assert.Equal(t, "ok", write("zwei Zeilen:\nä und 😀\n"))
	assert.Equal(t, "zwei Zeilen:\nä und 😀\n", readFile(t, note))
	var all struct{ Note string }
	require.NoError(t, json.Unmarshal([]byte(readFile(t, m.path("tlock/x/json"))), &all))
	assert.Contains(t, all.Note, "ä und 😀")
}

// TestNamesOfTakeAndHold: what they refuse, and that nothing is taken then.
func TestNamesOfTakeAndHold(t *testing.T) {
	m := newMount(t)
	long := strings.Repeat("n", 201)
	both := []string{".x", "-x", "a b", "a,b", "a:b", "é", "a\xff", "a\nb", "a@", "a@5", "a+", "a+0", "a+-1", "a+nan",
		"a+1e400", "a+5x", "a+8761h", "a++5m", "a+5m+5m", ",wait=1", "+5m", "a,wait=", "a,wait=x", "a,wait=-1", "a,wait=nan",
		"a,wait=1e400", "a,wait=1,wait=1", "a,WAIT=1", "a,wait", "a,", "a,wait=1+5m", "a+5m,wait=1,", "a@5,wait=1"}
	for _, kind := range []string{"take", "hold"} {
		for _, name := range both {
			path := m.path(kind) + "/" + name
			assert.Equal(t, "ENOENT", openErrno(path, unix.O_RDONLY|unix.O_NONBLOCK), "open %s/%q", kind, name)
			assert.Equal(t, "EINVAL", openErrno(path, unix.O_WRONLY|unix.O_CREAT|unix.O_NONBLOCK), "create %s/%q", kind, name)
		}
		assert.Equal(t, "ENAMETOOLONG", openErrno(m.path(kind, long), unix.O_RDONLY|unix.O_NONBLOCK), kind)
		assert.Equal(t, "ENOTDIR", openErrno(m.path(kind, "a/b"), unix.O_RDONLY|unix.O_NONBLOCK), "%s/a/b", kind)
	}
	for _, name := range []string{"a+5m", "a+5m,wait=0"} {
		got := openErrno(m.path("hold", name), unix.O_RDONLY|unix.O_NONBLOCK)
		assert.Contains(t, []string{"EINVAL", "ENOENT"}, got, "a hold has no timeout: hold/%s", name)
	}
	require.Empty(t, m.locks(t))
	for _, name := range []string{"a", "A.b_c-9", "a+7.5", "a+1h30m", "a,wait=0", "a,wait=0.5", "a+5m,wait=1h30m", strings.Repeat("n", 200)} {
		assert.Equal(t, "ok", openErrno(m.path("take", name), unix.O_RDONLY|unix.O_NONBLOCK), "take/%s", name)
	}
}

// TestNamesOfUsers: uid-N.… is for uid N and root only, also in take/ and hold/.
func TestNamesOfUsers(t *testing.T) {
	m := newMount(t)
	name := fmt.Sprintf("uid-%d.job", stranger)
	user, other, root := newClient(t, m.dir, asUser(stranger)), newClient(t, m.dir, asUser(stranger+1)), newClient(t, m.dir)
	for _, kind := range []string{"take", "hold"} {
		path := kind + "/" + name
		assert.Equal(t, "EPERM", other.do("open %s r", path))
		for _, c := range []*client{user, root} {
			assert.Equal(t, "ok", c.do("open %s r", path))
			assert.Equal(t, "EPERM", other.do("open %s r", path), "also while it is held, at once")
			assert.Equal(t, "ok", c.do("close %s", path))
		}
	}
	require.Empty(t, m.locks(t))
}

// TestOtherCallsOnTake: opening is all that can be done there.
func TestOtherCallsOnTake(t *testing.T) {
	m := newMount(t)
	for _, kind := range []string{"take", "hold"} {
		path := m.path(kind, "x")
		for what, err := range map[string]error{
			"mkdir":  unix.Mkdir(path, 0o755),
			"unlink": unix.Unlink(path),
			"rmdir":  unix.Rmdir(path),
			"rename": unix.Rename(path, path+"2"),
			"link":   unix.Link(path, path+"2"),
			"chmod":  unix.Chmod(path, 0o600),
		} {
			assert.Error(t, err, "%s %s/x", what, kind)
		}
		var st unix.Stat_t
		require.NoError(t, unix.Stat(path, &st), "a stat takes nothing")
		assert.Zero(t, st.Size)
	}
	require.Empty(t, m.locks(t))
}
