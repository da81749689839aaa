package main

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"lockfs/fs"
)

// busyPatience is for how long a busy mount is asked again before it is
// detached lazily.
const busyPatience = 5 * time.Second

func newUmount() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "umount DIR",
		Short: "Unmount",
		Args:  cobra.ExactArgs(1),
	}
	lazy := cmd.Flags().BoolP("lazy", "l", false, "detach now even if it is busy; it ends with its last user")
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		dir, err := resolve(args[0])
		if err != nil {
			return fail(exitUsage, "%s: %v", args[0], err)
		}
		if mounted, _ := fs.MountedAt(dir); !mounted {
			return fail(exitUnreachable, "%s is not a mounted lockfs", dir)
		}
		ended := func() {}
		if !*lazy {
			ended = whenEnded(dir)
		}
		err = fs.Unmount(dir, *lazy)
		if errors.Is(err, syscall.EBUSY) {
			return fail(exitNo, "%s is busy: a process has a file open or its working directory in it; end it, or use --lazy", dir)
		}
		if err != nil {
			return fail(exitUnreachable, "unmount %s: %v", dir, err)
		}
		ended()
		return nil
	}
	return cmd
}

// endLimit is how long the processes of a mount may take to end.
const endLimit = 5 * time.Second

// whenEnded returns a function that waits until nobody uses the state directory
// of the mount on dir any more, if we may know: then it can be copied or removed.
func whenEnded(dir string) func() {
	state, _ := stateOfWorker(deviceOf(dir), dir)
	lock, err := os.Open(filepath.Join(state, lockName))
	if state == "" || err != nil {
		return func() {}
	}
	return func() {
		free := make(chan struct{})
		go func() {
			defer close(free)
			_ = unix.Flock(int(lock.Fd()), unix.LOCK_SH)
		}()
		select {
		case <-free:
		case <-time.After(endLimit):
		}
	}
}
