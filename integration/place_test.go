package integration

import (
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// A line is several processes of testdata/waiter.py that wait for one lock, in order of arrival, behind its holder.
type line struct {
	t       *testing.T
	m       *mount
	kind    string // posix, flock, take, hold
	path    string
	seen    string // the lock in view/locks.jsonl
	waiters []*script
	free    func() // the holder lets go
}

func newLine(t *testing.T, m *mount, kind string) *line {
	t.Helper()
	l := &line{t: t, m: m, kind: kind}
	holder := newClient(t, m.dir)
	switch kind {
	case "posix", "flock":
		l.path, l.seen = m.path("files/"+kind), "files/"+kind
		lock, unlock := "setlk %s w 0 0", "setlk %s u 0 0"
		if kind == "flock" {
			lock, unlock = "flock %s ex", "flock %s un"
		}
		require.Equal(t, "ok", holder.do("open %s", l.seen))
		require.Equal(t, "ok", holder.do(lock, l.seen))
		l.free = func() { require.Equal(t, "ok", holder.do(unlock, l.seen)) }
	default:
		l.path, l.seen = m.path(kind, kind), "tlock/"+kind
		require.Equal(t, "ok", holder.do("mkdir tlock/%s", kind))
		l.free = func() { require.Equal(t, "ok", holder.do("rmdir tlock/%s", kind)) }
	}
	return l
}

// join adds a waiter and returns once it waits, last in the line.
func (l *line) join(how string) *script {
	l.t.Helper()
	s := startScript(l.t, newProgram(l.t, hangLimit, "python3", "testdata/waiter.py", l.kind, l.path, how))
	require.Equal(l.t, "ready", s.next("start"))
	l.waiters = append(l.waiters, s)
	l.awaitWaiting(l.waiters...)
	return s
}

func pidOf(s *script) int { return s.p.Process.Pid }

// waiting is who waits now, in order.
func (l *line) waiting() []int {
	var pids []int
	for _, lock := range l.m.locks(l.t) {
		if lock.State == "waiting" && lock.Path == l.seen {
			pids = append(pids, lock.PID)
		}
	}
	return pids
}

// awaitWaiting waits until exactly these are in the line, in any order: that of the view is not promised.
func (l *line) awaitWaiting(want ...*script) {
	l.t.Helper()
	var pids []int
	for _, s := range want {
		pids = append(pids, pidOf(s))
	}
	slices.Sort(pids)
	eventually(l.t, waitLimit, fmt.Sprintf("%v wait for %s", pids, l.seen), func() bool {
		now := l.waiting()
		slices.Sort(now)
		return slices.Equal(pids, now)
	})
}

// serve frees the lock and requires that these get it, in this order, each when the one before has ended.
func (l *line) serve(order ...*script) {
	l.t.Helper()
	l.free()
	for i, s := range order {
		for text := ""; text != "got"; {
			text = s.next(fmt.Sprintf("turn %d", i+1))
			require.Contains(l.t, []string{"got", "signal"}, text)
		}
		for _, later := range order[i+1:] {
			select {
			case text := <-later.lines:
				require.Equal(l.t, "signal", text, "out of turn")
			default:
			}
		}
		s.in.Close()
	}
}

// disturb signals a waiter and returns when it waits again.
func (l *line) disturb(s *script) {
	l.t.Helper()
	require.NoError(l.t, syscall.Kill(pidOf(s), syscall.SIGUSR1))
	require.Equal(l.t, "signal", s.next("the handler"))
	l.awaitWaiting(l.waiters...)
}

func (l *line) stop(s *script) {
	l.t.Helper()
	require.NoError(l.t, syscall.Kill(pidOf(s), syscall.SIGSTOP))
	eventually(l.t, waitLimit, "it is stopped", func() bool { return processState(l.t, pidOf(s)) == "T" })
}

func (l *line) goOn(s *script) {
	l.t.Helper()
	require.NoError(l.t, syscall.Kill(pidOf(s), syscall.SIGCONT))
	eventually(l.t, waitLimit, "it goes on", func() bool { return processState(l.t, pidOf(s)) != "T" })
	l.awaitWaiting(l.waiters...)
}

// TestSignalsDoNotCostThePlace among three waiters, whether the kernel begins the wait again or the program does.
func TestSignalsDoNotCostThePlace(t *testing.T) {
	for _, tc := range []struct{ kind, how string }{
		{"posix", "restart"}, {"posix", "again"}, {"flock", "restart"}, {"flock", "again"},
		// The kernel restarts no open, so SA_RESTART makes no difference: Python opens again.
		{"take", "restart"}, {"take", "again"}, {"hold", "again"},
	} {
		t.Run(tc.kind+"/"+tc.how, func(t *testing.T) {
			l := newLine(t, newMount(t), tc.kind)
			a, b, c := l.join(tc.how), l.join(tc.how), l.join(tc.how)
			for range 3 {
				l.disturb(a)
				l.disturb(b)
			}
			l.disturb(c)
			l.serve(a, b, c)
		})
	}
}

// TestShortStopDoesNotCostThePlace: SIGSTOP and, soon after, SIGCONT.
func TestShortStopDoesNotCostThePlace(t *testing.T) {
	for _, kind := range []string{"posix", "flock", "take", "hold"} {
		t.Run(kind, func(t *testing.T) {
			l := newLine(t, newMount(t), kind)
			a, b, c := l.join("again"), l.join("again"), l.join("again")
			for _, s := range []*script{a, b, c, a} {
				l.stop(s)
				l.goOn(s)
			}
			l.serve(a, b, c)
		})
	}
}

// TestLongStopCostsThePlace: after more than a second its place is gone, and it comes back as the last.
func TestLongStopCostsThePlace(t *testing.T) {
	for _, kind := range []string{"posix", "flock", "take", "hold"} {
		t.Run(kind, func(t *testing.T) {
			l := newLine(t, newMount(t), kind)
			a, b, c := l.join("again"), l.join("again"), l.join("again")
			l.stop(a)
			l.awaitWaiting(b, c) // a stopped waiter is in no view
			<-time.After(1200 * time.Millisecond)
			l.goOn(a)
			l.serve(b, c, a)
		})
	}
}

// TestStoppedWaiterIsPassedOver: whoever comes back to a lock that was given away meanwhile still gets it in its turn.
func TestStoppedWaiterIsPassedOver(t *testing.T) {
	for _, kind := range []string{"posix", "flock", "take", "hold"} {
		t.Run(kind, func(t *testing.T) {
			l := newLine(t, newMount(t), kind)
			a, b, c := l.join("again"), l.join("again"), l.join("again")
			l.stop(a)
			l.free()
			require.Equal(t, "got", b.next("a is not there: b's turn"))
			require.NoError(t, syscall.Kill(pidOf(a), syscall.SIGCONT))
			l.awaitWaiting(a, c)
			b.in.Close()
			l.free = func() {}
			l.serve(a, c)
		})
	}
}

// interruptedOpen opens the file $1 with a handler that neither restarts nor raises, says how that ended, and opens it
// again when told to.
const interruptedOpen = `
use strict; use POSIX; use Fcntl;
POSIX::sigaction(SIGUSR1, POSIX::SigAction->new(sub { })) or die $!;
$| = 1;
for (1, 2) {
	print "opening\n";
	print sysopen(my $f, $ARGV[0], O_RDONLY) ? "got\n" : $!{EINTR} ? "EINTR\n" : "$!\n";
	<STDIN>;
}
`

// TestInterruptedOpen answers EINTR, and the same process opening the same name within a second is where it was.
func TestInterruptedOpen(t *testing.T) {
	for _, kind := range []string{"take", "hold"} {
		for _, pause := range []time.Duration{0, 1200 * time.Millisecond} {
			t.Run(fmt.Sprint(kind, "/opened again after ", pause), func(t *testing.T) {
				m := newMount(t)
				require.NoError(t, unix.Mkdir(m.path("tlock/x"), 0o755))
				perl := startScript(t, newProgram(t, hangLimit, "perl", "-e", interruptedOpen, m.path(kind, "x")))
				require.Equal(t, "opening", perl.next("start"))
				m.awaitQueue(t, "x", pidOf(perl))
				other := newClient(t, m.dir)
				call := other.begin("open hold/x r")
				m.awaitQueue(t, "x", pidOf(perl), other.pid())
				require.NoError(t, syscall.Kill(pidOf(perl), syscall.SIGUSR1))
				require.Equal(t, "EINTR", perl.next("the interruption"))
				m.awaitQueue(t, "x", other.pid())
				<-time.After(pause) // what is tested
				perl.in.Write([]byte("\n"))
				require.Equal(t, "opening", perl.next("the second open"))
				order := []int{pidOf(perl), other.pid()}
				if pause > time.Second {
					slices.Reverse(order)
				}
				m.awaitQueue(t, "x", order...)
				require.NoError(t, unix.Rmdir(m.path("tlock/x")))
				if pause > time.Second {
					require.Equal(t, "ok", await(t, "the other's turn", call))
					other.kill()
					require.Equal(t, "got", perl.next("perl's turn"))
				} else {
					require.Equal(t, "got", perl.next("perl's turn"))
					perl.in.Close()
					perl.next("its end")
					syscall.Kill(pidOf(perl), syscall.SIGKILL)
					require.Equal(t, "ok", await(t, "the other's turn", call))
				}
			})
		}
	}
}

// TestCommandsKeepTheirPlace: lockfs take and lockfs run open again by themselves.
func TestCommandsKeepTheirPlace(t *testing.T) {
	m := newMount(t)
	binary, err := testedBinary()
	require.NoError(t, err)
	for _, args := range [][]string{{"take", "--dir", m.dir, "x", "5m"}, {"run", "--dir", m.dir, "x", "--", "true"}} {
		t.Run(args[0], func(t *testing.T) {
			require.NoError(t, unix.Mkdir(m.path("tlock/x"), 0o755))
			command := start(t, newProgram(t, time.Minute, binary, args...))
			m.awaitQueue(t, "x", command.pid())
			other := newClient(t, m.dir)
			call := other.begin("open hold/x r")
			both := []int{command.pid(), other.pid()}
			m.awaitQueue(t, "x", both...)
			for range 20 {
				// A signal that Go programs handle and ignore.
				require.NoError(t, syscall.Kill(command.pid(), syscall.SIGURG))
				m.awaitQueue(t, "x", both...)
			}
			require.NoError(t, unix.Rmdir(m.path("tlock/x")))
			r := command.wait(t) // it would hang if the other, which lets go only below, came before it
			require.Zero(t, r.code, "%s", r.err)
			if args[0] == "take" {
				require.Equal(t, r.out, readFile(t, m.path("tlock/x/token")))
				require.NoError(t, unix.Rmdir(m.path("tlock/x")))
			}
			require.Equal(t, "ok", await(t, "the other's turn", call))
			other.kill()
			m.awaitFree(t, "x")
		})
	}
}
