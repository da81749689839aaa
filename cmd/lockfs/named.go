package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"lockfs/fs"
)

// Arguments, checked before anything is asked of the mount, so that what is
// wrong can be said in words.

func checkName(name string) error {
	if err := fs.CheckName(name); errors.Is(err, syscall.ENAMETOOLONG) {
		return fail(exitUsage, "name of %d bytes is too long: at most %d", len(name), fs.MaxName)
	} else if err != nil {
		return fail(exitUsage, "name %q is not allowed: use letters, digits, dot, underscore and minus, not beginning with dot or minus", name)
	}
	return nil
}

func checkToken(token string) error {
	if _, err := fs.ParseToken(token); err != nil {
		return fail(exitUsage, "token %q is not a token: it is a whole number, as `cat tlock/NAME/token` prints it", token)
	}
	return nil
}

func checkTimeout(s string) (time.Duration, error) {
	d, err := fs.ParseDuration(s, 0)
	if err != nil {
		return 0, badTimeout(s)
	}
	return d, nil
}

func badTimeout(s string) error {
	return fail(exitUsage, "timeout %q is not a duration greater than zero: write seconds, or 90s, 5m, 1h30m, 1d", s)
}

// checkWait checks the seconds, or DURATION, of --wait and -w, if that was given: 0
// is not to wait.
func checkWait(cmd *cobra.Command, s string) error {
	if !cmd.Flags().Changed("wait") {
		return nil
	}
	if _, err := fs.ParseSpan(s); err != nil {
		return fail(exitUsage, "--wait %q is not a duration: write seconds, or 90s, 5m, 1h30m, 1d, or 0 for not at all", s)
	}
	return nil
}

// refusal turns the errno of a file call on a lock into an exit code and a
// sentence. doing says what failed.
func refusal(doing string, err error) error {
	var errno syscall.Errno
	errors.As(err, &errno)
	switch errno {
	case syscall.ENOENT:
		return fail(exitNo, "%s: it is not held, or no longer with that token", doing)
	case syscall.EEXIST, syscall.EAGAIN:
		return fail(exitNo, "%s: it is held", doing)
	case syscall.ETIMEDOUT:
		return fail(exitNo, "%s: still held when the time to wait was over", doing)
	case syscall.EPERM, syscall.EACCES:
		return fail(exitNo, "%s: not yours: only the holder's user or root may", doing)
	case syscall.EDQUOT:
		return fail(exitNo, "%s: over the cap on locks of one user", doing)
	case syscall.EINVAL:
		return fail(exitUsage, "%s: the mount does not allow that name or timeout (lockfs mount --max-timeout)", doing)
	case syscall.ENOTCONN, syscall.EIO, syscall.ECONNABORTED, syscall.ENODEV:
		return fail(exitUnreachable, "%s: the mount does not answer: %v", doing, errno)
	}
	return fail(exitUnreachable, "%s: %v", doing, err)
}

// notTaken is the refusal of what takes a lock, and is nobody else's yet.
func notTaken(doing string, err error) error {
	if errors.Is(err, syscall.EPERM) {
		return fail(exitNo, "%s: names that begin with uid-N. are for user N and root", doing)
	}
	return refusal(doing, err)
}

// lockPath is tlock/NAME or tlock/NAME@TOKEN.
func lockPath(mount, name, token string) string {
	if token != "" {
		name += "@" + token
	}
	return filepath.Join(mount, "tlock", name)
}

// client makes a command that works on a mount.
func client(use, short string, args cobra.PositionalArgs, run func(cmd *cobra.Command, mount string, args []string) error) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: args}
	dir := addDir(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		mount, err := findMount(*dir)
		if err != nil {
			return err
		}
		return run(cmd, mount, args)
	}
	return cmd
}

func newTake() *cobra.Command {
	var wait string
	cmd := client("take NAME TIMEOUT", "Wait in line, take a lock for a time, print its token", cobra.ExactArgs(2),
		func(cmd *cobra.Command, mount string, args []string) error {
			if err := checkName(args[0]); err != nil {
				return err
			}
			if _, err := checkTimeout(args[1]); err != nil {
				return err
			}
			if err := checkWait(cmd, wait); err != nil {
				return err
			}
			token, err := take(filepath.Join(mount, "take", args[0]+"+"+args[1]), wait)
			if errors.Is(err, os.ErrNotExist) {
				return fail(exitUsage, "timeout %q is over what the mount allows (lockfs mount --max-timeout)", args[1])
			}
			if err != nil {
				return notTaken("take "+args[0], err)
			}
			_, err = cmd.OutOrStdout().Write(token)
			return err
		})
	cmd.Flags().StringVar(&wait, "wait", "", "give up after so many seconds; 0: fail at once (default: wait as long as it takes)")
	return cmd
}

// take returns the token of a lock that is taken by opening path.
func take(path, wait string) ([]byte, error) {
	f, err := openWaiting(path, wait)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

// openWaiting opens a name of take/ or hold/, and waits for its lock as long as
// wait says, which was checked; "": as long as it takes. [os.Open] begins anew
// after each signal that comes meanwhile, and would wait the whole time again.
func openWaiting(path, wait string) (*os.File, error) {
	if wait == "" {
		return os.Open(path)
	}
	whole, err := fs.ParseSpan(wait)
	if err != nil {
		return nil, err
	}
	until, name := time.Now().Add(whole), path+",wait="+wait
	for {
		fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		left := time.Until(until)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), name), nil
		case err != unix.EINTR:
		case left <= 0:
			err = unix.ETIMEDOUT
		default:
			name = fmt.Sprintf("%s,wait=%f", path, left.Seconds())
			continue
		}
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
}

func newRenew() *cobra.Command {
	return client("renew NAME TOKEN TIMEOUT", "Let a lock end TIMEOUT from now; +TIMEOUT: so much later than it would", cobra.ExactArgs(3),
		func(_ *cobra.Command, mount string, args []string) error {
			name, token, timeout := args[0], args[1], args[2]
			if err := checkNameToken(name, token); err != nil {
				return err
			}
			if _, err := fs.ParseDuration(strings.TrimPrefix(timeout, "+"), 0); err != nil {
				return badTimeout(timeout)
			}
			return renew(mount, name, token, timeout)
		})
}

func renew(mount, name, token, timeout string) error {
	f, err := os.OpenFile(filepath.Join(lockPath(mount, name, token), "timeout"), os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(timeout + "\n")
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return refusal("renew "+name, err)
	}
	return nil
}

func checkNameToken(name, token string) error {
	if err := checkName(name); err != nil {
		return err
	}
	return checkToken(token)
}

func newRelease() *cobra.Command {
	return client("release NAME [TOKEN]", "Release a lock: with TOKEN only if it is still that very one", cobra.RangeArgs(1, 2),
		func(_ *cobra.Command, mount string, args []string) error {
			token := ""
			if err := checkName(args[0]); err != nil {
				return err
			}
			if len(args) == 2 {
				token = args[1]
				if err := checkToken(token); err != nil {
					return err
				}
			}
			if err := syscall.Rmdir(lockPath(mount, args[0], token)); err != nil {
				return refusal("release "+args[0], err)
			}
			return nil
		})
}

func newAlive() *cobra.Command {
	return client("alive NAME TOKEN", "Say by exit code whether a lock is still held with that token: 0 yes, 1 no", cobra.ExactArgs(2),
		func(_ *cobra.Command, mount string, args []string) error {
			if err := checkNameToken(args[0], args[1]); err != nil {
				return err
			}
			_, err := os.Stat(lockPath(mount, args[0], args[1]))
			if errors.Is(err, os.ErrNotExist) {
				return errNo
			}
			if err != nil {
				return refusal("alive "+args[0], err)
			}
			return nil
		})
}

// errNo is the answer no, given by the exit code alone.
var errNo = &failure{code: exitNo}

func newHolder() *cobra.Command {
	return client("holder NAME", "Show who holds a lock", cobra.ExactArgs(1),
		func(cmd *cobra.Command, mount string, args []string) error {
			if err := checkName(args[0]); err != nil {
				return err
			}
			text, err := os.ReadFile(filepath.Join(lockPath(mount, args[0], ""), "holder"))
			if err != nil {
				return refusal("holder of "+args[0], err)
			}
			_, err = cmd.OutOrStdout().Write(text)
			return err
		})
}

func newWait() *cobra.Command {
	return client("wait NAME", "Sleep until a lock that is held now ends, and say how", cobra.ExactArgs(1),
		func(cmd *cobra.Command, mount string, args []string) error {
			if err := checkName(args[0]); err != nil {
				return err
			}
			how, err := os.ReadFile(filepath.Join(lockPath(mount, args[0], ""), "wait"))
			if errors.Is(err, os.ErrNotExist) {
				fmt.Fprintln(cmd.OutOrStdout(), "free")
				return nil
			}
			if err != nil {
				return refusal("wait for "+args[0], err)
			}
			_, err = cmd.OutOrStdout().Write(how)
			return err
		})
}

func newEvents() *cobra.Command {
	return client("events", "Follow what happens, as JSON lines, until Ctrl-C", cobra.NoArgs,
		func(cmd *cobra.Command, mount string, _ []string) error {
			f, err := os.Open(filepath.Join(mount, "view", "events"))
			if err == nil {
				defer f.Close()
				_, err = io.Copy(cmd.OutOrStdout(), f)
			}
			if err != nil {
				return refusal("events", err)
			}
			return nil
		})
}
