package main

import (
	"context"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestRows measures each row once on every peer, without a look at the times, and writes what a run writes.
func TestRows(t *testing.T) {
	require.Zero(t, os.Geteuid(), "it mounts filesystems: run it as root")
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	b, err := build(ctx, t.TempDir())
	require.NoError(t, err)
	cpus, err := ownCPUs()
	require.NoError(t, err)
	mounts, err := mountAll(b, cpus, peers)
	defer func() {
		mounts.end()
		mounted, err := os.ReadFile("/proc/self/mountinfo")
		require.NoError(t, err)
		require.NotContains(t, string(mounted), mounts.base, "left mounted")
	}()
	require.NoError(t, err)

	t.Run("locks", func(t *testing.T) { peersLock(t, mounts) })
	var all []measurement
	for _, r := range rows {
		r.number = min(r.number, 100)
		m := measurement{row: r, samples: map[string][]sample{}, series: series{name: "one", title: "Once", cpus: cpus, rounds: 1, length: time.Millisecond}}
		require.NoError(t, measure(ctx, b, mounts, &m))
		for _, p := range peers {
			if slices.Contains(r.without, p.name) {
				require.Empty(t, m.samples[p.name], "%s of %s", r.name, p.name)
				continue
			}
			require.Len(t, m.samples[p.name], 1, "%s of %s", r.name, p.name)
			require.Positive(t, m.samples[p.name][0].n)
			require.GreaterOrEqual(t, m.samples[p.name][0].took, time.Millisecond)
		}
		all = append(all, m)
	}
	t.Run("report", func(t *testing.T) { reportIsWhole(t, all) })
}

// peersLock: those that are there to lock do, the others do not. Two descriptors have locks of their own.
func peersLock(t *testing.T, ms *mounts) {
	for _, m := range ms.all {
		pretends := m.peer.name == stock || m.peer.name == noop
		path := filepath.Join(m.dir, "files", "conflict")
		var fds [2]int
		for i := range fds {
			fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o666)
			require.NoError(t, err, m.peer.name)
			defer unix.Close(fd)
			fds[i] = fd
		}
		second := func(try func(fd int) error) error {
			require.NoError(t, try(fds[0]), m.peer.name)
			return try(fds[1])
		}
		for kind, err := range map[string]error{
			"flock": second(func(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) }),
			"ofd": second(func(fd int) error {
				return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Len: 1})
			}),
		} {
			require.Equal(t, !pretends, errors.Is(err, syscall.EAGAIN), "%s on %s: %v", kind, m.peer.name, err)
		}
	}
}

func reportIsWhole(t *testing.T, all []measurement) {
	dir := t.TempDir()
	require.NoError(t, write(dir, thisMachine(t.Context()), all))
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		return string(text)
	}
	for _, r := range rows {
		require.Contains(t, read("table.md"), "| "+r.label+" |")
	}
	samples := 0
	line := regexp.MustCompile(`^BenchmarkLocks/row=\w+/cpus=one/peer=[\w-]+ \d+ \d+ ns/op$`)
	for l := range strings.Lines(read("bench.txt")) {
		if strings.HasPrefix(l, "Benchmark") {
			require.Regexp(t, line, strings.TrimSpace(l))
			samples++
		}
	}
	want := 0
	for _, r := range rows {
		want += len(peers) - len(r.without)
	}
	require.Equal(t, want, samples)
	svg := xml.NewDecoder(strings.NewReader(read("chart.svg")))
	var err error
	for err == nil {
		_, err = svg.Token()
	}
	require.ErrorIs(t, err, io.EOF)
}

// made is a row of a peer's that took so long each time, in nanoseconds.
func made(r row, costs map[string][]float64) measurement {
	m := measurement{row: r, series: series{name: "one"}, samples: make(map[string][]sample)}
	for p, all := range costs {
		for _, c := range all {
			m.samples[p] = append(m.samples[p], sample{n: 10, took: time.Duration(10 * c)})
		}
	}
	return m
}

// TestProfile: what is written is a profile of the worker's while it served.
func TestProfile(t *testing.T) {
	require.Zero(t, os.Geteuid(), "it mounts filesystems: run it as root")
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	path := filepath.Join(t.TempDir(), "default.pgo")
	t.Setenv("LOCKFS_PROFILE", "") // back after the test
	require.NoError(t, writeProfile(ctx, ctx, t.TempDir(), config{rows: regexp.MustCompile("setlk|mkdir"), steady: time.Second, profile: path}))
	top, err := command(ctx, "go", "tool", "pprof", "-top", "-cum", path)
	require.NoError(t, err)
	require.Contains(t, top, "lockfs/fs.(*Server).Serve")
}

func TestMedianOfRatios(t *testing.T) {
	m := made(rows[0], map[string][]float64{lockfs: {200, 900, 400}, noop: {100, 300, 400}})
	cost, ok := m.cost(lockfs)
	require.True(t, ok)
	require.Equal(t, 400.0, cost)
	ratio, ok := m.ratio(lockfs, noop)
	require.True(t, ok)
	require.Equal(t, 2.0, ratio, "of 2, 3 and 1, not of the medians")
	_, ok = m.ratio(lockfs, tmpfs)
	require.False(t, ok)
}

func TestCrossing(t *testing.T) {
	ranges := func(n int, kernel float64) measurement {
		return made(row{client: "ranges", number: n}, map[string][]float64{lockfs: {20}, tmpfs: {kernel}})
	}
	for _, c := range []struct {
		costs [3]float64
		want  string
	}{
		{[3]float64{1, 10, 100}, "when 1000 ranges or more"},
		{[3]float64{1, 30, 100}, "when 100 ranges or more"},
		{[3]float64{30, 10, 100}, "when 1000 ranges or more"},
		{[3]float64{1, 2, 3}, "up to 1000 ranges"},
	} {
		got := crossing([]measurement{ranges(10, c.costs[0]), ranges(100, c.costs[1]), ranges(1000, c.costs[2])})
		require.Contains(t, got, c.want, "%v", c.costs)
	}
}

func TestMicro(t *testing.T) {
	for ns, want := range map[float64]string{812: "0.812", 1234: "1.23", 12345: "12.3", 123456: "123", 1234567: "1235"} {
		require.Equal(t, want, micro(ns))
	}
}
