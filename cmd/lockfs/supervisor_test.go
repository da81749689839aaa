package main

import (
	"bufio"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

const testLimit = 20 * time.Second // for what should happen at once

// rig is a supervisor whose mount is a pipe: it is unmounted when the pipe's
// other end is closed.
type rig struct {
	t       *testing.T
	s       *supervisor
	signals chan os.Signal
	asked   chan func(upgraded)
	serving chan int    // pid of the first worker
	logged  chan string // lines
	result  chan error
	other   *os.File

	mu      sync.Mutex
	unmount []string // how it was
	busy    bool
}

func newRig(t *testing.T, set settings) *rig {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "lockfs")
	install(t, path, "")
	self, err := openProgram(path)
	require.NoError(t, err)
	other, conn, err := os.Pipe()
	require.NoError(t, err)
	if set.Files == "" {
		set.Files = filepath.Join(dir, "files")
	}
	set.Dir = dir
	r := &rig{t: t, signals: make(chan os.Signal), asked: make(chan func(upgraded)), serving: make(chan int, 1),
		logged: make(chan string, 100), result: make(chan error, 1), other: other}
	log := slog.New(slog.NewTextHandler(r, nil))
	r.s = &supervisor{
		settings: set.encode(), fuse: conn, program: self, path: path, limit: testLimit,
		unmount: r.umount, patient: r.umountPatiently,
		announce: func() { r.serving <- r.s.worker.cmd.Process.Pid },
		store:    fdStore{limit: raiseFileLimit() - spareFDs, log: log}, log: log,
	}
	for range 2 {
		null, err := os.Open(os.DevNull)
		require.NoError(t, err)
		r.s.state = append(r.s.state, null)
	}
	return r
}

// run starts it. Its worker ends with the test.
func (r *rig) run() *rig {
	go func() { r.result <- r.s.run(r.signals, r.asked) }()
	r.t.Cleanup(func() { r.other.Close() })
	return r
}

func (r *rig) Write(line []byte) (int, error) {
	r.logged <- string(line)
	return len(line), nil
}

func (r *rig) umount(lazy bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if lazy {
		r.unmount = append(r.unmount, "lazy")
		return nil
	}
	r.unmount = append(r.unmount, "plain")
	if r.busy {
		return unix.EBUSY
	}
	return r.other.Close()
}

func (r *rig) umountPatiently() {
	if r.umount(false) != nil {
		_ = r.umount(true)
	}
}

func (r *rig) unmounted() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.unmount
}

func await[T any](t *testing.T, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(testLimit):
		require.Fail(t, what+": not within "+testLimit.String())
	}
	panic("unreachable")
}

var pidPattern = regexp.MustCompile(`another one serves.* pid=(\d+)`)

// another awaits that another worker serves, and returns its pid.
func (r *rig) another() int {
	r.t.Helper()
	line := await(r.t, "another worker", r.logged)
	m := pidPattern.FindStringSubmatch(line)
	require.NotNil(r.t, m, line)
	pid, err := strconv.Atoi(m[1])
	require.NoError(r.t, err)
	return pid
}

func (r *rig) upgrade() upgraded {
	r.t.Helper()
	done := make(chan upgraded, 1)
	r.asked <- func(u upgraded) { done <- u }
	u := await(r.t, "the upgrade", done)
	await(r.t, "its line in the log", r.logged)
	return u
}

// TestRestart: a worker that is killed is followed by another one, however
// often, until the mount is unmounted.
func TestRestart(t *testing.T) {
	r := newRig(t, settings{State: "serve"}).run()
	pid := await(t, "the first worker", r.serving)
	for range 2 * maxDeaths {
		require.NoError(t, unix.Kill(pid, unix.SIGKILL))
		next := r.another()
		require.NotEqual(t, pid, next)
		pid = next
	}
	require.NoError(t, r.umount(false))
	require.NoError(t, await(t, "the end", r.result))
	require.Empty(t, r.logged)
}

// TestGivingUp: workers that end at once, before they serve or by their own
// fault, are not started for ever.
func TestGivingUp(t *testing.T) {
	for behaviour, why := range map[string]string{"die": "exit status 7", "once": "signal: killed"} {
		for _, busy := range []bool{false, true} {
			r := newRig(t, settings{State: behaviour})
			r.busy = busy
			r.run()
			pid := await(t, "the first worker", r.serving)
			if behaviour == "once" {
				require.NoError(t, unix.Kill(pid, unix.SIGKILL))
			}
			err := await(t, "the end", r.result)
			var f *failure
			require.ErrorAs(t, err, &f)
			assert.Equal(t, exitUnreachable, f.code)
			assert.Regexp(t, `^\d+ workers in a row ended at once, the last one of: `+why, f.Error())
			if busy {
				assert.Equal(t, []string{"plain", "lazy"}, r.unmounted())
			} else {
				assert.Equal(t, []string{"plain"}, r.unmounted())
			}
		}
	}
}

// TestFirstWorkerFails: nothing stays mounted.
func TestFirstWorkerFails(t *testing.T) {
	r := newRig(t, settings{State: "fail"}).run()
	err := await(t, "the end", r.result)
	var f *failure
	require.ErrorAs(t, err, &f)
	assert.Equal(t, exitUnreachable, f.code)
	assert.Empty(t, f.Error(), "it said so itself")
	assert.Equal(t, []string{"plain"}, r.unmounted())

	r = newRig(t, settings{})
	require.NoError(t, os.WriteFile(r.s.path, []byte("text"), 0o755))
	var openErr error
	r.s.program, openErr = openProgram(r.s.path)
	require.NoError(t, openErr)
	err = await(t, "the end", r.run().result)
	require.ErrorContains(t, err, "exec format error")
	assert.Equal(t, []string{"plain"}, r.unmounted())
}

// TestUpgradeAndBack: a new program serves; one that does not come up leaves
// the old one serving; a crash starts the program that served, whatever is on
// disk.
func TestUpgradeAndBack(t *testing.T) {
	r := newRig(t, settings{State: "first"})
	r.s.limit = 3 * time.Second
	r.run()
	await(t, "the first worker", r.serving)

	install(t, r.s.path, "second")
	require.Equal(t, upgraded{Old: "first", New: "second"}, r.upgrade())

	require.NoError(t, os.Remove(r.s.path))
	require.Contains(t, r.upgrade().Err, "no such file")
	require.NoError(t, unix.Kill(onlyWorker(t), unix.SIGKILL))
	r.another()
	for behaviour, why := range map[string]string{"fail": "broken on purpose", "hang": "signal: killed", "die now": "exit status 9"} {
		install(t, r.s.path, behaviour)
		u := r.upgrade()
		assert.Equal(t, "second", u.Old)
		assert.Equal(t, "second", u.New)
		assert.Contains(t, u.Err, why)
		assert.Contains(t, u.Err, r.s.path)
	}
	require.NoError(t, os.WriteFile(r.s.path, []byte("#!/nowhere\n"), 0o755))
	assert.NotEmpty(t, r.upgrade().Err)

	install(t, r.s.path, "third")
	require.Equal(t, upgraded{Old: "second", New: "third"}, r.upgrade())
	install(t, r.s.path, "fourth")
	r.signals <- syscall.SIGHUP
	assert.Regexp(t, "upgraded.*from=third.*to=fourth", await(t, "the line of SIGHUP", r.logged))
	require.NoError(t, r.umount(false))
	require.NoError(t, await(t, "the end", r.result))
}

// onlyWorker among this process's children.
func onlyWorker(t *testing.T) int {
	t.Helper()
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	require.NoError(t, err)
	var workers []string
	for _, task := range tasks {
		b, _ := os.ReadFile(task)
		for _, pid := range strings.Fields(string(b)) {
			if comm, _ := os.ReadFile("/proc/" + pid + "/comm"); string(comm) == "lockfs-worker\n" {
				workers = append(workers, pid)
			}
		}
	}
	require.Len(t, workers, 1)
	pid, err := strconv.Atoi(workers[0])
	require.NoError(t, err)
	return pid
}

// TestSignals: the first one unmounts and lets the worker end; a mount that
// stays busy ends nevertheless; a second one does not wait.
func TestSignals(t *testing.T) {
	for name, c := range map[string]struct {
		busy    bool
		signals []os.Signal
		stuck   bool // patience does not end
		want    []string
	}{
		"free":   {signals: []os.Signal{syscall.SIGTERM}, want: []string{"plain"}},
		"busy":   {busy: true, signals: []os.Signal{syscall.SIGINT}, want: []string{"plain", "lazy"}},
		"second": {busy: true, stuck: true, signals: []os.Signal{syscall.SIGINT, syscall.SIGINT}, want: []string{"lazy"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, settings{State: "serve"})
			r.busy = c.busy
			if c.stuck {
				r.s.patient = func() { select {} }
			}
			r.run()
			pid := await(t, "the first worker", r.serving)
			for _, sig := range c.signals {
				require.NoError(t, unix.Kill(pid, unix.SIGTERM), "the worker leaves it to the supervisor")
				r.signals <- sig
			}
			require.NoError(t, await(t, "the end", r.result))
			assert.Equal(t, c.want, r.unmounted())
			assert.ErrorIs(t, unix.Kill(pid, 0), unix.ESRCH)
		})
	}
}

// TestSupervisorDies: the worker says so, serves on, and takes the signals.
func TestSupervisorDies(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleEnv+"=supervisor")
	stderr, err := cmd.StderrPipe()
	require.NoError(t, err)
	// The other end of the mount's pipe, so that killing the role does not unmount.
	other, conn, err := os.Pipe()
	require.NoError(t, err)
	defer other.Close()
	cmd.ExtraFiles = []*os.File{conn}
	require.NoError(t, cmd.Start())
	conn.Close()
	lines := make(chan string, 10)
	go func() {
		defer close(lines)
		for in := bufio.NewScanner(stderr); in.Scan(); {
			lines <- in.Text()
		}
	}()
	pid, err := strconv.Atoi(await(t, "the worker", lines))
	require.NoError(t, err)
	require.NoError(t, unix.Kill(pid, unix.SIGTERM))
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Process.Release()
	assert.Regexp(t, "the supervisor is gone; serving on.*pid="+strconv.Itoa(pid), await(t, "its line", lines))
	require.NoError(t, unix.Kill(pid, unix.SIGTERM))
	_, more := <-lines
	require.False(t, more, "it ended")
}

// supervisorRole is a supervisor with a mount that never ends, and prints its worker's pid.
func supervisorRole() error {
	dir, err := os.MkdirTemp("", "lockfs-test-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	self, err := openProgram("/proc/self/exe")
	if err != nil {
		return err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	s := &supervisor{
		settings: settings{State: "serve", Dir: filepath.Join(dir, "none")}.encode(), fuse: os.NewFile(3, "conn"),
		state: []*os.File{null, null}, program: self, log: newLog(),
		unmount: func(bool) error { return errors.New("not mounted") },
	}
	s.announce = func() { _, _ = os.Stderr.WriteString(strconv.Itoa(s.worker.cmd.Process.Pid) + "\n") }
	return s.run(nil, nil)
}

// TestHopeless: workers that are killed before they serve are counted, no
// matter how long each of them lived.
func TestHopeless(t *testing.T) {
	killed := exec.Command("sh", "-c", "kill -KILL $$")
	require.Error(t, killed.Run())
	for name, lived := range map[string]func(i int) time.Duration{
		"long":                 func(int) time.Duration { return time.Second },
		"the last one shortly": func(i int) time.Duration { return time.Duration(maxUnready-1-i) * time.Second },
		"by turns":             func(i int) time.Duration { return time.Duration(i%2) * time.Second },
	} {
		s := &supervisor{}
		deaths := 0
		for over := false; !over; deaths++ {
			require.Less(t, deaths, maxUnready, name)
			s.worker = &worker{cmd: killed, started: time.Now().Add(-lived(deaths))}
			over = s.hopeless()
		}
		assert.Equal(t, maxUnready, deaths, name)
	}
}
