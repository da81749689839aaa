package fs

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// child starts a process that is killed and waited for when the test ends, or by what is returned.
func child(t *testing.T, command ...string) (pid int32, stdin *os.File, end func()) {
	t.Helper()
	in, out, err := os.Pipe()
	require.NoError(t, err)
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdin = in
	require.NoError(t, cmd.Start())
	require.NoError(t, in.Close())
	end = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = out.Close()
	}
	t.Cleanup(end)
	return int32(cmd.Process.Pid), out, end
}

// A process is looked at once a second, but one that runs another program now at once, and one that is gone is not taken
// for who asks.
func TestAskers(t *testing.T) {
	a := &askers{}
	pid, stdin, end := child(t, "sh", "-c", "read line; exec sleep 100")
	require.Eventually(t, func() bool { return commandName(pid) == "sh" }, 10*time.Second, time.Millisecond)
	command := func(who asker) string {
		assert.Equal(t, pid, who.pid)
		name, _, _ := strings.Cut(metaValue(who.who, "command"), " ") // all there is if the rest took too long
		return name
	}
	first := a.of(pid, 0)
	assert.Equal(t, "sh", command(first))
	assert.Equal(t, first, a.of(pid, askerFresh-1))

	seen := a.m[pid]
	seen.who = "command remembered\n"
	a.m[pid] = seen
	assert.Equal(t, seen.asker, a.of(pid, askerFresh-1), "it is not looked at again")
	assert.Equal(t, "sh", command(a.of(pid, askerFresh)), "but after a second")

	_, err := stdin.WriteString("go on\n")
	require.NoError(t, err)
	require.Eventually(t, func() bool { return commandName(pid) == "sleep" }, 10*time.Second, time.Millisecond)
	assert.Equal(t, "sleep", command(a.of(pid, askerFresh+1)))

	end()
	gone := a.of(pid, askerFresh+2)
	assert.Zero(t, gone.pid)
	assert.Empty(t, metaValue(gone.who, "command"))
}

// commFiles counts what this process has open for askers.
func commFiles(t *testing.T) (n int) {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	for _, f := range files {
		if target, _ := os.Readlink("/proc/self/fd/" + f.Name()); strings.HasSuffix(target, "/comm") {
			n++
		}
	}
	return n
}

// What is open for askers stays few.
func TestAskersKeepFewFiles(t *testing.T) {
	a, before := &askers{}, commFiles(t)
	for i := range askersMax + 9 {
		pid, _, _ := child(t, "sleep", "100")
		require.Equal(t, pid, a.of(pid, 0).pid)
		require.Equal(t, pid, a.of(pid, askerFresh-1).pid, "known")
		require.Len(t, a.m, min(i+1, askersMax), "one goes for one that comes")
		require.Equal(t, len(a.m), commFiles(t)-before)
	}
	pid, _, _ := child(t, "sleep", "100")
	require.Equal(t, pid, a.of(pid, askerFresh).pid)
	require.Len(t, a.m, 1, "all that are no use any more go")
	require.Equal(t, 1, commFiles(t)-before)
}
