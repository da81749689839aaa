package integration

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestPOSIXLocks(t *testing.T) {
	playBoth(t, []scenario{
		{"exclusive conflicts with all", `
			a open f
			b open f
			a setlk f w 0 10 = ok
			b setlk f w 9 1 = EAGAIN
			b setlk f r 0 1 = EAGAIN
			b setlk f w 10 1 = ok
			a setlk f u 0 10 = ok
			b setlk f w 0 10 = ok`},
		{"shared conflicts with exclusive only", `
			a open f
			b open f
			c open f
			a setlk f r 0 10 = ok
			b setlk f r 5 10 = ok
			c setlk f w 9 1 = EAGAIN
			c setlk f w 15 1 = ok
			b setlk f w 5 5 = EAGAIN
			b setlk f w 10 5 = ok`},
		{"an unlock splits", `
			a open f
			b open f
			a setlk f w 0 10
			a setlk f u 3 4
			b getlk f w 0 0 = w 0 3 a
			b getlk f w 3 0 = w 7 3 a
			b setlk f w 3 4 = ok
			b setlk f w 2 1 = EAGAIN
			b setlk f w 7 1 = EAGAIN`},
		{"a change of mode splits", `
			a open f
			b open f
			a setlk f w 0 10
			a setlk f r 3 4
			b getlk f r 0 10 = w 0 3 a
			b getlk f w 3 4 = r 3 4 a
			b setlk f r 3 4 = ok
			b getlk f r 3 7 = w 7 3 a`},
		{"neighbours of one mode merge", `
			a open f
			b open f
			a setlk f w 0 5
			a setlk f w 10 5
			a setlk f r 20 5
			b getlk f w 0 1 = w 0 5 a
			a setlk f w 5 5
			b getlk f w 0 1 = w 0 15 a
			a setlk f r 15 5
			b getlk f w 15 1 = r 15 10 a`},
		{"upgrade", `
			a open f
			b open f
			a setlk f r 0 0
			b setlk f r 0 0
			a setlk f w 0 0 = EAGAIN
			b getlk f w 0 0 = r 0 0 a
			b setlk f u 0 0
			a setlk f w 0 0 = ok
			b setlk f r 0 0 = EAGAIN`},
		{"downgrade wakes readers", `
			a open f
			b open f
			c open f
			a setlk f w 0 10
			b setlkw f r 0 5 ...
			c setlkw f w 5 5 ...
			a setlk f r 0 10
			b gets ok
			c waits
			a setlk f u 0 10
			c gets ok`},
		{"unlock wakes only whom it can satisfy", `
			a open f
			b open f
			c open f
			a setlk f w 0 10
			b setlk f w 10 10
			c setlkw f w 5 10 ...
			a setlk f u 0 8
			c waits
			a setlk f u 8 2
			c waits
			b setlk f u 10 10
			c gets ok
			a getlk f w 0 0 = w 5 10 c`},
		{"GETLK", `
			a open f
			b open f
			a getlk f w 0 0 = free
			a setlk f w 5 5
			a getlk f w 0 0 = free        # one's own locks do not conflict
			b getlk f w 0 5 = free
			b getlk f r 0 6 = w 5 5 a
			b getlk f w 10 0 = free`},
		{"to the end of the file and beyond", `
			a open f
			b open f
			a setlk f w 100 0
			b setlk f w 99 1 = ok
			b setlk f w 99 2 = EAGAIN
			b setlk f w 9223372036854775807 1 = EAGAIN
			b getlk f w 200 1 = w 100 0 a
			a setlk f u 200 0
			b getlk f w 150 1 = w 100 100 a
			b setlk f w 200 0 = ok`},
		{"negative length", `
			a open f
			b open f
			a setlk f w 10 -5
			b getlk f w 0 0 = w 5 5 a
			a setlk f w 3 -5 = EINVAL
			a setlk f w -1 1 = EINVAL`},
		{"from the position and from the end", `
			a open f
			b open f
			a truncate f 100
			a setlk f w -10 10 end
			a seek f 20
			a setlk f w 5 5 cur
			a setlk f r -30 1 cur = EINVAL
			b getlk f w 50 0 = w 90 10 a
			b getlk f w 0 50 = w 25 5 a`},
		{"the top of the offset space", `
			a open f
			b open f
			a setlk f w 9223372036854775806 1 = ok
			b setlk f w 9223372036854775807 1 = ok
			b getlk f w 9223372036854775806 0 = w 9223372036854775806 1 a
			a getlk f w 0 0 = w 9223372036854775807 0 b
			a setlk f w 9223372036854775807 2 = EOVERFLOW
			a setlk f w 2 9223372036854775807 = EOVERFLOW
			a setlk f r 1 9223372036854775805 = ok
			a setlk f u 0 0
			b setlk f w 0 0 = ok
			a getlk f r 5 1 = w 0 0 b`},
		{"close of any descriptor drops all", `
			a open f
			a open f:2
			b open f
			a setlk f w 0 10
			a setlk f:2 w 20 10
			a close f:2
			b setlk f w 0 0 = ok`},
		{"close of a duplicate drops all", `
			a open f
			a dup f f:dup
			b open f
			a setlk f w 0 10
			a close f:dup
			b setlk f w 0 10 = ok`},
		{"close of a descriptor of another file drops nothing", `
			a open f
			a open g
			b open f
			a setlk f w 0 10
			a close g
			b setlk f w 0 10 = EAGAIN`},
		{"kept over exec", `
			a open f
			b open f
			a setlk f w 0 10
			a exec
			b getlk f w 0 0 = w 0 10 a
			a setlk f r 0 10
			b getlk f w 0 0 = r 0 10 a`},
		{"hard links share", `
			a open f
			a link f g
			b open g
			a setlk f w 0 10
			b setlk g w 0 10 = EAGAIN
			b getlk g w 0 0 = w 0 10 a
			b setlkw g w 0 10 ...
			a close f
			b gets ok`},
		{"an unlinked file keeps its locks", `
			a open f
			b open f
			a setlk f w 0 10
			a unlink f
			b setlk f w 0 10 = EAGAIN
			b open f:new
			b setlk f:new w 0 10 = ok
			a setlk f u 0 10
			b setlk f w 0 10 = ok`},
		{"a descriptor must be open for the mode", `
			a open f
			a open f:r r
			a open f:w w
			a setlk f:r w 0 1 = EBADF
			a setlk f:w r 0 1 = EBADF
			a setlk f:r r 0 1 = ok
			a setlk f:w w 5 1 = ok`},
		{"a waiter for one file leaves others alone", `
			a open f
			b open f
			b open g
			a setlk f w 0 0
			b setlkw f w 0 0 ...
			b setlk g w 0 0 = ok
			a setlk f u 0 0
			b gets ok`},
		{"SIGKILL frees the locks", `
			a open f
			b open f
			a setlk f w 0 10
			b setlkw f w 0 10 ...
			a kill
			b gets ok`},
		{"SIGKILL of a waiter leaves nothing", `
			a open f
			b open f
			c open f
			a setlk f w 0 10
			b setlkw f w 0 10 ...
			c setlkw f w 0 10 ...
			b kill
			c waits
			a setlk f u 0 10
			c gets ok`},
		{"a dead waiter's place is not served", `
			a open f
			b open f
			c open f
			a setlk f r 0 10
			b setlkw f w 0 10 ...
			b kill
			c setlk f r 0 10 = ok
			a close f
			c setlk f w 0 10 = ok`},
		{"readers pass a waiting writer", `
			a open f
			b open f
			c open f
			a setlk f r 0 10
			b setlkw f w 0 10 ...
			c setlk f r 0 10 = ok
			a close f
			b waits
			c close f
			b gets ok`},
	})
}

func TestDeadlock(t *testing.T) {
	playBoth(t, []scenario{
		{"of 2", cycle(2)},
		{"of 3", cycle(3)},
		{"of 5", cycle(5)},
		{"by upgrade", `
			a open f
			b open f
			a setlk f r 0 10
			b setlk f r 0 10
			a setlkw f w 0 10 ...
			b setlkw f w 0 10 = EDEADLK
			b setlk f u 0 10
			a gets ok`},
		{"within one file", `
			a open f
			b open f
			a setlk f w 0 1
			b setlk f w 1 1
			a setlkw f w 1 1 ...
			b setlkw f w 0 1 = EDEADLK
			b close f
			a gets ok`},
		{"a chain is none", `
			a open f
			b open f
			b open g
			c open g
			c open h
			a setlk f w 0 0
			b setlk g w 0 0
			b setlkw f w 0 0 ...
			c setlkw g w 0 0 ...
			a open h
			a setlkw h w 0 0 = ok
			a close f
			b gets ok
			b close g
			c gets ok`},
		{"the one who got EDEADLK can try again", `
			a open f
			a open g
			b open f
			b open g
			a setlk f w 0 0
			b setlk g w 0 0
			a setlkw g w 0 0 ...
			b setlkw f w 0 0 = EDEADLK
			b setlkw f w 0 0 = EDEADLK
			b setlk g u 0 0
			a gets ok
			b setlkw f w 0 0 ...
			a setlk f u 0 0
			b gets ok`},
		{"a waiter that is gone closes no cycle", `
			a open f
			a open g
			b open f
			b open g
			c open g
			a setlk f w 0 0
			b setlk g w 0 0
			a setlkw g w 0 0 ...
			a kill
			b setlkw f w 0 0 = ok`},
		{"not by OFD locks", `
			a open f
			a open g
			b open f
			b open g
			a ofd_setlk f w 0 0
			b ofd_setlk g w 0 0
			a ofd_setlkw g w 0 0 ...
			b ofd_setlkw f w 0 0 ...
			a close f
			b gets ok
			b close g
			a gets ok`},
		{"not by flocks", `
			a open f
			a open g
			b open f
			b open g
			a flock f ex
			b flock g ex
			a flock g ex ...
			b flock f ex ...
			a flock f un
			b gets ok`},
	})
}

// cycle scripts n processes that each hold a file of their own and ask for the next one's: the last is refused.
func cycle(n int) string {
	var script strings.Builder
	name := func(i int) string { return string(rune('a' + i%n)) }
	for i := range n {
		fmt.Fprintf(&script, "%[1]s open f%[1]s\n%[1]s open f%[2]s\n", name(i), name(i+1))
		fmt.Fprintf(&script, "%[1]s setlk f%[1]s w 0 10\n", name(i))
	}
	for i := range n - 1 {
		fmt.Fprintf(&script, "%s setlkw f%s w 5 1 ...\n", name(i), name(i+1))
	}
	fmt.Fprintf(&script, "%s setlkw fa w 5 1 = EDEADLK\n", name(n-1))
	fmt.Fprintf(&script, "%s setlk f%[1]s u 0 10\n%s gets ok\n", name(n-1), name(n-2))
	return script.String()
}

func TestOFDLocks(t *testing.T) {
	playBoth(t, []scenario{
		{"descriptions of one process conflict", `
			a open f
			a open f:2
			a ofd_setlk f w 0 10
			a ofd_setlk f:2 w 5 1 = EAGAIN
			a ofd_setlk f:2 r 5 1 = EAGAIN
			a ofd_setlk f:2 w 10 1 = ok
			a ofd_getlk f:2 w 0 1 = w 0 10 -1
			a ofd_setlk f r 0 10 = ok
			a ofd_setlk f:2 r 5 1 = ok`},
		{"duplicates share", `
			a open f
			a dup f f:dup
			a ofd_setlk f w 0 10
			a ofd_setlk f:dup r 0 10 = ok
			a ofd_setlk f:dup w 0 10 = ok`},
		{"split and merge", `
			a open f
			b open f
			a ofd_setlk f w 0 10
			a ofd_setlk f u 3 4
			b ofd_getlk f w 3 0 = w 7 3 -1
			a ofd_setlk f w 3 4
			b ofd_getlk f w 9 1 = w 0 10 -1`},
		{"dropped at the last close only", `
			a open f
			a dup f f:dup
			b open f
			a ofd_setlk f w 0 10
			a close f
			b ofd_setlk f w 0 10 = EAGAIN
			b ofd_setlkw f w 0 10 ...
			a close f:dup
			b gets ok`},
		{"close of another description drops nothing", `
			a open f
			a open f:2
			b open f
			a ofd_setlk f w 0 10
			a close f:2
			b ofd_setlk f w 0 10 = EAGAIN`},
		{"kept over exec", `
			a open f
			b open f
			a ofd_setlk f w 0 10
			a exec
			b ofd_setlk f w 0 10 = EAGAIN
			a close f
			b ofd_setlk f w 0 10 = ok`},
		{"conflict with POSIX locks both ways", `
			a open f
			a open f:2
			b open f
			a ofd_setlk f w 0 10
			b setlk f w 0 10 = EAGAIN
			b getlk f w 0 0 = w 0 10 _
			a setlk f:2 w 0 1 = EAGAIN    # even with those of the same process
			b setlk f w 20 10 = ok
			a ofd_setlk f w 20 1 = EAGAIN
			a ofd_getlk f w 20 1 = w 20 10 _
			a ofd_setlkw f w 20 1 ...
			b close f
			a gets ok`},
		{"asking for one's own locks", `
			a open f
			a ofd_setlk f w 5 10
			a ofd_getlk f u 0 0 = w 5 10 -1
			a ofd_getlk f u 20 0 = free`},
		{"SIGKILL frees the locks", `
			a open f
			b open f
			a ofd_setlk f w 0 10
			b ofd_setlkw f w 0 10 ...
			a kill
			b gets ok`},
	})
}

func TestFlock(t *testing.T) {
	playBoth(t, []scenario{
		{"conflict", `
			a open f
			b open f
			a flock f ex
			b flock f ex+nb = EAGAIN
			b flock f sh+nb = EAGAIN
			a flock f un
			b flock f sh+nb = ok
			a flock f sh+nb = ok
			a flock f ex+nb = EAGAIN`},
		{"descriptions of one process conflict", `
			a open f
			a open f:2
			a flock f ex
			a flock f:2 ex+nb = EAGAIN
			a close f
			a flock f:2 ex+nb = ok`},
		{"any way of opening will do", `
			a open f
			a open f:r r
			b open f
			a flock f:r ex = ok
			b flock f ex+nb = EAGAIN`},
		{"duplicates share", `
			a open f
			a dup f f:dup
			b open f
			a flock f ex
			a flock f:dup ex+nb = ok
			a close f
			b flock f ex+nb = EAGAIN
			a flock f:dup un
			b flock f ex+nb = ok`},
		{"close of another description drops nothing", `
			a open f
			a open f:2
			b open f
			a flock f ex
			a close f:2
			b flock f ex+nb = EAGAIN`},
		{"a conversion that fails has lost the lock", `
			a open f
			b open f
			c open f
			a flock f sh
			b flock f sh
			a flock f ex+nb = EAGAIN
			b flock f ex+nb = ok
			c flock f sh+nb = EAGAIN`},
		{"a conversion waits", `
			a open f
			b open f
			a flock f sh
			b flock f sh
			a flock f ex ...
			b flock f un
			a gets ok
			b flock f sh+nb = EAGAIN`},
		{"a downgrade wakes readers", `
			a open f
			b open f
			c open f
			a flock f ex
			b flock f sh ...
			c flock f sh ...
			a flock f sh
			b gets ok
			c gets ok`},
		{"independent of record locks", `
			a open f
			b open f
			a setlk f w 0 0
			b flock f ex+nb = ok
			a ofd_setlk f w 0 0 = EAGAIN
			a setlk f u 0 0
			a ofd_setlk f w 0 0 = ok
			b flock f un = ok`},
		{"kept over exec", `
			a open f
			b open f
			a flock f ex
			a exec
			b flock f ex+nb = EAGAIN
			a close f
			b flock f ex+nb = ok`},
		{"SIGKILL frees the lock", `
			a open f
			b open f
			a flock f ex
			b flock f ex ...
			a kill
			b gets ok`},
		{"hard links share", `
			a open f
			a link f g
			b open g
			a flock f ex
			b flock g ex+nb = EAGAIN`},
	})
}

// TestInherited gives two processes one open file description, as fork does.
func TestInherited(t *testing.T) {
	playShared := func(m *mount) func(*testing.T) {
		return func(t *testing.T) {
			for _, sc := range inheritance {
				t.Run(sc.name, func(t *testing.T) {
					s := newScene(t, m)
					s.shareDescription("f", "a", "b")
					s.play(sc.script)
				})
			}
		}
	}
	t.Run("kernel", playShared(nil))
	t.Run("lockfs", playShared(newMount(t)))
}

var inheritance = []scenario{
	{"POSIX locks are not inherited", `
		a setlk inherited w 0 10
		b setlk inherited w 0 10 = EAGAIN
		b close inherited
		c open f
		c getlk f w 0 0 = w 0 10 a`},
	{"OFD locks are", `
		c open f
		a ofd_setlk inherited w 0 10
		b ofd_setlk inherited w 0 20 = ok
		a close inherited
		c ofd_setlk f w 0 10 = EAGAIN
		c ofd_setlkw f w 0 10 ...
		b kill
		c gets ok`},
	{"flocks are", `
		c open f
		a flock inherited ex
		b flock inherited ex+nb = ok
		a kill
		c flock f ex+nb = EAGAIN
		c flock f ex ...
		b flock inherited un
		c gets ok`},
}

// shareDescription starts clients that have one open file description in common, named "inherited".
func (s *scene) shareDescription(file string, names ...string) {
	s.t.Helper()
	fd, err := unix.Open(filepath.Join(s.dir, file), unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o666)
	require.NoError(s.t, err)
	shared := os.NewFile(uintptr(fd), file)
	defer shared.Close()
	for _, name := range names {
		s.clients[name] = newClient(s.t, s.dir, func(cmd *exec.Cmd) { cmd.ExtraFiles = []*os.File{shared} })
	}
}

// TestOrderOfArrival releases a lock that 20 processes wait for; each has to get it in its turn.
func TestOrderOfArrival(t *testing.T) {
	const n = 20
	m := newMount(t)
	for lock, ops := range map[string][2]string{
		"POSIX": {"setlkw f w 5 1", "setlk f u 5 1"},
		"OFD":   {"ofd_setlkw f w 5 1", "ofd_setlk f u 5 1"},
		"flock": {"flock f ex", "flock f un"},
	} {
		t.Run(lock, func(t *testing.T) {
			s := newScene(t, m)
			s.play("first open f\nfirst " + ops[0])
			for _, i := range rand.Perm(n) { // so that neither pid nor start decides
				s.client(waiterName(i))
			}
			for i := range n {
				s.play(waiterName(i) + " open f\n" + waiterName(i) + " " + ops[0] + " ...")
			}
			s.requireQueue(n)
			holder := "first"
			for i := range n {
				s.play(holder + " " + ops[1] + "\n" + waiterName(i) + " gets ok")
				holder = waiterName(i)
			}
		})
	}
}

// TestOrderAfterKill kills the holder, then each waiter as it holds the lock: the next in line has to get it.
func TestOrderAfterKill(t *testing.T) {
	const n = 10
	s := newScene(t, newMount(t))
	s.play("first open f\nfirst setlk f w 0 0")
	for i := range n {
		s.play(waiterName(i) + " open f\n" + waiterName(i) + " setlkw f w 0 0 ...")
	}
	holder := "first"
	for i := range n {
		s.play(holder + " kill\n" + waiterName(i) + " gets ok")
		holder = waiterName(i)
	}
}

func waiterName(i int) string { return fmt.Sprintf("waiter%d", i) }

// requireQueue checks that view/locks.jsonl lists the waiters first come first.
func (s *scene) requireQueue(n int) {
	s.t.Helper()
	waiting := s.m.locksOn(s.t, "waiting", "files/"+filepath.Base(s.dir))
	require.Len(s.t, waiting, n)
	for i, lock := range waiting {
		require.Equal(s.t, s.client(waiterName(i)).pid(), lock.PID, "place %d in the queue", i)
		require.Contains(s.t, lock.Blockers, s.client("first").pid())
	}
}

// TestSyntheticFilesCannotBeLocked: what shows locks has none.
func TestSyntheticFilesCannotBeLocked(t *testing.T) {
	m := newMount(t)
	c := newClient(t, m.dir)
	require.Equal(t, "ok", c.do("mkdir tlock/x"))
	for _, path := range []string{"README", "tlock/x/token", "tlock/x/holder", "view/locks", "view/stats"} {
		require.Equal(t, "ok", c.do("open %s r", path))
		for _, lock := range []string{
			"setlk %s r 0 0", "setlkw %s r 0 0", "ofd_setlk %s r 0 0", "flock %s sh", "flock %s ex+nb",
		} {
			require.Equal(t, "ENOLCK", c.do(lock, path), lock, path)
		}
	}
}
