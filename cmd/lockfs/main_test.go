package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// roleEnv names the part that this binary plays when a test runs it again.
const roleEnv = "LOCKFS_TEST_ROLE"

func TestMain(m *testing.M) {
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	if text, ok := os.LookupEnv(workerEnv); ok {
		return exitCodeOf(workerMain(text, testServe))
	}
	if dir, ok := os.LookupEnv(janitorEnv); ok {
		return exitCodeOf(janitorMain(dir))
	}
	switch role := os.Getenv(roleEnv); role {
	case "":
		return m.Run()
	case "supervisor":
		return exitCodeOf(supervisorRole())
	case "janitor":
		return exitCodeOf(janitorRole())
	default:
		fmt.Fprintf(os.Stderr, "no role %q\n", role)
		return exitUsage
	}
}

func exitCodeOf(err error) int {
	if err == nil {
		return 0
	}
	return report(err)
}

// testServe is the worker of the tests: it does what the mark of its binary
// says, or else the settings.
func testServe(s settings, w workerLinks) error {
	behaviour := mark()
	if behaviour == "" {
		behaviour = s.State
	}
	version = behaviour
	switch behaviour {
	case "die":
		_ = w.super.ready()
		os.Exit(7)
	case "fail":
		return fmt.Errorf("broken on purpose")
	case "die now":
		os.Exit(9)
	case "hang":
		select {}
	case "once": // the next ones are killed before they serve
		if os.Mkdir(s.Files, 0o700) != nil {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		}
	case "store":
		if err := testStore(s, w.super); err != nil {
			return err
		}
	}
	if err := w.super.ready(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() {
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(w.fuse)}}, -1)
		ended <- nil
	}()
	select {
	case err := <-ended:
		return err
	case <-w.super.orphaned:
		return serveAlone(s.Dir, ended, newLog())
	}
}

// A mark behind the end of a binary changes nothing but what it is.
var markStart = []byte("\nMARK OF A TEST=")

func mark() string {
	const most = 100
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if _, err := f.Seek(-most, io.SeekEnd); err != nil {
		return err.Error()
	}
	end, _ := io.ReadAll(f)
	_, mark, _ := bytes.Cut(end, markStart)
	return string(mark)
}

// install puts a copy of this binary with a mark at path, as an installer
// does: by a new file.
func install(t testing.TB, path, mark string) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/exe")
	if err == nil && mark != "" {
		b = append(append(b, markStart...), mark...)
	}
	if err == nil {
		err = os.WriteFile(path+".new", b, 0o755)
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		t.Fatal(err)
	}
}
