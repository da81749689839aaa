package files

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A test process that is killed, or hangs in its own mount, cannot unmount. A second process does it when the first
// is not heard of any more; by force, which also wakes whoever hangs in there.

const guardEnv = "LOCKFS_FILES_TEST_GUARD"

type guard struct {
	mu sync.Mutex
	w  io.WriteCloser
}

var theGuard guard

func (g *guard) say(line string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.w != nil {
		fmt.Fprintln(g.w, line)
	}
}

// start runs the second process and a heartbeat. The returned function ends it.
func (g *guard) start() (stop func(), err error) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), guardEnv+"=1")
	cmd.Dir = "/"
	if g.w, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		for range time.Tick(time.Second) {
			g.say("alive")
		}
	}()
	return func() { g.w.Close(); cmd.Wait() }, nil
}

func guardMounts(in io.Reader, silence time.Duration) {
	lines := make(chan string)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(in); s.Scan(); {
			lines <- s.Text()
		}
	}()
	mounts := map[string]bool{}
	for {
		select {
		case line, ok := <-lines:
			verb, dir, _ := strings.Cut(line, " ")
			switch {
			case !ok:
				unmountAll(mounts)
				return
			case verb == "mounted":
				mounts[dir] = true
			case verb == "unmounted":
				delete(mounts, dir)
			}
		case <-time.After(silence):
			unmountAll(mounts)
			clear(mounts)
		}
	}
}

func unmountAll(mounts map[string]bool) {
	for dir := range mounts {
		unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH)
	}
}

func TestMain(m *testing.M) {
	if script := os.Getenv(scriptEnv); script != "" {
		for line := range strings.SplitSeq(script, "\n") {
			fmt.Println(result(act(strings.Fields(line))))
		}
		return
	}
	if os.Getenv(guardEnv) != "" {
		guardMounts(os.Stdin, deadline)
		return
	}
	stop, err := theGuard.start()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	stop()
	os.Exit(code)
}
