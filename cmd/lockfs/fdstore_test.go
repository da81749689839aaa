package main

import (
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestStore: 1,000 descriptors outlive the worker that sent them and died at
// once.
func TestStore(t *testing.T) {
	r := newRig(t, settings{State: "store"})
	store := &r.s.store
	r.run()
	require.NoError(t, unix.Kill(await(t, "the first worker", r.serving), unix.SIGKILL))
	r.another()
	require.NoError(t, r.umount(false))
	require.NoError(t, await(t, "the end", r.result))
	require.Len(t, store.kept, storeSize)
	verdict, err := os.ReadFile(filepath.Join(filepath.Dir(r.s.path), "files"))
	require.NoError(t, err)
	require.Equal(t, "all there", string(verdict))
	// Replaced and dropped ones were closed.
	fds, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	require.Less(t, len(fds), storeSize+100)
	for fh := range store.kept {
		store.drop(fh)
	}
}

// storeSize is how many descriptors testStore leaves in the store.
const storeSize = 1000

// testStore puts descriptors into an empty store; into another one it looks.
func testStore(s settings, l *supervisorLink) error {
	kept, err := l.Take()
	if err != nil {
		return err
	}
	if len(kept) > 0 {
		return os.WriteFile(s.Files, []byte(checkStored(kept)), 0o600)
	}
	// First others under the same handles, to be replaced, and some to be dropped.
	for _, round := range []int{storeSize / 10, storeSize} {
		for i := range round {
			if err := putStored(l, uint64(i), round*i); err != nil {
				return err
			}
		}
	}
	for fh := range uint64(10) {
		if err := putStored(l, storeSize+fh, 0); err != nil {
			return err
		}
		l.Drop(storeSize + fh)
	}
	return nil
}

func putStored(l *supervisorLink, fh uint64, content int) error {
	fd, err := unix.MemfdCreate("stored", unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "stored")
	defer f.Close()
	if _, err := f.WriteString(strconv.Itoa(content)); err != nil {
		return err
	}
	return l.Put(fh, fd)
}

func checkStored(kept map[uint64]int) string {
	for fh, fd := range kept {
		b := make([]byte, 20)
		n, err := unix.Pread(fd, b, 0)
		if err != nil || string(b[:n]) != strconv.Itoa(storeSize*int(fh)) {
			return "wrong content of " + strconv.Itoa(int(fh)) + ": " + string(b[:max(n, 0)])
		}
		unix.Close(fd)
	}
	if len(kept) != storeSize {
		return strconv.Itoa(len(kept)) + " descriptors"
	}
	return "all there"
}

// TestStoreLimit: what the supervisor needs for itself is not filled up.
func TestStoreLimit(t *testing.T) {
	ours, theirs, err := newLink()
	require.NoError(t, err)
	defer ours.Close()
	link, err := linkOf(mustDup(t, theirs))
	theirs.Close()
	require.NoError(t, err)
	defer link.Close()
	for _, limit := range []int{0, 1 << 20} {
		require.NoError(t, send(link, msgPut, handleBytes(7), 0))
		p, err := newReceiver(ours).next()
		require.NoError(t, err)
		require.Len(t, p.fds, 1)
		s := fdStore{limit: limit, log: slog.New(slog.NewTextHandler(io.Discard, nil))}
		s.serve(ours, p)
		if limit == 0 {
			require.Empty(t, s.kept)
			require.ErrorIs(t, unix.Close(p.fds[0]), unix.EBADF, "it was closed")
		} else {
			require.Len(t, s.kept, 1)
			s.drop(7)
		}
	}
}

func mustDup(t testing.TB, f *os.File) int {
	t.Helper()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	require.NoError(t, err)
	return fd
}

func BenchmarkPutDrop(b *testing.B) {
	ours, theirs, err := newLink()
	if err != nil {
		b.Fatal(err)
	}
	defer ours.Close()
	go func() {
		s := fdStore{limit: 1 << 20, log: slog.New(slog.NewTextHandler(io.Discard, nil))}
		for in := newReceiver(ours); ; {
			p, err := in.next()
			if err != nil {
				return
			}
			s.serve(ours, p)
		}
	}()
	l, err := newSupervisorLink(mustDup(b, theirs))
	theirs.Close()
	if err != nil {
		b.Fatal(err)
	}
	defer l.conn.Close()
	for b.Loop() {
		if err := l.Put(1, 0); err != nil {
			b.Fatal(err)
		}
		l.Drop(1)
	}
}
