package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// controlName is the supervisor's socket in the state directory.
const controlName = "control"

// upgraded is what came of an upgrade, as it is sent to who asked for it.
type upgraded struct {
	Old, New string // versions
	Err      string // the old one serves on
}

func newUpgrade() *cobra.Command {
	return &cobra.Command{
		Use:   "upgrade DIR",
		Short: "Let the lockfs that is now installed serve a mount; its users notice nothing",
		Long: `Starts the worker of the mount on DIR anew from the binary that is on disk where
the mount was started from. Locks, waiters and open files stay. If the new binary does
not come up, the old one serves on. SIGHUP to lockfs mount does the same.

The supervisor, which keeps the mount and starts workers, stays the old one
until the next lockfs mount.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := resolve(args[0])
			if err != nil {
				return fail(exitUsage, "%s: %v", args[0], err)
			}
			u, err := askUpgrade(dir)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "lockfs: %s: %s serves now, in place of %s\n", dir, u.New, u.Old)
			return nil
		},
	}
}

// askUpgrade has the supervisor of the mount on dir upgrade it.
func askUpgrade(dir string) (upgraded, error) {
	state, err := findMounter(dir)
	if err != nil {
		return upgraded{}, err
	}
	conn, err := dialControl(state)
	switch {
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return upgraded{}, notYours(dir)
	case err != nil: // ECONNREFUSED or ENOENT
		return upgraded{}, fail(exitUnreachable, "%s has no supervisor any more, which alone could upgrade it; unmount it and mount it again", dir)
	}
	defer conn.Close()
	var u upgraded
	if err := json.NewDecoder(conn).Decode(&u); err != nil {
		return u, fail(exitUnreachable, "upgrade %s: the supervisor ended, or refused: %v", dir, err)
	}
	if u.Err != "" {
		return u, fail(exitUnreachable, "upgrade %s: %s", dir, u.Err)
	}
	return u, nil
}

func notYours(dir string) error {
	return fail(exitUnreachable, "%s is not yours to upgrade: only the user who mounted it and root may", dir)
}

// findMounter finds the state directory of the mount on dir, as we reach it. It
// asks the one place that cannot be out of date, and needs no file for it: the
// environment of the worker, which says what it serves.
func findMounter(dir string) (state string, err error) {
	device := deviceOf(dir)
	if device == 0 {
		return "", fail(exitUnreachable, "%s is not a mounted lockfs", dir)
	}
	if state, err = stateOfWorker(device, dir); state != "" || err != nil {
		return state, err
	}
	// Between two workers, perhaps: this returns when one serves.
	_, _ = os.Stat(filepath.Join(dir, "README"))
	if state, err = stateOfWorker(device, dir); state != "" || err != nil {
		return state, err
	}
	return "", notYours(dir)
}

// stateOfWorker is empty where no worker is found whose environment we may
// read (proc_pid_environ(5)). One that is about to end may have had the same
// device, so the one that was mounted on dir is preferred; but to us the mount
// may be elsewhere.
func stateOfWorker(device uint32, dir string) (state string, err error) {
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return "", fail(exitUnreachable, "%v", err)
	}
	for _, p := range procs {
		if _, err := strconv.Atoi(p.Name()); err != nil {
			continue
		}
		environ, _ := os.ReadFile(filepath.Join("/proc", p.Name(), "environ"))
		s, ok := workerSettings(string(environ))
		if !ok || s.Device != device {
			continue
		}
		// It may see other files than we do.
		state = filepath.Join("/proc", p.Name(), "root", s.State)
		if s.Dir == dir {
			break
		}
	}
	return state, nil
}

func workerSettings(environ string) (s settings, ok bool) {
	for v := range strings.SplitSeq(environ, "\x00") {
		if text, is := strings.CutPrefix(v, workerEnv+"="); is {
			return s, json.Unmarshal([]byte(text), &s) == nil
		}
	}
	return s, false
}

// inDir runs f with a short path of a name in dir: those of sockets are limited
// (unix(7)).
func inDir[T any](dir, name string, f func(path string) (T, error)) (t T, err error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return t, fmt.Errorf("%s: %w", dir, err)
	}
	defer unix.Close(fd)
	return f(fmt.Sprintf("/proc/self/fd/%d/%s", fd, name))
}

func dialControl(state string) (net.Conn, error) {
	return inDir(state, controlName, func(path string) (net.Conn, error) { return net.Dial("unix", path) })
}

// listenControl listens for upgrades. The state directory is locked by us, so
// what another left there is dead.
func listenControl(state string) (*net.UnixListener, error) {
	return inDir(state, controlName, func(path string) (*net.UnixListener, error) {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			return nil, err
		}
		l.SetUnlinkOnClose(false) // path is good only here
		return l, nil
	})
}

// serveControl takes a connection for a wish to upgrade, and answers it.
func serveControl(l *net.UnixListener, asked chan<- func(upgraded)) {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return
		}
		if !mayControl(conn) {
			conn.Close()
			continue
		}
		asked <- func(u upgraded) {
			_ = conn.SetWriteDeadline(time.Now().Add(linkPatience))
			_ = json.NewEncoder(conn).Encode(u)
			conn.Close()
		}
	}
}

// mayControl: the user who mounted, and root.
func mayControl(conn *net.UnixConn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	var peer *unix.Ucred
	_ = raw.Control(func(fd uintptr) { peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	return err == nil && (peer.Uid == 0 || int(peer.Uid) == os.Geteuid())
}
