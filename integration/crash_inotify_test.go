package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// inotifyLimit is how late after the end of a lock its watchers may be told.
const inotifyLimit = time.Second

// TestInotifySeesExpiry: who watches tlock/, or a lock, is told when it expires by itself, also after a restart.
func TestInotifySeesExpiry(t *testing.T) {
	for name, disturb := range map[string]func(*mount){
		"at rest":         func(*mount) {},
		"after a restart": (*mount).killWorker,
		"after three":     func(m *mount) { m.killWorker(); m.killWorker(); m.killWorker() },
	} {
		t.Run(name, func(t *testing.T) {
			m := newCrashMount(t)
			w := newWatcher(t)
			w.watch(m.path("tlock"), unix.IN_CREATE|unix.IN_DELETE)
			for i, seconds := range []float64{1.5, 2.5} { // the second one by a worker that knows what to do by then
				name := fmt.Sprint("x", i)
				require.NoError(t, unix.Mkdir(m.path("tlock", fmt.Sprintf("%s+%g", name, seconds)), 0o755))
				end := time.Now().Add(time.Duration(seconds * float64(time.Second)))
				w.watch(m.path("tlock", name), unix.IN_DELETE_SELF)
				if i == 0 {
					disturb(m)
				}
				deadline := end.Add(inotifyLimit)
				w.await(deadline, "tlock DELETE|ISDIR "+name, name+" DELETE_SELF")
				require.False(t, time.Now().Before(end.Add(-100*time.Millisecond)), "told before the end")
			}
		})
	}
}

// TestInotifySeesNextIncarnation: what removes the expired lock from the kernel's sight does not touch the next lock
// of the name.
func TestInotifySeesNextIncarnation(t *testing.T) {
	const rounds = 30
	m := newCrashMount(t)
	w := newWatcher(t)
	w.watch(m.path("tlock"), unix.IN_DELETE)
	path := m.path("tlock/x")
	for i := range rounds {
		require.NoError(t, unix.Mkdir(path+"+0.05", 0o755))
		m.awaitFree(t, "x")
		require.NoError(t, unix.Mkdir(path+"+1h", 0o755), "round %d", i)
		token := readValue(t, path+"/token")
		w.await(time.Now().Add(inotifyLimit), "tlock DELETE|ISDIR x")
		require.Equal(t, token, readValue(t, path+"/token"), "round %d: the new lock was taken for the old one", i)
		require.NoError(t, unix.Rmdir(path+"@"+token))
		require.NoError(t, unix.Mkdir(path, 0o755))
		require.NoError(t, unix.Rmdir(path))
		w.drain()
	}
}

// A watcher reads inotify(7).
type watcher struct {
	t     *testing.T
	fd    int
	names map[int32]string // of what is watched
	seen  []string
}

func newWatcher(t *testing.T) *watcher {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	require.NoError(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return &watcher{t: t, fd: fd, names: make(map[int32]string)}
}

func (w *watcher) watch(path string, mask uint32) {
	w.t.Helper()
	id, err := unix.InotifyAddWatch(w.fd, path, mask)
	require.NoError(w.t, err, path)
	w.names[int32(id)] = path[strings.LastIndexByte(path, '/')+1:]
}

// await waits until all of these events were seen, in any order.
func (w *watcher) await(deadline time.Time, want ...string) {
	w.t.Helper()
	for {
		w.read()
		missing := 0
		for _, event := range want {
			if !w.has(event) {
				missing++
			}
		}
		left := time.Until(deadline)
		if missing == 0 {
			return
		}
		require.Positive(w.t, left, "not told in time of all in %q, but of %q", want, w.seen)
		fds := []unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, int(left.Milliseconds())+1); err != nil {
			require.ErrorIs(w.t, err, unix.EINTR)
		}
	}
}

func (w *watcher) has(event string) bool {
	for _, seen := range w.seen {
		if seen == event {
			return true
		}
	}
	return false
}

// drain forgets what was seen.
func (w *watcher) drain() {
	w.read()
	w.seen = nil
}

// read takes the events that there are. Each becomes WATCHED WHAT [NAME].
func (w *watcher) read() {
	w.t.Helper()
	buf := make([]byte, 4096)
	for {
		n, err := unix.Read(w.fd, buf)
		if err != nil {
			require.Contains(w.t, []error{unix.EAGAIN, unix.EINTR}, err)
			return
		}
		for rest := buf[:n]; len(rest) > 0; {
			e := (*unix.InotifyEvent)(unsafe.Pointer(&rest[0]))
			name := strings.TrimRight(string(rest[unix.SizeofInotifyEvent:unix.SizeofInotifyEvent+e.Len]), "\x00")
			rest = rest[unix.SizeofInotifyEvent+e.Len:]
			w.seen = append(w.seen, strings.TrimSpace(w.names[e.Wd]+" "+inotifyNames(e.Mask)+" "+name))
		}
	}
}

func inotifyNames(mask uint32) string {
	var names []string
	for _, bit := range []struct {
		bit  uint32
		name string
	}{{unix.IN_CREATE, "CREATE"}, {unix.IN_DELETE, "DELETE"}, {unix.IN_DELETE_SELF, "DELETE_SELF"}, {unix.IN_IGNORED, "IGNORED"}, {unix.IN_ISDIR, "ISDIR"}} {
		if mask&bit.bit != 0 {
			names = append(names, bit.name)
		}
	}
	return strings.Join(names, "|")
}
