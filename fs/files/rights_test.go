package files

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

const team = 13000

// attack are acts by which somebody might get more than is theirs.
func attack(w []string) error {
	switch w[0] {
	case "list":
		_, err := os.ReadDir(w[1])
		return err
	case "chown":
		return unix.Chown(w[1], octal10(w[2]), -1)
	case "utime":
		return unix.UtimesNano(w[1], []unix.Timespec{{Sec: 1}, {Sec: 1}})
	case "touch":
		return unix.UtimesNano(w[1], []unix.Timespec{{Nsec: unix.UTIME_NOW}, {Nsec: unix.UTIME_NOW}})
	case "exchange":
		return unix.Renameat2(unix.AT_FDCWD, w[1], unix.AT_FDCWD, w[2], unix.RENAME_EXCHANGE)
	case "getxattr":
		_, err := unix.Getxattr(w[1], w[2], nil)
		return err
	case "removexattr":
		return unix.Removexattr(w[1], w[2])
	case "reopen": // for writing what was opened as a path only
		return withFD(w[1], unix.O_PATH, func(fd int) error { return withFD(procPath(fd), unix.O_WRONLY, nil) })
	case "linkfd":
		return withFD(w[1], unix.O_PATH, func(fd int) error {
			return unix.Linkat(fd, "", unix.AT_FDCWD, w[2], unix.AT_EMPTY_PATH)
		})
	case "setflags":
		return withFD(w[1], unix.O_RDONLY, func(fd int) error {
			return unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, unix.STATX_ATTR_APPEND)
		})
	case "copyinto": // a file that is open for reading only
		return withFD(w[1], unix.O_RDONLY, func(fd int) error {
			_, err := unix.CopyFileRange(fd, nil, fd, new(int64), 1, 0)
			return err
		})
	case "truncinto":
		return withFD(w[1], unix.O_RDONLY, func(fd int) error { return unix.Ftruncate(fd, 0) })
	case "byhandle":
		return openByHandle(w[1])
	case "snatch":
		return snatch(w[1])
	}
	return fmt.Errorf("no act %q", w[0])
}

func withFD(path string, flags int, use func(fd int) error) error {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if use == nil {
		return nil
	}
	return use(fd)
}

func openByHandle(path string) error {
	h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, path, 0)
	if err != nil {
		return err
	}
	return withFD(filepath.Dir(path), unix.O_RDONLY|unix.O_DIRECTORY, func(dir int) error {
		fd, err := unix.OpenByHandleAt(dir, h, unix.O_RDONLY)
		if err == nil {
			unix.Close(fd)
		}
		return err
	})
}

// snatches are tries enough to meet each moment of a rename.
const snatches = 1000

// snatch reads and writes a file by name, again and again, and says EBADE if what it read was not for it.
func snatch(path string) error {
	for range snatches {
		if text, err := os.ReadFile(path); err == nil && strings.HasPrefix(string(text), "secret") {
			return unix.EBADE
		}
		if f, err := os.OpenFile(path, os.O_WRONLY, 0); err == nil {
			f.WriteString("P")
			f.Close()
		}
	}
	return nil
}

// attacks are bob's, on what is alice's or root's. None may succeed, and each fails as it would without us.
var attacks = []struct{ act, want string }{
	{"read secret", "EACCES"}, {"write secret x", "EACCES"}, {"append secret x", "EACCES"}, {"trunc secret", "EACCES"},
	{"truncate secret", "EACCES"}, {"fallocate secret", "EACCES"}, {"write public x", "EACCES"}, {"trunc public", "EACCES"},
	{"reopen public", "EACCES"}, {"truncinto public", "EINVAL"}, {"copyinto public", "EBADF"}, {"setflags public", ""},
	{"chmod public 666", "EPERM"}, {"chown public 12002", "EPERM"}, {"chgrp public 12002", "EPERM"},
	{"utime public", "EPERM"}, {"touch public", "EACCES"},
	{"unlink public", "EPERM"}, {"rename public mine", "EPERM"}, {"rename mine public", "EPERM"},
	{"exchange mine public", "EPERM"}, {"exchange public mine", "EPERM"}, {"rmdir empty", "EPERM"},
	{"link secret hard", "EPERM"}, {"link suid hard", "EPERM"}, {"linkfd secret hard", ""}, {"byhandle secret", ""},
	{"list private", "EACCES"}, {"read private/open", "EACCES"}, {"create private/x 666", "EACCES"},
	{"mkdir private/x 777", "EACCES"}, {"unlink private/open", "EACCES"}, {"rename private/open mine", "EACCES"},
	{"read private/../secret", "EACCES"}, {"create team/x 666", "EACCES"}, {"symlink x team/l", "EACCES"},
	{"read link", "EACCES"}, {"write link x", "EACCES"},
	{"setxattr public user.x v", "EACCES"}, {"setxattr public trusted.x v", "EPERM"}, {"setxattr public security.x v", "EPERM"},
	{"setxattr suid security.capability v", ""}, {"setxattr public system.nfs4_acl v", "ENOTSUP"},
	{"setxattr public system.posix_acl_access v", ""}, {"setxattr mine other.x v", "ENOTSUP"},
	{"getxattr secret user.s", "EACCES"}, {"getxattr public trusted.t", "ENODATA"},
	{"removexattr public user.s", "EACCES"}, {"removexattr public trusted.t", "EPERM"},
	{"removexattr suid security.capability", "EPERM"},
	{"mknod device", "EPERM"},
}

// victims fills a directory with what bob is after.
func victims(t *testing.T, dir string) {
	t.Helper()
	at := func(name string) string { return filepath.Join(dir, name) }
	require.NoError(t, unix.Chmod(dir, 0o1777))
	for name, mode := range map[string]uint32{"secret": 0o600, "public": 0o644, "suid": 0o4755, "mine": 0o644} {
		require.NoError(t, os.WriteFile(at(name), []byte("text"), 0o600))
		require.NoError(t, os.Chown(at(name), int(alice.uid), int(alice.gid)))
		require.NoError(t, unix.Chmod(at(name), mode))
	}
	require.NoError(t, os.Chown(at("mine"), int(bob.uid), int(bob.gid)))
	for name, mode := range map[string]uint32{"private": 0o700, "empty": 0o777, "team": 0o2770} {
		require.NoError(t, os.Mkdir(at(name), 0o755))
		require.NoError(t, os.Chown(at(name), int(alice.uid), team))
		require.NoError(t, unix.Chmod(at(name), mode))
	}
	require.NoError(t, os.WriteFile(at("private/open"), []byte("text"), 0o600))
	require.NoError(t, unix.Chmod(at("private/open"), 0o666))
	require.NoError(t, os.Symlink("secret", at("link")))
	caps := []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	require.NoError(t, unix.Setxattr(at("suid"), capability, caps, 0))
	for _, name := range []string{"secret", "public"} {
		require.NoError(t, unix.Setxattr(at(name), "trusted.t", []byte("v"), 0))
		require.NoError(t, unix.Setxattr(at(name), "user.s", []byte("v"), 0))
	}
}

// stateOf tells all that an attack could change.
func stateOf(t *testing.T, dir string) string {
	t.Helper()
	out, err := exec.Command("find", dir, "-printf", `%P %m %U:%G %n %s %y\n`).Output()
	require.NoError(t, err)
	text, err := os.ReadFile(filepath.Join(dir, "secret"))
	require.NoError(t, err)
	return string(out) + string(text)
}

// bobs is an act with its paths in a directory.
func bobs(act, dir string) string {
	w := strings.Fields(act)
	two := w[0] == "rename" || w[0] == "exchange" || w[0] == "link" || w[0] == "linkfd" || w[0] == "symlink"
	for i := 1; i < len(w) && (i == 1 || two && i == 2); i++ {
		w[i] = filepath.Join(dir, w[i])
	}
	return strings.Join(w, " ")
}

func attackAll(t *testing.T, dir string) {
	t.Helper()
	before := stateOf(t, dir)
	var script []string
	for _, a := range attacks {
		script = append(script, bobs(a.act, dir))
	}
	hardlinks, err := os.ReadFile("/proc/sys/fs/protected_hardlinks")
	require.NoError(t, err)
	for i, got := range bob.acts(t, script...) {
		a := attacks[i]
		if strings.HasPrefix(a.act, "link ") && string(hardlinks) == "0\n" {
			require.NoError(t, os.Remove(filepath.Join(dir, "hard")))
			continue
		}
		require.NotEqual(t, "ok", got, a.act)
		require.NotContains(t, got, "no act", a.act)
		if a.want != "" {
			require.Equal(t, a.want, got, a.act)
		}
	}
	require.Equal(t, before, stateOf(t, dir))
}

// The same attacks on a directory of the kernel's own show that the table is right.
func TestNobodyGetsMoreThanTheBackingGives(t *testing.T) {
	t.Run("kernel", func(t *testing.T) {
		dir := t.TempDir()
		require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NODEV, ""))
		t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
		for up := filepath.Dir(dir); strings.HasPrefix(up, os.TempDir()+"/"); up = filepath.Dir(up) {
			require.NoError(t, os.Chmod(up, 0o755))
		}
		victims(t, dir)
		attackAll(t, dir)
	})
	t.Run("lockfs", func(t *testing.T) {
		both(t, func(t *testing.T, m *mounted) {
			victims(t, m.dir)
			attackAll(t, m.dir)
		})
	})
}

// What is opened is what was looked up and allowed, whoever renames meanwhile, also behind the mount.
func TestRenamesRaceWithOpens(t *testing.T) {
	both(t, func(t *testing.T, m *mounted) {
		for _, dir := range []string{m.dir, m.backing} {
			m.write(t, "a", "public")
			secret := m.write(t, "b", "secret")
			require.NoError(t, unix.Chmod(m.path("a"), 0o666))
			require.NoError(t, unix.Chmod(secret, 0o600))
			snatchWhile(t, m.path("a"), func() {
				require.NoError(t, attack([]string{"exchange", dir + "/a", dir + "/b"}))
			})
			a, err := os.ReadFile(m.backing + "/a")
			require.NoError(t, err)
			b, err := os.ReadFile(m.backing + "/b")
			require.NoError(t, err)
			require.ElementsMatch(t, []string{"Public", "secret"}, []string{string(a), string(b)}, "bob wrote to one only")
		}
	})
}

// A directory that becomes a link behind the mount is the reader's to follow.
func TestLinksRaceWithOpens(t *testing.T) {
	both(t, func(t *testing.T, m *mounted) {
		outside := filepath.Join(filepath.Dir(m.backing), "outside")
		require.NoError(t, os.Mkdir(outside, 0o700))
		require.NoError(t, os.WriteFile(outside+"/f", []byte("secret"), 0o666))
		require.NoError(t, os.Mkdir(m.backing+"/d", 0o755))
		require.NoError(t, os.WriteFile(m.backing+"/d/f", []byte("public"), 0o644))
		require.NoError(t, unix.Chmod(m.backing+"/d/f", 0o666))
		require.NoError(t, os.Symlink(outside, m.backing+"/l"))
		snatchWhile(t, m.path("d/f"), func() {
			require.NoError(t, attack([]string{"exchange", m.backing + "/d", m.backing + "/l"}))
		})
		text, err := os.ReadFile(outside + "/f")
		require.NoError(t, err)
		require.Equal(t, "secret", string(text))
	})
}

func snatchWhile(t *testing.T, path string, change func()) {
	t.Helper()
	done := make(chan []string, 1)
	go func() { done <- bob.acts(t, "snatch "+path) }()
	for {
		select {
		case got := <-done:
			require.Equal(t, []string{"ok"}, got)
			return
		default:
			change()
		}
	}
}

// A mode given behind the mount counts as soon as the kernel asks again, which SECURITY.md promises within a second.
func TestModesChangedBehindTheMount(t *testing.T) {
	both(t, func(t *testing.T, m *mounted) {
		f := m.write(t, "f", "text")
		require.Equal(t, []string{"ok"}, bob.acts(t, "read "+f))
		require.NoError(t, unix.Chmod(f, 0o600))
		require.Equal(t, []string{"EACCES"}, bob.acts(t, "read "+f), "through the mount: at once")
		require.NoError(t, unix.Chmod(f, 0o644))
		require.Equal(t, []string{"ok"}, bob.acts(t, "read "+f))
		require.NoError(t, unix.Chmod(m.backing+"/f", 0o600))
		changed := time.Now()
		time.Sleep(time.Until(changed.Add(1100 * time.Millisecond))) // the promise itself
		require.Equal(t, []string{"EACCES"}, bob.acts(t, "read "+f))
	})
}

// A descriptor keeps the rights it was opened with, as everywhere.
func TestOpenedBeforeChmod(t *testing.T) {
	both(t, func(t *testing.T, m *mounted) {
		f := m.write(t, "f", "text")
		w, err := os.OpenFile(f, os.O_WRONLY, 0)
		require.NoError(t, err)
		defer w.Close()
		require.NoError(t, unix.Chmod(f, 0o400))
		_, err = w.WriteString("T")
		require.NoError(t, err)
		require.Equal(t, []string{"EACCES"}, bob.acts(t, "read "+f))
	})
}

// groupCases are what alice, who is in one more group, asks, and what comes of it.
var groupCases = []struct {
	act  string
	want string
	mode uint32 // of f in the end
	gid  uint32
}{
	{"chgrp f 13000", "ok", 0o755, team},
	{"chgrp f 13001", "EPERM", 0o6755, 12001},
	{"chmod other 2755", "ok", 0o755, 13001}, // not her group: no sgid
	{"chmod f 2755", "ok", 0o2755, 12001},
	{"create open/tool 2775", "ok", 0o775, 13001}, // nor by way of a setgid directory
	{"mkdir open/dir 2775", "ok", 0o2775, 13001},
}

func TestGroupsOfTheCaller(t *testing.T) {
	member := alice
	member.groups = []uint32{team}
	both(t, func(t *testing.T, m *mounted) {
		for _, c := range groupCases {
			for name, gid := range map[string]int{"f": int(alice.gid), "other": 13001} {
				os.Remove(m.path(name))
				m.write(t, name, "text")
				require.NoError(t, os.Chown(m.path(name), int(alice.uid), gid))
				require.NoError(t, unix.Chmod(m.path(name), 0o6755))
			}
			os.RemoveAll(m.path("open"))
			require.NoError(t, os.Mkdir(m.path("open"), 0o755))
			require.NoError(t, os.Chown(m.path("open"), 0, 13001))
			require.NoError(t, unix.Chmod(m.path("open"), 0o2777))
			require.Equal(t, []string{"ok", c.want}, member.acts(t, "umask 0", bobs(c.act, m.dir)), c.act)
			st := statOf(t, filepath.Join(m.backing, strings.Fields(c.act)[1]))
			require.Equal(t, c.mode, st.Mode&0o7777, c.act)
			require.Equal(t, c.gid, st.Gid, c.act)
		}
	})
}

// Without root's rights a server cannot give a file to its maker, and must not let others make any that are its own.
func TestServerOfAUserMakesNothingForOthers(t *testing.T) {
	m := mount(t, func(c *Config) { c.noRoot = alice.uid })
	p := m.path
	require.NoError(t, os.WriteFile(m.backing+"/f", []byte("text"), 0o600))
	require.NoError(t, unix.Chmod(m.backing+"/f", 0o666))
	require.Equal(t, []string{"EPERM", "EPERM", "EPERM", "EPERM", "EPERM", "ok", "ok"}, bob.acts(t,
		"create "+p("suid")+" 4777", "mkdir "+p("d")+" 777", "mkfifo "+p("fifo")+" 666", "symlink x "+p("l"),
		"tmpfile "+m.dir+" 666 "+p("tmp"), "write "+p("f")+" x", "link "+p("f")+" "+p("hard")))
	require.Equal(t, []string{"ok"}, alice.acts(t, "create "+p("hers")+" 644"))
}

func TestOnlyKnownAttributesAreCarried(t *testing.T) {
	for attr, want := range map[string]bool{
		"user.x": true, "trusted.x": true, capability: true, "security.selinux": true,
		aclAccess: false, aclDefault: false, "system.nfs4_acl": false, "system.cifs_acl": false,
		"btrfs.compression": false, "ceph.quota": false, "user": false, "": false,
	} {
		require.Equal(t, want, carried(attr), attr)
	}
	list := []byte("user.x\x00system.nfs4_acl\x00trusted.t\x00security.capability\x00")
	require.Equal(t, "user.x\x00security.capability\x00", string(visible(list, false)))
}
