package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

const (
	mountLimit = 10 * time.Second // for a mount to appear, and to go away
	hangLimit  = 3 * time.Minute  // after which a mount is aborted, so that a hang fails its test instead of the run
	waitLimit  = 20 * time.Second // for anything that should happen at once, on a busy machine
)

// A mount is one `lockfs mount` and what it serves.
type mount struct {
	t      testing.TB
	dir    string // the mount point
	state  string
	binary string
	flags  []string
	cmd    *exec.Cmd
	stderr *syncBuffer
	done   chan struct{} // closed when the process has been waited for
	err    error         // its exit, once done is closed
	minor  string        // of the mount's device: the name of its FUSE connection

	watchdog *time.Timer // aborts the mount
}

// newMount mounts a fresh lockfs that ends, cleanly or with a failed test, when t does.
func newMount(t testing.TB, flags ...string) *mount {
	t.Helper()
	binary, err := testedBinary()
	require.NoError(t, err)
	base := tempDir(t)
	return mountAt(t, binary, filepath.Join(base, "mnt"), filepath.Join(base, "state"), flags...)
}

// mountAt mounts lockfs at dir, which is created if it is missing, and waits until it serves.
func mountAt(t testing.TB, binary, dir, state string, flags ...string) *mount {
	t.Helper()
	if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
		require.NoError(t, os.Mkdir(dir, 0o755))
	}
	m := &mount{t: t, dir: dir, state: state, binary: binary, flags: flags, stderr: new(syncBuffer), done: make(chan struct{})}
	args := append([]string{"mount", "--state", state}, flags...)
	m.cmd = exec.Command(binary, append(args, dir)...)
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	m.cmd.Stdout, m.cmd.Stderr = m.stderr, m.stderr
	require.NoError(t, m.cmd.Start())
	go func() {
		m.err = m.cmd.Wait()
		close(m.done)
	}()
	t.Cleanup(m.cleanup)
	live.add(m)
	t.Cleanup(func() { live.remove(m) })
	m.awaitServing()
	m.watchdog = time.AfterFunc(hangLimit, func() {
		m.t.Errorf("the mount was still in use after %v: aborted", hangLimit)
		m.abort()
	})
	t.Cleanup(func() { m.watchdog.Stop() })
	return m
}

func (m *mount) awaitServing() {
	m.t.Helper()
	var entry mountEntry
	eventually(m.t, mountLimit, "the mount appears", func() bool {
		select {
		case <-m.done:
			m.t.Fatalf("lockfs mount ended: %v\n%s", m.err, m.stderr)
		default:
		}
		var ok bool
		entry, ok = mountedAt(m.dir)
		return ok && entry.fstype == "fuse.lockfs"
	})
	m.minor = entry.minor
	eventually(m.t, mountLimit, "README is readable", func() bool {
		text, err := os.ReadFile(m.path("README"))
		return err == nil && len(text) > 0
	})
}

func (m *mount) path(elem ...string) string {
	return filepath.Join(append([]string{m.dir}, elem...)...)
}

// cleanup ends the mount as an administrator would, and by force where that fails.
func (m *mount) cleanup() {
	if m.cmd.Process.Signal(syscall.SIGTERM) == nil {
		select {
		case <-m.done:
			if m.err != nil {
				m.t.Errorf("lockfs mount, stopped by SIGTERM: %v", m.err)
			}
		case <-time.After(mountLimit):
			m.t.Errorf("lockfs mount did not end within %v of SIGTERM", mountLimit)
		}
	}
	m.destroy()
	if entry, left := mountedAt(m.dir); left {
		m.t.Errorf("left mounted: %+v", entry)
		unix.Unmount(m.dir, unix.MNT_DETACH)
	}
	m.checkLog()
}

func (m *mount) checkLog() {
	log := m.stderr.String()
	for _, bad := range []string{"DATA RACE", "panic:", "fatal error:"} {
		if strings.Contains(log, bad) {
			m.t.Errorf("lockfs reported %q", bad)
		}
	}
	if m.t.Failed() && log != "" {
		m.t.Logf("output of lockfs mount:\n%s", log)
	}
}

// crash kills the daemon with SIGKILL, whatever processes it is made of, and waits until it is gone.
func (m *mount) crash() {
	syscall.Kill(-m.cmd.Process.Pid, syscall.SIGKILL)
	<-m.done
}

// destroy leaves nothing of the mount, also when the daemon hangs.
func (m *mount) destroy() {
	select {
	case <-m.done:
		return
	default:
	}
	m.abort()
	unix.Unmount(m.dir, unix.MNT_DETACH)
	m.crash()
}

// abort ends the FUSE connection in the kernel: every call on the mount fails, also those that hang.
func (m *mount) abort() {
	const control = "/sys/fs/fuse/connections"
	file := filepath.Join(control, m.minor, "abort")
	if _, err := os.Stat(file); err != nil {
		unix.Mount("fusectl", control, "fusectl", 0, "")
	}
	if m.minor != "" {
		os.WriteFile(file, []byte("1"), 0)
	}
}

// awaitEnd waits for the end of a process that was killed. One that hangs in a call to a mount, which no signal can end,
// is let go by aborting the mount.
func awaitEnd(t testing.TB, pid int, wait func()) {
	t.Helper()
	ended := make(chan struct{})
	go func() {
		wait()
		close(ended)
	}()
	select {
	case <-ended:
		return
	case <-time.After(waitLimit / 2):
		t.Errorf("process %d is still there %v after SIGKILL: its call was never answered", pid, waitLimit/2)
	}
	live.abort()
	<-ended
}

// live are the mounts that serve now, to be aborted when something on them hangs.
var live mountSet

type mountSet struct {
	mu  sync.Mutex
	set map[*mount]bool
}

func (s *mountSet) add(m *mount) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.set == nil {
		s.set = make(map[*mount]bool)
	}
	s.set[m] = true
}

func (s *mountSet) remove(m *mount) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.set, m)
}

func (s *mountSet) abort() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for m := range s.set {
		m.abort()
	}
}

// waitExit waits for the daemon to end by itself and returns its exit status.
func (m *mount) waitExit(limit time.Duration) int {
	m.t.Helper()
	select {
	case <-m.done:
		return m.cmd.ProcessState.ExitCode()
	case <-time.After(limit):
		m.t.Fatalf("lockfs mount did not end within %v\n%s", limit, m.stderr)
		return -1
	}
}

// A mountEntry is a line of /proc/self/mountinfo.
type mountEntry struct{ minor, point, fstype, source string }

func mountedAt(dir string) (mountEntry, bool) {
	return mountIn("/proc/self/mountinfo", dir)
}

// mountIn finds the topmost mount at dir in a mountinfo file; dir has no characters that are escaped there.
func mountIn(mountinfo, dir string) (entry mountEntry, found bool) {
	text, err := os.ReadFile(mountinfo)
	if err != nil {
		return entry, false
	}
	for line := range strings.Lines(string(text)) {
		before, after, _ := strings.Cut(line, " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if len(left) < 5 || len(right) < 2 || left[4] != dir {
			continue
		}
		_, minor, _ := strings.Cut(left[2], ":")
		entry, found = mountEntry{minor: minor, point: left[4], fstype: right[0], source: right[1]}, true
	}
	return entry, found
}

// A lockLine is a line of view/locks.jsonl.
type lockLine struct {
	Class    string   `json:"class"`
	State    string   `json:"state"`
	Mode     string   `json:"mode"`
	Path     string   `json:"path"`
	Start    *uint64  `json:"start"`
	End      *uint64  `json:"end"`
	PID      int      `json:"pid"`
	TID      int      `json:"tid"`
	UID      int      `json:"uid"`
	GID      int      `json:"gid"`
	Command  string   `json:"command"`
	Since    float64  `json:"since"`
	Seconds  *float64 `json:"seconds"`
	Name     string   `json:"name"`
	Token    uint64   `json:"token"`
	Kind     string   `json:"kind"`
	Expiry   *float64 `json:"expiry"`
	Left     *float64 `json:"left"`
	Blockers []int    `json:"blockers"`
}

func (m *mount) locks(t testing.TB) []lockLine {
	t.Helper()
	var locks []lockLine
	for line := range strings.Lines(readFile(t, m.path("view/locks.jsonl"))) {
		var lock lockLine
		require.NoError(t, json.Unmarshal([]byte(line), &lock), "%s", line)
		locks = append(locks, lock)
	}
	return locks
}

// locksOn returns the locks and waiters of one state whose path is or begins with path.
func (m *mount) locksOn(t testing.TB, state, path string) []lockLine {
	t.Helper()
	var found []lockLine
	for _, lock := range m.locks(t) {
		if lock.State == state && (lock.Path == path || strings.HasPrefix(lock.Path, path+"/")) {
			found = append(found, lock)
		}
	}
	return found
}

// stats reads view/stats.
func (m *mount) stats(t testing.TB) map[string]string {
	t.Helper()
	return flatKeyed(t, readFile(t, m.path("view/stats")))
}

// flatKeyed parses `key value` lines.
func flatKeyed(t testing.TB, text string) map[string]string {
	t.Helper()
	values := make(map[string]string)
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		require.NotContains(t, values, key, "each key once in\n%s", text)
		values[key] = value
	}
	return values
}

// An event is a line of view/events.
type event struct {
	Seq     uint64  `json:"seq"`
	At      float64 `json:"at"`
	Event   string  `json:"event"`
	Class   string  `json:"class"`
	Mode    string  `json:"mode"`
	Path    string  `json:"path"`
	Start   *uint64 `json:"start"`
	End     *uint64 `json:"end"`
	PID     int     `json:"pid"`
	UID     int     `json:"uid"`
	Token   uint64  `json:"token"`
	Refused *bool   `json:"refused"`
	Missed  uint64  `json:"missed"`
	raw     string
}

// An eventStream collects what view/events says from the moment it was opened.
type eventStream struct {
	mu     sync.Mutex
	events []event
}

// events opens view/events now and follows it with cat(1) until the test ends.
func (m *mount) events(t testing.TB) *eventStream {
	t.Helper()
	fd, err := unix.Open(m.path("view/events"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	in := os.NewFile(uintptr(fd), "view/events")
	cat := exec.Command("cat")
	cat.Stdin = in
	s := new(eventStream)
	cat.Stdout = &lineWriter{line: func(line string) { s.add(t, line) }}
	require.NoError(t, cat.Start())
	in.Close()
	t.Cleanup(func() {
		cat.Process.Kill()
		awaitEnd(t, cat.Process.Pid, func() { cat.Wait() })
	})
	return s
}

func (s *eventStream) add(t testing.TB, line string) {
	e := event{raw: line}
	if err := json.Unmarshal([]byte(line), &e); err != nil {
		t.Errorf("view/events: %v in %q", err, line)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, e)
}

// find waits for an event that fits.
func (s *eventStream) find(t testing.TB, what string, fits func(event) bool) event {
	t.Helper()
	var found event
	eventually(t, waitLimit, "event: "+what, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, e := range s.events {
			if fits(e) {
				found = e
				return true
			}
		}
		return false
	})
	return found
}

// eventually fails t unless cond holds within a time. It polls: the conditions are other processes' states.
func eventually(t testing.TB, within time.Duration, what string, cond func() bool) {
	t.Helper()
	for start, pause := time.Now(), time.Millisecond; !cond(); pause = min(2*pause, 20*time.Millisecond) {
		if time.Since(start) > within {
			t.Fatalf("not within %v: %s", within, what)
		}
		time.Sleep(pause)
	}
}

// A result is how a program ended.
type result struct {
	out, err string
	code     int
}

// A program is a command with a deadline that is killed with all its children.
type program struct {
	*exec.Cmd
	out, err bytes.Buffer
}

// newProgram prepares a program with Debian's own tools in its PATH; edit the embedded Cmd before run.
func newProgram(t testing.TB, limit time.Duration, name string, args ...string) *program {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	p := &program{Cmd: exec.CommandContext(ctx, name, args...)}
	p.Env = append(os.Environ(), "PATH=/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8")
	if path, err := exec.LookPath("/usr/bin/" + name); err == nil {
		p.Path = path
	}
	p.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.Cancel = func() error { return syscall.Kill(-p.Process.Pid, syscall.SIGKILL) }
	p.WaitDelay = 5 * time.Second
	p.Stdout, p.Stderr = &p.out, &p.err
	return p
}

func (p *program) run(t testing.TB) result {
	t.Helper()
	return p.ended(t, p.Run())
}

// ended is the result of a program that was waited for with this error.
func (p *program) ended(t testing.TB, err error) result {
	t.Helper()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%v: %v\n%s%s", p.Args, err, p.out.String(), p.err.String())
	}
	if p.ProcessState.ExitCode() < 0 {
		t.Fatalf("%.300v: %v\n%s%s", p.Args, p.ProcessState, p.out.String(), p.err.String())
	}
	return result{p.out.String(), p.err.String(), p.ProcessState.ExitCode()}
}

// sh runs a shell script; args are its $1, $2...
func sh(t testing.TB, script string, args ...string) result {
	t.Helper()
	return newProgram(t, time.Minute, "sh", append([]string{"-c", script, "sh"}, args...)...).run(t)
}

// mustSh runs a shell script that has to succeed, and returns its output without the last newline.
func mustSh(t testing.TB, script string, args ...string) string {
	t.Helper()
	r := sh(t, script, args...)
	require.Zero(t, r.code, "%s: exit %d\n%s%s", script, r.code, r.out, r.err)
	return strings.TrimSuffix(r.out, "\n")
}

// lockfs runs the product's own command line.
func lockfs(t testing.TB, args ...string) result {
	t.Helper()
	binary, err := testedBinary()
	require.NoError(t, err)
	return newProgram(t, time.Minute, binary, args...).run(t)
}

// A syncBuffer collects a process's output while others read it.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// A lineWriter hands on each whole line written to it.
type lineWriter struct {
	rest []byte
	line func(string)
}

func (w *lineWriter) Write(p []byte) (int, error) {
	w.rest = append(w.rest, p...)
	for {
		line, rest, whole := bytes.Cut(w.rest, []byte("\n"))
		if !whole {
			return len(p), nil
		}
		w.rest = rest
		w.line(string(line))
	}
}

// tempDir is a temporary directory that every user may enter.
func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "lockfs-test-")
	require.NoError(t, err)
	require.NoError(t, os.Chmod(dir, 0o755))
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func readFile(t testing.TB, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(text)
}

// readValue reads a file of one value: one line that ends with a newline.
func readValue(t testing.TB, path string) string {
	t.Helper()
	text := readFile(t, path)
	value, rest, found := strings.Cut(text, "\n")
	require.True(t, found && rest == "", "%s: one line with a trailing newline, not %q", path, text)
	return value
}

func readInt(t testing.TB, path string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(readValue(t, path), 10, 64)
	require.NoError(t, err, path)
	return n
}

// entries lists a directory's names, sorted.
func entries(t testing.TB, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	require.NoError(t, err)
	names := make([]string, 0, len(list))
	for _, entry := range list {
		names = append(names, entry.Name())
	}
	return names
}

func statOf(t testing.TB, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Lstat(path, &st), path)
	return st
}

// errnoName is an error's name as in errno.h, "ok" for none.
func errnoName(err error) string {
	if err == nil {
		return "ok"
	}
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return err.Error()
	}
	if name := unix.ErrnoName(errno); name != "" {
		return name
	}
	return fmt.Sprintf("errno %d", int(errno))
}

// processState is the letter of proc(5)'s stat: R, S, D, T, Z...
func processState(t testing.TB, pid int) string {
	t.Helper()
	text := readFile(t, fmt.Sprintf("/proc/%d/stat", pid))
	return strings.Fields(text[strings.LastIndexByte(text, ')')+1:])[0]
}
