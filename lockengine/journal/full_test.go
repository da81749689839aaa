package journal

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// onSmallDisk runs the test again in a mount namespace of its own, with a
// filesystem of size bytes that goes when the process does.
func onSmallDisk(t *testing.T, size string, test func(t *testing.T, dir string)) {
	const inside = "JOURNAL_TEST_DISK"
	if os.Getenv(inside) != "" {
		dir := t.TempDir()
		require.NoError(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
		require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size))
		t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
		test(t, dir)
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "--- PASS: "+t.Name())
}

// fill leaves no byte of a disk, until empty is called.
func fill(t *testing.T, dir string) (empty func()) {
	t.Helper()
	path := filepath.Join(dir, "filler")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	require.NoError(t, err)
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	require.ErrorIs(t, err, unix.ENOSPC)
	require.NoError(t, f.Close())
	return func() { require.NoError(t, os.Remove(path)) }
}

func TestDiskFull(t *testing.T) {
	onSmallDisk(t, "8m", func(t *testing.T, disk string) {
		const reserve = 64 << 10
		dir := filepath.Join(disk, "journal")
		j, _, _ := open(t, dir, thisBoot)
		require.NoError(t, j.Room(100, reserve))
		empty := fill(t, disk)

		want := []string{}
		for j.Room(100, reserve) == nil {
			want = append(want, add(t, j, 1, "as long as there is room"))
		}
		require.ErrorIs(t, j.Room(100, reserve), ErrNoSpace)
		require.Greater(t, len(want), 10_000)
		before := names(t, dir)
		_, err := j.Compact()
		require.ErrorIs(t, err, ErrNoSpace)
		require.ElementsMatch(t, before, names(t, dir))

		// What gives back has the reserve.
		for range reserve / recordSize(40) {
			want = append(want, add(t, j, 2, "0123456789012345678901234567890123456789"))
		}
		require.NoError(t, j.Sync())
		for err == nil || len(want) == 0 {
			_, err = j.Append(3, make([]byte, 100))
			if err == nil {
				want = append(want, "3:"+string(make([]byte, 100)))
			}
		}
		_, err = j.Append(3, make([]byte, 200))
		require.ErrorIs(t, err, ErrNoSpace)
		_, got, rep, err := tryOpen(crashed(t, dir), thisBoot)
		require.NoError(t, err)
		require.Equal(t, want, got)
		require.Nil(t, rep.Torn)

		// Less than it grows by at a time will do.
		filler, err := os.Stat(filepath.Join(disk, "filler"))
		require.NoError(t, err)
		require.NoError(t, os.Truncate(filepath.Join(disk, "filler"), filler.Size()-2*reserve))
		require.NoError(t, j.Room(100, reserve))
		empty()
		const more = 2 << 20
		require.NoError(t, j.Room(100, more))
		want = append(want, addMany(t, j, 0, 100)...)

		// The disk fills up while the snapshot is written: the old logs stay.
		c, err := j.Compact()
		require.NoError(t, err)
		empty = fill(t, disk)
		c.Switch()
		for range more/recordSize(1<<10) - 100 { // what was promised holds
			want = append(want, add(t, j, 1, strings.Repeat("x", 1<<10)))
		}
		for range 4 {
			_ = c.Add(1, make([]byte, 1<<20)) // Commit tells
		}
		require.ErrorIs(t, c.Commit(), ErrNoSpace)
		want = append(want, addMany(t, j, 100, 200)...)
		require.NotContains(t, names(t, dir), "snapshot-2.tmp")

		// A journal on a full disk opens, and takes what gives back.
		require.NoError(t, j.Close())
		empty()
		empty = fill(t, disk)
		for _, boot := range []string{thisBoot, otherBoot} {
			j, got, rep, err = tryOpen(dir, boot)
			require.NoError(t, err)
			require.Equal(t, want, got)
			require.True(t, rep.Clean)
			want = append(want, addMany(t, j, 200, 300)...)
			require.NoError(t, j.Close())
		}
		empty()

		j, got, _ = open(t, dir, otherBoot)
		require.Equal(t, want, got)
		compact(t, j, want[:100])
		require.ElementsMatch(t, []string{"snapshot-3", "log-3"}, names(t, dir))
		require.NoError(t, j.Close())
		goesOn(t, dir, otherBoot, want[:100])
	})
}
