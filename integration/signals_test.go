package integration

import (
	"bufio"
	"io"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// waitingScript takes the lock of $1 on the file $2 as one thread, and prints "got" once it has it. It prints
// "signal" for each SIGUSR1: from the kernel's own handler, before the interrupted call is begun again.
const waitingScript = `
import fcntl, os, signal, sys
r, w = os.pipe()
os.set_blocking(w, False)
if os.fork() == 0:
    while os.read(r, 1):
        os.write(1, b"signal\n")
    os._exit(0)
os.close(r)
f = open(sys.argv[2], "r+")
signal.signal(signal.SIGUSR1, lambda *_: None)
signal.siginterrupt(signal.SIGUSR1, False)
signal.set_wakeup_fd(w)
print("ready", os.getpid(), flush=True)
if sys.argv[1] == "flock":
    fcntl.flock(f, fcntl.LOCK_EX)
else:
    fcntl.lockf(f, fcntl.LOCK_EX, 10, 0)
print("got", flush=True)
signal.set_wakeup_fd(-1)
os.close(w)
sys.stdin.read()
`

// A script is a running program that is talked to line by line.
type script struct {
	t     *testing.T
	p     *program
	in    io.WriteCloser
	lines chan string
}

func startScript(t *testing.T, p *program) *script {
	t.Helper()
	s := &script{t: t, p: p, lines: make(chan string, 1000)}
	out, err := p.StdoutPipeLines(s.lines)
	require.NoError(t, err)
	s.in, err = p.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, p.Start())
	t.Cleanup(func() {
		syscall.Kill(-p.Process.Pid, syscall.SIGKILL)
		awaitEnd(t, p.Process.Pid, func() { p.Wait() })
		out.Close()
	})
	return s
}

// StdoutPipeLines sends each line of the program's output, from Start on, to a channel.
func (p *program) StdoutPipeLines(lines chan<- string) (io.Closer, error) {
	p.Stdout = nil
	out, err := p.StdoutPipe()
	if err != nil {
		return nil, err
	}
	go func() {
		defer close(lines)
		for in := bufio.NewScanner(out); in.Scan(); {
			lines <- in.Text()
		}
	}()
	return out, nil
}

func (s *script) next(what string) string {
	s.t.Helper()
	return await(s.t, what, s.lines)
}

// TestRestartedWaitKeepsItsPlace interrupts the first in the queue by signals with SA_RESTART: the kernel ends the
// request and sends a new one, which must not go to the end of the queue.
func TestRestartedWaitKeepsItsPlace(t *testing.T) {
	m := newMount(t)
	for kind, ops := range map[string][3]string{
		"POSIX": {"setlk f w 0 10", "setlkw f w 0 10", "setlk f u 0 10"},
		"flock": {"flock f ex", "flock f ex", "flock f un"},
	} {
		t.Run(kind, func(t *testing.T) {
			s := newScene(t, m)
			s.play("a open f\nb open f\na " + ops[0])
			first := startScript(t, newProgram(t, hangLimit, "python3", "-c", waitingScript, kind, s.dir+"/f"))
			require.Contains(t, first.next("start"), "ready")
			pid := first.p.Process.Pid
			waits := func() bool {
				for _, lock := range m.locks(t) {
					if lock.PID == pid && lock.State == "waiting" {
						return true
					}
				}
				return false
			}
			eventually(t, waitLimit, "python waits", waits)
			second := s.client("b").begin(ops[1])
			eventually(t, waitLimit, "b waits too", func() bool { return s.waiters() == 2 })
			for range 5 {
				require.NoError(t, syscall.Kill(pid, syscall.SIGUSR1))
				require.Equal(t, "signal", first.next("the signal's handler"))
				eventually(t, waitLimit, "python waits again", func() bool { return waits() && s.waiters() == 2 })
			}
			s.play("a " + ops[2])
			require.Equal(t, "got", first.next("the lock"))
			first.in.Close()
			require.Equal(t, "ok", await(t, "b's turn", second))
		})
	}
}

// TestStoppedWaitKeepsItsPlace does the same with SIGSTOP and SIGCONT.
func TestStoppedWaitKeepsItsPlace(t *testing.T) {
	m := newMount(t)
	s := newScene(t, m)
	s.play("a open f\nb open f\nc open f\na setlk f w 0 0\nb setlkw f w 0 0 ...\nc setlkw f w 0 0 ...")
	b := s.client("b")
	require.NoError(t, b.cmd.Process.Signal(syscall.SIGSTOP))
	eventually(t, waitLimit, "b is stopped", func() bool { return processState(t, b.pid()) == "T" })
	require.NoError(t, b.cmd.Process.Signal(syscall.SIGCONT))
	eventually(t, waitLimit, "b goes on", func() bool { return processState(t, b.pid()) != "T" })
	s.play("b waits\nc waits\na close f\nb gets ok\nc waits\nb kill\nc gets ok")
}

// interruptedScript waits for a lock until an alarm whose handler does not restart system calls.
const interruptedScript = `
use strict; use POSIX; use Fcntl qw(:flock F_SETLKW F_WRLCK);
my ($kind, $path) = @ARGV;
open my $f, '+<', $path or die "$path: $!";
my $signals = 0;
POSIX::sigaction(SIGALRM, POSIX::SigAction->new(sub { $signals++ })) or die $!;
$| = 1; print "ready\n"; <STDIN>;
alarm 1;
my $record = pack('s s x4 q q l x4', F_WRLCK, 0, 0, 10, 0);
my $got = $kind eq 'flock' ? flock($f, LOCK_EX) : fcntl($f, F_SETLKW, $record);
print $got ? "got\n" : $!{EINTR} ? "EINTR $signals\n" : "$!\n";
<STDIN>;
`

// TestInterruptedWait: without SA_RESTART a signal ends the wait with EINTR, and nothing is left of it.
func TestInterruptedWait(t *testing.T) {
	m := newMount(t)
	for kind, ops := range map[string][2]string{
		"POSIX": {"setlk f w 0 10", "setlk f u 0 10"},
		"flock": {"flock f ex", "flock f un"},
	} {
		t.Run(kind, func(t *testing.T) {
			s := newScene(t, m)
			s.play("a open f\nb open f\na " + ops[0])
			perl := startScript(t, newProgram(t, hangLimit, "perl", "-e", interruptedScript, kind, s.dir+"/f"))
			require.Equal(t, "ready", perl.next("start"))
			io.WriteString(perl.in, "go\n")
			require.Equal(t, "EINTR 1", perl.next("the interruption"))
			s.play("a " + ops[1])
			if kind == "POSIX" {
				s.play("b setlk f w 0 10 = ok")
			} else {
				s.play("b flock f ex+nb = ok")
			}
			eventually(t, waitLimit, "no waiter is left", func() bool { return s.waiters() == 0 })
		})
	}
}
