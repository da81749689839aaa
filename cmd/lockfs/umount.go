package main

import (
	"errors"
	"syscall"
	"time"

	"github.com/spf13/cobra"

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
		err = fs.Unmount(dir, *lazy)
		if errors.Is(err, syscall.EBUSY) {
			return fail(exitNo, "%s is busy: a process has a file open or its working directory in it; end it, or use --lazy", dir)
		}
		if err != nil {
			return fail(exitUnreachable, "unmount %s: %v", dir, err)
		}
		return nil
	}
	return cmd
}
