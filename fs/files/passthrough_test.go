package files

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestPassthroughSharesOneID(t *testing.T) {
	m := mount(t, withPassthrough)
	p := m.path("db")
	a, err := os.OpenFile(p, os.O_RDWR|os.O_CREATE, 0o644)
	require.NoError(t, err)
	require.Equal(t, [2]int{1, 0}, m.kernel.now())
	b, err := os.Open(p)
	require.NoError(t, err)
	c, err := os.OpenFile(p, os.O_WRONLY|os.O_APPEND, 0)
	require.NoError(t, err)
	require.Equal(t, [2]int{1, 0}, m.kernel.now(), "one id for all three")
	_, err = a.WriteAt([]byte("hello "), 0)
	require.NoError(t, err)
	_, err = c.WriteString("world")
	require.NoError(t, err)
	got := make([]byte, 11)
	_, err = b.ReadAt(got, 0)
	require.NoError(t, err)
	require.Equal(t, "hello world", string(got))
	_, err = b.WriteString("no")
	require.ErrorIs(t, err, unix.EBADF)
	st := statOf(t, p)
	require.EqualValues(t, 11, st.Size)
	for _, f := range []*os.File{a, b, c} {
		require.NoError(t, f.Close())
	}
	eventually(t, "unregistered", func() bool { return m.kernel.now() == [2]int{1, 1} })
}

// A read-only file is registered by a reader; a writer must get through all the same.
func TestReaderFirst(t *testing.T) {
	m := mount(t, withPassthrough)
	p := m.write(t, "f", "0123456789")
	r, err := os.Open(p)
	require.NoError(t, err)
	defer r.Close()
	w, err := os.OpenFile(p, os.O_RDWR, 0)
	require.NoError(t, err)
	defer w.Close()
	_, err = w.WriteAt([]byte("ab"), 2)
	require.NoError(t, err)
	got := make([]byte, 4)
	_, err = r.ReadAt(got, 1)
	require.NoError(t, err)
	require.Equal(t, "1ab4", string(got))
}

func TestCachedInodeStaysCached(t *testing.T) {
	m := mount(t, withPassthrough)
	p := m.write(t, "f", "text")
	eventually(t, "closed", func() bool { return m.fs.NumHandles() == 0 })
	m.kernel.fail.Store(int32(unix.ENOMEM)) // this once
	a, err := os.OpenFile(p, os.O_RDWR, 0)
	require.NoError(t, err)
	before := m.kernel.now()
	m.kernel.fail.Store(0)
	b, err := os.OpenFile(p, os.O_RDWR, 0)
	require.NoError(t, err)
	require.Equal(t, before, m.kernel.now(), "the second open must not try")
	_, err = a.WriteString("TE")
	require.NoError(t, err)
	got := make([]byte, 4)
	_, err = b.ReadAt(got, 0)
	require.NoError(t, err)
	require.Equal(t, "TExt", string(got))
	a.Close()
	b.Close()
	eventually(t, "closed", func() bool { return m.fs.NumHandles() == 0 })
	c, err := os.Open(p)
	require.NoError(t, err)
	defer c.Close()
	require.Equal(t, before[0]+1, m.kernel.now()[0], "a new start may pass through")
}

func TestPassthroughRefusedForGood(t *testing.T) {
	k := newKernel()
	k.fail.Store(int32(unix.EPERM))
	m := mount(t, func(c *Config) { c.Passthrough = k })
	for i := range 5 {
		m.write(t, fmt.Sprint(i), "x")
	}
	require.Equal(t, [2]int{1, 0}, k.now())
}

// The way a database opens its files: many descriptors of one file come and go, in all modes, while others read,
// write, sync and map it.
func TestConcurrentOpens(t *testing.T) {
	both(t, func(t *testing.T, m *mounted) {
		p := m.write(t, "db", string(make([]byte, dbWorkers*dbPage)))
		require.Equal(t, []string{"ok"}, person{}.acts(t, "database "+p))
		eventually(t, "all released", func() bool { return m.fs.NumHandles() == 0 })
		if m.kernel != nil {
			eventually(t, "all unregistered", func() bool { c := m.kernel.now(); return c[0] == c[1] && c[0] > 0 })
		}
	})
}

const dbWorkers, dbRounds, dbPage = 8, 60, 4096

// useDBs runs in a process of its own: a page fault holds up one of Go's processors, and when that waits for a
// server in the same process, the server may never get one.
func useDBs(path string) error {
	errs := make(chan error, dbWorkers)
	for w := range dbWorkers {
		go func() {
			var err error
			for r := 0; r < dbRounds && err == nil; r++ {
				err = useDB(path, w, r, dbPage)
			}
			errs <- err
		}()
	}
	var all []error
	for range dbWorkers {
		all = append(all, <-errs)
	}
	return errors.Join(all...)
}

func useDB(path string, worker, round, page int) error {
	flags := []int{os.O_RDWR, os.O_WRONLY, os.O_RDWR | os.O_APPEND, os.O_RDWR | os.O_SYNC}[rand.IntN(4)]
	off := int64(worker * page)
	want := bytes.Repeat([]byte{byte(worker*31 + round)}, page)
	w, err := os.OpenFile(path, flags&^os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer w.Close()
	if _, err := w.WriteAt(want, off); err != nil {
		return err
	}
	r, err := os.Open(path)
	if err != nil {
		return err
	}
	defer r.Close()
	got := make([]byte, page)
	if _, err := r.ReadAt(got, off); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("worker %d round %d read something else", worker, round)
	}
	mem, err := unix.Mmap(int(r.Fd()), 0, (worker+1)*page, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	defer unix.Munmap(mem)
	if !bytes.Equal(mem[off:], want) {
		return fmt.Errorf("worker %d round %d mapped something else", worker, round)
	}
	return nil
}
