package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestHandlesSurviveKill: whatever is open when the worker is killed goes on as if nothing had happened. Each of these
// begins something and returns what is to be checked after the kills.
func TestHandlesSurviveKill(t *testing.T) {
	m := newCrashMount(t)
	require.NoError(t, unix.Mkdir(m.path("tlock/x+1h"), 0o755))
	require.NoError(t, os.MkdirAll(m.path("files/d"), 0o755))
	var names []string
	var after []func(*testing.T)
	for _, handle := range []struct {
		name  string
		begin func(*testing.T, *mount) func(*testing.T)
	}{
		{"half of tlock/x/json", halfRead},
		{"half of long views", halfOfLongViews},
		{"a stream of tlock", halfOfLocks},
		{"a stream of files", halfOfFiles},
		{"a read of wait", blockedWait},
		{"poll of wait", polledWait},
		{"read and write", readAndWrite},
		{"append and truncate", appendAndTruncate},
		{"unlinked", unlinkedButOpen},
		{"replaced", replacedButOpen},
		{"a file without a name", unnamedFile},
		{"mode 0400 of a user", readOnlyOfUser},
		{"shared mapping", sharedMapping},
		{"working directories", workingDirectories},
		{"node numbers", nodeNumbers},
		{"locks", locksAreAnswered},
		{"a hold", openHold},
		{"a lock's timeout", openTimeout},
	} {
		names = append(names, handle.name)
		after = append(after, handle.begin(t, m))
	}
	for range 2 { // what a second worker has taken over a third one must, too
		m.killWorker()
	}
	for i, check := range after {
		t.Run(names[i], check)
	}
}

func openAt(t testing.TB, path string, flags int) int {
	t.Helper()
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o644)
	require.NoError(t, err, path)
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// readSome reads once.
func readSome(t testing.TB, fd, size int) string {
	t.Helper()
	buf, n := make([]byte, size), 0
	require.NoError(t, again(func() (err error) { n, err = unix.Read(fd, buf); return err }))
	return string(buf[:n])
}

func halfRead(t *testing.T, m *mount) func(*testing.T) {
	fd := openAt(t, m.path("tlock/x/json"), unix.O_RDONLY)
	before := readSome(t, fd, 40)
	token := readValue(t, m.path("tlock/x/token"))
	return func(t *testing.T) {
		text := before
		for part := "…"; part != ""; text += part {
			part = readSome(t, fd, 50)
		}
		var all struct {
			Token json.Number
			Kind  string
		}
		require.NoError(t, json.Unmarshal([]byte(text), &all), text)
		assert.Equal(t, token, all.Token.String())
		assert.Equal(t, "mkdir", all.Kind)
	}
}

// halfOfLongViews: a text is kept as it was, whether it is in the journal's neighbour or, above a megabyte, the worker's too.
func halfOfLongViews(t *testing.T, m *mount) func(*testing.T) {
	const ranges = 5000
	file := openAt(t, m.path("files/ranges"), unix.O_RDWR|unix.O_CREAT)
	for i := range int64(ranges) {
		require.NoError(t, unix.FcntlFlock(uintptr(file), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: 2 * i, Len: 1}))
	}
	views := []struct {
		name, line string
		least      int
		fd         int
		text       strings.Builder
	}{{name: "view/files/ranges", line: "held exclusive ", least: 100 << 10}, {name: "view/locks.jsonl", line: `"path":"files/ranges"`, least: 1<<20 + 1}}
	for i := range views {
		views[i].fd = openAt(t, m.path(views[i].name), unix.O_RDONLY)
		views[i].text.WriteString(readSome(t, views[i].fd, 99_999))
	}
	require.NoError(t, unix.FcntlFlock(uintptr(file), unix.F_SETLK, &unix.Flock_t{Type: unix.F_UNLCK}))
	return func(t *testing.T) {
		for i := range views {
			v := &views[i]
			for part := "…"; part != ""; {
				part = readSome(t, v.fd, 99_999)
				v.text.WriteString(part)
			}
			assert.Greater(t, v.text.Len(), v.least, v.name)
			assert.Equal(t, ranges, strings.Count(v.text.String(), v.line), v.name)
			assert.True(t, strings.HasSuffix(v.text.String(), "\n"), v.name)
		}
	}
}

func halfOfLocks(t *testing.T, m *mount) func(*testing.T) {
	const n = 200
	for i := range n {
		require.NoError(t, unix.Mkdir(m.path("tlock", fmt.Sprintf("listed%d", i)), 0o755))
	}
	fd := openAt(t, m.path("tlock"), unix.O_RDONLY|unix.O_DIRECTORY)
	names := someNames(t, fd, 2048)
	require.Less(t, len(names), n)
	return func(t *testing.T) {
		names := append(names, restOfNames(t, fd)...)
		for i := range n {
			require.Equal(t, 1, countOfName(names, fmt.Sprintf("listed%d", i)), "listed%d", i)
		}
	}
}

func halfOfFiles(t *testing.T, m *mount) func(*testing.T) {
	const n = 1000
	dir := m.path("files/listed")
	require.NoError(t, os.Mkdir(dir, 0o755))
	for i := range n {
		require.NoError(t, os.WriteFile(filepath.Join(m.state, "files/listed", manyName(i)), nil, 0o644))
	}
	fd := openAt(t, dir, unix.O_RDONLY|unix.O_DIRECTORY)
	names := someNames(t, fd, 4096)
	require.Less(t, len(names), n)
	return func(t *testing.T) {
		names := append(names, restOfNames(t, fd)...)
		for i := range n {
			require.Equal(t, 1, countOfName(names, manyName(i)), manyName(i))
		}
		require.Len(t, names, n)
		_, err := unix.Seek(fd, 0, unix.SEEK_SET)
		require.NoError(t, err)
		require.Len(t, restOfNames(t, fd), n, "from the beginning")
	}
}

func countOfName(names []string, name string) (n int) {
	for _, other := range names {
		if other == name {
			n++
		}
	}
	return n
}

// someNames reads a part of a directory stream.
func someNames(t testing.TB, fd, size int) []string {
	t.Helper()
	buf := make([]byte, size)
	n, err := unix.ReadDirent(fd, buf)
	require.NoError(t, err)
	_, _, names := unix.ParseDirent(buf[:n], -1, nil)
	return names
}

func restOfNames(t testing.TB, fd int) (names []string) {
	t.Helper()
	for {
		more := someNames(t, fd, 4096)
		if len(more) == 0 {
			return names
		}
		names = append(names, more...)
	}
}

// blockedWait: a read of `wait` that is blocked over the kills is told the end of the lock.
func blockedWait(t *testing.T, m *mount) func(*testing.T) {
	require.NoError(t, unix.Mkdir(m.path("tlock/waited"), 0o755))
	s := waitFor(t, m.path("tlock/waited/wait"))
	awaitBlocked(t, s.p.Process.Pid)
	return func(t *testing.T) {
		require.Empty(t, s.lines, "it said something before the end")
		require.NoError(t, unix.Rmdir(m.path("tlock/waited")))
		require.Equal(t, "released", s.next("wait"))
	}
}

// awaitBlocked waits until a shell has a child, and this sleeps.
func awaitBlocked(t testing.TB, shell int) {
	t.Helper()
	eventually(t, waitLimit, "cat is blocked", func() bool {
		children := childrenOf(shell)
		return len(children) == 1 && stateOf(children[0]) == "S"
	})
}

// polledWait: so is a poll(2) for it.
func polledWait(t *testing.T, m *mount) func(*testing.T) {
	require.NoError(t, unix.Mkdir(m.path("tlock/polled"), 0o755))
	s := startScript(t, newProgram(t, hangLimit, "python3", "-c", pollScript, m.path("tlock/polled/wait")))
	require.Equal(t, "early EAGAIN [] [] []", s.next("nothing yet"))
	return func(t *testing.T) {
		require.NoError(t, unix.Rmdir(m.path("tlock/polled")))
		require.Equal(t, "ready True True True", s.next("poll"))
		require.Equal(t, "text released", s.next("the text"))
	}
}

func readAndWrite(t *testing.T, m *mount) func(*testing.T) {
	path := m.path("files/d/f")
	fd := openAt(t, path, unix.O_RDWR|unix.O_CREAT)
	writeAll(t, fd, strings.Repeat("a", 10_000))
	return func(t *testing.T) {
		writeAll(t, fd, "after")
		require.NoError(t, unix.Fsync(fd))
		st := fstat(t, fd)
		require.EqualValues(t, 10_005, st.Size)
		require.Equal(t, st.Ino, statOf(t, path).Ino)
		require.Equal(t, strings.Repeat("a", 10_000)+"after", readFile(t, path))
		require.Equal(t, strings.Repeat("a", 10_000)+"after", readFile(t, filepath.Join(m.state, "files/d/f")))
		require.NoError(t, unix.Fchmod(fd, 0o600))
		require.EqualValues(t, 0o600, fstat(t, fd).Mode&0o777)
	}
}

func writeAll(t testing.TB, fd int, text string) {
	t.Helper()
	n, err := unix.Write(fd, []byte(text))
	require.NoError(t, err)
	require.Equal(t, len(text), n)
}

func fstat(t testing.TB, fd int) (st unix.Stat_t) {
	t.Helper()
	require.NoError(t, unix.Fstat(fd, &st))
	return st
}

func appendAndTruncate(t *testing.T, m *mount) func(*testing.T) {
	path := m.path("files/d/appended")
	fd := openAt(t, path, unix.O_WRONLY|unix.O_CREAT|unix.O_APPEND|unix.O_TRUNC)
	writeAll(t, fd, "one ")
	return func(t *testing.T) {
		require.Equal(t, "one ", readFile(t, path), "not truncated again")
		writeAll(t, fd, "two")
		require.Equal(t, "one two", readFile(t, path))
		require.NoError(t, unix.Ftruncate(fd, 3))
		require.Equal(t, "one", readFile(t, path))
	}
}

// unlinkedButOpen: the handles of a file without any name left.
func unlinkedButOpen(t *testing.T, m *mount) func(*testing.T) {
	path := m.path("files/d/unlinked")
	first, second := openAt(t, path, unix.O_RDWR|unix.O_CREAT), openAt(t, path, unix.O_RDONLY)
	writeAll(t, first, "still here")
	require.NoError(t, unix.Unlink(path))
	ino := fstat(t, first).Ino
	return func(t *testing.T) {
		require.Equal(t, "ENOENT", openErrno(path, unix.O_RDONLY))
		require.Equal(t, "still here", readSome(t, second, 100))
		writeAll(t, first, ", and more")
		require.Equal(t, ", and more", readSome(t, second, 100))
		st := fstat(t, second)
		require.Equal(t, ino, st.Ino)
		require.Zero(t, st.Nlink)
		require.EqualValues(t, 20, st.Size)
		require.NotContains(t, entries(t, m.path("files/d")), "unlinked")
	}
}

func replacedButOpen(t *testing.T, m *mount) func(*testing.T) {
	path := m.path("files/d/replaced")
	require.NoError(t, os.WriteFile(path, []byte("old"), 0o644))
	require.NoError(t, os.WriteFile(path+".new", []byte("new"), 0o644))
	fd := openAt(t, path, unix.O_RDWR)
	require.NoError(t, unix.Rename(path+".new", path))
	return func(t *testing.T) {
		require.Equal(t, "old", readSome(t, fd, 100))
		require.Equal(t, "new", readFile(t, path))
		writeAll(t, fd, "er")
		require.Equal(t, "new", readFile(t, path))
		require.EqualValues(t, 5, fstat(t, fd).Size)
	}
}

func unnamedFile(t *testing.T, m *mount) func(*testing.T) {
	fd := openAt(t, m.path("files/d"), unix.O_TMPFILE|unix.O_RDWR)
	writeAll(t, fd, "unnamed")
	return func(t *testing.T) {
		writeAll(t, fd, " text")
		_, err := unix.Seek(fd, 0, unix.SEEK_SET)
		require.NoError(t, err)
		require.Equal(t, "unnamed text", readSome(t, fd, 100))
		name := m.path("files/d/named")
		require.NoError(t, unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, name, unix.AT_SYMLINK_FOLLOW))
		require.Equal(t, "unnamed text", readFile(t, name))
	}
}

// readOnlyOfUser: a descriptor may do more than its file's mode would allow its user now.
func readOnlyOfUser(t *testing.T, m *mount) func(*testing.T) {
	dir := m.path("files/of-user")
	require.NoError(t, os.Mkdir(dir, 0o755))
	require.NoError(t, os.Chown(dir, stranger, stranger))
	user := newClient(t, dir, asUser(stranger))
	require.Equal(t, "ok", user.do("create f 0400"))
	require.Equal(t, "ok", user.do("pwrite f 0 before"))
	return func(t *testing.T) {
		require.Equal(t, "ok", user.do("pwrite f 6 +after"))
		require.Equal(t, "before+after", user.do("pread f 0 100"))
		require.Equal(t, "EACCES", user.do("open f w"), "for others the mode counts")
	}
}

func sharedMapping(t *testing.T, m *mount) func(*testing.T) {
	const page = 4096
	path := m.path("files/d/mapped")
	fd := openAt(t, path, unix.O_RDWR|unix.O_CREAT)
	writeAll(t, fd, strings.Repeat("m", 8*page))
	mem, err := unix.Mmap(fd, 0, 8*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	require.NoError(t, err)
	t.Cleanup(func() { unix.Munmap(mem) })
	mem[0] = '1'
	return func(t *testing.T) {
		require.NoError(t, unix.Madvise(mem, unix.MADV_DONTNEED))
		mem[5*page] = '2'
		require.NoError(t, unix.Msync(mem, unix.MS_SYNC))
		text := readFile(t, filepath.Join(m.state, "files/d/mapped"))
		require.Equal(t, byte('1'), text[0])
		require.Equal(t, byte('2'), text[5*page])
		require.Equal(t, byte('m'), mem[7*page])
	}
}

func workingDirectories(t *testing.T, m *mount) func(*testing.T) {
	inLock, inFiles := newClient(t, m.path("tlock/x")), newClient(t, m.path("files/d"))
	token := inLock.do("read token")
	return func(t *testing.T) {
		require.Equal(t, token, inLock.do("read token"))
		require.Equal(t, "ok", inLock.do("stat ../x@%s", token))
		require.Equal(t, "ok", inFiles.do("open made-here"))
		require.Contains(t, entries(t, m.path("files/d")), "made-here")
		cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", inFiles.pid()))
		require.NoError(t, err)
		require.Equal(t, m.path("files/d"), cwd)
	}
}

func nodeNumbers(t *testing.T, m *mount) func(*testing.T) {
	require.NoError(t, os.WriteFile(m.path("files/d/numbered"), nil, 0o644))
	token := readValue(t, m.path("tlock/x/token"))
	numbers := func(t *testing.T) map[string]uint64 {
		found := make(map[string]uint64)
		for _, name := range []string{"", "README", "tlock", "tlock/x", "tlock/x@" + token, "tlock/x/token", "tlock/x/d", "take",
			"hold", "view", "view/locks", "files", "files/d", "files/d/numbered"} {
			found[name] = statOf(t, m.path(name)).Ino
		}
		return found
	}
	before := numbers(t)
	return func(t *testing.T) { require.Equal(t, before, numbers(t)) }
}

// locksAreAnswered: what F_GETLK says, and who is let in.
func locksAreAnswered(t *testing.T, m *mount) func(*testing.T) {
	s := newScene(t, m)
	s.play(`
		a open f
		b open f
		a setlk f w 0 10
		a setlk f r 20 5
		a ofd_setlk f r 40 5
		b setlk f r 20 2
		a open g
		b open g
		a flock g sh`)
	return func(t *testing.T) {
		s.t = t
		s.play(`
			b getlk f r 0 0 = w 0 10 a
			b getlk f w 15 20 = r 20 5 a
			b ofd_getlk f w 30 0 = r 40 5 -1
			a getlk f w 0 0 = r 20 2 b
			b setlk f w 9 1 = EAGAIN
			b setlk f w 10 10 = ok
			b flock g ex+nb = EAGAIN
			b flock g sh+nb = ok
			b setlkw f w 0 1 ...
			a setlk f u 0 1
			b gets ok
			a close f
			b setlk f w 0 0 = ok`)
	}
}

// openHold: an open handle of hold/ still tells its token, and its close still lets go.
func openHold(t *testing.T, m *mount) func(*testing.T) {
	fd, err := openAgain(m.path("hold/held"), unix.O_RDONLY|unix.O_CLOEXEC)
	require.NoError(t, err)
	token := readValue(t, m.path("tlock/held/token"))
	return func(t *testing.T) {
		require.Equal(t, token, readValue(t, m.path("tlock/held/token")))
		require.Equal(t, token+"\n", readSome(t, fd, 100))
		require.Equal(t, "EAGAIN", openErrno(m.path("hold/held"), unix.O_NONBLOCK))
		require.NoError(t, unix.Close(fd))
		require.Equal(t, "ok", openErrno(m.path("hold/held"), unix.O_NONBLOCK))
	}
}

// openTimeout: a handle on one incarnation's file still belongs to that one.
func openTimeout(t *testing.T, m *mount) func(*testing.T) {
	for _, name := range []string{"renewed", "ended"} {
		require.NoError(t, unix.Mkdir(m.path("tlock", name), 0o755))
	}
	renewed, ended := openAt(t, m.path("tlock/renewed/timeout"), unix.O_WRONLY), openAt(t, m.path("tlock/ended/timeout"), unix.O_WRONLY)
	require.NoError(t, unix.Rmdir(m.path("tlock/ended")))
	require.NoError(t, unix.Mkdir(m.path("tlock/ended"), 0o755))
	return func(t *testing.T) {
		writeAll(t, renewed, "5m\n")
		require.Equal(t, "300", readValue(t, m.path("tlock/renewed/timeout")))
		_, err := unix.Write(ended, []byte("5m\n"))
		require.Equal(t, "ENOENT", errnoName(err))
		require.Equal(t, "3600", readValue(t, m.path("tlock/ended/timeout")))
	}
}

// TestEventsGoOnOverKills: a reader of view/events that is blocked when the worker is killed misses no event, and sees
// none twice.
func TestEventsGoOnOverKills(t *testing.T) {
	const rounds, each = 5, 20
	m := newCrashMount(t)
	events := m.events(t)
	poll := startScript(t, newProgram(t, hangLimit, "python3", "-c", pollScript, m.path("view/events")))
	require.Equal(t, "early EAGAIN [] [] []", poll.next("nothing yet"))
	m.killWorker()
	for i := range rounds {
		for k := range each {
			name := m.path("tlock", fmt.Sprintf("n%d-%d", i, k))
			require.NoError(t, unix.Mkdir(name, 0o755))
			if k == each/2 {
				m.killWorker()
			}
			require.NoError(t, unix.Rmdir(name))
		}
		m.killWorker()
	}
	require.Equal(t, "ready True True True", poll.next("poll"))
	last := fmt.Sprintf("tlock/n%d-%d", rounds-1, each-1)
	events.find(t, "the last one", func(e event) bool { return e.Path == last && e.Event == "released" })
	events.requireNoHoles(t)
	events.mu.Lock()
	defer events.mu.Unlock()
	require.Len(t, slices.DeleteFunc(slices.Clone(events.events), func(e event) bool { return e.Event != "granted" && e.Event != "released" }),
		2*rounds*each, "granted and released, each once")
}

// TestBlockedReadersOverKill: a description that two processes share and read from wakes both.
func TestBlockedReadersOverKill(t *testing.T) {
	m := newCrashMount(t)
	require.NoError(t, unix.Mkdir(m.path("tlock/x+2"), 0o755))
	s := startScript(t, newProgram(t, time.Minute, "sh", "-c",
		`exec 9<"$1"; cat <&9 & cat <&9 & exec 9<&-; echo open; wait; echo both`, "sh", m.path("tlock/x/wait")))
	require.Equal(t, "open", s.next("open"))
	m.killWorker()
	for line := ""; line != "both"; {
		line = s.next("the end of both readers")
		require.Contains(t, []string{"expired", "both"}, line)
	}
}
