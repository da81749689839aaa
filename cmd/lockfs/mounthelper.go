package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
)

// mountHelperName is what mount(8) runs for `mount -t lockfs`, with a SOURCE, a
// DIR, and -o OPTIONS. It is a link to us.
const mountHelperName = "mount.lockfs"

// Exit codes of mount(8).
const (
	mountExitUsage  = 1
	mountExitFailed = 32
)

// calledByMount reports whether we were run as mountHelperName.
func calledByMount() bool { return filepath.Base(os.Args[0]) == mountHelperName }

func newMountHelper() *cobra.Command {
	f := defaultMountFlags()
	fake := false
	cmd := &cobra.Command{
		Use:           mountHelperName + " SOURCE DIR [-fnsv] [-o OPTIONS]",
		Short:         "Mount as mount(8) asks for it, and return once the mount is ready",
		Args:          cobra.ExactArgs(2),
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(_ *cobra.Command, args []string) error {
			if os.Getenv("PATH") == "" { // mount(8) clears an ordinary user's environment
				os.Setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin") // for fusermount3
			}
			// mount -a knows by its source that a mount is there.
			f.options = append([]string{"fsname=" + args[0]}, f.options...)
			f.dir = args[1]
			return mountExit(f.mountForHelper(fake))
		},
	}
	fl := cmd.Flags()
	fl.StringSliceVarP(&f.options, "options", "o", nil, "see mount.lockfs(8)")
	fl.BoolVarP(&fake, "fake", "f", false, "only check the options")
	for long, short := range map[string]string{"no-mtab": "n", "sloppy": "s", "verbose": "v"} {
		fl.BoolP(long, short, false, "accepted, no effect")
	}
	fl.StringP("types", "t", "", "accepted, no effect")
	return cmd
}

// mountForHelper returns when the mount serves.
func (f mountFlags) mountForHelper(fake bool) error {
	if os.Getenv(readyEnv) != "" {
		return mount(f)
	}
	s, err := f.check()
	if err != nil || fake {
		return err
	}
	log, err := os.OpenFile(filepath.Join(s.State, "log"), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fail(exitUnreachable, "--state: %v", err)
	}
	defer log.Close()
	from, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return fail(exitUnreachable, "--state: %v", err)
	}
	err = mountInBackground(log)
	// What it said until now is for who called mount.
	_, _ = io.Copy(os.Stderr, io.NewSectionReader(log, from, 1<<20))
	return err
}

// mountExit has the exit codes of mount(8) for ours.
func mountExit(err error) error {
	var f *failure
	if !errors.As(err, &f) {
		return err
	}
	switch f.code {
	case exitUsage:
		return &failure{mountExitUsage, f.err}
	case exitUnreachable:
		return &failure{mountExitFailed, f.err}
	}
	return err
}

// mountUsage is a command line that makes no sense, with the exit code of mount(8).
func mountUsage(err error) error {
	var f *failure
	if err == nil || errors.As(err, &f) {
		return err
	}
	return &failure{mountExitUsage, fmt.Errorf("%w; see man mount.lockfs", err)}
}
