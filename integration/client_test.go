package integration

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// A client is another process that makes the system calls it is told to, each as soon as it is told; one that blocks
// does not keep it from others. A request is a line `TAG OPERATION ARGUMENT…`, an answer `TAG RESULT`, where the
// result is "ok", an errno's name, or what was asked for. Descriptors have names: `open f` opens the file f, and
// `open f:2` opens it once more.
type client struct {
	t     testing.TB
	cmd   *exec.Cmd
	in    io.WriteCloser
	gone  chan struct{} // closed when the process has been waited for
	mu    sync.Mutex
	next  int
	calls map[string]chan string
}

// newClient starts a client in a directory. edit, where given, changes its command before the start.
func newClient(t testing.TB, dir string, edit ...func(*exec.Cmd)) *client {
	t.Helper()
	c := &client{t: t, calls: make(map[string]chan string), gone: make(chan struct{})}
	c.cmd = exec.Command(selfBinary)
	c.cmd.Env = append(os.Environ(), roleEnv+"=client")
	c.cmd.Dir = dir
	c.cmd.Stderr = os.Stderr
	c.cmd.Stdout = &lineWriter{line: c.answer}
	for _, e := range edit {
		e(c.cmd)
	}
	var err error
	c.in, err = c.cmd.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, c.cmd.Start())
	go func() {
		c.cmd.Wait()
		close(c.gone)
	}()
	t.Cleanup(c.kill)
	return c
}

func (c *client) pid() int { return c.cmd.Process.Pid }

func (c *client) answer(line string) {
	tag, reply, _ := strings.Cut(line, " ")
	c.mu.Lock()
	defer c.mu.Unlock()
	if call := c.calls[tag]; call != nil {
		call <- reply
		delete(c.calls, tag)
	}
}

// begin sends a request and returns where its answer will come.
func (c *client) begin(request string) <-chan string {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next++
	tag := strconv.Itoa(c.next)
	call := make(chan string, 1)
	c.calls[tag] = call
	if _, err := fmt.Fprintln(c.in, tag, request); err != nil {
		call <- "cannot ask: " + err.Error()
	}
	return call
}

// do sends a request and returns its answer.
func (c *client) do(format string, args ...any) string {
	c.t.Helper()
	request := fmt.Sprintf(format, args...)
	return await(c.t, request, c.begin(request))
}

func await(t testing.TB, what string, call <-chan string) string {
	t.Helper()
	select {
	case reply := <-call:
		return reply
	case <-time.After(waitLimit):
		t.Fatalf("no answer within %v: %s", waitLimit, what)
		return ""
	}
}

// kill ends the client with SIGKILL and waits until the kernel has reaped it.
func (c *client) kill() {
	c.t.Helper()
	c.cmd.Process.Kill()
	awaitEnd(c.t, c.pid(), func() { <-c.gone })
}

// What follows runs in the client.

// execEnv carries the tag of an `exec` request and the descriptors through the exec.
const execEnv = "LOCKFS_TEST_EXEC"

type clientState struct {
	mu  sync.Mutex
	FDs map[string]int
	Tag string // of the exec request that made this process image
}

func clientMain() error {
	s := &clientState{FDs: map[string]int{"inherited": 3}}
	if saved := os.Getenv(execEnv); saved != "" {
		if err := json.Unmarshal([]byte(saved), s); err != nil {
			return err
		}
		fmt.Println(s.Tag, "ok")
	}
	signal.Notify(make(chan os.Signal, 1), unix.SIGUSR1)
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		fields := strings.Fields(in.Text())
		go func() {
			reply, err := s.perform(fields[0], fields[1], fields[2:])
			if err != nil {
				reply = errnoName(err)
			}
			fmt.Println(fields[0], reply)
		}()
	}
	return in.Err()
}

func (s *clientState) perform(tag, op string, args []string) (string, error) {
	if cmd, ok := fcntlCommands[op]; ok {
		return s.fcntl(cmd, args)
	}
	switch op {
	case "exec":
		return "", s.exec(tag)
	case "open":
		return "ok", s.open(args)
	case "create": // NAME MODE
		fd, err := unix.Open(args[0], unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, uint32(parseOctal(args[1])))
		s.remember(args[0], fd)
		return "ok", err
	case "pread": // NAME OFFSET LENGTH
		buf := make([]byte, parseInt(args[2]))
		n, err := unix.Pread(s.fd(args[0]), buf, parseInt(args[1]))
		return string(buf[:max(n, 0)]), err
	case "pwrite": // NAME OFFSET TEXT
		_, err := unix.Pwrite(s.fd(args[0]), []byte(args[2]), parseInt(args[1]))
		return "ok", err
	case "close":
		fd := s.fd(args[0])
		s.forget(args[0])
		return "ok", unix.Close(fd)
	case "dup":
		fd, err := unix.Dup(s.fd(args[0]))
		s.remember(args[1], fd)
		return "ok", err
	case "flock":
		return "ok", unix.Flock(s.fd(args[0]), flockFlags[args[1]])
	case "seek":
		_, err := unix.Seek(s.fd(args[0]), parseInt(args[1]), unix.SEEK_SET)
		return "ok", err
	case "truncate":
		return "ok", unix.Ftruncate(s.fd(args[0]), parseInt(args[1]))
	}
	return performOnPath(op, args)
}

// performOnPath does what needs no descriptor.
func performOnPath(op string, args []string) (string, error) {
	switch op {
	case "link":
		return "ok", unix.Link(args[0], args[1])
	case "unlink":
		return "ok", unix.Unlink(args[0])
	case "mkdir":
		return "ok", unix.Mkdir(args[0], 0o755)
	case "rmdir":
		return "ok", unix.Rmdir(args[0])
	case "rename":
		return "ok", unix.Rename(args[0], args[1])
	case "chdir":
		return "ok", unix.Chdir(args[0])
	case "stat":
		var st unix.Stat_t
		return "ok", unix.Stat(args[0], &st)
	case "read":
		return readText(args[0])
	case "write":
		return "ok", writeText(args[0], strings.Join(args[1:], " ")+"\n")
	case "tid":
		runtime.LockOSThread()
		return strconv.Itoa(unix.Gettid()), nil
	}
	return "ok", performChange(op, args)
}

var flockFlags = map[string]int{
	"sh": unix.LOCK_SH, "ex": unix.LOCK_EX, "un": unix.LOCK_UN,
	"sh+nb": unix.LOCK_SH | unix.LOCK_NB, "ex+nb": unix.LOCK_EX | unix.LOCK_NB,
}

const (
	ofdGetlk  = 36 // F_OFD_GETLK and the next two of fcntl.h
	ofdSetlk  = 37
	ofdSetlkw = 38
)

var fcntlCommands = map[string]int{
	"getlk": unix.F_GETLK, "setlk": unix.F_SETLK, "setlkw": unix.F_SETLKW,
	"ofd_getlk": ofdGetlk, "ofd_setlk": ofdSetlk, "ofd_setlkw": ofdSetlkw,
}

// fcntl takes the arguments NAME r|w|u START LENGTH [cur|end]. A getlk answers "free" or TYPE START LENGTH PID.
func (s *clientState) fcntl(cmd int, args []string) (string, error) {
	types := map[string]int16{"r": unix.F_RDLCK, "w": unix.F_WRLCK, "u": unix.F_UNLCK}
	lock := unix.Flock_t{Type: types[args[1]], Start: parseInt(args[2]), Len: parseInt(args[3])}
	if len(args) > 4 {
		lock.Whence = map[string]int16{"cur": unix.SEEK_CUR, "end": unix.SEEK_END}[args[4]]
	}
	err := fcntlLock(s.fd(args[0]), cmd, &lock)
	if err != nil || cmd != unix.F_GETLK && cmd != ofdGetlk {
		return "ok", err
	}
	if lock.Type == unix.F_UNLCK {
		return "free", nil
	}
	name := map[int16]string{unix.F_RDLCK: "r", unix.F_WRLCK: "w"}[lock.Type]
	return fmt.Sprint(name, " ", lock.Start, " ", lock.Len, " ", lock.Pid), nil
}

// fcntlLock is fcntl(2) for locks. A wait that a signal interrupts is begun again, as SA_RESTART would: the Go
// runtime signals its own threads.
func fcntlLock(fd, cmd int, lock *unix.Flock_t) error {
	for {
		err := unix.FcntlFlock(uintptr(fd), cmd, lock)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (s *clientState) open(args []string) error {
	flags := unix.O_RDWR | unix.O_CREAT
	if len(args) > 1 {
		flags = map[string]int{"r": unix.O_RDONLY, "w": unix.O_WRONLY}[args[1]]
	}
	path, _, _ := strings.Cut(args[0], ":")
	fd, err := openAgain(path, flags)
	s.remember(args[0], fd)
	return err
}

// openAgain is open(2), begun again when a signal interrupts it, for the same reason.
func openAgain(path string, flags int) (fd int, err error) {
	for {
		fd, err = unix.Open(path, flags, 0o666)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

func (s *clientState) exec(tag string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Tag = tag
	state, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return unix.Exec(selfPath(), []string{selfPath()}, append(os.Environ(), execEnv+"="+string(state)))
}

func selfPath() string {
	path, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return "/proc/self/exe"
	}
	return path
}

func (s *clientState) fd(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	fd, ok := s.FDs[name]
	if !ok {
		return -1
	}
	return fd
}

func (s *clientState) remember(name string, fd int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.FDs[name] = fd
}

func (s *clientState) forget(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.FDs, name)
}

// readText reads a file as one line of an answer.
func readText(path string) (string, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	buf := make([]byte, 4096)
	n, err := unix.Read(fd, buf)
	return strings.TrimSpace(strings.ReplaceAll(string(buf[:max(n, 0)]), "\n", " ")), err
}

// writeText writes a file in one write(2), as echo does, and reports what open, write or close said.
func writeText(path, text string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_TRUNC|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	_, err = unix.Write(fd, []byte(text))
	return errors.Join(err, unix.Close(fd))
}

func parseInt(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		panic(err)
	}
	return n
}

func parseOctal(s string) uint64 {
	n, err := strconv.ParseUint(s, 8, 32)
	if err != nil {
		panic(err)
	}
	return n
}

// role prepares a command that runs this binary in a role.
func role(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(selfBinary, args...)
	cmd.Env = append(os.Environ(), roleEnv+"="+name)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}
