package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// newCommand prepares lockfs's own command line, which finds the mount by LOCKFS_DIR.
func (m *mount) newCommand(t testing.TB, args ...string) *program {
	t.Helper()
	binary, err := testedBinary()
	require.NoError(t, err)
	p := newProgram(t, time.Minute, binary, args...)
	p.Env = append(p.Env, "LOCKFS_DIR="+m.dir)
	return p
}

func (m *mount) command(t testing.TB, args ...string) result {
	t.Helper()
	return m.newCommand(t, args...).run(t)
}

// TestRunGivesTheExitCode of its command, as a shell has it.
func TestRunGivesTheExitCode(t *testing.T) {
	m := newMount(t)
	dir := tempDir(t)
	require.NoError(t, os.WriteFile(dir+"/not-executable", nil, 0o644))
	for _, tc := range []struct {
		code    int
		command []string
	}{
		{0, []string{"true"}},
		{7, []string{"sh", "-c", "exit 7"}},
		{255, []string{"sh", "-c", "exit 255"}},
		{128 + 9, []string{"sh", "-c", "kill -9 $$"}},
		{128 + 15, []string{"sh", "-c", "kill -TERM $$"}},
		{126, []string{dir + "/not-executable"}},
		{126, []string{dir}},
		{127, []string{dir + "/missing"}},
		{127, []string{"no-such-command-anywhere"}},
	} {
		r := m.command(t, append([]string{"run", "x", "--"}, tc.command...)...)
		assert.Equal(t, tc.code, r.code, "%v: %s", tc.command, r.err)
		if tc.code == 126 || tc.code == 127 {
			assert.Equal(t, 1, strings.Count(r.err, "\n"), "one line, not\n%s", r.err)
		} else {
			assert.Empty(t, r.err)
		}
		assert.Empty(t, entries(t, m.path("tlock")), "%v", tc.command)
	}
}

// TestRunIsTransparent: its command has the standard streams and arguments given, and sees the lock held.
func TestRunIsTransparent(t *testing.T) {
	m := newMount(t)
	p := m.newCommand(t, "run", "x", "--", "sh", "-c", `cat; printf '<%s>' "$@"; echo no >&2; grep ^kind "$0/tlock/x/holder"`, m.dir, "-n", "a b", "")
	p.Stdin = strings.NewReader("input\n")
	r := p.run(t)
	assert.Equal(t, "input\n<-n><a b><>kind hold\n", r.out)
	assert.Equal(t, "no\n", r.err)
	r = m.command(t, "run", "x", "sh", "-c", "echo without dashes")
	assert.Equal(t, "without dashes\n", r.out)
	r = m.command(t, "run", "x", "--", "sh", "-c", `ls -l /proc/$$/fd; exec 9<"$1/hold/x,wait=0"`, "sh", m.dir)
	assert.NotZero(t, r.code)
	assert.NotContains(t, r.out, "hold/x", "the command does not inherit the hold")
}

// TestRunWhenHeld: -n, -w, -E and -v do as flock(1)'s.
func TestRunWhenHeld(t *testing.T) {
	m := newMount(t)
	require.NoError(t, unix.Mkdir(m.path("tlock/x"), 0o755))
	for _, tc := range []struct {
		flags  []string
		code   int
		atMost time.Duration
		says   string
	}{
		{flags: []string{"-n"}, code: 1, atMost: time.Second},
		{flags: []string{"--nonblock", "-E", "75"}, code: 75, atMost: time.Second},
		{flags: []string{"-n", "-E", "0"}, code: 0, atMost: time.Second},
		{flags: []string{"-n", "-v"}, code: 1, atMost: time.Second, says: "x"},
		{flags: []string{"-w", "0.3"}, code: 1, atMost: 2 * time.Second},
		{flags: []string{"--wait", "0.3", "--conflict-exit-code=9"}, code: 9, atMost: 2 * time.Second},
		{flags: []string{"-w", "0"}, code: 1, atMost: time.Second},
	} {
		began := time.Now()
		r := m.command(t, append(append([]string{"run"}, tc.flags...), "x", "--", "echo", "ran")...)
		took := time.Since(began)
		assert.Equal(t, tc.code, r.code, "%v: %s", tc.flags, r.err)
		assert.Empty(t, r.out)
		assert.Less(t, took, tc.atMost+time.Second, "%v", tc.flags)
		if strings.Contains(fmt.Sprint(tc.flags), "0.3") {
			assert.GreaterOrEqual(t, took, 300*time.Millisecond)
		}
		if tc.says == "" {
			assert.Empty(t, r.err, "silent, as flock(1) is")
		} else {
			assert.Contains(t, r.err, tc.says)
			assert.Equal(t, 1, strings.Count(r.err, "\n"))
		}
	}
	waiting := start(t, m.newCommand(t, "run", "-v", "x", "--", "echo", "ran"))
	m.awaitQueue(t, "x", waiting.pid())
	require.NoError(t, unix.Rmdir(m.path("tlock/x")))
	r := waiting.wait(t)
	assert.Equal(t, "ran\n", r.out)
	assert.Contains(t, r.err, "seconds", "-v says how long it took")
}

// TestSignalsDoNotProlongAWait: a terminal that changes its size sends SIGWINCH, for which the call is made again.
func TestSignalsDoNotProlongAWait(t *testing.T) {
	m := newMount(t)
	require.NoError(t, unix.Mkdir(m.path("tlock/x"), 0o755))
	for _, args := range [][]string{{"take", "x", "5m", "--wait", "1"}, {"run", "-w", "1", "x", "--", "true"}} {
		began := time.Now()
		waiting := start(t, m.newCommand(t, args...))
		m.awaitQueue(t, "x", waiting.pid())
		for !waiting.ended() && time.Since(began) < 5*time.Second {
			waiting.signal(syscall.SIGWINCH)
			time.Sleep(50 * time.Millisecond) // shorter than the wait, or it would end between two
		}
		require.True(t, waiting.ended(), "%v still waits", args)
		r := waiting.wait(t)
		assert.Equal(t, 1, r.code, "%v: %s", args, r.err)
		assert.GreaterOrEqual(t, time.Since(began), time.Second, "%v", args)
	}
}

// TestRunPassesSignalsOn, and ends as its command does.
func TestRunPassesSignalsOn(t *testing.T) {
	m := newMount(t)
	const trapping = `for s in HUP INT QUIT TERM USR1 USR2; do trap "echo $s; exit 9" $s; done; echo ready; while :; do read _ || exit 8; done`
	for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2} {
		t.Run(unix.SignalName(sig), func(t *testing.T) {
			s := startScript(t, m.newCommand(t, "run", "x", "--", "sh", "-c", trapping))
			require.Equal(t, "ready", s.next("the command"))
			require.NoError(t, s.p.Process.Signal(sig))
			require.Equal(t, strings.TrimPrefix(unix.SignalName(sig), "SIG"), s.next("the signal"))
			require.Empty(t, s.next("the end"))
			var exit interface{ ExitCode() int }
			require.ErrorAs(t, s.p.Wait(), &exit)
			require.Equal(t, 9, exit.ExitCode())
			require.Empty(t, entries(t, m.path("tlock")))
		})
	}
	s := startScript(t, m.newCommand(t, "run", "x", "--", "sh", "-c", "echo ready; read _"))
	require.Equal(t, "ready", s.next("the command"))
	require.NoError(t, s.p.Process.Signal(syscall.SIGTERM))
	s.next("the end")
	var exit interface{ ExitCode() int }
	require.ErrorAs(t, s.p.Wait(), &exit)
	require.Equal(t, 128+15, exit.ExitCode())
}

// TestRunInterruptedWhileItWaits ends by the signal and runs nothing.
func TestRunInterruptedWhileItWaits(t *testing.T) {
	m := newMount(t)
	require.NoError(t, unix.Mkdir(m.path("tlock/x"), 0o755))
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGKILL} {
		waiting := start(t, m.newCommand(t, "run", "x", "--", "echo", "ran"))
		m.awaitQueue(t, "x", waiting.pid())
		require.NoError(t, waiting.p.Process.Signal(sig))
		eventually(t, waitLimit, "it ends", waiting.ended)
		assert.Empty(t, waiting.p.out.String(), sig)
		assert.Empty(t, m.queue(t, "x"), sig)
	}
}

// TestKilledRunFreesTheLock at once, and its command gets a SIGTERM.
func TestKilledRunFreesTheLock(t *testing.T) {
	m := newMount(t)
	s := startScript(t, m.newCommand(t, "run", "x", "--", "sh", "-c", `trap 'echo stopped; exit' TERM; echo ready; read _`))
	require.Equal(t, "ready", s.next("the command"))
	next := newClient(t, m.dir)
	call := next.begin("open hold/x r")
	m.awaitQueue(t, "x", next.pid())
	require.NoError(t, s.p.Process.Kill())
	require.Equal(t, "ok", await(t, "the next in line", call))
	require.Equal(t, "stopped", s.next("the command's end"))
}

// TestRunStopsItsCommandWhenTheLockIsLost: TERM, then KILL after --grace.
func TestRunStopsItsCommandWhenTheLockIsLost(t *testing.T) {
	for name, lose := range map[string]func(*testing.T, *mount){
		"released by root": func(t *testing.T, m *mount) { require.NoError(t, unix.Rmdir(m.path("tlock/x"))) },
		"mount gone": func(t *testing.T, m *mount) {
			m.crash()
			unix.Unmount(m.dir, unix.MNT_DETACH)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Run("polite", func(t *testing.T) {
				m := newMount(t)
				s := startScript(t, m.newCommand(t, "run", "x", "--", "sh", "-c", `trap 'echo stopped; exit 9' TERM; echo ready; read _`))
				require.Equal(t, "ready", s.next("the command"))
				lose(t, m)
				require.Equal(t, "stopped", s.next("SIGTERM"))
				s.next("its end")
				var exit interface{ ExitCode() int }
				require.ErrorAs(t, s.p.Wait(), &exit)
				require.Equal(t, 9, exit.ExitCode())
				require.Contains(t, s.p.err.String(), "lost")
				require.Equal(t, 1, strings.Count(s.p.err.String(), "\n"), "one line, not\n%s", s.p.err.String())
			})
			t.Run("stubborn", func(t *testing.T) {
				m := newMount(t)
				s := startScript(t, m.newCommand(t, "run", "--grace", "0.5", "x", "--", "sh", "-c",
					`trap 'echo no' TERM; echo ready; while :; do read _; done`))
				require.Equal(t, "ready", s.next("the command"))
				lose(t, m)
				began := time.Now()
				require.Equal(t, "no", s.next("SIGTERM"))
				require.Empty(t, s.next("SIGKILL"))
				require.GreaterOrEqual(t, time.Since(began), 400*time.Millisecond)
				require.Less(t, time.Since(began), 5*time.Second)
				var exit interface{ ExitCode() int }
				require.ErrorAs(t, s.p.Wait(), &exit)
				require.Equal(t, 128+9, exit.ExitCode())
			})
		})
	}
}

// TestLockCommands lives through a lock's life by take, alive, holder, renew, wait and release.
func TestLockCommands(t *testing.T) {
	m := newMount(t)
	taken := m.command(t, "take", "x", "5m")
	require.Zero(t, taken.code, taken.err)
	require.Equal(t, readFile(t, m.path("tlock/x/token")), taken.out)
	token := strings.TrimSpace(taken.out)
	assert.Equal(t, "take", flatKeyed(t, m.command(t, "holder", "x").out)["kind"])
	assert.Zero(t, m.command(t, "alive", "x", token).code)
	assert.Contains(t, m.command(t, "ls").out, "tlock/x")
	assert.Contains(t, m.command(t, "ls", "--json").out, `"name":"x"`)

	began := time.Now()
	busy := m.command(t, "take", "x", "5m", "--wait", "0.3")
	assert.Equal(t, 1, busy.code)
	assert.Equal(t, 1, strings.Count(busy.err, "\n"))
	assert.GreaterOrEqual(t, time.Since(began), 300*time.Millisecond)
	assert.Equal(t, 1, m.command(t, "take", "--wait", "0", "x", "5m").code)

	assert.Zero(t, m.command(t, "renew", "x", token, "1h").code)
	assert.Equal(t, "3600", readValue(t, m.path("tlock/x/timeout")))
	assert.Zero(t, m.command(t, "renew", "x", token, "+1h").code)
	assert.InDelta(t, 7200, readInt(t, m.path("tlock/x/left")), 30)

	waiting := startScript(t, m.newCommand(t, "wait", "x"))
	next := start(t, m.newCommand(t, "take", "x", "10m"))
	m.awaitQueue(t, "x", next.pid())
	eventually(t, waitLimit, "lockfs wait sleeps", func() bool {
		return strings.Contains(openFiles(waiting.p.Process.Pid), m.path("tlock/x/wait"))
	})
	assert.Zero(t, m.command(t, "release", "x", token).code)
	assert.Equal(t, "released", waiting.next("how it ended"))
	second := strings.TrimSpace(next.wait(t).out)
	assert.Greater(t, parseUint(t, second), parseUint(t, token))

	for _, stale := range [][]string{{"alive", "x", token}, {"renew", "x", token, "5m"}, {"release", "x", token}} {
		r := m.command(t, stale...)
		assert.Equal(t, 1, r.code, "%v", stale)
		assert.LessOrEqual(t, strings.Count(r.err, "\n"), 1)
	}
	assert.Zero(t, m.command(t, "alive", "x", second).code)
	assert.Zero(t, m.command(t, "release", "x").code, "carelessly")
	for _, free := range [][]string{{"release", "x"}, {"holder", "x"}} {
		r := m.command(t, free...)
		assert.Equal(t, 1, r.code, "%v", free)
		assert.Contains(t, r.err, "x")
	}
	assert.Zero(t, m.command(t, "wait", "x").code, "it is gone already")
}

// openFiles is what a process has open, a path a line.
func openFiles(pid int) string {
	var paths []string
	links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, link := range links {
		path, _ := os.Readlink(link)
		paths = append(paths, path)
	}
	return strings.Join(paths, "\n")
}

// TestCommandsOfOthers: what is not yours is answered with no.
func TestCommandsOfOthers(t *testing.T) {
	m := newMount(t)
	require.NoError(t, unix.Mkdir(m.path("tlock/x+5m"), 0o755))
	token := readValue(t, m.path("tlock/x/token"))
	const held, reserved = "only the holder's user", "for user N"
	for _, c := range []struct {
		says string
		args []string
	}{
		{held, []string{"release", "x"}}, {held, []string{"release", "x", token}}, {held, []string{"renew", "x", token, "1h"}},
		{reserved, []string{"take", "uid-77.x", "5m"}}, {reserved, []string{"run", "uid-77.x", "--", "true"}},
	} {
		p := m.newCommand(t, c.args...)
		p.SysProcAttr.Credential = &syscall.Credential{Uid: stranger, Gid: stranger}
		r := p.run(t)
		assert.Equal(t, 1, r.code, "%v", c.args)
		assert.Equal(t, 1, strings.Count(r.err, "\n"), "%s", r.err)
		assert.Contains(t, r.err, c.says)
	}
	assert.Equal(t, "300", readValue(t, m.path("tlock/x/timeout")))
}

// TestEventsCommand follows the stream and ends with Ctrl-C.
func TestEventsCommand(t *testing.T) {
	m := newMount(t)
	s := startScript(t, m.newCommand(t, "events"))
	eventually(t, waitLimit, "it has the stream open", func() bool {
		return strings.Contains(openFiles(s.p.Process.Pid), m.path("view/events"))
	})
	require.NoError(t, unix.Mkdir(m.path("tlock/x"), 0o755))
	var e event
	require.NoError(t, json.Unmarshal([]byte(s.next("an event")), &e))
	require.Equal(t, "granted", e.Event)
	require.Equal(t, "tlock/x", e.Path)
	require.NoError(t, s.p.Process.Signal(syscall.SIGINT))
	require.Empty(t, s.next("its end"))
}

// TestDoctor says one line for each thing it looks at, and that this machine can mount.
func TestDoctor(t *testing.T) {
	r := lockfs(t, "doctor")
	require.Zero(t, r.code, "%s%s", r.out, r.err)
	for _, what := range []string{"/dev/fuse", "rights", "fusermount3", "kernel", "passthrough", "allow_other"} {
		assert.Contains(t, r.out, what)
	}
	for line := range strings.Lines(r.out) {
		assert.Regexp(t, `^(ok|note|FAIL) `, line)
	}
	// Where there is no /dev/fuse it says what to do.
	binary, err := testedBinary()
	require.NoError(t, err)
	without := sh(t, `unshare --mount sh -c 'mount -t tmpfs none /dev && exec "$0" doctor' "$1"`, binary)
	assert.Equal(t, 1, without.code, "%s", without.out)
	assert.Regexp(t, `(?m)^FAIL +/dev/fuse .*modprobe`, without.out)
}

// badNames are no names of locks: each a word of the command line.
var badNames = []string{"", "a/b", "/", "..", ".x", "a@1", "a@", "a+5m", "a,wait=0", "a b", "é", "a\xff", "a\n", "a*", strings.Repeat("n", 201)}

// badTimeouts are no timeouts.
var badTimeouts = []string{"", "0", "0s", "-1", "nan", "NaN", "inf", "1e400", "1e5", "0x10", "5x", "m", "5m5m", "1,5", " 5", "5m ", "99999999999999999999d"}

// badTokens are no tokens.
var badTokens = []string{"", "abc", "-1", "1.5", "0x10", " 1", "1 ", "0", "18446744073709551616", strings.Repeat("9", 100)}

// TestBadInput: each is answered with one clear line and exit code 2, and changes nothing.
func TestBadInput(t *testing.T) {
	m := newMount(t)
	require.NoError(t, unix.Mkdir(m.path("tlock/x+5m"), 0o755))
	token := readValue(t, m.path("tlock/x/token"))
	before := readFile(t, m.path("tlock/x/timeout")) + readFile(t, m.path("tlock/x/expiry"))
	wrong := func(value string, args ...string) {
		t.Helper()
		r := m.command(t, args...)
		assert.Equal(t, 2, r.code, "%q: %s", args, r.err)
		assert.Equal(t, 1, strings.Count(r.err, "\n"), "%q: one line, not\n%s", args, r.err)
		assert.Empty(t, r.out, "%q", args)
		if len(value) > 0 && len(value) < 50 && strings.Trim(value, "0123456789abcdefghijklmnopqrstuvwxyz.-+@,=/*") == "" {
			assert.Contains(t, r.err, value, "%q: says which value is wrong", args)
		}
	}
	for _, name := range badNames {
		wrong(name, "take", "--", name, "5m")
		wrong(name, "renew", name, token, "5m")
		wrong(name, "release", name)
		wrong(name, "release", name, token)
		wrong(name, "alive", name, token)
		wrong(name, "holder", name)
		wrong(name, "wait", name)
		wrong(name, "run", "--", name, "echo", "ran")
	}
	wrong("-x", "take", "--", "-x", "5m")
	for _, timeout := range badTimeouts {
		wrong(timeout, "take", "--", "y", timeout)
		wrong(timeout, "renew", "--", "x", token, timeout)
		if timeout == "" || timeout[0] != '0' { // not to wait is a wait, too
			wrong(timeout, "take", "--wait="+timeout, "y", "5m")
			wrong(timeout, "run", "-w="+timeout, "y", "echo", "ran")
			wrong(timeout, "run", "--grace="+timeout, "y", "echo", "ran")
		}
	}
	for _, timeout := range []string{"+", "++5m", "+0", "+-5", "5m+"} {
		wrong(timeout, "renew", "--", "x", token, timeout)
	}
	wrong("9999h", "take", "y", "9999h") // more than --max-timeout
	for _, bad := range badTokens {
		wrong(bad, "renew", "--", "x", bad, "5m")
		wrong(bad, "release", "--", "x", bad)
		wrong(bad, "alive", "--", "x", bad)
	}
	for _, code := range []string{"-1", "256", "x"} {
		wrong(code, "run", "--conflict-exit-code="+code, "y", "echo", "ran")
	}
	for _, args := range [][]string{{"take"}, {"take", "x"}, {"take", "x", "5m", "more"}, {"renew", "x"}, {"release"}, {"alive", "x"},
		{"holder"}, {"wait"}, {"run"}, {"run", "y"}, {"run", "y", "--"}, {"take", "--colour", "x", "5m"}, {"events", "x"}, {"ls", "x"}} {
		wrong("", args...)
	}

	// Tokens that are some other lock's are answered with no.
	require.NoError(t, unix.Mkdir(m.path("tlock/other"), 0o755))
	others := readValue(t, m.path("tlock/other/token"))
	for _, args := range [][]string{{"alive", "x", others}, {"release", "x", others}, {"renew", "x", others, "1h"}, {"alive", "x", "18446744073709551615"}} {
		r := m.command(t, args...)
		assert.Equal(t, 1, r.code, "%q: %s", args, r.err)
		assert.LessOrEqual(t, strings.Count(r.err, "\n"), 1)
	}
	assert.Equal(t, []string{"other", "x"}, entries(t, m.path("tlock")), "nothing was taken or released")
	assert.Equal(t, before, readFile(t, m.path("tlock/x/timeout"))+readFile(t, m.path("tlock/x/expiry")))
}

// TestNoMount: exit code 3 and one line from every command that needs one.
func TestNoMount(t *testing.T) {
	empty := tempDir(t)
	for _, args := range [][]string{{"take", "x", "5m"}, {"renew", "x", "1", "5m"}, {"release", "x"}, {"alive", "x", "1"}, {"holder", "x"},
		{"wait", "x"}, {"ls"}, {"events"}, {"run", "x", "--", "echo", "ran"}} {
		r := lockfs(t, append([]string{args[0], "--dir", empty}, args[1:]...)...)
		assert.Equal(t, 3, r.code, "%v", args)
		assert.Equal(t, 1, strings.Count(r.err, "\n"), "%s", r.err)
		assert.Contains(t, r.err, empty)
		assert.Empty(t, r.out)
	}
}

// TestHelp is there for each command and says how to use it.
func TestHelp(t *testing.T) {
	top := lockfs(t, "--help")
	require.Zero(t, top.code)
	for _, name := range []string{"mount", "umount", "run", "take", "renew", "release", "alive", "holder", "tlock", "wait", "ls", "events", "doctor", "version"} {
		assert.Contains(t, top.out, "\n  "+name, "listed")
		help := lockfs(t, name, "--help")
		assert.Zero(t, help.code, name)
		assert.Contains(t, help.out, "lockfs "+name)
		assert.Empty(t, help.err)
	}
}

// TestCompletion is shell that the shell accepts.
func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		r := lockfs(t, "completion", shell)
		require.Zero(t, r.code, r.err)
		require.Contains(t, r.out, "lockfs")
		if shell == "bash" {
			check := newProgram(t, time.Minute, "bash", "-n")
			check.Stdin = strings.NewReader(r.out)
			got := check.run(t)
			require.Zero(t, got.code, got.err)
		}
	}
	r := lockfs(t, "__complete", "")
	require.Contains(t, r.out, "release")
}

// tlockSetup runs `lockfs tlock` with flags, environment and files.
func (m *mount) tlockSetup(t testing.TB, env []string, args ...string) result {
	t.Helper()
	p := m.newCommand(t, append([]string{"tlock"}, args...)...)
	p.Env = append(p.Env, env...)
	return p.run(t)
}

// TestTlockCommand is the tlock script's life of a lock.
func TestTlockCommand(t *testing.T) {
	m := newMount(t)
	do := func(args ...string) result { t.Helper(); return m.tlockSetup(t, nil, args...) }
	taken := do("take", "x", "60")
	require.Zero(t, taken.code, taken.err)
	token := strings.TrimSpace(taken.out)
	require.Equal(t, []string{"tlock.x"}, entries(t, m.path("tlock")))
	assert.Equal(t, token, readValue(t, m.path("tlock/tlock.x/tstart")))
	assert.Equal(t, 1, do("take", "x", "60").code)
	assert.Zero(t, do("alive", "x", token).code)
	assert.Equal(t, 1, do("alive", "x", "12345").code)
	assert.Zero(t, do("taken", "x").code)
	assert.Equal(t, 1, do("taken", "y").code)
	assert.Equal(t, fmt.Sprintln(parseInt(token)+60), do("expiry", "x").out)
	assert.Equal(t, 1, do("expiry", "y").code)
	assert.Zero(t, do("renew", "x", token, "600").code)
	assert.InDelta(t, 600, readInt(t, m.path("tlock/tlock.x/left")), 5)
	assert.Equal(t, 1, do("renew", "x", "12345", "600").code)
	assert.Zero(t, do("zing").code)
	assert.Equal(t, 1, do("release", "x", "12345").code)
	assert.Zero(t, do("release", "x", token).code)
	assert.Equal(t, 1, do("release", "x", token).code)
	assert.Empty(t, m.locks(t))

	// With the master lock held by another, patience runs out.
	require.NoError(t, unix.Mkdir(m.path("tlock/tlock_.x"), 0o755))
	began := time.Now()
	impatient := do("-p", "0.5", "take", "x", "60")
	assert.Equal(t, 1, impatient.code)
	assert.GreaterOrEqual(t, time.Since(began), 500*time.Millisecond)
	assert.Less(t, time.Since(began), 5*time.Second)
	assert.LessOrEqual(t, strings.Count(impatient.err, "\n"), 1)
}

// TestTlockSettings: flags beat the environment, that beats the file, that beats the default.
func TestTlockSettings(t *testing.T) {
	m := newMount(t)
	conf := func(text string) string {
		path := filepath.Join(tempDir(t), "tlock.conf")
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
		return path
	}
	file := conf("tlock 1\n# a comment\n\ndir " + m.path("tlock") + "/\n\tmarker  fromfile # really\npatience 0.5\n")
	old := conf("tlock 0\nmarker old\ndir " + m.path("tlock"))
	for _, tc := range []struct {
		what, marker string
		env, flags   []string
	}{
		{"the default", "tlock", nil, nil},
		{"the environment", "fromenv", []string{"tlock_marker=fromenv"}, nil},
		{"a file named by the environment", "fromfile", []string{"tlock_conf=" + file}, nil},
		{"a file of the older version", "old", []string{"tlock_conf=" + old}, nil},
		{"the environment before its file", "fromenv", []string{"tlock_conf=" + file, "tlock_marker=fromenv"}, nil},
		{"a flag before all", "fromflag", []string{"tlock_conf=" + file, "tlock_marker=fromenv"}, []string{"-m", "fromflag"}},
		{"a flag with a file", "fromfile", []string{"tlock_conf=" + old}, []string{"-c", file}},
		{"dir by flag", "tlock", []string{"tlock_dir=/nowhere"}, []string{"-d", m.path("tlock")}},
		{"dir by environment", "tlock", []string{"tlock_dir=" + m.path("tlock") + "/", "LOCKFS_DIR=/nowhere"}, nil},
	} {
		r := m.tlockSetup(t, tc.env, append(tc.flags, "take", "x", "60")...)
		assert.Zero(t, r.code, "%s: %s", tc.what, r.err)
		assert.Equal(t, []string{tc.marker + ".x"}, entries(t, m.path("tlock")), tc.what)
		for _, name := range entries(t, m.path("tlock")) {
			require.NoError(t, unix.Rmdir(m.path("tlock", name)))
		}
	}
	for _, owner := range [][]string{{"-o", "12345"}, {"-o", "nobody"}} {
		r := m.tlockSetup(t, nil, append(owner, "take", "x", "60")...)
		require.Zero(t, r.code, r.err)
		assert.NotZero(t, statOf(t, m.path("tlock/tlock.x")).Uid)
		require.NoError(t, unix.Rmdir(m.path("tlock/tlock.x")))
	}

	// /etc/tlock.conf, in a namespace of its own.
	etc := tempDir(t)
	require.NoError(t, os.WriteFile(etc+"/tlock.conf", []byte("tlock 1\nmarker system\n"), 0o644))
	binary, err := testedBinary()
	require.NoError(t, err)
	script := `export LOCKFS_DIR="$2"; unshare --mount sh -c 'mount --bind "$1" /etc && shift && exec "$@"' sh "$3" "$1" tlock`
	mustSh(t, script+` take x 60`, binary, m.dir, etc)
	assert.Equal(t, []string{"system.x"}, entries(t, m.path("tlock")))
	mustSh(t, `export tlock_marker=fromenv; `+script+` take x 60`, binary, m.dir, etc)
	assert.Equal(t, []string{"fromenv.x", "system.x"}, entries(t, m.path("tlock")))
}

// TestBadTlockConf: the message has the number of the line and what was expected.
func TestBadTlockConf(t *testing.T) {
	m := newMount(t)
	for _, tc := range []struct{ text, line, says string }{
		{"", "line 1", "tlock 0"},
		{"\n", "line 1", "tlock 0"},
		{"marker x\n", "line 1", "tlock 0"},
		{"tlock\n", "line 1", "tlock 0"},
		{"tlock 2\n", "line 1", "tlock 0"},
		{"tlock one\n", "line 1", "tlock 0"},
		{"# comment first\ntlock 1\n", "line 1", "tlock 0"},
		{"tlock 1\nmarkr x\n", "line 2", "markr"},
		{"tlock 1\n\n# c\nmarker\n", "line 4", "marker"},
		{"tlock 1\nmarker # nothing\n", "line 2", "marker"},
		{"tlock 1\nmarker ok\nMarker x\n", "line 3", "Marker"},
		{"tlock 1\nmarker a/b\n", "line 2", "a/b"},
		{"tlock 1\nmarker 9lives\n", "line 2", "9lives"},
		{"tlock 1\nmarker end_\n", "line 2", "end_"},
		{"tlock 1\npatience soon\n", "line 2", "soon"},
		{"tlock 1\n\npatience -1\n", "line 3", "-1"},
		{"tlock 1\npatience 1e400\n", "line 2", "1e400"},
		{"tlock 1\nowner no-such-user-here\n", "line 2", "no-such-user-here"},
	} {
		path := filepath.Join(tempDir(t), "tlock.conf")
		require.NoError(t, os.WriteFile(path, []byte(tc.text), 0o644))
		for _, env := range [][]string{nil, {"tlock_conf=" + path}} {
			args := []string{"take", "x", "60"}
			if env == nil {
				args = append([]string{"-c", path}, args...)
			}
			r := m.tlockSetup(t, env, args...)
			assert.Equal(t, 2, r.code, "%q", tc.text)
			assert.Equal(t, 1, strings.Count(r.err, "\n"), "%q: one line, not\n%s", tc.text, r.err)
			assert.Contains(t, r.err, tc.line, "%q", tc.text)
			assert.Contains(t, r.err, tc.says, "%q", tc.text)
			assert.Contains(t, r.err, path, "%q", tc.text)
		}
	}
	missing := m.tlockSetup(t, nil, "-c", "/no/such/tlock.conf", "take", "x", "60")
	assert.Equal(t, 2, missing.code)
	assert.Contains(t, missing.err, "/no/such/tlock.conf")
	assert.Empty(t, m.locks(t))
}

// TestBadTlockInput on the command line of the tlock script.
func TestBadTlockInput(t *testing.T) {
	m := newMount(t)
	wrong := func(args ...string) {
		t.Helper()
		r := m.tlockSetup(t, nil, args...)
		assert.Equal(t, 2, r.code, "%q: %s", args, r.err)
		assert.Equal(t, 1, strings.Count(r.err, "\n"), "%q: one line, not\n%s", args, r.err)
		assert.Empty(t, r.out)
	}
	for _, label := range []string{"", "a/b", "a@1", "a+5", "a,b", "a b", "é", "a\n", strings.Repeat("n", 201)} {
		wrong("take", label, "60")
		wrong("taken", label)
	}
	for _, timeout := range []string{"", "0", "nan", "inf", "1e400", "5m", "x"} {
		wrong("take", "x", timeout)
		wrong("renew", "x", "12345", timeout)
	}
	wrong("take", "--", "x", "-1")
	for _, token := range []string{"", "x", "1.5", "0", "99999999999999999999"} {
		wrong("release", "x", token)
		wrong("alive", "x", token)
	}
	for _, marker := range []string{"a b", "a/b", "_x", "x_", "9x", "é", "a.b", "a+b", "-x"} {
		wrong("-m="+marker, "take", "x", "60")
	}
	for _, patience := range []string{"0", "x", "nan", "1e400", "-1"} {
		wrong("-p="+patience, "take", "x", "60")
		wrong("take", "x", "60", "--", patience)
	}
	wrong("-o", "no-such-user-here", "take", "x", "60")
	for _, args := range [][]string{{}, {"steal", "x"}, {"take"}, {"take", "x"}, {"taken"}, {"release", "x"}, {"zing", "x"}} {
		wrong(args...)
	}
	assert.Empty(t, m.locks(t))
}

// TestPipesThatEnd: a reader that goes away, as head does, is no accident.
func TestPipesThatEnd(t *testing.T) {
	m := newMount(t)
	p := m.newCommand(t, "events")
	out, err := p.pipe()
	require.NoError(t, err)
	j := start(t, p)
	eventually(t, waitLimit, "it has the stream open", func() bool {
		return strings.Contains(openFiles(j.pid()), m.path("view/events"))
	})
	out.Close()
	require.NoError(t, unix.Mkdir(m.path("tlock/x"), 0o755))
	eventually(t, waitLimit, "lockfs events ends", j.ended)
	require.NotContains(t, p.err.String(), "panic")
}

// pipe is the program's standard output, unread.
func (p *program) pipe() (io.ReadCloser, error) {
	p.Stdout = nil
	return p.StdoutPipe()
}
