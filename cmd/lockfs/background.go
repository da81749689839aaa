package main

import (
	"io"
	"os"
	"os/exec"
	"syscall"
)

// readyFD is the descriptor on which a mount in the background says that it is
// ready; it is open where readyEnv is set.
const (
	readyFD  = 3
	readyEnv = "LOCKFS_READY"
)

// mountInBackground runs this same command once more, which readyEnv keeps in
// the foreground of a session of its own, and returns when that is ready or has failed. It
// writes its log to log.
func mountInBackground(log *os.File) error {
	r, w, err := os.Pipe()
	if err != nil {
		return fail(exitUnreachable, "%v", err)
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	if path, err := ownPath(); err == nil {
		cmd.Args[0] = path // for upgrades, from whatever directory
	}
	cmd.Env = append(os.Environ(), readyEnv+"=1")
	cmd.Stderr = log
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return fail(exitUnreachable, "%v", err)
	}
	if said, _ := io.ReadAll(r); len(said) > 0 {
		return nil
	}
	// It has ended and said why.
	return exitOf(cmd.Wait())
}

// leaveDirectory: in the background we are not to keep the filesystem busy from
// which we were started.
func leaveDirectory() {
	if os.Getenv(readyEnv) != "" {
		_ = os.Chdir("/")
	}
}

// ready tells who started us in the background.
func ready(dir string) {
	if os.Getenv(readyEnv) == "" {
		return
	}
	f := os.NewFile(readyFD, "ready")
	_, _ = f.WriteString(dir)
	_ = f.Close()
}
