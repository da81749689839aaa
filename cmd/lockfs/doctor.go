package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// finding is one line of the doctor: ok, or what to do.
type finding struct {
	what   string
	bad    bool // mounting here fails because of it
	note   string
	advice string // empty: ok
}

func newDoctor() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Say what is missing to mount here, and how to mend it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			bad := false
			for _, check := range []func() finding{checkDevice, checkRights, checkHelper, checkKernel,
				checkResend, checkPassthrough, checkAllowOther, checkDescriptors} {
				f := check()
				bad = bad || f.bad && f.advice != ""
				fmt.Fprintln(cmd.OutOrStdout(), f)
			}
			if bad {
				return fail(exitNo, "lockfs cannot mount here yet")
			}
			return nil
		},
	}
}

func (f finding) String() string {
	state, text := "ok  ", f.note
	if f.advice != "" {
		state, text = "note", f.note+": "+f.advice
		if f.bad {
			state = "FAIL"
		}
	}
	return fmt.Sprintf("%s  %-12s %s", state, f.what, text)
}

func checkDevice() finding {
	f := finding{what: "/dev/fuse", bad: true, note: "can be opened"}
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case err == nil:
		unix.Close(fd)
	case errors.Is(err, unix.ENOENT):
		f.note, f.advice = "is missing", "load the module with `modprobe fuse`; in a container, start it with --device /dev/fuse"
	case errors.Is(err, unix.ENODEV):
		f.note, f.advice = "has no driver", "load the module with `modprobe fuse`"
	default:
		f.note, f.advice = err.Error(), "chmod 666 /dev/fuse; in a container, start it with --device /dev/fuse"
	}
	return f
}

const capSysAdmin = 21 // CAP_SYS_ADMIN, linux/capability.h

func hasSysAdmin() bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&hdr, &data[0]) == nil && data[0].Effective&(1<<capSysAdmin) != 0
}

func checkRights() finding {
	f := finding{what: "rights", bad: true, note: "may call mount(2)"}
	switch {
	case hasSysAdmin():
	case os.Geteuid() != 0:
		f.note = "ordinary user: mounts through fusermount3"
	default:
		f.note, f.advice = "root without CAP_SYS_ADMIN", "start the container with --cap-add SYS_ADMIN, or run under `unshare -Urm`"
	}
	return f
}

func checkHelper() finding {
	path, err := exec.LookPath("fusermount3")
	f := finding{what: "fusermount3", bad: os.Geteuid() != 0, note: path}
	switch {
	case err == nil:
	case os.Geteuid() == 0:
		f.note = "not installed; root does not need it"
	default:
		f.note, f.advice = "not installed", "install the package fuse3, or mount as root, or run under `unshare -Urm`"
	}
	return f
}

func kernelVersion() (major, minor int, release string) {
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		release = unix.ByteSliceToString(u.Release[:])
		fmt.Sscanf(release, "%d.%d", &major, &minor)
	}
	return major, minor, release
}

func checkKernel() finding {
	major, minor, release := kernelVersion()
	f := finding{what: "kernel", note: release}
	if major < 5 || major == 5 && minor < 4 {
		f.bad, f.advice = true, "5.4 or newer is needed"
	}
	return f
}

// isOld is a kernel before 6.9, which brought FUSE_PASSTHROUGH and
// FUSE_NOTIFY_RESEND.
func isOld(major, minor int) bool { return major < 6 || major == 6 && minor < 9 }

func checkResend() finding {
	major, minor, _ := kernelVersion()
	f := finding{what: "resend", note: "calls on the mount survive a crash and an upgrade of lockfs: the kernel sends them again (FUSE_NOTIFY_RESEND)"}
	if isOld(major, minor) {
		f.note = "not in this kernel (FUSE_NOTIFY_RESEND)"
		f.advice = "calls that are under way when lockfs crashes or is upgraded fail with EIO, locks and open files stay; Linux 6.9 or newer sends them again"
	}
	return f
}

func checkPassthrough() finding {
	major, minor, _ := kernelVersion()
	f := finding{what: "passthrough", note: "reads and writes of files/ go straight to the disk"}
	switch {
	case isOld(major, minor):
		f.note, f.advice = "not in this kernel", "files/ is slower, nothing else; it needs 6.9"
	case !inInitialUserNamespace() || !hasSysAdmin():
		f.note, f.advice = "not allowed", "files/ is slower, nothing else; mount as root of the host for it"
	}
	return f
}

// inInitialUserNamespace: the initial one maps every uid to itself.
func inInitialUserNamespace() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && strings.Join(strings.Fields(string(b)), " ") == "0 0 4294967295"
}

func checkAllowOther() finding {
	f := finding{what: "allow_other", note: "other users can use the mount"}
	if os.Geteuid() == 0 {
		return f
	}
	conf, _ := os.ReadFile("/etc/fuse.conf")
	for line := range strings.Lines(string(conf)) {
		if strings.TrimSpace(line) == "user_allow_other" {
			return f
		}
	}
	f.note, f.advice = "only you can use the mount", "put the line user_allow_other into /etc/fuse.conf and mount with --allow-other"
	return f
}

// manyFiles is how many descriptors are worth a note when there are fewer.
const manyFiles = 10000

func checkDescriptors() finding {
	var r unix.Rlimit
	_ = unix.Getrlimit(unix.RLIMIT_NOFILE, &r)
	f := finding{what: "descriptors", note: fmt.Sprintf("%d files of files/ can be open at once, about", r.Max)}
	if r.Max < manyFiles {
		f.advice = "raise the hard limit with `ulimit -Hn` or LimitNOFILE= if programs keep more open"
	}
	return f
}
