package integration

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// A perlTlock is a directory that testdata/tlock.pl, which does as Sys::Tlock does, takes its locks in.
type perlTlock struct {
	t           *testing.T
	dir, marker string
	patience    string
}

func newPerlTlock(t *testing.T, m *mount) perlTlock {
	return perlTlock{t, m.path("tlock"), "tlock", "5"}
}

// program prepares a command of the script.
func (p perlTlock) program(env string, args ...string) *program {
	p.t.Helper()
	args = append([]string{"testdata/tlock.pl", p.dir, p.marker, p.patience}, args...)
	cmd := newProgram(p.t, time.Minute, "perl", args...)
	if env != "" {
		cmd.Env = append(cmd.Env, env)
	}
	return cmd
}

// do runs a command that answers yes, and returns what it says.
func (p perlTlock) do(args ...string) string {
	p.t.Helper()
	r := p.program("", args...).run(p.t)
	require.Zero(p.t, r.code, "%v: %s", args, r.err)
	require.Empty(p.t, r.err)
	return strings.TrimSuffix(r.out, "\n")
}

// no runs a command that answers no.
func (p perlTlock) no(args ...string) {
	p.t.Helper()
	r := p.program("", args...).run(p.t)
	require.Equal(p.t, 1, r.code, "%v: %s%s", args, r.out, r.err)
	require.Empty(p.t, r.err)
}

// epoch is now in whole seconds, as Perl's time.
func epoch() int64 { return time.Now().Unix() }

// setMtime is utime(0, sec, path), as the calling process: this test's, or a Perl one's of another user.
func setMtime(path string, sec int64) string {
	return errnoName(unix.UtimesNano(path, []unix.Timespec{{}, {Sec: sec}}))
}

func setMtimeAs(t *testing.T, uid int, path string, sec int64) string {
	t.Helper()
	r := newProgram(t, time.Minute, "setpriv", "--reuid", strconv.Itoa(uid), "--regid", strconv.Itoa(uid), "--clear-groups",
		"perl", "-e", `utime(0, $ARGV[1], $ARGV[0]) ? print "ok" : print((grep { $!{$_} } keys %!)[0])`,
		path, strconv.FormatInt(sec, 10)).run(t)
	require.Zero(t, r.code, r.err)
	return r.out
}

// TestPerlTlock lives through the life of a lock of the module.
func TestPerlTlock(t *testing.T) {
	m := newMount(t)
	p := newPerlTlock(t, m)
	p.no("taken", "backup")
	p.no("expiry", "backup")
	before := epoch()
	token := p.do("take", "backup", "60")
	require.GreaterOrEqual(t, parseInt(token), before)
	require.LessOrEqual(t, parseInt(token), epoch())
	require.Equal(t, []string{"tlock.backup"}, entries(t, p.dir), "the master lock is released")

	assert.Equal(t, token, p.do("tstart", "backup"))
	assert.Equal(t, token, readValue(t, p.dir+"/tlock.backup/tstart"))
	assert.Equal(t, parseInt(token)+60, parseInt(p.do("expiry", "backup")))
	assert.Equal(t, parseInt(token)+60, readInt(t, p.dir+"/tlock.backup/expiry"), "the lock does end then")
	p.do("taken", "backup")
	p.do("alive", "backup", token)
	p.no("alive", "backup", strconv.FormatInt(parseInt(token)-1, 10))
	p.no("take", "backup", "60")

	p.do("renew", "backup", token, "600")
	assert.InDelta(t, epoch()+600, parseInt(p.do("expiry", "backup")), 5)
	assert.InDelta(t, epoch()+600, readInt(t, p.dir+"/tlock.backup/expiry"), 5)
	assert.Equal(t, token, p.do("tstart", "backup"), "renewing keeps the token")
	p.no("renew", "backup", strconv.FormatInt(parseInt(token)-1, 10), "10")

	p.no("release", "backup", strconv.FormatInt(parseInt(token)-1, 10))
	p.do("zing")
	p.do("alive", "backup", token)
	p.do("release", "backup", token)
	p.no("taken", "backup")
	p.no("release", "backup", token)
	require.Empty(t, entries(t, p.dir))

	p.do("take", "dots...and_-0", "60")
	p.do("release_careless", "dots...and_-0")
	p.no("release_careless", "dots...and_-0")
	require.Empty(t, m.locks(t))
}

// TestPerlTlockExpires by itself, and is free at once.
func TestPerlTlockExpires(t *testing.T) {
	m := newMount(t)
	p := newPerlTlock(t, m)
	token := p.do("take", "short", "2")
	end := time.Unix(parseInt(token)+2, 0)
	m.awaitFree(t, "tlock.short")
	require.False(t, time.Now().Before(end), "gone %v too early", time.Until(end))
	require.Less(t, time.Since(end), time.Second)
	p.no("alive", "short", token)
	p.no("taken", "short")
	p.no("renew", "short", token, "60")
	p.do("take", "short", "60")
}

// TestTwoMarkers side by side do not see each other.
func TestTwoMarkers(t *testing.T) {
	m := newMount(t)
	a, b := newPerlTlock(t, m), newPerlTlock(t, m)
	b.marker = "cron"
	first, second := a.do("take", "job", "60"), b.do("take", "job", "120")
	require.Equal(t, []string{"cron.job", "tlock.job"}, entries(t, a.dir))
	a.do("zing")
	b.do("release", "job", second)
	a.do("alive", "job", first)
	b.no("taken", "job")
	a.do("release", "job", first)
	require.Empty(t, m.locks(t))
}

// TestPerlTlocksContend: of 20 processes that want one lock, never two have it.
func TestPerlTlocksContend(t *testing.T) {
	m := newMount(t)
	p := newPerlTlock(t, m)
	p.patience = "60"
	alone := tempDir(t) + "/alone"
	inParallel(t, 20, func(int) *program { return p.program("", "contend", "busy", "5", alone) })
	require.Empty(t, m.locks(t))
}

// TestMkdirBetweenTestAndMkdir: the module tests, then makes. A mkdir by anybody else between the two is refused, or
// both would have the lock.
func TestMkdirBetweenTestAndMkdir(t *testing.T) {
	m := newMount(t)
	p := newPerlTlock(t, m)
	lock := m.path("tlock/tlock.x")
	perl := startScript(t, p.program("TLOCK_PAUSE=tested", "take", "x", "60"))
	require.Equal(t, "tested", perl.next("the module's test"))
	for _, path := range []string{lock, lock + "+5m"} {
		require.NotZero(t, sh(t, `mkdir "$1"`, path).code)
		require.Equal(t, "EEXIST", errnoName(unix.Mkdir(path, 0o755)))
	}
	require.NoDirExists(t, lock)
	require.Equal(t, "EAGAIN", openErrno(m.path("take/tlock.x"), unix.O_NONBLOCK))
	require.Equal(t, "EAGAIN", openErrno(m.path("hold/tlock.x,wait=0"), unix.O_NONBLOCK))
	require.Equal(t, "ok", errnoName(unix.Mkdir(m.path("tlock/tlock.y"), 0o755)), "another label is free")
	require.Equal(t, "ok", errnoName(unix.Mkdir(m.path("tlock/cron.x"), 0o755)), "so is another marker")
	perl.in.Write([]byte("\n"))
	token := perl.next("the module's token")
	p.do("alive", "x", token)
	require.Equal(t, "EEXIST", errnoName(unix.Mkdir(lock, 0o755)))
}

// TestMasterLockMakesTheLineWait: take/ and hold/ of the lock wait while its master lock is held, and no longer.
func TestMasterLockMakesTheLineWait(t *testing.T) {
	m := newMount(t)
	for _, kind := range []string{"take", "hold"} {
		for _, end := range []string{"released", "expired"} {
			t.Run(kind+"/"+end, func(t *testing.T) {
				master := m.path("tlock/tlock_.x")
				holder, waiter := newClient(t, m.dir), newClient(t, m.dir)
				timeout := map[string]string{"released": "", "expired": "+1"}[end]
				require.Equal(t, "ok", holder.do("mkdir tlock/tlock_.x%s", timeout))
				call := waiter.begin(fmt.Sprintf("open %s/tlock.x r", kind))
				eventually(t, waitLimit, "it waits", func() bool {
					return len(m.locksOn(t, "waiting", "tlock/tlock.x")) == 1
				})
				if end == "released" {
					require.Equal(t, "ok", holder.do("rmdir tlock/tlock_.x"))
				}
				require.Equal(t, "ok", await(t, "its turn", call))
				require.NoDirExists(t, master)
				require.Equal(t, kind, m.kindOf(t, "tlock.x"))
				waiter.kill()
				m.awaitFree(t, "tlock.x")
			})
		}
	}
}

// TestMasterLockWhileHeld: the master lock says nothing about a lock that is held: whoever has that keeps it.
func TestMasterLockWhileHeld(t *testing.T) {
	m := newMount(t)
	holder := newClient(t, m.dir)
	require.Equal(t, "ok", holder.do("mkdir tlock/tlock.x+5m"))
	require.NoError(t, unix.Mkdir(m.path("tlock/tlock_.x"), 0o755))
	require.Equal(t, "ok", holder.do("write tlock/tlock.x/timeout 10m"))
	require.Equal(t, "ok", holder.do("rmdir tlock/tlock.x"))
	require.Equal(t, "EEXIST", holder.do("mkdir tlock/tlock.x"), "another process holds the master lock")
	require.Equal(t, "ok", errnoName(unix.Mkdir(m.path("tlock/tlock.x"), 0o755)), "the one that holds it may")
}

// TestShellRacesTheModule, many times: never do both believe that they have it.
func TestShellRacesTheModule(t *testing.T) {
	const rounds = 60
	m := newMount(t)
	p := newPerlTlock(t, m)
	wins := map[string]int{}
	for round := range rounds {
		label := fmt.Sprint("r", round)
		perl := start(t, p.program("", "take", label, "60"))
		shell := start(t, newProgram(t, time.Minute, "sh", "-c", `
			i=0
			while [ $i -lt 200 ]; do
				mkdir "$1+1m" 2>/dev/null && { cat "$1/tstart"; exit; }
				[ -d "$1" ] && exit 1
				i=$((i+1))
			done; exit 1`, "sh", m.path("tlock/tlock."+label)))
		a, b := perl.wait(t), shell.wait(t)
		require.False(t, a.code == 0 && b.code == 0, "both have %s: Perl with %s, the shell with %s", label, a.out, b.out)
		if a.code == 0 {
			wins["perl"]++
		} else if b.code == 0 {
			wins["shell"]++
		}
	}
	t.Logf("of %d: %v", rounds, wins)
}

// TestScriptDiesWithTheMasterLock: its default timeout of 10 s lets others go on.
func TestScriptDiesWithTheMasterLock(t *testing.T) {
	m := newMount(t)
	p := newPerlTlock(t, m)
	p.patience = "30"
	dead := startScript(t, p.program("TLOCK_PAUSE=master", "take", "x", "60"))
	require.Equal(t, "master", dead.next("the master lock"))
	require.Equal(t, "10", readValue(t, m.path("tlock/tlock_.x/timeout")))
	began := time.Now()
	require.NoError(t, dead.p.Process.Kill())
	p.do("take", "x", "60")
	took := time.Since(began)
	t.Logf("the next one got on after %v", took)
	require.Less(t, took, 11*time.Second)
}

// TestTokenGoesFromShellToPerlAndBack: the integer token is the lock's tstart.
func TestTokenGoesFromShellToPerlAndBack(t *testing.T) {
	m := newMount(t)
	p := newPerlTlock(t, m)
	token := mustSh(t, `mkdir "$1/tlock.x+60" && cat "$1/tlock.x/tstart"`, p.dir)
	p.do("alive", "x", token)
	p.do("renew", "x", token, "300")
	assert.InDelta(t, 300, readInt(t, p.dir+"/tlock.x/left"), 5)
	p.do("release", "x", token)

	token = p.do("take", "y", "60")
	mustSh(t, `cd "$1" && test -d tlock.y@$2 && echo 5m > tlock.y@$2/timeout`, p.dir, token)
	assert.InDelta(t, epoch()+300, parseInt(p.do("expiry", "y")), 5)
	mustSh(t, `rmdir "$1/tlock.y@$2"`, p.dir, token)
	p.no("taken", "y")

	line := mustSh(t, `cat "$1/take/tlock.z+60"`, m.dir)
	assert.Equal(t, line, readValue(t, p.dir+"/tlock.z/token"))
	token = p.do("tstart", "z")
	p.do("release", "z", token)
	require.Empty(t, m.locks(t))
}

// TestTimesUnderTheMasterLock: what setting the mtime of a lock and of its d does.
func TestTimesUnderTheMasterLock(t *testing.T) {
	m := newMount(t, "--max-timeout", "2h")
	lock, d := m.path("tlock/tlock.x"), m.path("tlock/tlock.x/d")
	require.NoError(t, unix.Mkdir(lock+"+10m", 0o755))
	require.NoError(t, unix.Mkdir(m.path("tlock/tlock_.x+1h"), 0o755))
	token, start := readValue(t, lock+"/token"), readInt(t, lock+"/tstart")
	left := func() int64 { return readInt(t, lock+"/left") }

	require.Equal(t, "ok", setMtime(d, 1000))
	assert.EqualValues(t, 1000, statOf(t, d).Mtim.Sec)
	assert.Equal(t, start+1000, readInt(t, lock+"/expiry"))
	assert.InDelta(t, 1000, left(), 10)

	require.Equal(t, "ok", setMtime(lock, start+100))
	assert.Equal(t, start+100, statOf(t, lock).Mtim.Sec)
	assert.Equal(t, start+100, readInt(t, lock+"/tstart"))
	assert.Equal(t, start+1100, readInt(t, lock+"/expiry"), "the expiry moves with the start")
	assert.InDelta(t, 1100, left(), 10)
	assert.EqualValues(t, 1000, statOf(t, d).Mtim.Sec)
	assert.Equal(t, token, readValue(t, lock+"/token"))
	assert.DirExists(t, m.path("tlock", fmt.Sprintf("tlock.x@%d", start+100)))
	require.Equal(t, "ok", setMtime(lock, start))

	for _, seconds := range []int64{2*3600 + 60, 1 << 40, 1 << 62, -5} {
		assert.NotEqual(t, "ok", setMtime(d, seconds), "a duration of %d", seconds)
		assert.Equal(t, start+1000, readInt(t, lock+"/expiry"))
	}
	require.NoError(t, unix.Rmdir(d), "succeeds,")
	assert.EqualValues(t, 1000, statOf(t, d).Mtim.Sec, "and changes nothing")
	assert.Equal(t, start, statOf(t, lock).Mtim.Sec)
	assert.Equal(t, token, readValue(t, lock+"/token"))
	assert.Equal(t, "EEXIST", errnoName(unix.Mkdir(d, 0o755)), "d always exists")
	assert.Equal(t, "ok", setMtime(d, 900), "also after rmdir d")
	assert.EqualValues(t, 900, statOf(t, d).Mtim.Sec)
	setMtime(d, 0) // ends when it began: at once, so there may be nothing left to answer about
	assert.NoDirExists(t, lock)
}

// TestTimesThatMayNotBeSet: without the master lock, or by another user.
func TestTimesThatMayNotBeSet(t *testing.T) {
	m := newMount(t)
	lock, d, master := m.path("tlock/tlock.x"), m.path("tlock/tlock.x/d"), m.path("tlock/tlock_.x")
	user := newClient(t, m.dir, asUser(stranger))
	require.Equal(t, "ok", user.do("mkdir tlock/tlock.x+10m"))
	expiry, start := readInt(t, lock+"/expiry"), readInt(t, lock+"/tstart")
	refused := func(uid int, why string) {
		t.Helper()
		assert.Equal(t, "EPERM", setMtimeAs(t, uid, lock, start-100), why)
		assert.Equal(t, "EPERM", setMtimeAs(t, uid, d, 100), why)
		assert.Equal(t, expiry, readInt(t, lock+"/expiry"), why)
		assert.Equal(t, start, readInt(t, lock+"/tstart"), why)
	}
	refused(stranger, "no master lock")
	refused(0, "no master lock")
	require.Equal(t, "ok", user.do("mkdir tlock/tlock_.x"))
	refused(0, "the master lock is another user's")
	refused(stranger+1, "neither is this user's")
	assert.Equal(t, "ok", setMtimeAs(t, stranger, d, 700))
	require.Equal(t, "ok", user.do("rmdir tlock/tlock_.x"))
	expiry = readInt(t, lock+"/expiry")

	require.NoError(t, unix.Mkdir(m.path("tlock/cron_.x"), 0o755))
	refused(0, "the master lock of another marker")
	require.NoError(t, unix.Mkdir(m.path("tlock/tlock_.y"), 0o755))
	refused(0, "the master lock of another label")
	other := newClient(t, m.dir, asUser(stranger+1))
	require.Equal(t, "ok", other.do("mkdir tlock/tlock_.x"))
	refused(stranger+1, "the lock is another user's, if not its master lock")
	require.NoError(t, unix.Rmdir(master))
}

// TestChown: root can give a lock to somebody, and nobody else can.
func TestChown(t *testing.T) {
	m := newMount(t)
	lock := m.path("tlock/tlock.x")
	user := newClient(t, m.dir, asUser(stranger))
	require.NoError(t, unix.Mkdir(lock, 0o755))
	token := readValue(t, lock+"/token")
	for _, path := range []string{lock, lock + "/d"} {
		require.NoError(t, unix.Chown(path, -1, -1), "changes nothing")
		assert.Zero(t, statOf(t, path).Uid)
	}
	assert.Equal(t, "EPERM", user.do("rmdir tlock/tlock.x"))
	r := newProgram(t, time.Minute, "setpriv", "--reuid", "12345", "--clear-groups", "chown", "12345", lock).run(t)
	assert.NotZero(t, r.code)
	require.NoError(t, unix.Chown(lock, stranger, -1))
	assert.EqualValues(t, stranger, statOf(t, lock).Uid)
	assert.EqualValues(t, stranger, statOf(t, lock+"/d").Uid)
	assert.Equal(t, strconv.Itoa(stranger), flatKeyed(t, readFile(t, lock+"/holder"))["uid"])
	assert.Equal(t, token, readValue(t, lock+"/token"))
	r = newProgram(t, time.Minute, "setpriv", "--reuid", "12345", "--clear-groups", "chown", "12346", lock).run(t)
	assert.NotZero(t, r.code, "not even what is theirs")
	assert.Equal(t, "ok", user.do("rmdir tlock/tlock.x"))

	p := newPerlTlock(t, m)
	owned := p.program("TLOCK_OWNER=12345", "take", "y", "60")
	require.Zero(t, owned.run(t).code)
	assert.EqualValues(t, stranger, statOf(t, p.dir+"/tlock.y").Uid)
	assert.Equal(t, "ok", user.do("rmdir tlock/tlock.y"))
}

// TestModuleAsAnotherUser: nothing of this needs root.
func TestModuleAsAnotherUser(t *testing.T) {
	m := newMount(t)
	p := newPerlTlock(t, m)
	script := tempDir(t) + "/tlock.pl" // the sources may be in a directory that is root's own
	text, err := os.ReadFile("testdata/tlock.pl")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(script, text, 0o644))
	as := func(uid uint32, args ...string) result {
		cmd := newProgram(t, time.Minute, "perl", append([]string{script, p.dir, p.marker, "1"}, args...)...)
		cmd.Dir = "/"
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uid, Gid: uid}
		return cmd.run(t)
	}
	taken := as(stranger, "take", "x", "60")
	require.Zero(t, taken.code, taken.err)
	token := strings.TrimSpace(taken.out)
	assert.Equal(t, 1, as(stranger+1, "take", "x", "60").code)
	assert.Zero(t, as(stranger+1, "taken", "x").code)
	assert.Zero(t, as(stranger, "renew", "x", token, "600").code)
	assert.InDelta(t, 600, readInt(t, p.dir+"/tlock.x/left"), 5)
	assert.NotZero(t, as(stranger+1, "release", "x", token).code)
	assert.Zero(t, as(stranger, "alive", "x", token).code)
	assert.Zero(t, as(stranger, "release", "x", token).code)
	require.Empty(t, m.locks(t))
}

// TestTlockCommandAndPerl take turns on the same locks.
func TestTlockCommandAndPerl(t *testing.T) {
	m := newMount(t)
	p := newPerlTlock(t, m)
	binary, err := testedBinary()
	require.NoError(t, err)
	command := func(args ...string) result {
		cmd := newProgram(t, time.Minute, binary, append([]string{"tlock", "-d", p.dir + "/"}, args...)...)
		return cmd.run(t)
	}
	token := p.do("take", "x", "60")
	assert.Zero(t, command("alive", "x", token).code)
	assert.Zero(t, command("taken", "x").code)
	assert.Equal(t, p.do("expiry", "x")+"\n", command("expiry", "x").out)
	assert.Equal(t, 1, command("take", "x", "60").code)
	assert.Zero(t, command("renew", "x", token, "600").code)
	assert.InDelta(t, epoch()+600, parseInt(p.do("expiry", "x")), 5)
	assert.Zero(t, command("zing").code)
	assert.Zero(t, command("release", "x", token).code)
	p.no("taken", "x")

	taken := command("take", "y", "60")
	require.Zero(t, taken.code, taken.err)
	token = strings.TrimSpace(taken.out)
	p.do("alive", "y", token)
	p.do("renew", "y", token, "120")
	p.do("release", "y", token)
	require.Empty(t, m.locks(t))

	// Both kinds at once.
	alone := tempDir(t) + "/alone"
	p.patience = "60"
	contend := start(t, p.program("", "contend", "z", "20", alone))
	for !contend.ended() {
		if r := command("-p", "10", "take", "z", "60"); r.code == 0 {
			f, err := os.OpenFile(alone, os.O_CREATE|os.O_EXCL, 0o600)
			require.NoError(t, err, "not alone")
			f.Close()
			require.NoError(t, os.Remove(alone))
			require.Zero(t, command("-p", "10", "release", "z", strings.TrimSpace(r.out)).code)
		}
	}
	require.Zero(t, contend.wait(t).code, contend.p.err.String())
}

// TestTlockCommandLeavesAnothersMasterLock: its own was ended while it was at work, here on what it prints, and
// somebody else has one now.
func TestTlockCommandLeavesAnothersMasterLock(t *testing.T) {
	m := newMount(t)
	var full [2]int
	require.NoError(t, unix.Pipe2(full[:], unix.O_CLOEXEC|unix.O_NONBLOCK))
	defer unix.Close(full[0])
	printed := os.NewFile(uintptr(full[1]), "pipe")
	defer printed.Close()
	var err error
	for err == nil {
		_, err = unix.Write(full[1], make([]byte, 4096))
	}
	require.Equal(t, unix.EAGAIN, err)
	require.NoError(t, unix.SetNonblock(full[1], false)) // the program is to wait there

	p := m.newCommand(t, "tlock", "take", "x", "60")
	p.Stdout = printed
	busy := start(t, p)
	master := m.path("tlock/tlock_.x")
	eventually(t, waitLimit, "it has taken the lock", func() bool {
		d, err := os.Stat(m.path("tlock/tlock.x/d"))
		return err == nil && d.ModTime().Unix() == 60
	})
	require.NoError(t, unix.Rmdir(master))
	require.NoError(t, unix.Mkdir(master, 0o777))
	token := readFile(t, master+"/token")
	_, err = unix.Read(full[0], make([]byte, 1<<20))
	require.NoError(t, err)
	require.Zero(t, busy.wait(t).code, p.err.String())
	require.Equal(t, token, readFile(t, master+"/token"))
	require.NoError(t, unix.Rmdir(master))
}
