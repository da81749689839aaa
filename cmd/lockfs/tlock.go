package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"lockfs/fs"
)

// tlock speaks the protocol of Perl's Sys::Tlock in a directory: that of a
// lockfs, or any other that Perl scripts use.
//
// A lock is the directory MARKER.LABEL with a subdirectory d. The mtime of the
// first is when it was taken, which is also its token; that of d is its
// duration. MARKER_.LABEL is the master lock, held while these are changed.
type tlock struct {
	tlockConf
	out io.Writer
}

func newTlock() *cobra.Command {
	var o tlockOptions
	cmd := &cobra.Command{
		Use:   "tlock [flags] take|renew|release|alive|taken|expiry|zing [LABEL [TOKEN] [TIMEOUT]]",
		Short: "Sys::Tlock's tlock script again",
		Long: `The tlock script of Perl's Sys::Tlock, with its integer tokens and its
configuration: flags beat the environment (tlock_dir, tlock_marker,
tlock_patience, tlock_owner, tlock_conf), which beats /etc/tlock.conf.

  take LABEL TIMEOUT [PATIENCE]   take it, print its token
  renew LABEL TOKEN TIMEOUT       let it end TIMEOUT seconds from now
  release LABEL TOKEN             release it
  alive LABEL TOKEN               exit code 0 if it is still held with TOKEN
  taken LABEL                     exit code 0 if it is held by anybody
  expiry LABEL                    print when it ends, in epoch seconds
  zing                            clean up what is stale`,
	}
	fl := cmd.Flags()
	fl.SetInterspersed(false)
	fl.StringVarP(&o.conf, "conf", "c", "", "configuration file")
	fl.StringVarP(&o.dir, "dir", "d", "", "lock directory (default: tlock/ of the one lockfs that is mounted)")
	fl.StringVarP(&o.marker, "marker", "m", "", "prefix of the locks' names (default tlock)")
	fl.StringVarP(&o.owner, "owner", "o", "", "user to give locks to, by name or number; for root")
	fl.StringVarP(&o.patience, "patience", "p", "", "seconds to try to take a lock (default 0.25)")
	showVersion := fl.BoolP("version", "V", false, "print the version")
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if *showVersion {
			return nil
		}
		return tlockArgs(args)
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if *showVersion {
			fmt.Fprintf(cmd.OutOrStdout(), "lockfs tlock %s\n", version)
			return nil
		}
		conf, err := o.resolve()
		if err != nil {
			return err
		}
		if most := fs.MaxName - len(conf.marker+"_."); len(args) > 1 && len(args[1]) > most {
			return fail(exitUsage, "tlock: label of %d bytes is too long: at most %d with this marker", len(args[1]), most)
		}
		t := tlock{conf, cmd.OutOrStdout()}
		return t.run(args[0], args[1:])
	}
	return cmd
}

// tlockArity is how many arguments the commands take, at least and at most.
var tlockArity = map[string][2]int{
	"take": {2, 3}, "renew": {3, 3}, "release": {2, 2}, "alive": {2, 2}, "taken": {1, 1}, "expiry": {1, 2}, "zing": {0, 0},
}

var labelPattern = regexp.MustCompile(`^[a-zA-Z0-9_.-]+$`)

func tlockArgs(args []string) error {
	if len(args) == 0 {
		return fail(exitUsage, "tlock: no command: take, renew, release, alive, taken, expiry or zing")
	}
	n, ok := tlockArity[args[0]]
	if !ok {
		return fail(exitUsage, "tlock: command %q is none of take, renew, release, alive, taken, expiry, zing", args[0])
	}
	rest := args[1:]
	if len(rest) < n[0] || len(rest) > n[1] {
		return fail(exitUsage, "tlock %s: %d arguments; see lockfs tlock --help", args[0], len(rest))
	}
	if len(rest) > 0 && !labelPattern.MatchString(rest[0]) {
		return fail(exitUsage, "tlock: label %q is not allowed: use letters, digits, dot, underscore and minus", rest[0])
	}
	return nil
}

func (t tlock) run(command string, args []string) error {
	switch command {
	case "take":
		if len(args) == 3 {
			p, err := parsePatience(args[2])
			if err != nil {
				return fail(exitUsage, "tlock take: %v", err)
			}
			t.patience = p
		}
		return t.take(args[0], args[1])
	case "renew":
		return t.renew(args[0], args[1], args[2])
	case "release":
		return t.release(args[0], args[1])
	case "alive":
		return t.alive(args[0], args[1])
	case "taken":
		if _, _, held := t.state(args[0]); !held {
			return errNo
		}
		return nil
	case "expiry":
		return t.expiry(args[0])
	}
	return t.zing()
}

func (t tlock) path(label string) string { return filepath.Join(t.dir, t.marker+"."+label) }

// state is when a label's lock was taken and when it ends, in epoch seconds.
func (t tlock) state(label string) (start, end int64, held bool) {
	lock, err := os.Stat(t.path(label))
	if err != nil {
		return 0, 0, false
	}
	d, err := os.Stat(filepath.Join(t.path(label), "d"))
	if err != nil {
		return 0, 0, false
	}
	start = lock.ModTime().Unix()
	end = start + d.ModTime().Unix()
	return start, end, end >= time.Now().Unix()
}

func tlockTimeout(s string) (int64, error) {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || !(f > 0 && f < 1e12) || strings.ContainsAny(s, "xXpPiInN_") {
		return 0, fail(exitUsage, "tlock: timeout %q is not a number of seconds greater than zero", s)
	}
	n := int64(f)
	if float64(n) < f {
		n++
	}
	return n, nil
}

func tlockToken(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n <= 0 {
		return 0, fail(exitUsage, "tlock: token %q is not a token: it is a whole number, as tlock take prints it", s)
	}
	return n, nil
}

// withMaster holds a label's master lock while f runs.
func (t tlock) withMaster(label string, f func() error) error {
	master := filepath.Join(t.dir, t.marker+"_."+label)
	master, err := t.takeMaster(master)
	if err != nil {
		return err
	}
	defer os.Remove(master)
	return f()
}

// takeMaster waits in line where the directory is a lockfs's, and tries again
// and again, as Sys::Tlock does, where it is not. It returns what to remove: of a
// lockfs, that very lock, which may have run out and be another's by then.
func (t tlock) takeMaster(master string) (mine string, err error) {
	line := filepath.Join(filepath.Dir(filepath.Clean(t.dir)), "take", filepath.Base(master))
	if mounted, _ := fs.MountedAt(filepath.Dir(filepath.Clean(t.dir))); mounted {
		token, err := take(line, fmt.Sprintf("%f", t.patience.Seconds()))
		if err != nil || len(token) == 0 {
			return "", refusal("tlock: master lock "+filepath.Base(master), err)
		}
		return master + "@" + strings.TrimSpace(string(token)), nil
	}
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		err := syscall.Mkdir(master, 0o777)
		if err == nil {
			return master, nil
		}
		if !errors.Is(err, os.ErrExist) || time.Since(began) > t.patience {
			return "", refusal("tlock: master lock "+filepath.Base(master), err)
		}
	}
}

func (t tlock) take(label, timeout string) error {
	seconds, err := tlockTimeout(timeout)
	if err != nil {
		return err
	}
	return t.withMaster(label, func() error {
		if _, _, held := t.state(label); held {
			return errNo
		}
		dir := t.path(label)
		d := filepath.Join(dir, "d")
		for _, p := range []string{dir, d} {
			if err := os.Mkdir(p, 0o777); err != nil && !errors.Is(err, os.ErrExist) {
				return refusal("tlock take "+label, err)
			}
			if err := os.Chown(p, t.owner, -1); err != nil {
				return refusal("tlock take "+label, err)
			}
		}
		now := time.Now().Unix()
		if err := errors.Join(setMtime(dir, now), setMtime(d, seconds)); err != nil {
			return refusal("tlock take "+label, err)
		}
		fmt.Fprintln(t.out, now)
		return nil
	})
}

func setMtime(path string, sec int64) error {
	return os.Chtimes(path, time.Unix(0, 0), time.Unix(sec, 0))
}

func (t tlock) renew(label, token, timeout string) error {
	want, err := tlockToken(token)
	if err != nil {
		return err
	}
	seconds, err := tlockTimeout(timeout)
	if err != nil {
		return err
	}
	return t.withMaster(label, func() error {
		start, _, held := t.state(label)
		if !held || start != want {
			return errNo
		}
		if err := setMtime(filepath.Join(t.path(label), "d"), time.Now().Unix()-start+seconds); err != nil {
			return refusal("tlock renew "+label, err)
		}
		return nil
	})
}

func (t tlock) release(label, token string) error {
	want, err := tlockToken(token)
	if err != nil {
		return err
	}
	return t.withMaster(label, func() error {
		if start, _, held := t.state(label); !held || start != want {
			return errNo
		}
		return t.remove(label)
	})
}

func (t tlock) remove(label string) error {
	_ = syscall.Rmdir(filepath.Join(t.path(label), "d"))
	if err := syscall.Rmdir(t.path(label)); err != nil {
		return refusal("tlock release "+label, err)
	}
	return nil
}

func (t tlock) alive(label, token string) error {
	want, err := tlockToken(token)
	if err != nil {
		return err
	}
	if start, _, held := t.state(label); !held || start != want {
		return errNo
	}
	return nil
}

func (t tlock) expiry(label string) error {
	_, end, held := t.state(label)
	if !held {
		return errNo
	}
	fmt.Fprintln(t.out, end)
	return nil
}

// zing removes locks whose time is over. In a lockfs there are none.
func (t tlock) zing() error {
	entries, err := os.ReadDir(t.dir)
	if err != nil {
		return refusal("tlock zing", err)
	}
	for _, e := range entries {
		label, ok := strings.CutPrefix(e.Name(), t.marker+".")
		if !ok || label == "" {
			continue
		}
		if _, _, held := t.state(label); held {
			continue
		}
		err := t.withMaster(label, func() error {
			if _, _, held := t.state(label); held {
				return nil
			}
			return t.remove(label)
		})
		if err != nil {
			return err
		}
	}
	return nil
}
