package journal

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

const (
	thisBoot  = "boot-1"
	otherBoot = "boot-2"
)

// open opens and replays, and returns what was replayed as text, in order.
func open(t testing.TB, dir, boot string) (*Journal, []string, Report) {
	t.Helper()
	j, got, rep, err := tryOpen(dir, boot)
	require.NoError(t, err)
	t.Cleanup(func() { j.Close() })
	return j, got, rep
}

func tryOpen(dir, boot string) (*Journal, []string, Report, error) {
	j, err := Open(dir, Options{Boot: boot})
	if err != nil {
		return nil, nil, Report{}, err
	}
	got := []string{}
	rep, err := j.Replay(func(kind uint8, data []byte) error {
		got = append(got, fmt.Sprintf("%d:%s", kind, data))
		return nil
	})
	return j, got, rep, err
}

// add appends a record and returns it as open does.
func add(t testing.TB, j *Journal, kind uint8, text string) string {
	t.Helper()
	_, err := j.Append(kind, []byte(text))
	require.NoError(t, err)
	checkLimit(t, j)
	return fmt.Sprintf("%d:%s", kind, text)
}

// checkLimit demands that nothing has to be looked after before the limit.
func checkLimit(t testing.TB, j *Journal) {
	t.Helper()
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.limit <= 0 {
		return
	}
	require.False(t, j.closing || j.compacting || j.next != nil)
	more := j.limit - j.cur.end
	require.LessOrEqual(t, more, int64(MaxRecord))
	require.GreaterOrEqual(t, j.ahead(), more)
	require.GreaterOrEqual(t, int64(j.due), int64(j.logSize())+more)
}

func addMany(t testing.TB, j *Journal, from, to int) (want []string) {
	t.Helper()
	for i := from; i < to; i++ {
		want = append(want, add(t, j, uint8(1+i%MaxKind), fmt.Sprintf("record %d %0*d", i, i%23, 7)))
	}
	return want
}

// tempDir is a directory in memory, if there is such: syncs take no time there.
func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "journal")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// crashed copies a directory as a killed process leaves it.
func crashed(t testing.TB, dir string) string {
	t.Helper()
	to := filepath.Join(tempDir(t), "copy")
	require.NoError(t, os.CopyFS(to, os.DirFS(dir)))
	return to
}

func contents(t testing.TB, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		require.NoError(t, err)
		files[e.Name()] = string(b)
	}
	return files
}

func TestRoundTrip(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "journal")
	j, got, rep := open(t, dir, thisBoot)
	require.Empty(t, got)
	require.Equal(t, Report{Fresh: true}, rep)

	want := addMany(t, j, 0, 1000)
	want = append(want, add(t, j, 3, ""))
	require.NoError(t, j.Sync())
	require.NoError(t, j.Close())
	_, err := j.Append(1, nil)
	require.ErrorIs(t, err, ErrClosed)

	j, got, rep = open(t, dir, thisBoot)
	require.Equal(t, want, got)
	require.Equal(t, 1001, rep.Records)
	require.True(t, rep.Clean)
	require.True(t, rep.SameBoot)
	require.Nil(t, rep.Torn)
	want = append(want, addMany(t, j, 1000, 1100)...)

	j, got, rep = open(t, crashed(t, dir), otherBoot)
	require.Equal(t, want, got)
	require.False(t, rep.Clean)
	require.False(t, rep.SameBoot)
	want = append(want, addMany(t, j, 1100, 1200)...)
	require.NoError(t, j.Close())

	_, got, rep = open(t, string(j.dir), otherBoot)
	require.Equal(t, want, got)
	require.True(t, rep.Clean && rep.SameBoot)
}

func TestAppendAllocatesNothing(t *testing.T) {
	j, _, _ := open(t, tempDir(t), thisBoot)
	data := make([]byte, 120)
	require.Zero(t, testing.AllocsPerRun(1000, func() {
		_ = j.Room(120, 1<<10)
		_, _ = j.Append(1, data)
	}))
}

func TestRefusedRecords(t *testing.T) {
	j, err := Open(tempDir(t), Options{Boot: thisBoot})
	require.NoError(t, err)
	_, err = j.Append(1, nil)
	require.ErrorIs(t, err, ErrClosed, "before Replay")
	_, err = j.Replay(nil)
	require.NoError(t, err)
	_, err = j.Replay(nil)
	require.ErrorIs(t, err, ErrClosed, "replayed twice")
	for _, kind := range []uint8{0, MaxKind + 1, 255} {
		_, err = j.Append(kind, nil)
		require.Error(t, err)
	}
	_, err = j.Append(1, make([]byte, MaxRecord+1))
	require.ErrorIs(t, err, ErrTooLong)
	_, err = j.Append(1, make([]byte, MaxRecord))
	require.NoError(t, err)
	require.NoError(t, j.Close())
	require.NoError(t, j.Close())
	require.ErrorIs(t, j.Room(1, 1), ErrClosed)
	require.ErrorIs(t, j.Sync(), ErrClosed)
	_, err = j.Compact()
	require.ErrorIs(t, err, ErrClosed)
	_, err = Open(tempDir(t), Options{Boot: string(make([]byte, maxBoot+1))})
	require.Error(t, err)
}

func compact(t testing.TB, j *Journal, state []string) {
	t.Helper()
	c, err := j.Compact()
	require.NoError(t, err)
	c.Switch()
	for _, s := range state {
		var kind uint8
		var text string
		_, err := fmt.Sscanf(s, "%d:", &kind)
		require.NoError(t, err)
		text = s[len(fmt.Sprintf("%d:", kind)):]
		require.NoError(t, c.Add(kind, []byte(text)))
	}
	require.NoError(t, c.Commit())
}

func TestCompact(t *testing.T) {
	dir := t.TempDir()
	j, _, _ := open(t, dir, thisBoot)
	want := addMany(t, j, 0, 100)
	for i := range 5 {
		compact(t, j, want)
		require.Len(t, contents(t, dir), 2)
		want = append(want, addMany(t, j, 100*i, 100*i+50)...)
		_, got, _ := open(t, crashed(t, dir), thisBoot)
		require.Equal(t, want, got)
	}
	require.NoError(t, j.Close())
	_, got, _ := open(t, dir, otherBoot)
	require.Equal(t, want, got)
}
