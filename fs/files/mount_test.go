package files

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// top is the smallest mount around an FS: a root directory with the one entry files.
type top struct{ *FS }

func (t top) Lookup(c <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if in.NodeId != fuse.FUSE_ROOT_ID {
		return t.FS.Lookup(c, in, name, out)
	}
	if name != "files" {
		return fuse.ENOENT
	}
	out.NodeId = Root
	t.RootAttr(&out.Attr)
	return fuse.OK
}

func (t top) GetAttr(c <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	if in.NodeId != fuse.FUSE_ROOT_ID {
		return t.FS.GetAttr(c, in, out)
	}
	out.Attr = fuse.Attr{Ino: synthetic | 1, Mode: unix.S_IFDIR | 0o755, Nlink: 2}
	return fuse.OK
}

// kernel is passthrough by the stock server, which exists only after the FS; it counts what is registered.
type kernel struct {
	server *fuse.Server
	fail   atomic.Int32 // an errno to fail with
	counts chan [2]int  // registered so far, unregistered so far
}

func newKernel() *kernel {
	k := &kernel{counts: make(chan [2]int, 1)}
	k.counts <- [2]int{}
	return k
}

func (k *kernel) count(i int) {
	c := <-k.counts
	c[i]++
	k.counts <- c
}

func (k *kernel) now() [2]int {
	c := <-k.counts
	k.counts <- c
	return c
}

func (k *kernel) Register(fd int) (int32, error) {
	if errno := k.fail.Load(); errno != 0 {
		k.count(0)
		return 0, syscall.Errno(errno)
	}
	id, errno := k.server.RegisterBackingFd(&fuse.BackingMap{Fd: int32(fd)})
	if errno != 0 {
		return 0, errno
	}
	k.count(0)
	return id, nil
}

func (k *kernel) Unregister(id int32) {
	k.server.UnregisterBackingFd(id)
	k.count(1)
}

// mounted is a mount for one test.
type mounted struct {
	fs      *FS
	dir     string // files/ of the mount
	backing string
	kernel  *kernel // nil without passthrough
}

// deadline bounds every wait of these tests.
const deadline = 30 * time.Second

func mount(t *testing.T, change ...func(*Config)) *mounted {
	t.Helper()
	require.Zero(t, os.Geteuid(), "needs root to mount for other users")
	base, err := os.MkdirTemp("", "lockfs-files-")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(base) })
	require.NoError(t, os.Chmod(base, 0o755))
	m := &mounted{backing: filepath.Join(base, "backing")}
	require.NoError(t, os.Mkdir(m.backing, 0o755))
	require.NoError(t, os.Chmod(m.backing, 0o777))
	cfg := Config{Dir: m.backing, AllowOther: true}
	for _, c := range change {
		c(&cfg)
	}
	if k, ok := cfg.Passthrough.(*kernel); ok {
		m.kernel = k
	}
	m.fs, err = New(cfg)
	require.NoError(t, err)
	m.serve(t, filepath.Join(base, "mnt"))
	return m
}

func (m *mounted) serve(t *testing.T, dir string) {
	t.Helper()
	require.NoError(t, os.Mkdir(dir, 0o755))
	theGuard.say("mounted " + dir)
	extra := uint64(fuse.CAP_HANDLE_KILLPRIV_V2)
	if m.kernel != nil {
		extra |= fuse.CAP_ATOMIC_O_TRUNC // without it O_TRUNC comes as SETATTR: the cached mounts test that
	}
	server, err := fuse.NewServer(top{m.fs}, dir, &fuse.MountOptions{
		AllowOther: true, DirectMountStrict: true, Name: "lockfs-test",
		DirectMountFlags:     unix.MS_NODEV, // suid counts here
		Options:              []string{"default_permissions"},
		ExtraCapabilities:    extra,
		DisabledCapabilities: fuse.CAP_ALLOW_IDMAP,
		Logger:               log.New(io.Discard, "", 0),
	})
	require.NoError(t, err)
	if m.kernel != nil {
		m.kernel.server = server
	}
	served := make(chan struct{})
	go func() { server.Serve(); close(served) }()
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmounting %s: %v", dir, err)
		}
		theGuard.say("unmounted " + dir)
		select {
		case <-served:
			m.fs.Close()
		case <-time.After(deadline):
			t.Errorf("the server did not end: something still uses the mount")
		}
	})
	require.NoError(t, server.WaitMount())
	m.dir = filepath.Join(dir, "files")
}

func withPassthrough(c *Config) { c.Passthrough = newKernel() }

func (m *mounted) path(name string) string { return filepath.Join(m.dir, name) }

func (m *mounted) write(t *testing.T, name, text string) string {
	t.Helper()
	require.NoError(t, os.WriteFile(m.path(name), []byte(text), 0o644))
	return m.path(name)
}

// key is the lock key of a path, which a stat makes known to the kernel.
func (m *mounted) key(t *testing.T, name string) string {
	t.Helper()
	_, err := os.Lstat(m.path(name))
	require.NoError(t, err)
	key, ok := m.fs.KeyByPath(name)
	require.True(t, ok, name)
	return key
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	require.Eventually(t, cond, deadline, 5*time.Millisecond, what)
}

// person is who a subprocess runs as.
type person struct {
	uid, gid uint32
	groups   []uint32
}

var alice = person{uid: 12001, gid: 12001}
var bob = person{uid: 12002, gid: 12002}

const scriptEnv = "LOCKFS_FILES_TEST_ACTS"

// acts are what a subprocess can do as somebody else: one a line, words separated by spaces. Each prints its error.
func (p person) acts(t *testing.T, lines ...string) []string {
	t.Helper()
	exe, err := os.Executable()
	require.NoError(t, err)
	// The binary may lie where only root can go, so it is handed over open.
	cmd := exec.Command("/proc/self/fd/3")
	f, err := os.Open(exe)
	require.NoError(t, err)
	defer f.Close()
	cmd.ExtraFiles = []*os.File{f}
	cmd.Env = append(os.Environ(), scriptEnv+"="+strings.Join(lines, "\n"))
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: p.uid, Gid: p.gid, Groups: p.groups},
		Pdeathsig:  syscall.SIGKILL,
	}
	cmd.Dir = "/"
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	timer := time.AfterFunc(deadline, func() { cmd.Process.Kill() })
	defer timer.Stop()
	out, err := cmd.Output()
	require.NoError(t, err, stderr.String())
	return strings.Split(strings.TrimRight(string(out), "\n"), "\n")
}

func result(err error) string {
	if err == nil {
		return "ok"
	}
	for {
		if errno, ok := err.(syscall.Errno); ok {
			return unix.ErrnoName(errno)
		}
		w, ok := err.(interface{ Unwrap() error })
		if !ok {
			return err.Error()
		}
		err = w.Unwrap()
	}
}

func act(w []string) error {
	switch w[0] {
	case "umask":
		unix.Umask(octal(w[1]))
		return nil
	case "create":
		f, err := os.OpenFile(w[1], os.O_CREATE|os.O_EXCL|os.O_WRONLY, os.FileMode(octal(w[2])))
		if err == nil {
			f.Close()
		}
		return err
	case "mkdir":
		return unix.Mkdir(w[1], uint32(octal(w[2])))
	case "mkfifo":
		return unix.Mkfifo(w[1], uint32(octal(w[2])))
	case "mknod":
		return unix.Mknod(w[1], unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3)))
	case "symlink":
		return unix.Symlink(w[1], w[2])
	case "link":
		return unix.Link(w[1], w[2])
	case "tmpfile":
		fd, err := unix.Open(w[1], unix.O_TMPFILE|unix.O_RDWR, uint32(octal(w[2])))
		if err != nil {
			return err
		}
		return unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, w[3], unix.AT_SYMLINK_FOLLOW)
	case "read":
		_, err := os.ReadFile(w[1])
		return err
	case "write", "append":
		flags := map[string]int{"write": os.O_WRONLY, "append": os.O_WRONLY | os.O_APPEND}[w[0]]
		f, err := os.OpenFile(w[1], flags, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.WriteString(w[2])
		return err
	case "trunc":
		f, err := os.OpenFile(w[1], os.O_WRONLY|os.O_TRUNC, 0)
		if err == nil {
			f.Close()
		}
		return err
	case "truncate":
		return unix.Truncate(w[1], 1)
	case "fallocate":
		f, err := os.OpenFile(w[1], os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		return unix.Fallocate(int(f.Fd()), 0, 0, 8192)
	case "chmod":
		return unix.Chmod(w[1], uint32(octal(w[2])))
	case "chgrp":
		return unix.Chown(w[1], -1, octal10(w[2]))
	case "unlink":
		return unix.Unlink(w[1])
	case "rmdir":
		return unix.Rmdir(w[1])
	case "rename":
		return unix.Rename(w[1], w[2])
	case "setxattr":
		return unix.Setxattr(w[1], w[2], []byte(w[3]), 0)
	case "database":
		return useDBs(w[1])
	case "mapappend":
		return mapBesideAppender(w[1])
	case "maptwice":
		return mapTwice(w[1])
	case "listxattr":
		buf := make([]byte, 1000)
		n, err := unix.Listxattr(w[1], buf)
		fmt.Printf("%q ", strings.Split(strings.TrimRight(string(buf[:max(n, 0)]), "\x00"), "\x00"))
		return err
	}
	return attack(w)
}

func octal(s string) (n int)   { fmt.Sscanf(s, "%o", &n); return n }
func octal10(s string) (n int) { fmt.Sscanf(s, "%d", &n); return n }
