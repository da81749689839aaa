package integration

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

const stranger = 12345 // a user id that owns nothing

func asUser(uid uint32) func(*exec.Cmd) {
	return func(cmd *exec.Cmd) {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	}
}

// TestTakeAndRelease is what a person does, with the tools a person has.
func TestTakeAndRelease(t *testing.T) {
	m := newMount(t)
	out := mustSh(t, `cd "$1/tlock" || exit
		mkdir backup || exit
		mkdir backup 2>&1 && exit 1
		ls
		token=$(cat backup/token)
		test -d backup@$token || exit
		rmdir backup@$token || exit
		test -d backup@$token && exit 1
		rmdir backup 2>&1 && exit 1
		ls
		mkdir backup && rmdir backup`, m.dir)
	require.Equal(t, "mkdir: cannot create directory 'backup': File exists\nbackup\n"+
		"rmdir: failed to remove 'backup': No such file or directory", strings.NewReplacer("‘", "'", "’", "'").Replace(out))
}

// TestNodesOfALock reads everything that a held lock shows.
func TestNodesOfALock(t *testing.T) {
	m := newMount(t)
	holder := newClient(t, m.dir)
	before := time.Now()
	require.Equal(t, "ok", holder.do("mkdir tlock/x+5m"))
	after := time.Now()
	dir := m.path("tlock/x")

	require.Equal(t, []string{"x"}, entries(t, m.path("tlock")))
	require.Equal(t, []string{"age", "d", "expiry", "holder", "json", "left", "note", "status", "timeout", "token",
		"tstart", "waiters"}, entries(t, dir))
	require.Empty(t, entries(t, dir+"/d"))

	token, tstart := readInt(t, dir+"/token"), readInt(t, dir+"/tstart")
	assert.InDelta(t, before.UnixMicro(), token, float64(time.Minute.Microseconds()))
	assert.True(t, tstart >= before.Unix() && tstart <= after.Unix(), "tstart %d", tstart)
	expiry := readInt(t, dir+"/expiry")
	assert.True(t, expiry >= before.Unix()+300 && expiry <= after.Unix()+301, "expiry %d", expiry)
	assert.LessOrEqual(t, readInt(t, dir+"/left"), int64(300))
	assert.GreaterOrEqual(t, readInt(t, dir+"/left"), int64(290))
	assert.LessOrEqual(t, readInt(t, dir+"/age"), int64(10))
	assert.Equal(t, "300", readValue(t, dir+"/timeout"))
	assert.Empty(t, strings.TrimSpace(readFile(t, dir+"/waiters")))
	assert.Empty(t, strings.TrimSpace(readFile(t, dir+"/note")))

	status := readValue(t, dir+"/status")
	assert.Contains(t, status, "root")
	assert.Contains(t, status, strconv.Itoa(holder.pid()))

	who := flatKeyed(t, readFile(t, dir+"/holder"))
	for key, want := range map[string]string{
		"kind": "mkdir", "uid": "0", "gid": "0", "user": "root", "pid": strconv.Itoa(holder.pid()),
		"ppid": strconv.Itoa(os.Getpid()), "alive": "yes",
	} {
		assert.Equal(t, want, who[key], key)
	}
	assert.Contains(t, who, "since")
	assert.Contains(t, who["command"], "lockclient")
	hostname, _ := os.Hostname()
	assert.Equal(t, hostname, who["host"])

	var all map[string]any
	require.NoError(t, json.Unmarshal([]byte(readFile(t, dir+"/json")), &all))
	assert.EqualValues(t, token, all["token"])
	requireDirAttributes(t, m, tstart, expiry)

	holder.kill()
	assert.Equal(t, "no", flatKeyed(t, readFile(t, dir+"/holder"))["alive"])
}

func requireDirAttributes(t *testing.T, m *mount, tstart, expiry int64) {
	t.Helper()
	top := statOf(t, m.path("tlock"))
	assert.Equal(t, uint32(unix.S_IFDIR|0o1777), top.Mode, "tlock/ is for everyone, each their own")
	st := statOf(t, m.path("tlock/x"))
	assert.Equal(t, uint32(unix.S_IFDIR|0o755), st.Mode)
	assert.EqualValues(t, 0, st.Uid)
	assert.EqualValues(t, 0, st.Gid)
	assert.InDelta(t, 300, st.Size, 10, "the size is the seconds left")
	assert.Equal(t, tstart, st.Mtim.Sec, "the time is that of the taking")
	assert.NotZero(t, st.Ino&(1<<62), "synthetic node numbers have bit 62 set")
	d := statOf(t, m.path("tlock/x/d"))
	assert.Equal(t, expiry-tstart, d.Mtim.Sec, "the time of d is the timeout")
	for _, name := range []string{"token", "tstart", "expiry", "left", "age", "holder", "status", "json", "waiters"} {
		st := statOf(t, m.path("tlock/x", name))
		assert.Equal(t, uint32(unix.S_IFREG|0o444), st.Mode, name)
		assert.Zero(t, st.Size, name)
	}
	for _, name := range []string{"timeout", "note"} {
		assert.NotZero(t, statOf(t, m.path("tlock/x", name)).Mode&0o200, name)
	}
}

// TestAllowedNames takes and releases what is allowed, and checks the timeout each gets.
func TestAllowedNames(t *testing.T) {
	m := newMount(t, "--default-timeout", "30m")
	c := newClient(t, m.path("tlock"))
	for _, tc := range []struct{ make, name, timeout string }{
		{"a", "a", "1800"},
		{"A.b_c-9", "A.b_c-9", "1800"},
		{"9", "9", "1800"},
		{"...x", "", ""}, // begins with a dot
		{"a...", "a...", "1800"},
		{strings.Repeat("n", 200), strings.Repeat("n", 200), "1800"},
		{strings.Repeat("n", 200) + "+5m", strings.Repeat("n", 200), "300"},
		{"a+300", "a", "300"},
		{"a+7.5", "a", "7.5"},
		{"a+0.5", "a", "0.5"},
		{"a+90s", "a", "90"},
		{"a+5m", "a", "300"},
		{"a+1h30m", "a", "5400"},
		{"a+1d", "a", "86400"},
		{"a+8760h", "a", "31536000"},
		{"uid-" + strconv.Itoa(stranger) + ".x", "uid-" + strconv.Itoa(stranger) + ".x", "1800"},
	} {
		if tc.name == "" {
			assert.Equal(t, "EINVAL", c.do("mkdir %s", tc.make), tc.make)
			continue
		}
		assert.Equal(t, "ok", c.do("mkdir %s", tc.make), tc.make)
		assert.Equal(t, []string{tc.name}, entries(t, m.path("tlock")))
		assert.Equal(t, tc.timeout, readValue(t, m.path("tlock", tc.name, "timeout")), tc.make)
		assert.Equal(t, "EEXIST", c.do("mkdir %s", tc.make), tc.make)
		assert.Equal(t, "ok", c.do("rmdir %s", tc.name), tc.make)
		assert.Equal(t, "ENOENT", c.do("rmdir %s", tc.name), tc.make)
	}
}

// TestRefusedNames: what cannot be made, and that looking it up says only that it is not there.
func TestRefusedNames(t *testing.T) {
	m := newMount(t)
	long := func(n int) string { return strings.Repeat("n", n) }
	for _, tc := range []struct{ name, want string }{
		{".x", "EINVAL"}, {"-x", "EINVAL"}, {"..x", "EINVAL"}, {"+", "EINVAL"}, {"@", "EINVAL"}, {"+5m", "EINVAL"},
		{"a b", "EINVAL"}, {"a,b", "EINVAL"}, {"a:b", "EINVAL"}, {"a*", "EINVAL"}, {"a\nb", "EINVAL"},
		{"é", "EINVAL"}, {"a\xff", "EINVAL"}, {"a\x01", "EINVAL"},
		{"a@", "EINVAL"}, {"a@5", "EINVAL"}, {"a@x", "EINVAL"}, {"a@5+5m", "EINVAL"},
		{"a+", "EINVAL"}, {"a+0", "EINVAL"}, {"a+0s", "EINVAL"}, {"a+-1", "EINVAL"}, {"a+nan", "EINVAL"},
		{"a+inf", "EINVAL"}, {"a+1e400", "EINVAL"}, {"a+5x", "EINVAL"}, {"a+x", "EINVAL"}, {"a+5m+5m", "EINVAL"},
		{"a+5 m", "EINVAL"}, {"a+99999999999d", "EINVAL"}, {"a+8761h", "EINVAL"}, {"a+0x10", "EINVAL"},
		{"a+5m,wait=3", "EINVAL"}, {"a++5m", "EINVAL"}, {"a+" + strings.Repeat("9", 150), "EINVAL"},
		{long(201), "ENAMETOOLONG"}, {long(255), "ENAMETOOLONG"}, {long(256), "ENAMETOOLONG"},
		{long(1000), "ENAMETOOLONG"}, {long(201) + "+5m", "ENAMETOOLONG"},
	} {
		path := m.path("tlock") + "/" + tc.name
		assert.Equal(t, tc.want, errnoName(unix.Mkdir(path, 0o755)), "mkdir %q", tc.name)
		if tc.want == "EINVAL" && tc.name != "a@" {
			var st unix.Stat_t
			assert.Equal(t, "ENOENT", errnoName(unix.Lstat(path, &st)), "stat %q", tc.name)
		}
	}
	require.Empty(t, entries(t, m.path("tlock")))
	require.Empty(t, m.locks(t))
}

// TestTokenAddressesOneIncarnation: NAME@TOKEN is the lock of that token or nothing.
func TestTokenAddressesOneIncarnation(t *testing.T) {
	m := newMount(t)
	c := newClient(t, m.path("tlock"))
	require.Equal(t, "ok", c.do("mkdir x"))
	first := c.do("read x/token")
	n := parseInt(first)
	require.Equal(t, first, c.do("read x@%s/token", first))
	for _, other := range []int64{n - 1, n + 1, 0, -n, math.MaxInt64} {
		assert.Equal(t, "ENOENT", c.do("stat x@%d", other))
		assert.Equal(t, "ENOENT", c.do("rmdir x@%d", other))
		assert.Equal(t, "ENOENT", c.do("write x@%d/timeout 5", other))
	}
	for _, word := range []string{"x@x", "x@" + strings.Repeat("9", 30), "y@" + first, "x@0" + first, "x@+" + first} {
		assert.Equal(t, "ENOENT", c.do("stat %s", word))
	}
	assert.Equal(t, "EINVAL", c.do("rmdir x@"), "an empty token is a mistake, never careless")
	assert.Equal(t, "EINVAL", c.do("stat x@"))
	require.Equal(t, "ok", c.do("stat x"))

	require.Equal(t, "ok", c.do("rmdir x@%s", first))
	require.Equal(t, "ok", c.do("mkdir x"))
	second := c.do("read x/token")
	require.Greater(t, parseInt(second), n)
	assert.Equal(t, "ENOENT", c.do("stat x@%s", first))
	assert.Equal(t, "ENOENT", c.do("read x@%s/expiry", first))
	assert.Equal(t, "ENOENT", c.do("rmdir x@%s", first), "a stale holder cannot release the new one's lock")
	assert.Equal(t, "ok", c.do("stat x@%s", second))
}

// TestTstartAsToken: NAME@TSTART names a lock too, unless the incarnation before began in the same second.
func TestTstartAsToken(t *testing.T) {
	m := newMount(t)
	c := newClient(t, m.path("tlock"))
	require.Equal(t, "ok", c.do("mkdir y"))
	tstart := c.do("read y/tstart")
	assert.Equal(t, "ok", c.do("stat y@%s", tstart))
	assert.Equal(t, c.do("read y/token"), c.do("read y@%s/token", tstart))
	assert.Equal(t, "ok", c.do("rmdir y@%s", tstart))

	eventually(t, waitLimit, "a lock taken twice within a second", func() bool {
		require.Equal(t, "ok", c.do("mkdir z"))
		before := c.do("read z/tstart")
		require.Equal(t, "ok", c.do("rmdir z"))
		require.Equal(t, "ok", c.do("mkdir z"))
		if tstart = c.do("read z/tstart"); tstart == before {
			return true
		}
		require.Equal(t, "ok", c.do("rmdir z"))
		return false
	})
	assert.Equal(t, "ENOENT", c.do("stat z@%s", tstart))
	assert.Equal(t, "ENOENT", c.do("rmdir z@%s", tstart))
	assert.Equal(t, "ok", c.do("stat z"))
}

// TestNodeNumbersAreFresh: a directory node has one name in the kernel, so no two addresses may share one.
func TestNodeNumbersAreFresh(t *testing.T) {
	m := newMount(t)
	c := newClient(t, m.path("tlock"))
	seen := make(map[uint64]string)
	for range 3 {
		require.Equal(t, "ok", c.do("mkdir x"))
		token := c.do("read x/token")
		for _, name := range []string{"x", "x@" + token} {
			ino := statOf(t, m.path("tlock", name)).Ino
			require.NotContains(t, seen, ino, name)
			seen[ino] = name
		}
		require.Equal(t, "ok", c.do("rmdir x"))
	}
}

// TestWorkingDirectoryOfAReleasedLock: a process inside a lock that ended finds nothing, also once it is taken again.
func TestWorkingDirectoryOfAReleasedLock(t *testing.T) {
	m := newMount(t)
	for _, how := range []string{"released", "expired"} {
		t.Run(how, func(t *testing.T) {
			c, inside := newClient(t, m.path("tlock")), newClient(t, m.path("tlock"))
			require.Equal(t, "ok", c.do("mkdir x+1"))
			require.Equal(t, "ok", inside.do("chdir x"))
			if how == "released" {
				require.Equal(t, "ok", c.do("rmdir x"))
			} else {
				eventually(t, waitLimit, "the lock expires", func() bool { return c.do("stat x") == "ENOENT" })
			}
			assert.Equal(t, "ENOENT", inside.do("read token"))
			require.Equal(t, "ok", c.do("mkdir x"))
			assert.Equal(t, "ENOENT", inside.do("read token"))
			assert.Equal(t, "ENOENT", inside.do("write timeout 1d"))
			require.Equal(t, "ok", c.do("rmdir x"))
		})
	}
}

// TestNameWithTimeoutIsItsMakersOnly: NAME+DURATION is an address for the process that took the lock with it.
func TestNameWithTimeoutIsItsMakersOnly(t *testing.T) {
	m := newMount(t)
	maker, other := newClient(t, m.path("tlock")), newClient(t, m.path("tlock"))
	require.Equal(t, "ok", maker.do("mkdir x+5m"))
	assert.Equal(t, "ok", maker.do("stat x+5m"))
	assert.Equal(t, "ENOENT", maker.do("stat x+6m"))
	assert.Equal(t, "ENOENT", other.do("stat x+5m"))
	assert.Equal(t, "EEXIST", other.do("mkdir x+5m"))
	assert.Equal(t, "EEXIST", maker.do("mkdir x"))
	assert.Equal(t, []string{"x"}, entries(t, m.path("tlock")))
	r := sh(t, `mkdir -p "$1"`, m.path("tlock/x+5m"))
	assert.NotZero(t, r.code, "mkdir -p NAME+DURATION fails when the lock is held: %s", r.err)
	mustSh(t, `mkdir -m 700 "$1" && mkdir -p "$2"`, m.path("tlock/y+5m"), m.path("tlock/z+5m"))
	assert.Equal(t, []string{"x", "y", "z"}, entries(t, m.path("tlock")))
}

// TestRenew writes timeouts that are allowed.
func TestRenew(t *testing.T) {
	m := newMount(t)
	c := newClient(t, m.path("tlock"))
	require.Equal(t, "ok", c.do("mkdir x+100"))
	token := c.do("read x/token")
	left := func() int64 { return parseInt(c.do("read x/left")) }

	mustSh(t, `echo 10m > "$1/x/timeout"`, m.path("tlock"))
	assert.InDelta(t, 600, left(), 5)
	assert.Equal(t, "600", c.do("read x/timeout"))
	mustSh(t, `echo +5m > "$1/x/timeout"`, m.path("tlock"))
	assert.InDelta(t, 900, left(), 5, "five minutes more than there were")
	mustSh(t, `printf %s 7.5 > "$1/x@$2/timeout"`, m.path("tlock"), token)
	assert.LessOrEqual(t, left(), int64(8), "shorter is a renewal too")
	mustSh(t, `echo 1d | tee "$1/x/timeout"`, m.path("tlock"))
	assert.InDelta(t, 86400, left(), 5)
	assert.Equal(t, token, c.do("read x/token"), "renewing keeps the token")

	mustSh(t, `echo "nightly backup, see wiki" > "$1/x/note"`, m.path("tlock"))
	assert.Equal(t, "nightly backup, see wiki", c.do("read x/note"))
}

// TestRubbishInTimeout leaves the lease as it was.
func TestRubbishInTimeout(t *testing.T) {
	m := newMount(t)
	c := newClient(t, m.path("tlock"))
	require.Equal(t, "ok", c.do("mkdir x+5m"))
	expiry := c.do("read x/expiry")
	for _, text := range []string{
		"", " ", "\n", "abc", "0", "-5", "+", "+0", "+-5", "nan", "inf", "1e400", "5x", "5m 6m", "99999999999d", "8761h",
		"+8760h", "\x00", "é", strings.Repeat("9", 4096),
	} {
		path := m.path("tlock/x/timeout")
		fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		require.NoError(t, err)
		if _, err = unix.Write(fd, []byte(text)); text != "" {
			assert.Equal(t, "EINVAL", errnoName(err), "%.20q", text)
		}
		unix.Close(fd)
	}
	mustSh(t, `: > "$1"`, m.path("tlock/x/timeout")) // only truncates
	assert.Equal(t, expiry, c.do("read x/expiry"))
	assert.Equal(t, "300", c.do("read x/timeout"))
	assert.Equal(t, "ok", c.do("stat x"))
}

// TestOtherUsers: a lock is its holder's and root's.
func TestOtherUsers(t *testing.T) {
	m := newMount(t)
	root := newClient(t, m.path("tlock"))
	user := newClient(t, m.path("tlock"), asUser(stranger))
	other := newClient(t, m.path("tlock"), asUser(stranger+1))
	require.Equal(t, "ok", root.do("mkdir roots+5m"))
	require.Equal(t, "ok", user.do("mkdir users+5m"))

	for _, c := range []*client{other, user} {
		assert.Equal(t, "EPERM", c.do("rmdir roots"))
		assert.Equal(t, "EPERM", c.do("write roots/timeout 1"))
		assert.Equal(t, "EPERM", c.do("write roots/note mine"))
		assert.Equal(t, "EEXIST", c.do("mkdir roots"))
		assert.NotEmpty(t, c.do("read roots/token"), "everyone may look")
	}
	assert.Equal(t, "EPERM", other.do("rmdir users"))
	assert.Equal(t, "EPERM", other.do("write users/timeout 1"))
	assert.Equal(t, "300", root.do("read roots/timeout"))

	st := statOf(t, m.path("tlock/users"))
	assert.EqualValues(t, stranger, st.Uid)
	assert.EqualValues(t, stranger, st.Gid)
	assert.Equal(t, "ok", user.do("write users/timeout 10m"))
	assert.Equal(t, "600", root.do("read users/timeout"))
	assert.Equal(t, "ok", root.do("write users/timeout 20m"))
	assert.Equal(t, "ok", root.do("rmdir users"))

	mine := fmt.Sprintf("uid-%d.job", stranger)
	assert.Equal(t, "EPERM", other.do("mkdir %s", mine), "a name of another user's")
	assert.Equal(t, "ok", user.do("mkdir %s", mine))
	assert.Equal(t, "ok", user.do("rmdir %s", mine))
	assert.Equal(t, "ok", root.do("mkdir %s", mine))
}

// TestAccidents: nothing but rmdir releases a lock, and nothing but a write to timeout renews it.
func TestAccidents(t *testing.T) {
	m := newMount(t)
	c := newClient(t, m.path("tlock"))
	require.Equal(t, "ok", c.do("mkdir x+1h"))
	before := []string{c.do("read x/token"), c.do("read x/tstart"), c.do("read x/expiry"), c.do("read x/timeout")}
	for _, accident := range []string{
		"mv x y", "mv x ../files/", "mv -T x x2", "touch x", "touch -d 2001-01-01 x", "touch x/d", "touch x/token",
		"touch new", "rm x", "rm -r x", "rm x/token", "mkdir x/sub", "mkdir x/d/sub", "touch x/new", "ln x/token t",
		"ln -s x y", "mknod p p", "chmod 700 x/token", "chown 5 x/token", "mv x/token x/t", "truncate -s 5 x/token",
		"echo 5 > x/token", "echo 5 > x/left", "echo 5 > x",
	} {
		r := sh(t, `cd "$1" && `+accident, m.path("tlock"))
		assert.NotZero(t, r.code, accident)
		assert.Regexp(t, "Operation not permitted|Permission denied|Is a directory|Read-only|cross-device", r.err, accident)
	}
	require.Equal(t, "EPERM", c.do("rename x y"))
	require.Equal(t, "EPERM", errnoName(unix.UtimesNano(m.path("tlock/x"), make([]unix.Timespec, 2))))
	require.Equal(t, []string{"x"}, entries(t, m.path("tlock")))
	after := []string{c.do("read x/token"), c.do("read x/tstart"), c.do("read x/expiry"), c.do("read x/timeout")}
	require.Equal(t, before, after)
	require.Empty(t, entries(t, m.path("files")))
}

// TestExpiry takes locks of one second and looks for them only when their time has come.
func TestExpiry(t *testing.T) {
	const grace = 500 * time.Millisecond
	m := newMount(t)
	tlock := m.path("tlock")
	worst := time.Duration(0)
	for i := range 5 {
		path := filepath.Join(tlock, fmt.Sprintf("x%d", i))
		earliest := time.Now().Add(time.Second)
		require.NoError(t, unix.Mkdir(path+"+1", 0o755))
		latest := time.Now().Add(time.Second)
		time.Sleep(time.Until(earliest) - 5*time.Millisecond) // nobody looks until the time to be measured
		for len(entries(t, tlock)) > 0 {
			require.Less(t, time.Since(latest), time.Minute, "an expired lock is still listed")
		}
		gone := time.Now()
		require.False(t, gone.Before(earliest), "gone %v too early", earliest.Sub(gone))
		worst = max(worst, gone.Sub(latest))
	}
	t.Logf("gone at most %v after its time", worst)
	require.Less(t, worst, grace)
}

// TestExpiryWithoutLookers learns of it only from the stream of events, which was opened before.
func TestExpiryWithoutLookers(t *testing.T) {
	m := newMount(t)
	events := m.events(t)
	before := float64(time.Now().UnixMicro()) / 1e6
	for i := range 20 {
		require.NoError(t, unix.Mkdir(m.path(fmt.Sprintf("tlock/x%d+1", i)), 0o755))
	}
	after := float64(time.Now().UnixMicro()) / 1e6
	for i := range 20 {
		e := events.find(t, "expired", func(e event) bool {
			return e.Event == "expired" && e.Path == fmt.Sprintf("tlock/x%d", i)
		})
		require.GreaterOrEqual(t, e.At, before+0.999)
		require.LessOrEqual(t, e.At, after+1.05)
	}
	require.Empty(t, entries(t, m.path("tlock")))
}

// TestRenewedLockLives past its first expiry, and ends at its second.
func TestRenewedLockLives(t *testing.T) {
	m := newMount(t)
	c := newClient(t, m.path("tlock"))
	start := time.Now()
	require.Equal(t, "ok", c.do("mkdir x+1"))
	require.Equal(t, "ok", c.do("write x/timeout 2"))
	renewed := time.Now()
	eventually(t, waitLimit, "the lock ends", func() bool { return c.do("stat x") == "ENOENT" })
	require.Greater(t, time.Since(start), 2*time.Second)
	require.Less(t, time.Since(renewed), 2*time.Second+500*time.Millisecond)
}

// TestLeaseOutlivesItsTaker: a timed lock is held by its time, not by a process.
func TestLeaseOutlivesItsTaker(t *testing.T) {
	m := newMount(t)
	mustSh(t, `mkdir "$1"`, m.path("tlock/x+1h"))
	who := flatKeyed(t, readFile(t, m.path("tlock/x/holder")))
	require.Contains(t, who["command"], "mkdir")
	require.Equal(t, "no", who["alive"])
	require.Contains(t, who["pcommand"], "sh")
	require.Equal(t, "EEXIST", errnoName(unix.Mkdir(m.path("tlock/x"), 0o755)))
}

// TestRace lets 200 processes race for one name, 100 times: exactly one wins each time.
func TestRace(t *testing.T) {
	const racers, rounds = 200, 100
	m := newMount(t)
	r := startRacers(t, racers, m.path("tlock/x"))
	for round := range rounds {
		result := r.race(t, round)
		require.Equal(t, 1, strings.Count(result, "w"), "round %d: winners among %s", round, result)
		require.Equal(t, racers-1, strings.Count(result, "h"), "round %d: refused with EEXIST among %s", round, result)
		require.NoError(t, unix.Rmdir(m.path("tlock/x")))
	}
	require.Empty(t, entries(t, m.path("tlock")))
}

// racers are processes at a common start: a round begins when the pipe of its parity gets a byte for each of them.
type racers struct {
	n      int
	starts [2]*os.File
	result *os.File
}

func startRacers(t *testing.T, n int, path string) *racers {
	t.Helper()
	r := &racers{n: n}
	pipe := func() (*os.File, *os.File) {
		in, out, err := os.Pipe()
		require.NoError(t, err)
		t.Cleanup(func() { in.Close(); out.Close() })
		return in, out
	}
	even, startEven := pipe()
	odd, startOdd := pipe()
	result, toResult := pipe()
	r.starts, r.result = [2]*os.File{startEven, startOdd}, result
	for range n {
		cmd := role("racer", path)
		cmd.Stdout = toResult
		cmd.ExtraFiles = []*os.File{even, odd}
		require.NoError(t, cmd.Start())
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	}
	return r
}

// race runs a round and returns a letter for each racer: w(on), h(eld by another), e(rror).
func (r *racers) race(t *testing.T, round int) string {
	t.Helper()
	_, err := r.starts[round%2].Write(make([]byte, r.n))
	require.NoError(t, err)
	require.NoError(t, r.result.SetReadDeadline(time.Now().Add(time.Minute)))
	results := make([]byte, 0, r.n)
	for len(results) < r.n {
		buf := make([]byte, r.n-len(results))
		n, err := r.result.Read(buf)
		require.NoError(t, err, "%s", results)
		results = append(results, buf[:n]...)
	}
	return string(results)
}

func racerMain() error {
	path := os.Args[1]
	start := make([]byte, 1)
	for round := 0; ; round++ {
		if n, err := unix.Read(3+round%2, start); n != 1 {
			return err
		}
		letter := "e"
		switch unix.Mkdir(path, 0o755) {
		case nil:
			letter = "w"
		case unix.EEXIST:
			letter = "h"
		}
		if _, err := unix.Write(1, []byte(letter)); err != nil {
			return err
		}
	}
}
