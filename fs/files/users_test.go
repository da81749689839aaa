package files

import (
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func statOf(t *testing.T, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Lstat(path, &st))
	return st
}

func TestCreatedFilesBelongToTheCaller(t *testing.T) {
	m := mount(t)
	p := m.path
	require.Equal(t, []string{"ok", "ok", "ok", "ok", "ok", "ok", "ok", "EPERM"}, alice.acts(t,
		"umask 027",
		"create "+p("file")+" 666", "mkdir "+p("dir")+" 777", "mkfifo "+p("fifo")+" 666",
		"symlink x "+p("link"), "tmpfile "+m.dir+" 666 "+p("tmp"), "link "+p("file")+" "+p("hard"),
		"mknod "+p("dev")))
	for name, mode := range map[string]uint32{
		"file": unix.S_IFREG | 0o640, "dir": unix.S_IFDIR | 0o750, "fifo": unix.S_IFIFO | 0o640,
		"link": unix.S_IFLNK | 0o777, "tmp": unix.S_IFREG | 0o640, "hard": unix.S_IFREG | 0o640,
	} {
		for _, path := range []string{p(name), m.backing + "/" + name} {
			st := statOf(t, path)
			require.Equal(t, mode, st.Mode, path)
			require.Equal(t, alice.uid, st.Uid, path)
			require.Equal(t, alice.gid, st.Gid, path)
		}
	}
	// The server is itself again: what root makes is root's.
	m.write(t, "root", "")
	require.Zero(t, statOf(t, p("root")).Uid)
}

// The rights come from the kernel's check of the caller, with all groups, not from the thread that creates.
func TestDirectoryOfASupplementaryGroup(t *testing.T) {
	m := mount(t)
	const team = 13000
	require.NoError(t, os.Mkdir(m.path("team"), 0o755))
	require.NoError(t, os.Chown(m.path("team"), 0, team))
	require.NoError(t, unix.Chmod(m.path("team"), 0o2770))
	member := alice
	member.groups = []uint32{team}
	require.Equal(t, []string{"ok", "ok", "ok", "ok"}, member.acts(t,
		"create "+m.path("team/f")+" 660", "mkdir "+m.path("team/d")+" 770",
		"write "+m.path("team/f")+" text", "create "+m.path("team/d/g")+" 660"))
	require.Equal(t, []string{"EACCES", "EACCES"}, bob.acts(t,
		"create "+m.path("team/x")+" 660", "read "+m.path("team/f")))
	for _, name := range []string{"team/f", "team/d", "team/d/g"} {
		st := statOf(t, m.path(name))
		require.EqualValues(t, team, st.Gid, name)
		require.Equal(t, alice.uid, st.Uid, name)
	}
	require.EqualValues(t, unix.S_IFDIR|0o2770, statOf(t, m.path("team/d")).Mode)
}

func TestOthersAreKeptOut(t *testing.T) {
	both(t, func(t *testing.T, m *mounted) {
		p := m.path
		alice.acts(t, "create "+p("secret")+" 600", "mkdir "+p("private")+" 700", "create "+p("private/f")+" 666")
		require.NoError(t, unix.Chmod(m.dir, 0o1777))
		require.Equal(t, []string{"EACCES", "EACCES", "EPERM", "EPERM", "EPERM", "EACCES", "EACCES", "EPERM"}, bob.acts(t,
			"read "+p("secret"), "write "+p("secret")+" x", "chmod "+p("secret")+" 777", "unlink "+p("secret"),
			"rename "+p("secret")+" "+p("mine"), "read "+p("private/f"), "truncate "+p("secret"), "rmdir "+p("private")))
		require.Equal(t, []string{"ok", "ok", "ok"}, alice.acts(t,
			"write "+p("secret")+" x", "rename "+p("secret")+" "+p("moved"), "unlink "+p("moved")))
	})
}

// suidCases say what takes suid away from a file that everyone may write.
var suidCases = []struct {
	who   person
	act   string
	after uint32
}{
	{alice, "write %s x", 0o0777},
	{alice, "append %s x", 0o0777},
	{alice, "trunc %s", 0o0777},
	{alice, "truncate %s", 0o0777},
	{alice, "fallocate %s", 0o0777},
	{alice, "read %s", 0o6777},
	{person{}, "write %s x", 0o6777},
	{person{}, "truncate %s", 0o6777},
	{person{}, "chgrp %s 13001", 0o0777},
}

func TestWritingTakesSuidAway(t *testing.T) {
	both(t, func(t *testing.T, m *mounted) {
		p := m.write(t, "suid", "text")
		for _, c := range suidCases {
			require.NoError(t, unix.Chmod(p, 0o6777))
			act := fmt.Sprintf(c.act, p)
			require.Equal(t, []string{"ok"}, c.who.acts(t, act), act)
			require.Equal(t, c.after, statOf(t, m.backing+"/suid").Mode&0o7777, "%d: %s", c.who.uid, act)
			require.Equal(t, c.after, statOf(t, p).Mode&0o7777, "%d: %s", c.who.uid, act)
		}
		// sgid without group execution is no privilege.
		require.NoError(t, unix.Chmod(p, 0o2766))
		require.Equal(t, []string{"ok"}, alice.acts(t, "write "+p+" x"))
		require.EqualValues(t, 0o2766, statOf(t, p).Mode&0o7777)
	})
}

func TestCapabilityGoesWithAWrite(t *testing.T) {
	both(t, func(t *testing.T, m *mounted) {
		p := m.write(t, "cap", "text")
		require.NoError(t, unix.Chmod(p, 0o777))
		caps := []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
		require.NoError(t, unix.Setxattr(p, capability, caps, 0))
		require.Equal(t, []string{"ok"}, alice.acts(t, "write "+p+" x"))
		_, err := unix.Lgetxattr(m.backing+"/cap", capability, nil)
		require.Equal(t, unix.ENODATA, err)
	})
}

// A file that is passed through to a reader cannot be cached for a writer, so the writer costs it its suid.
func TestSuidFileAlreadyPassedThrough(t *testing.T) {
	m := mount(t, withPassthrough)
	p := m.write(t, "suid", "text")
	require.NoError(t, unix.Chmod(p, 0o4777))
	r, err := os.Open(p)
	require.NoError(t, err)
	defer r.Close()
	require.Equal(t, []string{"ok"}, alice.acts(t, "write "+p+" x"))
	require.EqualValues(t, 0o777, statOf(t, m.backing+"/suid").Mode&0o7777)
}

func TestSuidRefusedWhileAStrangerWritesPastUs(t *testing.T) {
	m := mount(t, withPassthrough)
	p := m.write(t, "f", "text")
	require.NoError(t, unix.Chmod(p, 0o777))
	f, err := os.OpenFile(p, os.O_WRONLY, 0)
	require.NoError(t, err)
	m.fs.mu.Lock()
	for h := range m.fs.names[nameKey{Root, "f"}].handles {
		h.uid = alice.uid // as if she had opened it
	}
	m.fs.mu.Unlock()
	require.Equal(t, unix.ETXTBSY, unix.Chmod(p, 0o4755))
	require.NoError(t, unix.Chmod(p, 0o755))
	f.Close()
	eventually(t, "released", func() bool { return m.fs.NumHandles() == 0 })
	require.NoError(t, unix.Chmod(p, 0o4755))
}

func TestWithoutAllowOtherFilesAreOurs(t *testing.T) {
	m := mount(t, func(c *Config) { c.AllowOther = false })
	require.Equal(t, []string{"ok"}, alice.acts(t, "create "+m.path("f")+" 644"))
	require.Zero(t, statOf(t, m.path("f")).Uid)
}
