package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// performChange does to a path what the tests of rights ask of a client.
func performChange(op string, args []string) error {
	path := args[0]
	switch op {
	case "chmod":
		return unix.Chmod(path, uint32(parseOctal(args[1])))
	case "chown":
		return unix.Chown(path, int(parseInt(args[1])), int(parseInt(args[2])))
	case "utime":
		return unix.UtimesNano(path, []unix.Timespec{{Sec: 1}, {Sec: 1}})
	case "touch":
		return unix.UtimesNano(path, []unix.Timespec{{Nsec: unix.UTIME_NOW}, {Nsec: unix.UTIME_NOW}})
	case "truncpath":
		return unix.Truncate(path, parseInt(args[1]))
	case "setxattr":
		return unix.Setxattr(path, args[1], []byte("v"), 0)
	case "creat":
		return closed(unix.Open(path, unix.O_WRONLY|unix.O_CREAT, 0o644))
	case "try":
		return closed(openAgain(path, unix.O_RDONLY|unix.O_NONBLOCK))
	case "list":
		_, err := os.ReadDir(path)
		return err
	}
	return fmt.Errorf("no operation %q", op)
}

func closed(fd int, err error) error {
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// lockRights say who may do what to a lock x that is the holder's: ok or the errno for the holder, another user and root.
var lockRights = []struct {
	act                 string
	holder, other, root string
}{
	{"rmdir tlock/x", "ok", "EPERM", "ok"},
	{"rmdir tlock/x@TOKEN", "ok", "EPERM", "ok"},
	{"rmdir tlock/x@1", "ENOENT", "ENOENT", "ENOENT"},
	{"mkdir tlock/x", "EEXIST", "EEXIST", "EEXIST"},
	{"try take/x", "EAGAIN", "EAGAIN", "EAGAIN"},
	{"try hold/x", "EAGAIN", "EAGAIN", "EAGAIN"},
	{"try tlock/x/wait", "ok", "ok", "ok"},
	{"write tlock/x/timeout 10m", "ok", "EPERM", "ok"},
	{"write tlock/x@TOKEN/timeout 10m", "ok", "EPERM", "ok"},
	{"write tlock/x/note text", "ok", "EPERM", "ok"},
	{"truncpath tlock/x/note 0", "ok", "EPERM", "ok"},
	{"truncpath tlock/x/note 5", "ok", "EPERM", "ok"},
	{"truncpath tlock/x/timeout 0", "ok", "EPERM", "ok"},
	{"truncpath tlock/x/token 0", "EACCES", "EACCES", "EPERM"},
	{"write tlock/x/token 5", "EACCES", "EACCES", "EPERM"},
	{"chmod tlock/x 700", "ok", "EPERM", "ok"}, // as mkdir -m does, and without effect
	{"chmod tlock/x/note 600", "EPERM", "EPERM", "EPERM"},
	{"chown tlock/x OTHER -1", "EPERM", "EPERM", "ok"},
	{"chown tlock/x -1 OTHER", "EPERM", "EPERM", "ok"},
	{"chown tlock/x/note OTHER -1", "EPERM", "EPERM", "EPERM"},
	{"utime tlock/x", "EPERM", "EPERM", "EPERM"},
	{"touch tlock/x", "EPERM", "EACCES", "EPERM"},
	{"utime tlock/x/d", "EPERM", "EPERM", "EPERM"},
	{"rename tlock/x tlock/y", "EPERM", "EPERM", "EPERM"},
	{"rename tlock/x/note tlock/x/n", "EPERM", "EACCES", "EPERM"},
	{"rename tlock/x files/x", "EXDEV|EPERM", "EXDEV|EPERM", "EXDEV|EPERM"},
	{"unlink tlock/x", "EISDIR", "EPERM|EISDIR", "EISDIR"},
	{"unlink tlock/x/token", "EPERM", "EACCES", "EPERM"},
	{"rmdir tlock/x/d", "ok", "EACCES", "ok"},
	{"mkdir tlock/x/sub", "EPERM", "EACCES", "EPERM"},
	{"creat tlock/x/new", "EPERM", "EACCES", "EPERM"},
	{"creat tlock/new", "EPERM", "EPERM", "EPERM"},
	{"setxattr tlock/x user.a", "ENOTSUP", "EACCES", "ENOTSUP"},
	{"setxattr tlock/x trusted.a", "EPERM", "EPERM", "ENOTSUP"},
	{"setxattr tlock/x security.a", "EPERM|ENOTSUP", "EPERM|ENOTSUP", "ENOTSUP"},
	{"read tlock/x/token", "TOKEN", "TOKEN", "TOKEN"},
	{"list tlock/x", "ok", "ok", "ok"},
	{"rmdir tlock", "EACCES", "EACCES", "EPERM"},
	{"chmod tlock 777", "EPERM", "EPERM", "EPERM"},
	{"write view/locks x", "EACCES", "EACCES", "EROFS"},
	{"creat view/x", "EACCES", "EACCES", "EROFS"},
}

// TestWhoMayDoWhatToALock tries each act as each of three users.
func TestWhoMayDoWhatToALock(t *testing.T) {
	m := newMount(t)
	holder, other := newClient(t, m.dir, asUser(stranger)), newClient(t, m.dir, asUser(stranger+1))
	root := newClient(t, m.dir)
	require.Equal(t, uint32(unix.S_IFDIR|0o1777), statOf(t, m.path("tlock")).Mode)
	for _, r := range lockRights {
		for i, want := range []string{r.holder, r.other, r.root} {
			who := []*client{holder, other, root}[i]
			require.Equal(t, "ok", holder.do("mkdir tlock/x+5m"))
			token := root.do("read tlock/x/token")
			told := strings.NewReplacer("TOKEN", token, "OTHER", strconv.Itoa(stranger+1))
			got := who.do("%s", told.Replace(r.act))
			assert.Contains(t, strings.Split(told.Replace(want), "|"), got, "%s, as %s", r.act, [...]string{"holder", "other", "root"}[i])
			m.requireSameLock(t, root, token, got == "ok", r.act)
		}
	}
}

// requireSameLock checks that a lock is what it was, unless an act that succeeded was to change that, and releases it.
func (m *mount) requireSameLock(t *testing.T, root *client, token string, changed bool, act string) {
	t.Helper()
	if released := strings.HasPrefix(act, "rmdir tlock/x") && !strings.HasSuffix(act, "/d"); changed && released {
		require.Equal(t, "ENOENT", root.do("stat tlock/x"), act)
		return
	}
	require.Equal(t, token, root.do("read tlock/x/token"), act)
	if renews := strings.HasSuffix(act, "10m"); !changed || !renews {
		require.Equal(t, "300", root.do("read tlock/x/timeout"), act)
	}
	st := statOf(t, m.path("tlock/x"))
	require.Equal(t, uint32(unix.S_IFDIR|0o755), st.Mode, act)
	if !changed || !strings.HasPrefix(act, "chown") {
		require.EqualValues(t, stranger, st.Uid, act)
		require.EqualValues(t, stranger, st.Gid, act)
	}
	require.Equal(t, "ok", root.do("rmdir tlock/x@%s", token), act)
}

// TestRmTakesNoLockAway: rm -r, as each user.
func TestRmTakesNoLockAway(t *testing.T) {
	m := newMount(t)
	holder := newClient(t, m.dir, asUser(stranger))
	require.Equal(t, "ok", holder.do("mkdir tlock/x+5m"))
	for _, uid := range []uint32{stranger, stranger + 1, 0} {
		p := newProgram(t, time.Minute, "rm", "-rf", m.path("tlock/x"), m.path("view"), m.path("take"))
		p.SysProcAttr.Credential = &syscall.Credential{Uid: uid, Gid: uid}
		require.NotZero(t, p.run(t).code, "uid %d", uid)
		require.Equal(t, "300", holder.do("read tlock/x/timeout"), "uid %d", uid)
	}
}

// TestReservedNames: a name uid-N.… is that user's, however it is taken, and so is its master lock.
func TestReservedNames(t *testing.T) {
	m := newMount(t)
	user, other := newClient(t, m.dir, asUser(stranger)), newClient(t, m.dir, asUser(stranger+1))
	for _, c := range []struct{ name, other string }{
		{fmt.Sprintf("uid-%d.job", stranger), "EPERM"}, {fmt.Sprintf("uid-%d_.job", stranger), "EPERM"},
		{fmt.Sprintf("uid-0%d.job", stranger), "EPERM"}, {"uid-0.job", "EPERM"},
		{fmt.Sprintf("uid-%d", stranger), "ok"}, {"uid-x.job", "ok"}, {"uid-.job", "ok"},
	} {
		for _, how := range []string{"mkdir tlock/%s+1m", "try take/%s+1m", "try hold/%s"} {
			act := fmt.Sprintf(how, c.name)
			assert.Equal(t, c.other, other.do("%s", act), act)
			if strings.HasPrefix(act, "mkdir") && c.other == "ok" {
				require.Equal(t, "ok", other.do("rmdir tlock/%s", c.name))
			}
			if !strings.HasPrefix(c.name, "uid-0.") {
				assert.Equal(t, "ok", user.do("%s", act), act)
			}
			eventually(t, waitLimit, "it is free again", func() bool { // a hold ends with its close, a take unread too
				return user.do("rmdir tlock/%s", c.name) != "EBUSY" && user.do("stat tlock/%s", c.name) == "ENOENT"
			})
		}
	}
}

// TestViewForRootOnly: with --view-mode 0500 nobody else sees what is below view/.
func TestViewForRootOnly(t *testing.T) {
	m := newMount(t, "--view-mode", "0500")
	user, root := newClient(t, m.dir, asUser(stranger)), newClient(t, m.dir)
	require.Equal(t, "ok", user.do("mkdir tlock/x"))
	for _, act := range []string{"list view", "read view/locks", "read view/locks.jsonl", "read view/graph.dot", "try view/events",
		"list view/files", "list view/pid", "read view/stats", fmt.Sprintf("read view/pid/%d", user.pid())} {
		assert.Equal(t, "EACCES", user.do("%s", act), act)
		assert.NotContains(t, root.do("%s", act), "EACCES", act)
	}
	assert.Contains(t, user.do("read tlock/x/holder"), "kind mkdir", "its own business")
}

// TestMountOfOneUser: without --allow-other the kernel lets nobody else in, to anything.
func TestMountOfOneUser(t *testing.T) {
	m := newMount(t, "--allow-other=false")
	user := newClient(t, filepath.Dir(m.dir), asUser(stranger))
	for _, act := range []string{"stat mnt", "list mnt", "read mnt/README", "mkdir mnt/tlock/x", "read mnt/view/locks", "try mnt/take/x"} {
		assert.Equal(t, "EACCES", user.do("%s", act), act)
	}
	assert.Empty(t, entries(t, m.path("tlock")))
}

// TestStateIsPrivate: the journal and the default backing directory are not to be reached but through the mount.
func TestStateIsPrivate(t *testing.T) {
	m := newMount(t)
	require.NoError(t, os.WriteFile(m.path("files/f"), nil, 0o666))
	user := newClient(t, filepath.Dir(m.state), asUser(stranger))
	for _, path := range []string{"state/files", "state/files/f", "state/journal"} {
		assert.Equal(t, "EACCES", user.do("stat %s", path), path)
	}
	assert.Equal(t, "EACCES", user.do("list state"))
}

// TestNothingOfPrivilege: setuid programs, devices, and programs of a backing that has none to execute.
func TestNothingOfPrivilege(t *testing.T) {
	backing := tempDir(t)
	require.NoError(t, unix.Mount("tmpfs", backing, "tmpfs", unix.MS_NOEXEC, "mode=1777"))
	t.Cleanup(func() { unix.Unmount(backing, unix.MNT_DETACH) })
	for _, c := range []struct {
		what  string
		flags []string
		want  string
	}{
		{"setuid", nil, strconv.Itoa(stranger)},
		{"backing noexec", []string{"--files", backing}, "EACCES"},
		{"backing noexec, but exec", []string{"--files", backing, "-o", "exec"}, strconv.Itoa(stranger)},
	} {
		t.Run(c.what, func(t *testing.T) {
			m := newMount(t, c.flags...)
			mustSh(t, `cp /usr/bin/id "$1/id" && chmod 4755 "$1/id"`, m.path("files"))
			p := exec.Command(m.path("files/id"), "-u")
			p.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: stranger, Gid: stranger}}
			out, err := p.Output()
			if err != nil {
				out = []byte(errnoName(err))
			}
			require.Equal(t, c.want, strings.TrimSpace(string(out)))

			device := m.path("files/null" + strconv.Itoa(len(c.flags)))
			require.NoError(t, unix.Mknod(device, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
			require.NoError(t, unix.Chmod(device, 0o666))
			require.Equal(t, "EACCES", errnoName(closed(unix.Open(device, unix.O_RDWR, 0))), "root's own")
		})
	}
}

// TestPidUsedAgain: another process with the holder's number is not taken for the holder.
func TestPidUsedAgain(t *testing.T) {
	m := newMount(t)
	holder := newClient(t, m.dir)
	require.Equal(t, "ok", holder.do("mkdir tlock/x"))
	require.Equal(t, "ok", holder.do("open files/f"))
	before := flatKeyed(t, readFile(t, m.path("tlock/x/holder")))
	require.Equal(t, "yes", before["alive"])
	stat := strings.Fields(readFile(t, fmt.Sprintf("/proc/%d/stat", holder.pid())))
	require.Equal(t, stat[21], before["pstart"])
	eventually(t, waitLimit, "the clock tick in which the holder started is over", func() bool {
		return strconv.FormatInt(bootTicks(t), 10) != stat[21]
	})
	holder.kill()
	startAs(t, holder.pid())
	after := flatKeyed(t, readFile(t, m.path("tlock/x/holder")))
	require.Equal(t, "no", after["alive"])
	before["alive"] = "no"
	require.Equal(t, before, after, "as of the taking")
	var detail struct{ Alive bool }
	require.NoError(t, json.Unmarshal([]byte(readFile(t, m.path("tlock/x/json"))), &detail))
	require.False(t, detail.Alive)
}

// startAs starts a process with this number, by asking the kernel to go on counting from there.
func startAs(t *testing.T, pid int) {
	t.Helper()
	const tries = 500 // others start processes too
	for range tries {
		require.NoError(t, os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(pid-1)), 0))
		p := exec.Command("sleep", "60")
		require.NoError(t, p.Start())
		end := func() {
			p.Process.Kill()
			p.Wait()
		}
		if p.Process.Pid == pid {
			t.Cleanup(end)
			return
		}
		end()
	}
	t.Fatalf("no process got the number %d", pid)
}

// bootTicks is the time as /proc counts the starts of processes.
func bootTicks(t *testing.T) int64 {
	t.Helper()
	var now unix.Timespec
	require.NoError(t, unix.ClockGettime(unix.CLOCK_BOOTTIME, &now))
	return now.Nano() / int64(10*time.Millisecond)
}

// evil is what somebody calls himself who wants to drive a terminal, or to be taken for root.
const evil = "e\nuid 0\r\t\x1b[2J\xc2\x9b2J\xff\xe2\x80\xae\\"

// TestNoTextDrivesATerminal reads every text of the tree while names, arguments, commands and notes are evil.
func TestNoTextDrivesATerminal(t *testing.T) {
	m := newMount(t)
	program := filepath.Join(tempDir(t), strings.ReplaceAll(evil, "/", ""))
	copyFile(t, selfBinary, program)
	user := newClient(t, m.dir, asUser(stranger), func(cmd *exec.Cmd) {
		cmd.Path = program
		cmd.Args = []string{evil + strings.Repeat("long", 75), evil}
	})
	waiter := newClient(t, m.dir, func(cmd *exec.Cmd) { cmd.Path = program })
	events := m.events(t)
	require.NoError(t, os.WriteFile(m.path("files", evil), nil, 0o666))
	require.NoError(t, os.Chmod(m.path("files", evil), 0o666))
	require.NoError(t, os.Symlink(evil, m.path("files/link")))
	require.Equal(t, "ok", user.do("mkdir tlock/x+5m"))
	require.Equal(t, "ok", user.do("write tlock/x/note %s", strings.ReplaceAll(strings.ReplaceAll(evil, "\n", ""), "\r", "")))
	require.Equal(t, "ok", user.do("open files/link"))
	require.Equal(t, "ok", user.do("flock files/link ex"))
	waiter.begin("open hold/x r")
	require.Equal(t, "ok", waiter.do("open files/link"))
	waiter.begin("flock files/link ex")
	eventually(t, waitLimit, "both wait", func() bool {
		s := m.stats(t)
		return s["waiting_named"] == "1" && s["waiting_flock"] == "1"
	})

	for name, lines := range map[string]int{
		"tlock/x/status": 1, "tlock/x/json": 1, "tlock/x/waiters": 1, "tlock/x/note": 1, "tlock/x/holder": 0,
		"view/locks": 5, "view/locks.jsonl": 4, "view/graph.dot": 0, "view/stats": 0,
		fmt.Sprintf("view/pid/%d", user.pid()): 2, fmt.Sprintf("view/pid/%d", waiter.pid()): 2,
	} {
		text := strings.ReplaceAll(readFile(t, m.path(name)), "\n\t", "\n") // graph.dot is indented
		requireHarmless(t, name, text, lines)
	}
	holder := flatKeyed(t, readFile(t, m.path("tlock/x/holder")))
	require.Equal(t, strconv.Itoa(stranger), holder["uid"])
	require.True(t, strings.HasPrefix(holder["command"], `e\x0auid 0\x0d\x09\x1b[2J\u009b2J\xff\u202e\\long`), holder["command"])
	require.True(t, strings.HasSuffix(holder["command"], "..."), holder["command"])
	require.Less(t, len(holder["command"]), 256)
	var detail struct{ Note string }
	require.NoError(t, json.Unmarshal([]byte(readFile(t, m.path("tlock/x/json"))), &detail))
	require.Contains(t, detail.Note, "\x1b[2J\u009b2J", "json has the note as it was written")
	seen := events.find(t, "waiting for the file", func(e event) bool { return e.Class == "flock" && e.Event == "waiting" })
	requireHarmless(t, "view/events", seen.raw+"\n", 1)
	requireHarmless(t, "lockfs ls", m.command(t, "ls").out, 5)
	requireHarmless(t, "lockfs holder", m.command(t, "holder", "x").out, 0)
}

// requireHarmless: only printable characters, in so many lines, if that is not 0.
func requireHarmless(t *testing.T, what, text string, lines int) {
	t.Helper()
	require.NotEmpty(t, text, what)
	require.True(t, utf8.ValidString(text), "%s: %q", what, text)
	for _, r := range text {
		require.True(t, r == '\n' || unicode.IsPrint(r), "%s: %q in %q", what, r, text)
	}
	if lines != 0 {
		require.Equal(t, lines, strings.Count(text, "\n"), "%s:\n%s", what, text)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	require.NoError(t, err)
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	require.NoError(t, err)
	_, err = io.Copy(out, in)
	require.NoError(t, err)
	require.NoError(t, out.Close())
}

// TestLogHasALineForEachTrouble, and none for locks that come and go.
func TestLogHasALineForEachTrouble(t *testing.T) {
	m := newMount(t)
	a, b, user := newClient(t, m.dir), newClient(t, m.dir), newClient(t, m.dir, asUser(stranger))
	logged := func(what string) int { return strings.Count(m.stderr.String(), what) }
	require.Equal(t, "ok", a.do("open files/f"))
	require.Equal(t, "ok", b.do("open files/f"))
	for range 50 {
		require.Equal(t, "ok", a.do("setlk files/f w 0 1"))
		require.Equal(t, "ok", a.do("setlk files/f u 0 1"))
		require.Equal(t, "ok", a.do("mkdir tlock/quiet"))
		require.Equal(t, "ok", a.do("rmdir tlock/quiet"))
	}
	require.Zero(t, logged("level="), "%s", m.stderr)

	require.Equal(t, "ok", user.do("mkdir tlock/short+0.1"))
	eventually(t, waitLimit, "an expiry is told", func() bool { return logged(`msg="lock expired" name=short`) == 1 })
	require.Equal(t, "ok", user.do("mkdir tlock/forced"))
	require.Equal(t, "ok", a.do("rmdir tlock/forced"))

	require.Equal(t, "ok", a.do("setlk files/f w 0 1"))
	require.Equal(t, "ok", b.do("setlk files/f w 1 1"))
	blocked := a.begin("setlkw files/f w 1 1")
	eventually(t, waitLimit, "a waits", func() bool { return m.stats(t)["waiting_record"] == "1" })
	require.Equal(t, "EDEADLK", b.do("setlkw files/f w 0 1"))
	require.Equal(t, "ok", b.do("setlk files/f u 1 1"))
	require.Equal(t, "ok", await(t, "a's lock", blocked))

	require.Equal(t, "ok", a.do("open hold/p r"))
	require.Equal(t, "ok", b.do("open hold/q r"))
	a.begin("open hold/q,wait=60 r")
	eventually(t, waitLimit, "a waits", func() bool { return m.stats(t)["waiting_named"] == "1" })
	b.begin("open hold/p,wait=60 r")
	eventually(t, waitLimit, "a deadlock is told", func() bool { return logged(`msg="deadlock possible`) == 1 })

	assert.Equal(t, 1, logged(`msg="lock released by force" name=forced`), "%s", m.stderr)
	assert.Equal(t, 1, logged(fmt.Sprintf(`msg="deadlock refused" path=files/f pid=%d uid=0`, b.pid())), "%s", m.stderr)
	m.killWorker()
	eventually(t, waitLimit, "a restart is told", func() bool { return logged(`msg="the worker died; another one serves"`) == 1 })
	assert.Equal(t, 5, logged("level="), "one line each:\n%s", m.stderr)
}
