package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func newTestJanitor(t *testing.T, names ...string) *janitor {
	t.Helper()
	dir := t.TempDir()
	for _, n := range names {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, "tlock", n), 0o700))
	}
	return newJanitor(dir, deviceOfPath(dir))
}

func (j *janitor) left(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(j.mountDir, "tlock"))
	require.NoError(t, err)
	return len(entries)
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	require.Eventually(t, is, testLimit, time.Millisecond, what)
}

// TestJanitor: it removes what it is told to, by a process that has nothing of
// ours, and that ends when there is nothing more to do.
func TestJanitor(t *testing.T) {
	j := newTestJanitor(t, "a", "b", "c")
	var before atomic.Int32 // what was left when the helper was announced
	j.started = func(pid int32) {
		before.Store(int32(j.left(t)))
		assert.Equal(t, pid, j.Pid())
	}
	secret, err := unix.Open(j.mountDir, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(secret)
	require.Zero(t, j.Pid())

	j.Remove("a")
	j.Remove("not there")
	j.Remove("b")
	eventually(t, "a and b are removed", func() bool { return j.left(t) == 1 })
	require.EqualValues(t, 3, before.Load())
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", j.Pid()))
	require.NoError(t, err)
	require.NotEmpty(t, fds)
	for _, fd := range fds {
		to, _ := os.Readlink(fd)
		assert.Regexp(t, `^(pipe:|anon_inode:|/dev/null$|/sys/fs/cgroup/)`, to)
	}

	first := j.Pid()
	require.NoError(t, unix.Kill(int(first), unix.SIGKILL))
	j.Remove("lost with the helper, perhaps")
	j.Remove("c")
	eventually(t, "c is removed", func() bool { return j.left(t) == 0 })
	require.NotEqual(t, first, j.Pid())
}

// TestJanitorIdle: the helper ends after a while, and comes again.
func TestJanitorIdle(t *testing.T) {
	j := newTestJanitor(t, "a", "b")
	j.idle = 10 * time.Millisecond
	for i, name := range []string{"a", "b"} {
		j.Remove(name)
		eventually(t, "it is removed and the helper ends", func() bool { return j.left(t) == 1-i && j.Pid() == 0 })
	}
}

// TestJanitorQueue is bounded; the oldest are forgotten.
func TestJanitorQueue(t *testing.T) {
	j := newTestJanitor(t)
	j.running = true // so to say
	for i := range maxJanitorQueue + 10 {
		j.Remove(strconv.Itoa(i))
	}
	require.Len(t, j.queue, maxJanitorQueue)
	require.Equal(t, "10", j.queue[0])
}

// TestJanitorEndsWithItsWorker, also if that is killed.
func TestJanitorEndsWithItsWorker(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleEnv+"=janitor", "TMPDIR="+t.TempDir())
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	b := make([]byte, 20)
	n, err := out.Read(b)
	require.NoError(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(b[:n])))
	require.NoError(t, err)
	fd, err := unix.PidfdOpen(pid, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait()
	ended, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(testLimit.Milliseconds()))
	require.NoError(t, err)
	require.Equal(t, 1, ended)
}

// janitorRole is a worker whose janitor has started: it prints the pid.
func janitorRole() error {
	j := newJanitor(os.TempDir(), deviceOfPath(os.TempDir()))
	j.started = func(pid int32) { fmt.Println(pid) }
	j.Remove("a")
	select {}
}

// deviceOfPath is the minor number of the device that a directory is on.
func deviceOfPath(dir string) uint32 {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return 0
	}
	return unix.Minor(st.Dev)
}
