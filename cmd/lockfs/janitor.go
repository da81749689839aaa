package main

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	janitorEnv = "LOCKFS_JANITOR" // the mount's device and directory; makes us the helper process

	maxJanitorQueue = 4096
	janitorIdle     = 10 * time.Second
)

// janitor removes the directories of locks that have expired by rmdir(2)
// calls, so that inotify(7) tells those who watch. A process must not make
// calls on a mount that it serves: killed in one, it could not be reaped, since
// nobody would answer. So a helper process does, which is started when needed.
//
// It gets the next name only when it is done with the one before: a worker that
// dies leaves one call behind, at most.
//
// Concurrency: every method may be called from any goroutine.
type janitor struct {
	mountDir string
	device   uint32 // minor number of the mount's
	// started is called with each helper's pid before it makes its first call.
	started func(pid int32)
	idle    time.Duration
	log     *slog.Logger

	pid atomic.Int32

	mu      sync.Mutex
	queue   []string
	running bool          // run runs
	wake    chan struct{} // has room for one: the queue was empty
}

// newJanitor serves the mount on mountDir.
func newJanitor(mountDir string, device uint32) *janitor {
	return &janitor{mountDir: mountDir, device: device, started: func(int32) {}, idle: janitorIdle, log: newLog(), wake: make(chan struct{}, 1)}
}

// Pid of the helper; 0 when there is none.
func (j *janitor) Pid() int32 { return j.pid.Load() }

// OnStart implements fs.Janitor.
func (j *janitor) OnStart(started func(pid int32)) { j.started = started }

// Remove has tlock/name removed soon. When very many wait, the oldest is
// forgotten.
func (j *janitor) Remove(name string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.queue) == maxJanitorQueue {
		j.queue = j.queue[1:]
	}
	j.queue = append(j.queue, name)
	if !j.running {
		j.running = true
		go j.run()
	}
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

// next returns the next name, or stops run: there was none for long.
func (j *janitor) next() (name string, ok bool) {
	limit := time.NewTimer(j.idle)
	defer limit.Stop()
	for idle := false; ; {
		if name, ok := j.pop(idle); ok {
			return name, true
		}
		if idle {
			return "", false
		}
		select {
		case <-j.wake:
		case <-limit.C:
			idle = true
		}
	}
}

// pop takes the oldest name; if there is none and last is true, run ends.
func (j *janitor) pop(last bool) (name string, ok bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.queue) == 0 {
		j.running = !last
		return "", false
	}
	name, j.queue = j.queue[0], j.queue[1:]
	return name, true
}

// run has one helper after the other, as they are needed.
func (j *janitor) run() {
	var h *helper
	for {
		name, ok := j.next()
		if !ok {
			break
		}
		if h == nil {
			var err error
			if h, err = startHelper(j.mountDir, j.device); err != nil {
				j.log.Warn("no event for a lock that expired", "lock", name, "err", err)
				continue
			}
			j.pid.Store(h.pid())
			j.started(h.pid())
		}
		if h.remove(name) != nil { // it was killed
			j.end(h)
			h = nil
		}
	}
	if h != nil {
		j.end(h)
	}
}

func (j *janitor) end(h *helper) {
	h.end()
	j.pid.CompareAndSwap(h.pid(), 0) // a new run may have another one already
}

// helper is our end of the helper process.
type helper struct {
	cmd     *exec.Cmd
	names   io.WriteCloser // one a line
	answers io.ReadCloser  // one byte each
}

// startHelper gives it nothing of ours: every descriptor that we have is
// closed on exec.
func startHelper(mountDir string, device uint32) (*helper, error) {
	cmd := exec.Command("/proc/self/exe", "janitor")
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d:%s", janitorEnv, device, mountDir), "GOMAXPROCS=1", "GOGC=10")
	cmd.Dir = "/" // not in the mount, nor on what it hides
	names, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	answers, err := cmd.StdoutPipe()
	if err != nil {
		names.Close()
		return nil, err
	}
	return &helper{cmd, names, answers}, cmd.Start() // closes the pipes when it fails
}

func (h *helper) pid() int32 { return int32(h.cmd.Process.Pid) }

// remove returns when the call is done.
func (h *helper) remove(name string) error {
	if _, err := io.WriteString(h.names, name+"\n"); err != nil {
		return err
	}
	var answer [1]byte
	_, err := io.ReadFull(h.answers, answer[:])
	return err
}

func (h *helper) end() {
	h.names.Close()
	_ = h.cmd.Wait()
}

// The helper's calls come from its main thread, so that it is known by its pid.
func init() {
	if os.Getenv(janitorEnv) != "" {
		runtime.LockOSThread()
	}
}

// janitorMain is the helper process. It ends with its input. That a lock is
// gone already is as good as its removal.
func janitorMain(mount string) error {
	number, mountDir, _ := strings.Cut(mount, ":")
	device, err := strconv.ParseUint(number, 10, 32)
	if err != nil {
		return fail(exitUsage, "%s is for lockfs itself: %v", janitorEnv, err)
	}
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	os.Unsetenv(janitorEnv)
	setProcessName("lockfs-janitor")
	names := bufio.NewScanner(os.Stdin)
	for names.Scan() {
		// Something else may be mounted there by now, in which the name is
		// somebody's lock.
		var st unix.Stat_t
		if unix.Stat(mountDir, &st) != nil || uint64(unix.Minor(st.Dev)) != device {
			break
		}
		_ = unix.Unlinkat(unix.AT_FDCWD, filepath.Join(mountDir, "tlock", names.Text()), unix.AT_REMOVEDIR)
		if _, err := os.Stdout.Write([]byte{0}); err != nil {
			return nil
		}
	}
	return nil
}
