// Lockfs serves a filesystem in which locks are files, and is its own client.
//
// # Processes
//
// lockfs mount is a supervisor (supervisor.go): it mounts, keeps the connection
// to the kernel, and has one child at a time, the worker (worker.go), which
// serves it. A link (fdstore.go) joins the two: over it each learns of the
// other's end, and the worker has descriptors kept that its successor will
// need. The worker may have a child itself, the janitor (janitor.go), which
// makes the calls on the mount that the worker must not.
package main

import (
	"errors"
	"fmt"
	"os"
	"regexp"

	"github.com/spf13/cobra"
)

// Exit codes, the same for every command.
const (
	exitNo          = 1 // the lock's answer is no
	exitUsage       = 2
	exitUnreachable = 3 // no mount to talk to
)

// failure is an error with an exit code.
type failure struct {
	code int
	err  error
}

// Error is empty where the exit code says it all.
func (f *failure) Error() string {
	if f.err == nil {
		return ""
	}
	return f.err.Error()
}

func (f *failure) Unwrap() error { return f.err }

// fail makes a failure of one line: what was wrong, with which value, what
// would be right.
func fail(code int, format string, args ...any) error {
	return &failure{code, fmt.Errorf(format, args...)}
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "lockfs",
		Short: "A filesystem in which locks are files",
		Long: `lockfs mounts a filesystem in which locks are files: mkdir takes a timed lock,
cat shows who holds it, rmdir releases it; and flock, fcntl and OFD locks that
any program takes on the files in it are seen in the same place.

  lockfs mount /locks     mounts it; then read /locks/README`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetFlagErrorFunc(flagError)
	root.AddCommand(newMount(), newUmount(), newRun(), newTake(), newRenew(), newRelease(), newAlive(), newHolder(),
		newTlock(), newWait(), newLs(), newEvents(), newUpgrade(), newDoctor(), newVersion())
	return root
}

var negative = regexp.MustCompile(`flag: '.' in (-[0-9.].*)$`)

// flagError takes a negative number for what it is, not for flags.
func flagError(_ *cobra.Command, err error) error {
	if m := negative.FindStringSubmatch(err.Error()); m != nil {
		return fail(exitUsage, "%s is not allowed: a duration or token is a number greater than zero", m[1])
	}
	return err
}

func main() {
	if err := run(); err != nil {
		os.Exit(report(err))
	}
}

// run runs a command, or what a command of ours runs us for.
func run() error {
	if text, ok := os.LookupEnv(workerEnv); ok {
		return workerMain(text, profiled(serve))
	}
	if dir, ok := os.LookupEnv(janitorEnv); ok {
		return janitorMain(dir)
	}
	if calledByMount() {
		return mountUsage(newMountHelper().Execute())
	}
	return newRoot().Execute()
}

// report says what went wrong and returns the exit code.
func report(err error) int {
	var f *failure
	if !errors.As(err, &f) { // what cobra itself refuses
		f = &failure{exitUsage, fmt.Errorf("%w; see lockfs --help", err)}
	}
	if text := f.Error(); text != "" {
		fmt.Fprintf(os.Stderr, "lockfs: %s\n", text)
	}
	return f.code
}
