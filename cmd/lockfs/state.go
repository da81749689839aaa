package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// lockName is the file in the state directory that who uses it has locked.
const lockName = "lock"

// lockState keeps two lockfs from serving the same state or the same files:
// each would grant what the other has granted. The locks go with the last process
// that has the files open which are returned: supervisor and worker.
func lockState(state, files string) (locked []*os.File, err error) {
	pidFile, err := os.OpenFile(filepath.Join(state, lockName), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fail(exitUnreachable, "--state: %v", err)
	}
	if err := unix.Flock(int(pidFile.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer pidFile.Close()
		return nil, inUse("--state "+state, err, pidFile)
	}
	dir, err := os.Open(files)
	if err != nil {
		pidFile.Close()
		return nil, fail(exitUnreachable, "--files: %v", err)
	}
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		dir.Close()
		pidFile.Close()
		return nil, inUse("--files "+files, err, strings.NewReader(""))
	}
	_ = pidFile.Truncate(0)
	_, _ = fmt.Fprintf(pidFile, "%d\n", os.Getpid()) // for people only
	return []*os.File{pidFile, dir}, nil
}

func inUse(what string, err error, pid io.Reader) error {
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return fail(exitUnreachable, "%s cannot be locked: %v", what, err)
	}
	who := "another lockfs"
	if b, _ := io.ReadAll(pid); len(b) > 1 {
		who += ", pid " + strings.TrimSpace(string(b))
	}
	return fail(exitUnreachable, "%s is in use by %s; unmount that, or choose another directory", what, who)
}
