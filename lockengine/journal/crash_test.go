package journal

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// atEachStep calls f between any two changes of files, until the test ends; f
// may itself change files.
func atEachStep(t *testing.T, f func(name string)) {
	nothing := func(string) {}
	var hook func(string)
	hook = func(name string) {
		step = nothing
		defer func() { step = hook }()
		f(name)
	}
	step = hook
	t.Cleanup(func() { step = nothing })
}

// TestCrashAnywhere copies the directory at each step, as a kill there leaves
// it: all that was appended is there.
func TestCrashAnywhere(t *testing.T) {
	dir := tempDir(t)
	want := []string{}
	seen := map[string]bool{}
	atEachStep(t, func(name string) {
		seen[name] = true
		rep := goesOn(t, crashed(t, dir), thisBoot, want)
		require.Nil(t, rep.Torn, name)
	})
	j, _, _ := open(t, dir, thisBoot)
	grow := func() {
		j.reserve = j.cur.free()
		j.growOnce()
		require.NoError(t, j.Room(100, int(j.cur.free())+100))
		require.NoError(t, j.Room(0, 0)) // or it grows again in the background
		want = append(want, add(t, j, 1, strings.Repeat("long", 1000)))
	}
	for i := range 3 {
		want = append(want, addMany(t, j, 10*i, 10*i+5)...)
		compact(t, j, want)
		want = append(want, addMany(t, j, 10*i+5, 10*i+10)...)
	}
	c, err := j.Compact()
	require.NoError(t, err)
	c.Abort()
	c, err = j.Compact()
	require.NoError(t, err)
	c.Switch()
	require.NoError(t, c.Add(1, []byte("x")))
	c.Abort()
	want = append(want, addMany(t, j, 40, 45)...)
	compact(t, j, want)
	grow()
	require.NoError(t, j.Sync())
	require.NoError(t, j.Close())
	_, got, rep := open(t, dir, thisBoot)
	require.Equal(t, want, got)
	require.True(t, rep.Clean)
	for _, name := range []string{"sync log-1", "rename log-2", "sync folder for snapshot-2", "write snapshot-3",
		"remove log-1", "remove snapshot-2", "remove snapshot-5.tmp", "extend log-6", "zero log-6", "trim log-6"} {
		require.True(t, seen[name], "%s: not among %v", name, seen)
	}
}

// disk knows what a power failure leaves: of each page of a file what was synced
// last, or what was written since.
type disk struct {
	dir    string
	synced map[string][]byte
}

func (d *disk) step(t *testing.T, name string) {
	if name, ok := strings.CutPrefix(name, "sync "); ok && !strings.HasPrefix(name, "folder") {
		data, err := os.ReadFile(filepath.Join(d.dir, name))
		if err != nil {
			data = read(t, filepath.Join(d.dir, name+tmp))
		}
		d.synced[name] = data
	}
}

func (d *disk) afterPowerLoss(t *testing.T, lost float64) string {
	to := tempDir(t)
	for name, now := range contents(t, d.dir) {
		data := []byte(now)
		synced := make([]byte, max(len(data), len(d.synced[name])))
		copy(synced, d.synced[name])
		for at := 0; at < len(data); at += block {
			if rand.Float64() < lost {
				copy(data[at:min(at+block, len(data))], synced[at:])
			}
		}
		write(t, filepath.Join(to, name), data)
	}
	return to
}

// TestPowerLoss: what was synced is there, what is there is the beginning of what
// was appended, and the journal goes on.
func TestPowerLoss(t *testing.T) {
	for run := range 6 {
		d := &disk{tempDir(t), map[string][]byte{}}
		want := []string{}
		synced, lost := 0, 0
		check := func() {
			dir := d.afterPowerLoss(t, []float64{0.1, 0.5, 1}[rand.IntN(3)])
			_, got, rep, err := tryOpen(crashed(t, dir), otherBoot)
			require.NoError(t, err)
			require.GreaterOrEqual(t, len(got), synced)
			require.LessOrEqual(t, len(got), len(want))
			require.True(t, slices.Equal(want[:len(got)], got), "not the beginning")
			if rep.Torn != nil {
				lost++
			}
			goesOn(t, dir, otherBoot, got)
		}
		atEachStep(t, func(name string) {
			if rand.IntN(12) == 0 {
				check()
			}
			d.step(t, name)
		})
		j, _, _ := open(t, d.dir, thisBoot)
		for range 12 {
			switch rand.IntN(5) {
			case 0:
				n := len(want)
				require.NoError(t, j.Sync())
				synced = n
			case 1:
				compact(t, j, want)
			case 2:
				c, err := j.Compact()
				require.NoError(t, err)
				c.Switch()
				want = append(want, addMany(t, j, len(want), len(want)+rand.IntN(200))...)
				c.Abort()
			default:
				want = append(want, addMany(t, j, len(want), len(want)+rand.IntN(500))...)
			}
		}
		for range 3 {
			check()
		}
		require.NoError(t, j.Close())
		t.Logf("run %d: %d records, %d synced, %d losses", run, len(want), synced, lost)
	}
}

// TestDamageOfSynced: what a sync had covered is never taken for lost in a power
// failure.
func TestDamageOfSynced(t *testing.T) {
	j, _, _ := open(t, tempDir(t), thisBoot)
	want := addMany(t, j, 0, 10)
	require.NoError(t, j.Sync())
	synced := j.cur.end
	want = append(want, addMany(t, j, 10, 20)...)
	dir := crashed(t, string(j.dir))
	path := filepath.Join(dir, "log-1")
	whole := read(t, path)
	damaged := append([]byte(nil), whole...)
	damaged[headerSize+50]++
	write(t, path, damaged)
	refused(t, dir, otherBoot)

	damaged = append([]byte(nil), whole...)
	damaged[synced+20]++
	write(t, path, damaged)
	refused(t, dir, thisBoot)
	rep := goesOn(t, dir, otherBoot, want[:10])
	require.Equal(t, 9, rep.Torn.Records)
}

// TestCrashWhileMending: a power failure is mended in steps; a kill between any
// two of them changes nothing of the outcome.
func TestCrashWhileMending(t *testing.T) {
	j, _, _ := open(t, tempDir(t), thisBoot)
	want := addMany(t, j, 0, 200)
	compact(t, j, want)
	addMany(t, j, 200, 800)
	c, err := j.Compact()
	require.NoError(t, err)
	c.Switch()
	addMany(t, j, 800, 900)
	c.Abort()
	dir := crashed(t, string(j.dir))
	path := filepath.Join(dir, "log-2")
	data := read(t, path)
	copy(data[block:2*block], make([]byte, block))
	write(t, path, data)
	_, want, _, err = tryOpen(crashed(t, dir), otherBoot)
	require.NoError(t, err)
	require.Less(t, len(want), 800)

	steps := map[string]bool{}
	atEachStep(t, func(name string) {
		steps[name] = true
		if name == "extend log-2" {
			require.Zero(t, used(read(t, path)[2*block:]), "what was cut off is still there")
		}
		goesOn(t, crashed(t, dir), otherBoot, want)
	})
	j, got, rep, err := tryOpen(dir, otherBoot)
	require.NoError(t, err)
	require.Equal(t, want, got)
	require.NotZero(t, rep.Torn.Records)
	require.NoError(t, j.Close())
	require.Contains(t, steps, "remove log-3", fmt.Sprint(maps.Keys(steps)))
	require.Contains(t, steps, "cut log-2")
	require.Contains(t, steps, "extend log-2")
}
