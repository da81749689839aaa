package fs

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// MountOptions say how to mount.
type MountOptions struct {
	// AllowOther lets users other than the mounter in (fuse(4)).
	AllowOther bool
	// Options are mount(8) options besides: ro, noexec, dirsync, fsname=...
	Options []string
}

// flagOptions are the mount(8) options that are flags of mount(2).
var flagOptions = map[string]struct {
	set, clear uintptr
}{
	"ro": {set: unix.MS_RDONLY}, "rw": {clear: unix.MS_RDONLY},
	"noexec": {set: unix.MS_NOEXEC}, "exec": {clear: unix.MS_NOEXEC},
	"nosuid": {set: unix.MS_NOSUID}, "suid": {clear: unix.MS_NOSUID},
	"nodev": {set: unix.MS_NODEV}, "dev": {clear: unix.MS_NODEV},
	"noatime": {set: unix.MS_NOATIME}, "atime": {clear: unix.MS_NOATIME},
	"nodiratime": {set: unix.MS_NODIRATIME}, "relatime": {set: unix.MS_RELATIME},
	"strictatime": {set: unix.MS_STRICTATIME},
	"sync":        {set: unix.MS_SYNCHRONOUS}, "async": {clear: unix.MS_SYNCHRONOUS},
	"dirsync": {set: unix.MS_DIRSYNC}, "lazytime": {set: unix.MS_LAZYTIME},
	"defaults": {}, "auto": {}, "noauto": {}, "user": {}, "nouser": {}, "users": {}, "_netdev": {}, "nofail": {},
	"default_permissions": {},
}

// Check says which option is not known.
func (o MountOptions) Check() error {
	_, _, err := o.parsed()
	return err
}

// parsed splits the options into mount(2)'s flags and the source shown in
// mountinfo.
func (o MountOptions) parsed() (flags uintptr, source string, err error) {
	flags, source = unix.MS_NOSUID|unix.MS_NODEV, "lockfs"
	for _, opt := range o.Options {
		f, known := flagOptions[opt]
		name, isName := strings.CutPrefix(opt, "fsname=")
		switch {
		case known:
			flags = flags&^f.clear | f.set
		case isName && name != "":
			source = name
		case strings.HasPrefix(opt, "x-"), strings.HasPrefix(opt, "X-"), strings.HasPrefix(opt, "comment="),
			strings.HasPrefix(opt, "user="): // who mounts, from mount(8)
		default:
			return 0, "", fmt.Errorf("mount option %q is not known; known are %s and fsname=NAME", opt, knownOptions())
		}
	}
	return flags, source, nil
}

func knownOptions() string {
	return strings.Join(slices.Sorted(maps.Keys(flagOptions)), ", ")
}

// Mount mounts a new filesystem on dir and returns the descriptor of its
// connection. As root, also of a user namespace, it calls mount(2); otherwise
// fusermount3.
func Mount(dir string, opts MountOptions) (fd int, err error) {
	flags, source, err := opts.parsed()
	if err != nil {
		return -1, err
	}
	if os.Geteuid() != 0 {
		return mountByHelper(dir, source, opts)
	}
	fd, err = unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open /dev/fuse: %w (load the fuse module, or give the container the device)", err)
	}
	data := fmt.Sprintf("fd=%d,rootmode=40000,user_id=%d,group_id=%d,default_permissions,max_read=%d",
		fd, os.Geteuid(), os.Getegid(), maxWrite)
	if opts.AllowOther {
		data += ",allow_other"
	}
	if err := unix.Mount(source, dir, "fuse.lockfs", flags, data); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("mount on %s: %w", dir, err)
	}
	return fd, nil
}

// mountByHelper asks the setuid program fusermount3, which passes the
// descriptor back over a socket (libfuse, lib/mount.c).
func mountByHelper(dir, source string, opts MountOptions) (int, error) {
	helper, err := exec.LookPath("fusermount3")
	if err != nil {
		return -1, errors.New("mounting as an ordinary user needs fusermount3: install the package fuse3, or mount as root")
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(pair[0])
	theirs := os.NewFile(uintptr(pair[1]), "fusermount3")

	options := []string{"default_permissions", "nosuid", "nodev", "fsname=" + source, "subtype=lockfs",
		fmt.Sprintf("max_read=%d", maxWrite)}
	if opts.AllowOther {
		options = append(options, "allow_other")
	}
	for _, o := range opts.Options {
		if f := flagOptions[o]; f.set|f.clear != 0 {
			options = append(options, o)
		}
	}
	var said bytes.Buffer
	cmd := exec.Command(helper, "-o", strings.Join(options, ","), "--", dir)
	cmd.Env = append(os.Environ(), "_FUSE_COMMFD=3")
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stderr = &said
	err = cmd.Run()
	theirs.Close()
	if err != nil {
		return -1, fmt.Errorf("mount on %s: %s", dir, firstLine(said.String(), err))
	}
	return receiveFD(pair[0])
}

func firstLine(s string, err error) string {
	if line, _, _ := strings.Cut(strings.TrimSpace(s), "\n"); line != "" {
		return line
	}
	return err.Error()
}

func receiveFD(sock int) (int, error) {
	var data [1]byte
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(sock, data[:], oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("receive the mount from fusermount3: %w", err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		return -1, errors.New("fusermount3 passed no descriptor")
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return -1, errors.New("fusermount3 passed no descriptor")
	}
	return fds[0], nil
}

// Unmount takes the filesystem on dir away. Busy mounts fail with EBUSY unless
// lazy, which detaches them now and ends them with their last user (umount2(2)).
func Unmount(dir string, lazy bool) error {
	flags := unix.UMOUNT_NOFOLLOW
	if lazy {
		flags |= unix.MNT_DETACH
	}
	err := unix.Unmount(dir, flags)
	if err == nil || !errors.Is(err, unix.EPERM) {
		return err
	}
	helper, lookErr := exec.LookPath("fusermount3")
	if lookErr != nil {
		return err
	}
	args := []string{"-q", "-u", "--", dir}
	if lazy {
		args = []string{"-q", "-u", "-z", "--", dir}
	}
	if err := exec.Command(helper, args...).Run(); err != nil {
		return unix.EBUSY
	}
	return nil
}

// MountInfo is one lockfs in /proc/self/mountinfo.
type MountInfo struct {
	Dir    string
	Device uint32 // minor number, also the name under /sys/fs/fuse/connections
}

// Mounts lists the lockfs mounts that this process sees, oldest first.
func Mounts() ([]MountInfo, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	return mountsIn(string(b)), err
}

// mountsIn finds them in a mountinfo, where a blank is a blank and nothing
// else: a directory may have any other white space in its name as it is.
func mountsIn(mountinfo string) []MountInfo {
	var out []MountInfo
	for line := range strings.Lines(mountinfo) {
		before, after, ok := strings.Cut(line, " - ")
		f := strings.Split(before, " ")
		if !ok || len(f) < 5 || f[3] != "/" || !strings.HasPrefix(after, "fuse.lockfs ") {
			continue
		}
		m := MountInfo{Dir: unescapeMount(f[4])}
		fmt.Sscanf(f[2], "0:%d", &m.Device)
		out = append(out, m)
	}
	return out
}

// unescapeMount undoes the octal escapes of proc_pid_mountinfo(5).
var unescapeMount = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace

// MountedAt reports whether the topmost mount on dir is a lockfs, and whether
// its daemon is gone.
func MountedAt(dir string) (mounted, dead bool) {
	mounts, err := Mounts()
	if err != nil {
		return false, false
	}
	for _, m := range mounts {
		if m.Dir == filepath.Clean(dir) {
			mounted = true
		}
	}
	var st unix.Stat_t
	return mounted, mounted && errors.Is(unix.Stat(dir, &st), syscall.ENOTCONN)
}
