package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Who is measured.
const (
	tmpfs     = "tmpfs"
	libfuse   = "libfuse"
	libfuseMT = "libfuse-mt"
	stock     = "stock"
	noop      = "noop"
	lockfs    = "lockfs"
	noJournal = "no-journal"
)

// A peer is a filesystem that is measured. The kernel's own has no command.
type peer struct {
	name, label string
	command     func(b binaries, dir, state string) []string
}

var peers = []peer{
	{tmpfs, "tmpfs", nil},
	{libfuse, "libfuse", func(b binaries, dir, _ string) []string { return []string{b.path("locks"), dir} }},
	{libfuseMT, "libfuse, threads", func(b binaries, dir, _ string) []string { return []string{b.path("locks"), "-m", dir} }},
	{stock, "no-op, go-fuse", func(b binaries, dir, _ string) []string { return []string{b.path("stock"), dir} }},
	{noop, "no-op, own loop", func(b binaries, dir, state string) []string {
		return []string{b.path("noop"), "mount", "--no-journal", "--state", state, dir}
	}},
	{noJournal, "lockfs, no journal", func(b binaries, dir, state string) []string {
		return []string{b.path("lockfs"), "mount", "--no-journal", "--state", state, dir}
	}},
	{lockfs, "lockfs", func(b binaries, dir, state string) []string {
		return []string{b.path("lockfs"), "mount", "--state", state, dir}
	}},
}

// binaries are what is measured and what measures, in a directory.
type binaries struct{ dir string }

func (b binaries) path(name string) string { return filepath.Join(b.dir, name) }

// build builds them from this repository, lockfs with some flags.
func build(ctx context.Context, dir string, flags ...string) (binaries, error) {
	b := binaries{dir}
	root, err := command(ctx, "go", "list", "-m", "-f", "{{.Dir}}")
	if err != nil {
		return b, err
	}
	root = strings.TrimSpace(root)
	goBuild := []string{"go", "build", "-C", root, "-trimpath"} // as make build
	source := func(name string) string { return filepath.Join(root, "integration", "bench", name) }
	for _, args := range [][]string{
		append(slices.Concat(goBuild, flags), "-o", b.path("lockfs"), "./cmd/lockfs"),
		append(slices.Clone(goBuild), "-o", b.path("noop"), "-tags", "lockfs_noop", "./cmd/lockfs"),
		append(slices.Clone(goBuild), "-o", b.path("stock"), "./integration/bench/stock"),
		{"gcc", "-O2", "-Wall", "-o", b.path("client"), source("client/client.c")},
		{"gcc", "-O2", "-Wall", "-pthread", "-D_FILE_OFFSET_BITS=64", "-I/usr/include/fuse3", "-o", b.path("locks"), source("libfuse/locks.c"), "-lfuse3"},
	} {
		if _, err := command(ctx, args...); err != nil {
			return b, err
		}
	}
	return b, nil
}

// command runs a program and returns what it prints.
func command(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	cmd.WaitDelay = stopLimit
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, said.String())
	}
	return out.String(), nil
}

const (
	buildLimit = 5 * time.Minute
	startLimit = 20 * time.Second
	stopLimit  = 10 * time.Second
)

// mounts are all peers, mounted.
type mounts struct {
	base string
	all  []*mount
}

type mount struct {
	peer  peer
	dir   string
	cmd   *exec.Cmd
	said  bytes.Buffer
	ended chan struct{}
}

// mountAll starts a server of each peer on some CPUs. What it returns is to be
// ended also after an error.
func mountAll(b binaries, cpus []int, peers []peer) (*mounts, error) {
	ms := new(mounts)
	var err error
	if ms.base, err = os.MkdirTemp("", "lockfs-bench-"); err != nil {
		return ms, err
	}
	err = pinned(cpus, func() error {
		for _, p := range peers {
			m := &mount{peer: p, dir: filepath.Join(ms.base, p.name), ended: make(chan struct{})}
			ms.all = append(ms.all, m)
			if err := m.start(b, filepath.Join(ms.base, "state-"+p.name)); err != nil {
				return fmt.Errorf("%s: %w\n%s", p.name, err, m.said.String())
			}
		}
		return nil
	})
	return ms, err
}

func (m *mount) start(b binaries, state string) error {
	if err := os.Mkdir(m.dir, 0o755); err != nil {
		return err
	}
	if m.peer.command == nil {
		if err := unix.Mount("tmpfs", m.dir, "tmpfs", 0, ""); err != nil {
			return err
		}
		return errors.Join(os.Mkdir(filepath.Join(m.dir, "files"), 0o755), os.Mkdir(filepath.Join(m.dir, "tlock"), 0o755))
	}
	args := m.peer.command(b, m.dir, state)
	m.cmd = exec.Command(args[0], args[1:]...)
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	m.cmd.Stdout, m.cmd.Stderr = &m.said, &m.said
	if err := m.cmd.Start(); err != nil {
		m.cmd = nil
		return err
	}
	go func() {
		_ = m.cmd.Wait() // how it ends is not measured
		close(m.ended)
	}()
	return m.awaitServing()
}

// awaitServing waits until there is files/, which only the mount has.
func (m *mount) awaitServing() error {
	for begin := time.Now(); time.Since(begin) < startLimit; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(m.dir, "files")); err == nil {
			return nil
		}
		select {
		case <-m.ended:
			return errors.New("it ended at once")
		default:
		}
	}
	return fmt.Errorf("it does not serve after %v", startLimit)
}

func (ms *mounts) end() {
	for _, m := range ms.all {
		m.end()
	}
	_ = os.RemoveAll(ms.base)
}

// end unmounts, by force if the server does not.
func (m *mount) end() {
	if m.cmd != nil {
		_ = m.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-m.ended:
		case <-time.After(stopLimit):
			_ = syscall.Kill(-m.cmd.Process.Pid, syscall.SIGKILL)
			<-m.ended
		}
	}
	_ = unix.Unmount(m.dir, unix.MNT_DETACH) // of tmpfs, or left over
}

// measure has the client measure a row on all mounts that have it, and adds what
// it says.
func measure(ctx context.Context, b binaries, ms *mounts, m *measurement) error {
	r, s := m.row, m.series
	args := []string{b.path("client"), r.client, strconv.Itoa(s.rounds), strconv.FormatInt(s.length.Milliseconds(), 10), strconv.Itoa(r.number)}
	for _, t := range ms.all {
		if !slices.Contains(r.without, t.peer.name) {
			args = append(args, t.peer.name+"="+t.dir)
		}
	}
	// What is made before takes as long as what is measured, at most.
	ctx, cancel := context.WithTimeout(ctx, time.Minute+2*time.Duration(s.rounds*len(peers))*s.length)
	defer cancel()
	var out string
	err := pinned(s.cpus, func() (err error) {
		out, err = command(ctx, args...)
		return err
	})
	if err != nil {
		return err
	}
	for line := range strings.Lines(out) {
		var name string
		var round int
		var one sample
		if _, err := fmt.Sscan(line, &name, &round, &one.n, &one.took); err != nil {
			return fmt.Errorf("%q: %w", line, err)
		}
		m.samples[name] = append(m.samples[name], one)
	}
	return nil
}
