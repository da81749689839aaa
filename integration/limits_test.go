package integration

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
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

// The users of these tests: one who takes all he can get, and one who only wants to work.
const (
	greedy = 65534
	modest = 65533
)

// TestQuota: a user gets exactly as many locks and waits as he may have, and no less; nobody else feels it.
func TestQuota(t *testing.T) {
	m := newMount(t, "--max-locks-per-user", "6")
	a, b, root := newClient(t, m.dir, asUser(greedy)), newClient(t, m.dir, asUser(modest)), newClient(t, m.dir)
	for _, op := range []string{
		"mkdir tlock/a", "open hold/b r", "open files/f", "setlk files/f w 0 10", "open files/g", "flock files/g ex",
		"ofd_setlk files/g w 0 10",
	} {
		require.Equal(t, "ok", a.do("%s", op), op)
	}
	require.Equal(t, "ok", b.do("mkdir tlock/c"))
	waits := a.begin("open hold/c r")
	eventually(t, waitLimit, "it waits", func() bool { return m.stats(t)["waiting_named"] == "1" })

	full := func(c *client) {
		t.Helper()
		for op, want := range map[string]string{
			"mkdir tlock/d": "EDQUOT", "open hold/d r": "EDQUOT", "open take/d r": "EDQUOT", "setlk files/f w 20 5": "EDQUOT",
			"setlkw files/f w 20 5": "EDQUOT", "setlk files/f u 3 3": "EDQUOT", "open hold/c,wait=0 r": "EAGAIN", "mkdir tlock/c": "EEXIST",
			"setlk files/f r 0 10": "ok", "setlk files/f w 0 10": "ok", "flock files/g sh": "ok", "flock files/g ex": "ok",
			"write tlock/a/timeout 5m": "ok", "read tlock/a/age": "0",
		} {
			if got := c.do("%s", op); got != want && op != "read tlock/a/age" || got == "EDQUOT" && want != got {
				t.Errorf("%s: %s, want %s", op, got, want)
			}
		}
	}
	full(a)
	for _, c := range []*client{b, root} {
		require.Equal(t, "ok", c.do("mkdir tlock/d"))
		require.Equal(t, "ok", c.do("rmdir tlock/d"))
	}
	for i := range 20 {
		require.Equal(t, "ok", root.do("mkdir tlock/root%d", i), "root is exempt")
	}
	m.killWorker()
	full(a)
	require.Equal(t, "ok", a.do("setlk files/f u 0 0"))
	require.Equal(t, "ok", a.do("mkdir tlock/d"))
	require.Equal(t, "EDQUOT", a.do("mkdir tlock/e"))
	require.Equal(t, "ok", b.do("rmdir tlock/c"))
	require.Equal(t, "ok", await(t, "hold/c", waits))
	require.Equal(t, "EDQUOT", a.do("mkdir tlock/e"), "the wait became a lock")
	a.kill()
	eventually(t, waitLimit, "what goes with the process is gone", func() bool { return len(m.locksOn(t, "held", "files")) == 0 })
	again := newClient(t, m.dir, asUser(greedy))
	for _, name := range []string{"e", "f", "g", "h"} { // a and d are held still
		require.Equal(t, "ok", again.do("mkdir tlock/%s", name))
	}
	require.Equal(t, "EDQUOT", again.do("mkdir tlock/i"))
	require.NotEqual(t, "0", m.stats(t)["over_quota"])
}

// TestQuotaOfOpenFiles: a user's open files outside files/ are bounded too, but he who has all his locks by open files
// can look.
func TestQuotaOfOpenFiles(t *testing.T) {
	const locks, most = 4, 2*4 + 64
	m := newMount(t, "--max-locks-per-user", strconv.Itoa(locks))
	c := newClient(t, m.dir, asUser(greedy))
	for i := range locks {
		require.Equal(t, "ok", c.do("open hold/%d r", i))
	}
	for i := locks; i < most; i++ {
		require.Equal(t, "ok", c.do("open view/stats:%d r", i))
	}
	full := func() {
		t.Helper()
		require.Equal(t, "EDQUOT", c.do("open view/stats:more r"))
		require.Equal(t, "EDQUOT", c.do("open tlock:more r"))
		require.Equal(t, "EDQUOT", c.do("open hold/more,wait=0 r"))
	}
	full()
	m.killWorker()
	full()
	require.Equal(t, "ok", c.do("close view/stats:20"))
	require.Equal(t, "ok", c.do("open tlock:more r"))
	require.Equal(t, "ok", c.do("open files/f"), "files/ has the limits that it always had")
	require.Equal(t, "ok", newClient(t, m.dir, asUser(modest)).do("open view/stats r"))
}

// TestNamesAreForgotten: who looks up many names fills no table where the kernel can be asked to forget them (Linux 6.18).
func TestNamesAreForgotten(t *testing.T) {
	const looks, most = 6000, 4096 + 2*64
	m := newMount(t)
	c := newClient(t, m.dir)
	require.Equal(t, "ok", c.do("open hold/mine r"))
	for i := range looks {
		_, err := os.Stat(m.path(fmt.Sprintf("take/%d", i)))
		require.NoError(t, err)
	}
	names := func() int { n, _ := strconv.Atoi(m.stats(t)["names"]); return n }
	require.NotZero(t, names())
	if major, minor := kernelVersion(t); major > 6 || major == 6 && minor >= 18 {
		eventually(t, waitLimit, "they are forgotten", func() bool { return names() <= most })
	}
	m.killWorker()
	require.Contains(t, c.do("pread hold/mine 0 99"), readValue(t, m.path("tlock/mine/token")), "one in use is not")
	require.Equal(t, "ok", c.do("open take/0 r"))
}

func kernelVersion(t *testing.T) (major, minor int) {
	var u unix.Utsname
	require.NoError(t, unix.Uname(&u))
	_, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor)
	require.NoError(t, err)
	return major, minor
}

func TestLimitRoot(t *testing.T) {
	m := newMount(t, "--max-locks-per-user", "2", "--limit-root")
	c := newClient(t, m.dir)
	require.Equal(t, "ok", c.do("mkdir tlock/a"))
	require.Equal(t, "ok", c.do("mkdir tlock/b"))
	require.Equal(t, "EDQUOT", c.do("mkdir tlock/c"))
}

// TestNoLimit: 0 is none, for whoever asks.
func TestNoLimit(t *testing.T) {
	m := newMount(t, "--max-locks-per-user", "0")
	c := newClient(t, m.dir, asUser(greedy))
	for i := range 300 {
		require.Equal(t, "ok", c.do("open hold/%d r", i))
	}
}

// TestTokenMode: with 0400 the holder and root see tokens, and nobody else does, wherever they look.
func TestTokenMode(t *testing.T) {
	for mode, hidden := range map[string]bool{"0444": false, "0400": true} {
		m := newMount(t, "--token-mode", mode)
		holder, other := newClient(t, m.dir, asUser(modest)), newClient(t, m.dir, asUser(greedy))
		events := followAs(t, m, greedy)
		require.Equal(t, "ok", holder.do("mkdir tlock/x"))
		token := readValue(t, m.path("tlock/x/token"))
		require.Equal(t, token, holder.do("read tlock/x/token"))
		if hidden {
			require.Equal(t, "EACCES", other.do("read tlock/x/token"))
		}
		m.killWorker()
		for _, view := range []string{"tlock/x/json", "view/locks.jsonl", "view/locks", "view/stats", "view/files", "view/graph.dot"} {
			for who, c := range map[string]*client{"holder": holder, "other": other} {
				text := c.do("read %s", view)
				if hidden && c == other {
					assert.NotContains(t, text, token, "%s of %s", view, who)
					assert.NotContains(t, text, `"token"`)
				} else if strings.HasSuffix(view, "json") || strings.HasSuffix(view, "jsonl") {
					assert.Contains(t, text, `"token":`+token, "%s of %s", view, who)
				}
			}
		}
		require.Contains(t, readFile(t, m.path("view/stats")), "last_token "+token)
		event := await(t, "an event", events)
		require.Contains(t, event, `"granted"`)
		require.Equal(t, !hidden, strings.Contains(event, token), event)
		require.Equal(t, "ok", holder.do("stat tlock/x@%s", token))
		require.Equal(t, "ok", holder.do("rmdir tlock/x@%s", token))
	}
}

// followAs follows view/events as a user, from now on.
func followAs(t *testing.T, m *mount, uid uint32) <-chan string {
	t.Helper()
	cmd := exec.Command("sh", "-c", `exec 3<"$1"; echo open; exec cat <&3`, "sh", m.path("view/events"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	lines := make(chan string, 100)
	cmd.Stdout = &lineWriter{line: func(line string) { lines <- line }}
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	require.Equal(t, "open", await(t, "view/events is open", lines))
	return lines
}

// latency is the times of one kind of work, of several rounds' the median.
type latency struct{ p50, p99 time.Duration }

func (l latency) String() string {
	return fmt.Sprintf("%v/%v", l.p50.Round(time.Microsecond), l.p99.Round(time.Microsecond))
}

// within reports whether calls take at most three times as long as alone, or what a busy machine may make of them.
func (l latency) within(alone, busy latency) bool {
	return l.p50 <= max(3*alone.p50, busy.p50) && l.p99 <= max(3*alone.p99, busy.p99)
}

// pace is how fast a user works.
type pace struct{ mkdir, setlk latency }

func (p pace) String() string {
	return fmt.Sprintf("mkdir and rmdir %v; lock and unlock %v", p.mkdir, p.setlk)
}

func (p pace) within(alone, busy pace) bool {
	return p.mkdir.within(alone.mkdir, busy.mkdir) && p.setlk.within(alone.setlk, busy.setlk)
}

func (p pace) slower(q pace) pace {
	slower := func(a, b latency) latency { return latency{max(a.p50, b.p50), max(a.p99, b.p99)} }
	return pace{slower(p.mkdir, q.mkdir), slower(p.setlk, q.setlk)}
}

// disturbed is what other programs of the machine may make of any pace.
var disturbed = pace{latency{4 * time.Millisecond, 8 * time.Millisecond}, latency{4 * time.Millisecond, 2 * time.Millisecond}}

// attempts is how often a flood is measured that seems to hurt, since other programs come and go.
const attempts = 3

// TestFloods: whatever one user does as fast as he can, others work on: their slow calls are at most three times as slow
// as alone. A flood whose own process is busy all the time may also do what processes do that only burn time and never
// touch the mount, one on each processor: that is the kernel's scheduling. And when the user is gone, so is all that he
// had.
func TestFloods(t *testing.T) {
	const most, waiters = 6000, 5000
	binary, err := plainBinary()
	require.NoError(t, err)
	base := tempDir(t)
	m := mountAt(t, binary, filepath.Join(base, "mnt"), filepath.Join(base, "state"), "--max-locks-per-user", strconv.Itoa(most))
	require.NoError(t, os.WriteFile(m.path("files/crowd"), nil, 0o666))
	require.NoError(t, os.Chmod(m.path("files/crowd"), 0o666))
	holder := newClient(t, m.dir)
	require.Equal(t, "ok", holder.do("open files/crowd"))
	require.Equal(t, "ok", holder.do("ofd_setlk files/crowd w 0 0"))

	handles := m.stats(t)["handles"]
	alone := worked(t, m)
	t.Logf("alone: %v", alone)
	var burners []*exec.Cmd
	for range runtime.NumCPU() {
		burners = append(burners, flood(t, m, "flooder", "burn", m.dir))
	}
	burned := worked(t, m)
	t.Logf("with %d processes that only burn time: %v", len(burners), burned)
	for _, p := range burners {
		endFlood(p)
	}
	crowd := []string{"crowd", m.path("files/crowd"), strconv.Itoa(waiters)}
	floods := []struct {
		name  string
		busy  pace
		procs [][]string
	}{
		{"mkdir", burned, [][]string{{"flooder", "mkdir", m.dir}}},
		{"setlk", burned, [][]string{{"flooder", "setlk", m.dir}}},
		{"opens", burned, [][]string{{"flooder", "opens", m.dir}}},
		{"names", burned, [][]string{{"flooder", "names", m.dir}}},
		{"followers", pace{}, [][]string{{"flooder", "followers", m.dir}}},
		{"waiters", pace{}, [][]string{crowd}},
		{"views", pace{}, [][]string{crowd, {"flooder", "views", m.dir}}},
	}
	for _, f := range floods {
		t.Run(f.name, func(t *testing.T) {
			var procs []*exec.Cmd
			for _, args := range f.procs {
				procs = append(procs, flood(t, m, args...))
			}
			if f.procs[0][0] == "crowd" {
				eventually(t, time.Minute, "all wait", func() bool { return m.stats(t)["waiting_record"] == strconv.Itoa(waiters) })
			}
			unhurt := false
			for n := 0; n < attempts && !unhurt; n++ {
				now := worked(t, m)
				unhurt = now.within(alone, f.busy.slower(disturbed))
				t.Logf("%v: p99 %.1f and %.1f times that alone", now, ratioOfSlow(now.mkdir, alone.mkdir), ratioOfSlow(now.setlk, alone.setlk))
			}
			assert.True(t, unhurt, "others are too slow")
			assert.Less(t, residentMB(t, m), 400, "MB resident")
			for _, p := range slices.Backward(procs) {
				killed := time.Now()
				endFlood(p)
				assert.Less(t, time.Since(killed), 8*time.Second, "%v waits for its turn though it was killed", p.Args[1:])
			}
			eventually(t, time.Minute, "nothing is left but what outlives a process", func() bool {
				s := m.stats(t)
				return s["waiting_record"] == "0" && s["held_record"] == "1" && s["handles"] == handles
			})
			clearNames(t, m)
		})
	}
	assert.Less(t, residentMB(t, m), 300, "MB resident when all is over")
	require.Len(t, m.locks(t), 1)
}

func ratioOfSlow(a, b latency) float64 { return float64(a.p99) / float64(b.p99) }

func clearNames(t *testing.T, m *mount) {
	for _, name := range entries(t, m.path("tlock")) {
		require.NoError(t, unix.Rmdir(m.path("tlock", name)))
	}
}

// flood starts a process of the greedy user and returns when it has begun.
func flood(t *testing.T, m *mount, args ...string) *exec.Cmd {
	t.Helper()
	cmd := role(args[0], args[1:]...)
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: greedy, Gid: greedy}
	begun := make(chan string, 1)
	if args[0] == "flooder" {
		cmd.Stdout = &lineWriter{line: func(line string) { begun <- line }}
	}
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	if args[0] == "flooder" {
		require.Equal(t, "begun", await(t, "the flood begins", begun))
	}
	return cmd
}

func endFlood(p *exec.Cmd) {
	syscall.Kill(-p.Process.Pid, syscall.SIGKILL)
	p.Wait()
}

// worked has the modest user work for some rounds and returns what his calls took.
func worked(t *testing.T, m *mount) pace {
	t.Helper()
	const rounds = 5
	var all [4][]time.Duration
	for range rounds {
		cmd := role("worker", m.dir)
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: modest, Gid: modest}
		p := newProgram(t, time.Minute, cmd.Path, cmd.Args[1:]...)
		p.Path, p.Env, p.SysProcAttr = cmd.Path, cmd.Env, cmd.SysProcAttr
		r := p.run(t)
		require.Zero(t, r.code, r.err)
		fields := strings.Fields(r.out)
		require.Len(t, fields, len(all))
		for i, f := range fields {
			all[i] = append(all[i], time.Duration(parseInt(f)))
		}
	}
	for _, times := range all {
		slices.Sort(times)
	}
	return pace{latency{all[0][rounds/2], all[1][rounds/2]}, latency{all[2][rounds/2], all[3][rounds/2]}}
}

// workerMain prints the p50 and p99 of a mkdir with its rmdir, and of a lock with its unlock, in nanoseconds.
func workerMain() error {
	dir := os.Args[1]
	name, file := dir+"/tlock/modest", dir+"/files/modest"
	fd, err := openAgain(file, unix.O_RDWR|unix.O_CREAT)
	if err != nil {
		return err
	}
	mkdir := func() error { return errors.Join(unix.Mkdir(name, 0o755), unix.Rmdir(name)) }
	setlk := func() error {
		lock := unix.Flock_t{Type: unix.F_WRLCK, Len: 1}
		unlock := unix.Flock_t{Type: unix.F_UNLCK, Len: 1}
		return errors.Join(fcntlLock(fd, unix.F_SETLK, &lock), fcntlLock(fd, unix.F_SETLK, &unlock))
	}
	for _, work := range []struct {
		do func() error
		n  int
	}{{mkdir, 400}, {setlk, 2000}} {
		times := make([]time.Duration, work.n)
		for i := range times {
			start := time.Now()
			if err := work.do(); err != nil {
				return err
			}
			times[i] = time.Since(start)
		}
		slices.Sort(times)
		fmt.Println(int64(times[work.n/2]), int64(times[work.n*99/100]))
	}
	return nil
}

// flooderMain does one thing again and again until it is killed, each time until it is refused.
func flooderMain() error {
	if err := raiseFileLimit(); err != nil {
		return err
	}
	kind, dir := os.Args[1], os.Args[2]
	rounds := map[string]func(string) error{
		"mkdir": floodMkdir, "setlk": floodSetlk, "opens": floodOpens, "names": floodNames, "followers": floodFollowers, "views": floodViews, "burn": burn,
	}
	fmt.Println("begun")
	for {
		if err := rounds[kind](dir); err != nil {
			return err
		}
	}
}

// burn never touches the mount. That it does nothing, again and again, is its work.
func burn(string) error { return nil }

// refusedAt demands that what ended a loop is the quota.
func refusedAt(err error) error {
	if errors.Is(err, unix.EDQUOT) {
		return nil
	}
	return fmt.Errorf("not the quota, but: %w", err)
}

func floodMkdir(dir string) error {
	for i := 0; ; i++ {
		if err := unix.Mkdir(fmt.Sprintf("%s/tlock/greedy%d", dir, i), 0o755); err != nil {
			for j := range i {
				_ = unix.Rmdir(fmt.Sprintf("%s/tlock/greedy%d", dir, j)) // it may have run out
			}
			return refusedAt(err)
		}
	}
}

func floodSetlk(dir string) error {
	fd, err := openAgain(dir+"/files/greedy", unix.O_RDWR|unix.O_CREAT)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for i := int64(0); err == nil; i++ {
		err = fcntlLock(fd, unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: 2 * i, Len: 1})
	}
	return refusedAt(err)
}

func floodOpens(dir string) error { return openUntilRefused(dir + "/view/stats") }

func openUntilRefused(path string) error {
	var fds []int
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	for {
		fd, err := openAgain(path, unix.O_RDONLY)
		if err != nil {
			return refusedAt(err)
		}
		fds = append(fds, fd)
	}
}

// floodNames has the kernel look up names that are never used.
func floodNames(dir string) error {
	for i := range 100_000 {
		var st unix.Stat_t
		if err := unix.Stat(fmt.Sprintf("%s/take/greedy%d", dir, i), &st); err != nil {
			return err
		}
	}
	return nil
}

// floodFollowers reads view/events as often as may be.
func floodFollowers(dir string) error {
	done := make(chan error)
	for n := 0; ; n++ {
		fd, err := openAgain(dir+"/view/events", unix.O_RDONLY)
		if err != nil {
			if err := refusedAt(err); err != nil {
				return err
			}
			return <-done
		}
		go func() {
			buf := make([]byte, 1<<16)
			for {
				if _, err := unix.Read(fd, buf); err != nil && !errors.Is(err, unix.EINTR) {
					done <- err
				}
			}
		}()
	}
}

// floodViews reads all that is slow to make, by several at once.
func floodViews(dir string) error {
	done := make(chan error)
	for range 50 {
		for _, view := range []string{"locks", "locks.jsonl", "graph.dot"} {
			go func() {
				for {
					if _, err := os.ReadFile(dir + "/view/" + view); err != nil {
						done <- err
					}
				}
			}()
		}
	}
	return <-done
}
