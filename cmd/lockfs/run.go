package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"lockfs/fs"
)

// runFlags are the flags of lockfs run; the short ones are flock(1)'s.
type runFlags struct {
	nonblock bool
	wait     string
	conflict int
	verbose  bool
	grace    string
}

func newRun() *cobra.Command {
	f := runFlags{}
	cmd := client("run [flags] NAME -- COMMAND [ARGUMENT]...", "Hold a lock while a command runs", cobra.MinimumNArgs(2),
		func(cmd *cobra.Command, mount string, args []string) error {
			return f.run(cmd, mount, args[0], args[1:])
		})
	cmd.Long = `Waits in line for the lock NAME, runs COMMAND while holding it, and lets it go
when COMMAND ends. The exit code is COMMAND's; 1 (or -E) when the lock was not
had, 126 or 127 when COMMAND could not be run.

If the lock is lost meanwhile, because root released it or the mount is gone,
COMMAND is stopped: SIGTERM, and after --grace SIGKILL. If lockfs run itself is
killed, the lock is free at once and COMMAND gets a SIGTERM.`
	cmd.Example = `  lockfs run backup -- rsync -a /home /mnt/backup
  lockfs run -n -E 75 report -- ./report.sh`
	fl := cmd.Flags()
	fl.SetInterspersed(false)
	fl.BoolVarP(&f.nonblock, "nonblock", "n", false, "fail at once when it is held")
	fl.StringVarP(&f.wait, "wait", "w", "", "give up after so many seconds")
	fl.IntVarP(&f.conflict, "conflict-exit-code", "E", exitNo, "exit code when the lock was not had")
	fl.BoolP("close", "o", true, "as flock(1): COMMAND does not inherit the lock's descriptor; always so here")
	fl.BoolVarP(&f.verbose, "verbose", "v", false, "say how long it took to get the lock")
	fl.StringVar(&f.grace, "grace", "10s", "how long COMMAND may take to end when the lock is lost")
	return cmd
}

func (f runFlags) run(cmd *cobra.Command, mount, name string, command []string) error {
	if err := checkName(name); err != nil {
		return err
	}
	if command[0] == "--" {
		command = command[1:]
	}
	if len(command) == 0 {
		return fail(exitUsage, "no command to run: lockfs run %s -- COMMAND", name)
	}
	if f.conflict < 0 || f.conflict > 255 {
		return fail(exitUsage, "-E %d is no exit code: 0 to 255", f.conflict)
	}
	grace, err := fs.ParseSpan(f.grace)
	if err != nil {
		return fail(exitUsage, "--grace %q is not a duration: write seconds, or 90s, 5m", f.grace)
	}
	wait := f.wait
	if f.nonblock {
		wait = "0"
	} else if err := checkWait(cmd, wait); err != nil {
		return err
	}
	began := time.Now()
	hold, err := openWaiting(filepath.Join(mount, "hold", name), wait)
	if err != nil {
		return f.notHad(name, err)
	}
	defer hold.Close()
	if f.verbose {
		fmt.Fprintf(cmd.ErrOrStderr(), "lockfs: getting lock %s took %.6f seconds\n", name, time.Since(began).Seconds())
	}
	token := make([]byte, 32)
	n, err := hold.Read(token)
	if err != nil {
		return refusal("hold "+name, err)
	}
	return supervise(mount, name, strings.TrimSpace(string(token[:n])), command, grace)
}

// notHad fails with -E's code where the lock was held, as flock(1) does:
// silently, unless -v.
func (f runFlags) notHad(name string, err error) error {
	if !errors.Is(err, syscall.EAGAIN) && !errors.Is(err, syscall.ETIMEDOUT) {
		return notTaken("hold "+name, err)
	}
	if f.verbose {
		return fail(f.conflict, "failed to get lock %s: it is held", name)
	}
	return &failure{code: f.conflict}
}

// supervise runs the command, passes signals on, and stops it when the lock
// is lost.
func supervise(mount, name, token string, command []string, grace time.Duration) error {
	// The kernel sends the command its parent-death signal when the thread
	// that started it ends: keep that thread.
	runtime.LockOSThread()
	child := exec.Command(command[0], command[1:]...)
	child.Stdin, child.Stdout, child.Stderr = os.Stdin, os.Stdout, os.Stderr
	child.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM,
		syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM, syscall.SIGCONT, syscall.SIGWINCH)
	if err := child.Start(); err != nil {
		return cannotRun(command[0], err)
	}
	lost := make(chan string, 1)
	go func() { lost <- watch(mount, name, token) }()
	ended := make(chan error, 1)
	go func() { ended <- child.Wait() }()
	var kill <-chan time.Time
	for {
		select {
		case err := <-ended:
			return exitOf(err)
		case s := <-signals:
			if !fromTerminal(s) {
				_ = child.Process.Signal(s)
			}
		case why := <-lost:
			fmt.Fprintf(os.Stderr, "lockfs: lock %s is lost (%s): stopping %s\n", name, why, command[0])
			_ = child.Process.Signal(syscall.SIGTERM)
			kill = time.After(grace)
		case <-kill:
			_ = child.Process.Kill()
		}
	}
}

// watch returns when the lock has ended, and how.
func watch(mount, name, token string) string {
	f, err := os.Open(filepath.Join(lockPath(mount, name, token), "wait"))
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	how, err := io.ReadAll(f)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(how))
}

// fromTerminal reports whether the terminal sent this signal to our whole
// foreground process group, the command included.
func fromTerminal(s os.Signal) bool {
	if s != syscall.SIGINT && s != syscall.SIGQUIT && s != syscall.SIGWINCH {
		return false
	}
	group, err := unix.IoctlGetInt(0, unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

func cannotRun(command string, err error) error {
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
		return fail(127, "%s: command not found", command)
	}
	return fail(126, "%s: %v", command, err)
}

// exitOf is the command's exit code as a shell has it: 128+N for signal N.
func exitOf(err error) error {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &exit):
		return fail(exitUnreachable, "%v", err)
	}
	status := exit.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		return &failure{code: 128 + int(status.Signal())}
	}
	return &failure{code: status.ExitStatus()}
}
