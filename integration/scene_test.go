package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// A scene is a script of lock calls by several processes, one step a line:
//
//	a open f                     process a opens the file f; the answer has to be "ok"
//	a setlk f w 0 10 = ok        the answer has to be this one
//	b getlk f r 5 1 = w 0 10 a   in an answer a letter stands for that process's pid, _ for any word
//	b setlkw f w 0 1 ...         the call has to block, until
//	b gets ok                    it is answered so
//	b waits                      b has no answer yet, and as many processes wait as were left blocked
//	a kill                       SIGKILL
//
// The files of a scene are in a directory of its own.
type scene struct {
	t       *testing.T
	dir     string
	m       *mount // nil on the kernel's own locks
	clients map[string]*client
	blocked map[string]<-chan string
}

// A scenario is a scene's name and script.
type scenario struct{ name, script string }

// playBoth plays scenarios against the kernel's own locks, which shows that they are right, and against lockfs.
func playBoth(t *testing.T, scenarios []scenario) {
	play := func(m *mount) func(*testing.T) {
		return func(t *testing.T) {
			for _, sc := range scenarios {
				t.Run(sc.name, func(t *testing.T) { newScene(t, m).play(sc.script) })
			}
		}
	}
	t.Run("kernel", play(nil))
	m := newMount(t)
	t.Run("lockfs", play(m))
	require.Empty(t, m.locks(t), "nothing is left once all clients are gone")
}

// newScene makes an empty directory on m, or on a tmpfs when m is nil.
func newScene(t *testing.T, m *mount) *scene {
	t.Helper()
	parent := "/dev/shm"
	if m != nil {
		parent = m.path("files")
	}
	dir, err := os.MkdirTemp(parent, "scene-")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return &scene{t: t, dir: dir, m: m, clients: map[string]*client{}, blocked: map[string]<-chan string{}}
}

func (s *scene) play(script string) {
	s.t.Helper()
	for line := range strings.Lines(script) {
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line != "" {
			s.step(line)
		}
	}
}

func (s *scene) step(line string) {
	s.t.Helper()
	call, want, found := strings.Cut(line, " = ")
	if !found {
		want = "ok"
	}
	who, request, _ := strings.Cut(call, " ")
	verb, rest, _ := strings.Cut(request, " ")
	switch {
	case verb == "waits":
		s.requireWaiting(who, line)
	case verb == "gets":
		s.requireAnswer(line, rest, await(s.t, line, s.blocked[who]))
		delete(s.blocked, who)
	case verb == "kill":
		s.client(who).kill()
		delete(s.clients, who)
		delete(s.blocked, who)
	case strings.HasSuffix(request, " ..."):
		s.blocked[who] = s.client(who).begin(strings.TrimSuffix(request, " ..."))
		s.requireWaiting(who, line)
	default:
		s.requireAnswer(line, want, s.client(who).do("%s", request))
	}
}

func (s *scene) client(who string) *client {
	s.t.Helper()
	if s.clients[who] == nil {
		s.clients[who] = newClient(s.t, s.dir)
	}
	return s.clients[who]
}

func (s *scene) requireAnswer(line, want, got string) {
	s.t.Helper()
	wanted, given := strings.Fields(want), strings.Fields(got)
	same := len(wanted) == len(given)
	for i := 0; same && i < len(wanted); i++ {
		word := wanted[i]
		if c := s.clients[word]; c != nil && i == 3 {
			word = strconv.Itoa(c.pid())
		}
		same = word == "_" || word == given[i]
	}
	require.True(s.t, same, "%s: got %q", line, got)
}

func (s *scene) requireWaiting(who, line string) {
	s.t.Helper()
	eventually(s.t, waitLimit, line, func() bool {
		select {
		case reply := <-s.blocked[who]:
			s.t.Fatalf("%s: did not wait but got %q", line, reply)
		default:
		}
		return s.waiters() == len(s.blocked)
	})
}

// waiters counts the calls that are blocked on the scene's files.
func (s *scene) waiters() int {
	s.t.Helper()
	if s.m != nil {
		return len(s.m.locksOn(s.t, "waiting", "files/"+filepath.Base(s.dir)))
	}
	return s.kernelWaiters()
}

// kernelWaiters counts the lines like `1: -> POSIX  ADVISORY  WRITE 77 00:1a:5 0 9` of /proc/locks.
func (s *scene) kernelWaiters() int {
	s.t.Helper()
	inodes := make(map[string]bool)
	for _, name := range entries(s.t, s.dir) {
		inodes[fmt.Sprint(statOf(s.t, filepath.Join(s.dir, name)).Ino)] = true
	}
	n := 0
	for line := range strings.Lines(readFile(s.t, "/proc/locks")) {
		fields := strings.Fields(line)
		if len(fields) < 7 || fields[1] != "->" {
			continue
		}
		if id := strings.Split(fields[6], ":"); len(id) == 3 && inodes[id[2]] {
			n++
		}
	}
	return n
}
