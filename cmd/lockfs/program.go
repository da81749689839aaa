package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// program is an executable that is kept open: what replaces its file on disk
// does not change what it runs.
type program struct{ file *os.File }

// firstProgramFD is above the descriptors that a child inherits: these are put
// in their places before it looks its program up.
const firstProgramFD = 64

// openProgram needs no right to read: O_PATH.
func openProgram(path string) (program, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return program{}, fmt.Errorf("%s: %w", path, err)
	}
	defer unix.Close(fd)
	high, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, firstProgramFD)
	if err != nil {
		return program{}, fmt.Errorf("%s: %w", path, err)
	}
	return program{os.NewFile(uintptr(high), path)}, nil
}

func (p program) close() { p.file.Close() }

// command prepares to run it.
func (p program) command(args ...string) *exec.Cmd {
	cmd := exec.Command(fmt.Sprintf("/proc/self/fd/%d", p.file.Fd()), args...)
	cmd.Args[0] = os.Args[0]
	return cmd
}

// ownPath is where the next version of us will be found: the path that we were
// called by, so that a symbolic link is followed anew, if that leads to us.
func ownPath() (string, error) {
	self, err := os.Stat("/proc/self/exe")
	if err != nil {
		return "", err
	}
	if called, err := exec.LookPath(os.Args[0]); err == nil {
		if info, err := os.Stat(called); err == nil && os.SameFile(self, info) {
			return filepath.Abs(called)
		}
	}
	return os.Executable()
}

// setProcessName names this process in ps and top, where it would be called
// after the descriptor that it was run from.
func setProcessName(name string) {
	_ = os.WriteFile("/proc/self/comm", []byte(name), 0)
}
