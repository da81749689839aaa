package main

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"os/signal"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"lockfs/fs"
)

// mountFlags are the flags of lockfs mount.
type mountFlags struct {
	dir                        string
	state, files               string
	defaultTimeout, maxTimeout string
	viewMode                   string
	tokenMode                  string
	maxPerUser                 int
	limitRoot                  bool
	sync                       string
	allowOther                 bool
	noJournal                  bool
	http                       string
	background                 bool
	options                    []string
}

func defaultMountFlags() mountFlags {
	return mountFlags{defaultTimeout: "1h", maxTimeout: "8760h", viewMode: "0555", tokenMode: "0444", maxPerUser: 100_000, sync: syncOS, allowOther: os.Geteuid() == 0}
}

func newMount() *cobra.Command {
	f := defaultMountFlags()
	cmd := &cobra.Command{
		Use:   "mount [flags] DIR",
		Short: "Mount and serve, in the foreground until Ctrl-C",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			f.dir = args[0]
			if f.background && os.Getenv(readyEnv) == "" {
				return mountInBackground(os.Stderr)
			}
			return mount(f)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&f.state, "state", "", "journal and default backing files (default: /var/lib/lockfs/… as root, $XDG_STATE_HOME/lockfs/… otherwise)")
	fl.StringVar(&f.files, "files", "", "the directory behind files/ (default: STATE/files)")
	fl.StringVar(&f.defaultTimeout, "default-timeout", f.defaultTimeout, "of a timed lock that is taken without one")
	fl.StringVar(&f.maxTimeout, "max-timeout", f.maxTimeout, "the longest that can be asked for")
	fl.StringVar(&f.viewMode, "view-mode", f.viewMode, "permissions of view/: 0555 or 0500")
	fl.StringVar(&f.tokenMode, "token-mode", f.tokenMode, "permissions of tlock/NAME/token: 0444, or 0400: only the holder and root are shown tokens, there and elsewhere (a token is a fence, no password: see README)")
	fl.IntVar(&f.maxPerUser, "max-locks-per-user", f.maxPerUser, "locks held and waited for by one user at once, then EDQUOT; and twice as many open files, and 64, outside files/; root is exempt; 0: no limit")
	fl.BoolVar(&f.limitRoot, "limit-root", false, "--max-locks-per-user is for root too")
	fl.StringVar(&f.sync, "sync", f.sync, "os: what is granted survives a crash of lockfs; always: each grant of a timed lock is on disk before it is told, and survives power loss")
	fl.BoolVar(&f.noJournal, "no-journal", false, "keep nothing: a crash ends the mount (to measure what the journal costs)")
	_ = fl.MarkHidden("no-journal")
	fl.BoolVar(&f.allowOther, "allow-other", f.allowOther, "let other users in")
	fl.StringSliceVarP(&f.options, "options", "o", nil, "mount(8) options, comma separated; also state=DIR, files=DIR, default-timeout=, max-timeout=, view-mode=, token-mode=, sync=, http=")
	fl.StringVar(&f.http, "http", "", "serve /metrics (for Prometheus) and /healthz here: a port, of 127.0.0.1; or ADDRESS:PORT, as in 0.0.0.0:9464")
	fl.BoolVar(&f.background, "background", false, "return once the mount is ready")
	return cmd
}

// What --sync can be.
const (
	syncOS     = "os"
	syncAlways = "always"
)

// settings are mountFlags, checked, and what the supervisor tells its workers
// besides. A worker can be of another version than the supervisor.
type settings struct {
	Dir, State, Files          string
	DefaultTimeout, MaxTimeout time.Duration
	ViewMode, TokenMode        uint32
	MaxPerUser                 int
	LimitRoot                  bool
	AllowOther                 bool
	Sync                       string
	NoJournal                  bool
	HTTP                       string   // address to listen on; "": none
	Options                    []string `json:"-"`

	// Instance is a random name of one mount of the kernel's: a worker that finds
	// it in the journal goes on, any other begins anew.
	Instance string
	// Device is the minor number of the mount's device.
	Device uint32
	// Beat is how often the supervisor wants to hear that the mount answers.
	Beat time.Duration
}

// encode is for workerEnv.
func (s settings) encode() string {
	b, _ := json.Marshal(s) // nothing in it can fail
	return string(b)
}

func (f mountFlags) check() (settings, error) {
	options := f.takeOptions()
	s := settings{AllowOther: f.allowOther, Sync: f.sync, NoJournal: f.noJournal, MaxPerUser: f.maxPerUser,
		LimitRoot: f.limitRoot, Options: options}
	var err error
	if s.MaxTimeout, err = flagDuration("--max-timeout", f.maxTimeout, 0); err != nil {
		return s, err
	}
	if s.DefaultTimeout, err = flagDuration("--default-timeout", f.defaultTimeout, s.MaxTimeout); err != nil {
		return s, err
	}
	if f.viewMode != "0555" && f.viewMode != "0500" {
		return s, fail(exitUsage, "--view-mode %q is neither 0555 nor 0500", f.viewMode)
	}
	if f.tokenMode != "0444" && f.tokenMode != "0400" {
		return s, fail(exitUsage, "--token-mode %q is neither 0444 nor 0400", f.tokenMode)
	}
	if f.maxPerUser < 0 {
		return s, fail(exitUsage, "--max-locks-per-user %d is less than 0: give how many locks a user may have, 0 for no limit", f.maxPerUser)
	}
	if f.sync != syncOS && f.sync != syncAlways {
		return s, fail(exitUsage, "--sync %q is neither os nor always", f.sync)
	}
	if s.HTTP, err = httpAddr(f.http); err != nil {
		return s, err
	}
	mode, _ := strconv.ParseUint(f.viewMode, 8, 32)
	s.ViewMode = uint32(mode)
	mode, _ = strconv.ParseUint(f.tokenMode, 8, 32)
	s.TokenMode = uint32(mode)
	if err := (fs.MountOptions{Options: s.Options}).Check(); err != nil {
		return s, fail(exitUsage, "%v", err)
	}
	if s.Dir, err = resolve(f.dir); err != nil {
		return s, fail(exitUsage, "%s: %v", f.dir, err)
	}
	s.State, s.Files, err = f.backing(s.Dir)
	if err == nil && noexec(s.Files) && !slices.Contains(s.Options, "exec") {
		s.Options = append(s.Options, "noexec")
	}
	return s, err
}

// noexec reports whether nothing in a directory can be executed, as mount(8)
// lets it be; then nothing can through our mount.
func noexec(dir string) bool {
	var st unix.Statfs_t
	return unix.Statfs(dir, &st) == nil && st.Flags&unix.MS_NOEXEC != 0
}

// ownOptions are the flags that can be given as -o NAME=VALUE.
func (f *mountFlags) ownOptions() map[string]*string {
	return map[string]*string{"state": &f.state, "files": &f.files, "default-timeout": &f.defaultTimeout,
		"max-timeout": &f.maxTimeout, "view-mode": &f.viewMode, "token-mode": &f.tokenMode, "sync": &f.sync, "http": &f.http}
}

// takeOptions takes those of the -o options that are flags of ours, and returns
// the others.
func (f *mountFlags) takeOptions() (others []string) {
	own := f.ownOptions()
	for _, o := range f.options {
		name, value, valued := strings.Cut(o, "=") // plain sync is mount(2)'s
		if flag := own[name]; valued && flag != nil {
			*flag = value
		} else if o == "allow_other" {
			f.allowOther = true
		} else {
			others = append(others, o)
		}
	}
	return others
}

func flagDuration(flag, value string, max time.Duration) (time.Duration, error) {
	d, err := fs.ParseDuration(value, max)
	if err != nil {
		return 0, fail(exitUsage, "%s %q is no duration greater than zero%s: write seconds, or 90s, 5m, 1h30m, 1d",
			flag, value, atMost(max))
	}
	return d, nil
}

func atMost(max time.Duration) string {
	if max == 0 {
		return ""
	}
	return fmt.Sprintf(" and at most %v", max)
}

// backing makes the state directory, and the one behind files/ if that is the
// default one.
func (f mountFlags) backing(dir string) (state, files string, err error) {
	state = f.state
	if state == "" {
		base, err := stateHome()
		if err != nil {
			return "", "", fail(exitUsage, "no place for state: %v; say where with --state", err)
		}
		state = filepath.Join(base, stateName(dir))
	}
	if state, err = filepath.Abs(state); err != nil {
		return "", "", fail(exitUsage, "--state %s: %v", state, err)
	}
	if isInside(state, dir) {
		return "", "", fail(exitUsage, "--state %s is inside the mount point %s; choose a directory outside", state, dir)
	}
	if err := os.MkdirAll(state, 0o700); err != nil {
		return "", "", fail(exitUnreachable, "--state: %v", err)
	}
	if f.files != "" {
		files, err = filepath.Abs(f.files)
		return state, files, err
	}
	files = filepath.Join(state, "files")
	err = os.Mkdir(files, 0o755)
	if err == nil && os.Geteuid() == 0 {
		err = os.Chmod(files, 0o777|os.ModeSticky) // anybody's to use, as /tmp
	}
	if err != nil && !errors.Is(err, os.ErrExist) {
		return "", "", fail(exitUnreachable, "--state: %v", err)
	}
	return state, files, nil
}

func stateHome() (string, error) {
	if os.Geteuid() == 0 {
		return "/var/lib/lockfs", nil
	}
	if x := os.Getenv("XDG_STATE_HOME"); x != "" {
		return filepath.Join(x, "lockfs"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil { // mount(8) clears the environment
		u, err := user.LookupId(strconv.Itoa(os.Geteuid()))
		if err != nil {
			return "", err
		}
		home = u.HomeDir
	}
	return filepath.Join(home, ".local", "state", "lockfs"), nil
}

// stateName is where a mount point's state is below stateHome: its last part,
// for people, and a hash of the whole.
func stateName(dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return filepath.Base(dir) + "-" + hex.EncodeToString(sum[:4])
}

func mount(f mountFlags) error {
	setProcessName("lockfs") // in the background we are run as exe
	s, err := f.check()
	if err != nil {
		return err
	}
	if err := checkMountPoint(s.Dir, s.Files); err != nil {
		return err
	}
	leaveDirectory()
	locked, err := lockState(s.State, s.Files)
	if err != nil {
		return err
	}
	defer closeFiles(locked)
	control, err := listenControl(s.State)
	if err != nil {
		return fail(exitUnreachable, "--state: %v", err)
	}
	defer os.Remove(filepath.Join(s.State, controlName))
	defer control.Close()
	terminal := hasTerminal() && !signal.Ignored(syscall.SIGHUP) // ignored: nohup(1)
	signals := mountSignals()
	super, err := newSupervisor(s, locked)
	if err != nil {
		return err
	}
	asked := make(chan func(upgraded))
	go serveControl(control, asked)
	super.terminal = terminal
	return super.run(signals, asked)
}

// newSupervisor mounts.
func newSupervisor(s settings, locked []*os.File) (*supervisor, error) {
	path, err := ownPath()
	if err != nil {
		return nil, fail(exitUnreachable, "%v", err)
	}
	self, err := openProgram("/proc/self/exe")
	if err != nil {
		return nil, fail(exitUnreachable, "%v", err)
	}
	limit := raiseFileLimit()
	fd, err := fs.Mount(s.Dir, fs.MountOptions{AllowOther: s.AllowOther, Options: s.Options})
	if err != nil {
		return nil, fail(exitUnreachable, "%v", err)
	}
	log := newLog()
	notify := newNotifier(log)
	s.Instance, s.Device, s.Beat = rand.Text(), deviceOf(s.Dir), notify.beat
	return &supervisor{
		settings: s.encode(), mortal: s.NoJournal, fuse: os.NewFile(uintptr(fd), "/dev/fuse"), state: locked, program: self, path: path,
		unmount:  func(lazy bool) error { return fs.Unmount(s.Dir, lazy) },
		patient:  func() { unmountPatiently(s.Dir) },
		announce: func() { announce(s.Dir) },
		store:    fdStore{limit: limit - spareFDs, log: log},
		limit:    upgradeLimit,
		notify:   notify,
		log:      log,
	}, nil
}

// deviceOf is the minor number of the topmost lockfs on dir. It does not look
// into the mount.
func deviceOf(dir string) (device uint32) {
	mounts, _ := fs.Mounts()
	for _, m := range mounts {
		if m.Dir == dir {
			device = m.Device
		}
	}
	return device
}

func announce(dir string) {
	ready(dir)
	fmt.Printf("lockfs: mounted on %s; read %s/README; Ctrl-C unmounts\n", dir, dir)
}

// mountSignals are those that end a mount, and SIGHUP. A log that nobody reads
// any more must not end us.
func mountSignals() <-chan os.Signal {
	signal.Ignore(syscall.SIGPIPE)
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	return signals
}

func newLog() *slog.Logger { return slog.New(slog.NewTextHandler(os.Stderr, nil)) }

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// checkMountPoint refuses what cannot be mounted on, and takes away what a
// crashed lockfs left mounted there.
func checkMountPoint(dir, files string) error {
	if mounted, dead := fs.MountedAt(dir); dead {
		if err := fs.Unmount(dir, true); err != nil {
			return fail(exitUnreachable, "%s has a dead mount of lockfs that cannot be removed: %v", dir, err)
		}
		fmt.Fprintf(os.Stderr, "lockfs: replaced the dead mount on %s\n", dir)
	} else if mounted {
		return fail(exitUnreachable, "%s has a lockfs mounted already; unmount it with: lockfs umount %s", dir, dir)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return fail(exitUnreachable, "mount point %s: %v; make it with: mkdir -p %s", dir, errors.Unwrap(err), dir)
	}
	if !info.IsDir() {
		return fail(exitUnreachable, "mount point %s is not a directory", dir)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fail(exitUnreachable, "mount point %s: %v", dir, errors.Unwrap(err))
	}
	if len(entries) > 0 {
		return fail(exitUnreachable, "mount point %s is not empty: it has %s; choose an empty directory", dir, entries[0].Name())
	}
	return checkBacking(dir, files)
}

func checkBacking(dir, files string) error {
	info, err := os.Stat(files)
	if err != nil {
		return fail(exitUnreachable, "--files %s: %v", files, errors.Unwrap(err))
	}
	if !info.IsDir() {
		return fail(exitUnreachable, "--files %s is not a directory", files)
	}
	if isInside(files, dir) {
		return fail(exitUsage, "--files %s is inside the mount point %s; choose a directory outside", files, dir)
	}
	return nil
}

// isInside reports whether path is dir or below it. What of path does not exist
// yet is to be made.
func isInside(path, dir string) bool {
	for ; ; path = filepath.Dir(path) {
		real, err := filepath.EvalSymlinks(path)
		if err != nil {
			real = path
		}
		if real == dir || strings.HasPrefix(real, dir+"/") {
			return true
		}
		if path == filepath.Dir(path) {
			return false
		}
	}
}

// raiseFileLimit: each open file of files/ costs a descriptor. It returns how
// many there can be.
func raiseFileLimit() int {
	var r unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &r) != nil {
		return 1024
	}
	if r.Cur < r.Max {
		r.Cur = r.Max
		_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &r)
	}
	return int(min(r.Max, math.MaxInt32))
}

// unmountPatiently unmounts, lazily when the mount stays busy.
func unmountPatiently(dir string) {
	deadline := time.Now().Add(busyPatience)
	for {
		err := fs.Unmount(dir, false)
		if !errors.Is(err, syscall.EBUSY) {
			return
		}
		if time.Now().After(deadline) {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	fmt.Fprintf(os.Stderr, "lockfs: %s is still busy after %v: unmounted it lazily; what still has it open gets an error\n", dir, busyPatience)
	_ = fs.Unmount(dir, true)
}
