package journal

import (
	"encoding/binary"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// small makes a journal of few records, closed by a kill, whose log is cut to the
// bytes used and a few more. It returns the records and where they end.
func small(t *testing.T, n int) (dir string, want []string, ends []int64) {
	t.Helper()
	j, _, _ := open(t, tempDir(t), thisBoot)
	want = addMany(t, j, 0, n)
	dir = crashed(t, string(j.dir))
	log := filepath.Join(dir, "log-1")
	im, err := readImage(j.dir, j.cur.file)
	require.NoError(t, err)
	for r := range records(im.data, im.id) {
		ends = append(ends, r.end)
	}
	require.Len(t, ends, n)
	require.NoError(t, os.Truncate(log, ends[n-1]+64))
	return dir, want, ends
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	require.NoError(t, os.WriteFile(path, data, 0o600))
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return b
}

// goesOn checks that a journal replays as got, takes records, and has them when
// opened again.
func goesOn(t *testing.T, dir, boot string, want []string) Report {
	t.Helper()
	j, got, rep, err := tryOpen(dir, boot)
	require.NoError(t, err)
	require.True(t, slices.Equal(want, got), "%d records, want %d", len(got), len(want))
	more := append(want[:len(want):len(want)], add(t, j, 7, "one more"))
	require.NoError(t, j.Close())
	j, got, again, err := tryOpen(dir, boot)
	require.NoError(t, err)
	require.True(t, slices.Equal(more, got))
	require.True(t, again.Clean)
	require.Nil(t, again.Torn)
	require.NoError(t, j.Close())
	return rep
}

// refused checks that a journal is corrupt, and that opening it changes nothing.
func refused(t *testing.T, dir, boot string) *CorruptError {
	t.Helper()
	before := contents(t, dir)
	_, _, _, err := tryOpen(dir, boot)
	var corrupt *CorruptError
	require.ErrorAs(t, err, &corrupt)
	require.Equal(t, before, contents(t, dir))
	require.Contains(t, err.Error(), corrupt.File)
	require.Contains(t, err.Error(), "backup")
	return corrupt
}

func TestCutAnywhere(t *testing.T) {
	dir, want, ends := small(t, 12)
	log := filepath.Join(dir, "log-1")
	whole := read(t, log)
	for size := ends[9]; size <= ends[11]; size++ {
		n := 10
		for n < 12 && ends[n] <= size {
			n++
		}
		write(t, log, whole[:size])
		rep := goesOn(t, dir, thisBoot, want[:n])
		if size == ends[n-1] {
			require.Nil(t, rep.Torn)
		} else {
			require.NotNil(t, rep.Torn, "size %d", size)
			require.Equal(t, log, rep.Torn.File)
			require.Equal(t, ends[n-1], rep.Torn.Offset)
		}
	}
}

func TestFlipAnyBit(t *testing.T) {
	dir, want, ends := small(t, 6)
	log := filepath.Join(dir, "log-1")
	whole := read(t, log)
	for bit := int64(0); bit < ends[5]*8; bit++ {
		flipped := append([]byte(nil), whole...)
		flipped[bit/8] ^= 1 << (bit % 8)
		write(t, log, flipped)
		at := bit / 8
		switch {
		case at < headerSize:
			require.Equal(t, log, refused(t, dir, thisBoot).File)
		case at >= ends[4]:
			j, got, rep, err := tryOpen(dir, thisBoot)
			require.NoError(t, err)
			require.Equal(t, want[:5], got, "bit %d", bit)
			require.Equal(t, ends[4], rep.Torn.Offset)
			require.NoError(t, j.Close())
		default:
			before := int64(headerSize)
			for _, end := range ends {
				if end <= at {
					before = end
				}
			}
			require.Equal(t, before, refused(t, dir, thisBoot).Offset)
		}
	}
	write(t, log, whole)
	goesOn(t, dir, thisBoot, want)
}

// chained makes a snapshot, a sealed log and one that goes on.
func chained(t *testing.T) (dir string, want []string) {
	t.Helper()
	j, _, _ := open(t, tempDir(t), thisBoot)
	want = addMany(t, j, 0, 3)
	compact(t, j, want)
	want = append(want, addMany(t, j, 3, 6)...)
	c, err := j.Compact()
	require.NoError(t, err)
	c.Switch()
	want = append(want, addMany(t, j, 6, 9)...)
	require.NoError(t, c.Add(1, []byte("not committed")))
	dir = crashed(t, string(j.dir))
	require.ElementsMatch(t, []string{"snapshot-2", "log-2", "log-3", "snapshot-3.tmp"}, names(t, dir))
	for _, name := range []string{"log-2", "log-3"} {
		path := filepath.Join(dir, name)
		require.NoError(t, os.Truncate(path, used(read(t, path))+64))
	}
	return dir, want
}

func names(t *testing.T, dir string) (names []string) {
	for name := range contents(t, dir) {
		names = append(names, name)
	}
	return names
}

func TestChain(t *testing.T) {
	dir, want := chained(t)
	goesOn(t, dir, thisBoot, want)
	require.ElementsMatch(t, []string{"snapshot-2", "log-2", "log-3"}, names(t, dir))
	j, got, _ := open(t, dir, thisBoot)
	compact(t, j, got)
	require.ElementsMatch(t, []string{"snapshot-4", "log-4"}, names(t, dir))
	require.NoError(t, j.Close())
	goesOn(t, dir, thisBoot, got)
}

func TestDamagedChain(t *testing.T) {
	dir, _ := chained(t)
	for _, name := range []string{"snapshot-2", "log-2"} {
		path := filepath.Join(dir, name)
		whole := read(t, path)
		end := int64(headerSize)
		for r := range records(whole, binary.LittleEndian.Uint64(whole[24:])) {
			end = r.end
		}
		for bit := int64(0); bit < end*8; bit += 7 { // each bit of a byte in turn
			flipped := append([]byte(nil), whole...)
			flipped[bit/8] ^= 1 << (bit % 8)
			write(t, path, flipped[:end])
			require.Equal(t, path, refused(t, dir, thisBoot).File)
		}
		write(t, path, whole[:end-1])
		require.Equal(t, path, refused(t, dir, thisBoot).File)
		require.NoError(t, os.Remove(path))
		refused(t, dir, thisBoot)
		write(t, path, whole)
	}
	require.NoError(t, os.Remove(filepath.Join(dir, "log-3")))
	require.Equal(t, filepath.Join(dir, "log-3"), refused(t, dir, thisBoot).File)
}

// A log that was prepared and not switched to does not make an unfinished record
// before it a corruption.
func TestKilledBeforeSwitch(t *testing.T) {
	j, _, _ := open(t, tempDir(t), thisBoot)
	want := addMany(t, j, 0, 5)
	_, err := j.Compact()
	require.NoError(t, err)
	copy(j.cur.mem[j.cur.end+8:], "a record whose first 8 bytes are missing")
	rep := goesOn(t, crashed(t, string(j.dir)), thisBoot, want)
	require.NotNil(t, rep.Torn)
}

func TestDamageAfterReboot(t *testing.T) {
	dir, want, ends := small(t, 6)
	j, _, _ := open(t, dir, otherBoot)
	want = append(want, addMany(t, j, 6, 9)...)
	dir = crashed(t, string(j.dir))
	log := filepath.Join(dir, "log-1")
	whole := read(t, log)
	// What was there at the reboot is known to be on disk, whatever boot it is now.
	for _, at := range []int64{ends[2] + 3, ends[5] + 5} {
		damaged := append([]byte(nil), whole...)
		damaged[at]++
		write(t, log, damaged)
		refused(t, dir, thisBoot)
		refused(t, dir, otherBoot)
	}
	write(t, log, whole)
	goesOn(t, dir, otherBoot, want)
}

func TestNewerVersion(t *testing.T) {
	dir, _, _ := small(t, 2)
	path := filepath.Join(dir, "log-1")
	data := read(t, path)
	binary.LittleEndian.PutUint32(data[8:], version+1)
	binary.LittleEndian.PutUint32(data[headerSum:], crc32.Checksum(data[:headerSum], castagnoli))
	write(t, path, data)
	before := contents(t, dir)
	_, err := Open(dir, Options{})
	var newer *VersionError
	require.ErrorAs(t, err, &newer)
	require.Equal(t, VersionError{path, version + 1, version}, *newer)
	require.Contains(t, err.Error(), path)
	require.Equal(t, before, contents(t, dir))
}

func TestApplyFails(t *testing.T) {
	dir, want, _ := small(t, 3)
	before := contents(t, dir)
	j, err := Open(dir, Options{Boot: thisBoot})
	require.NoError(t, err)
	_, err = j.Replay(func(uint8, []byte) error { return os.ErrInvalid })
	require.ErrorIs(t, err, os.ErrInvalid)
	require.Equal(t, before, contents(t, dir))
	require.NoError(t, j.Close())
	goesOn(t, dir, thisBoot, want)
}
