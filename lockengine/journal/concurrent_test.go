package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestConcurrent appends, syncs, asks for room and compacts at once, and finds all.
func TestConcurrent(t *testing.T) {
	const writers, each = 4, 4000
	dir := tempDir(t)
	j, _, _ := open(t, dir, thisBoot)
	var (
		mu      sync.Mutex
		state   [writers]uint64 // GUARDED_BY(mu): appended last, of each
		pos     uint64          // GUARDED_BY(mu)
		wg      sync.WaitGroup
		synced  sync.WaitGroup
		ended   = make(chan struct{})
		compact sync.WaitGroup
	)
	compact.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-j.Full():
			case <-ended:
				return
			}
			c, err := j.Compact()
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			c.Switch()
			now := state
			mu.Unlock()
			for w, last := range now {
				if err := c.Add(2, words(uint64(w), last)); err != nil {
					t.Error(err)
				}
			}
			if n%3 == 2 {
				c.Abort()
			} else if err := c.Commit(); err != nil {
				t.Error(err)
			}
		}
	})
	for w := range writers {
		wg.Go(func() {
			padding := make([]byte, 4000)
			for n := uint64(1); n <= each; n++ {
				if err := j.Room(100, rand.IntN(1<<20)); err != nil {
					t.Error(err)
				}
				mu.Lock()
				p, err := j.Append(1, append(words(uint64(w), n), padding[:rand.IntN(len(padding))]...))
				if err != nil || p <= pos {
					t.Errorf("position %d after %d: %v", p, pos, err)
				}
				pos, state[w] = p, n
				mu.Unlock()
				if n%50 == 0 {
					synced.Add(1)
					j.Synced(p, func(err error) {
						if err != nil {
							t.Error(err)
						}
						synced.Done()
					})
				}
			}
		})
	}
	wg.Wait()
	synced.Wait()
	close(ended)
	compact.Wait()
	require.NotZero(t, j.Stats().Compactions)
	t.Logf("%+v", j.Stats())

	for _, dir := range []string{crashed(t, dir), dir} {
		if dir == string(j.dir) {
			require.NoError(t, j.Close())
		}
		var got [writers]uint64
		again, err := Open(dir, Options{Boot: thisBoot})
		require.NoError(t, err)
		_, err = again.Replay(func(kind uint8, data []byte) error {
			w, n := binary.LittleEndian.Uint64(data), binary.LittleEndian.Uint64(data[8:])
			if kind == 1 && n != got[w]+1 {
				return fmt.Errorf("writer %d: %d after %d", w, n, got[w])
			}
			got[w] = n
			return nil
		})
		require.NoError(t, err)
		require.Equal(t, state, got)
		require.NoError(t, again.Close())
	}
}

func words(a, b uint64) []byte {
	return binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, a), b)
}

// TestSyncedTogether: those who wait while a sync runs share the next one.
func TestSyncedTogether(t *testing.T) {
	j, _, _ := open(t, tempDir(t), thisBoot)
	running, goOn := make(chan struct{}, 1), make(chan struct{})
	atEachStep(t, func(string) {
		running <- struct{}{}
		<-goOn
	})
	var wg sync.WaitGroup
	wait := func() {
		wg.Add(1)
		pos, err := j.Append(1, []byte("x"))
		require.NoError(t, err)
		j.Synced(pos, func(err error) {
			if err != nil {
				t.Error(err)
			}
			wg.Done()
		})
	}
	wait()
	<-running
	for range 100 {
		wait()
	}
	goOn <- struct{}{}
	<-running
	goOn <- struct{}{}
	wg.Wait()
	require.EqualValues(t, 2, j.Stats().Syncs)

	pos, err := j.Append(1, nil)
	require.NoError(t, err)
	step = func(string) {}
	require.NoError(t, j.Sync())
	require.NoError(t, j.Close())
	done := make(chan error, 1)
	j.Synced(pos, func(err error) { done <- err })
	require.ErrorIs(t, <-done, ErrClosed)
}

func TestFull(t *testing.T) {
	j, _, _ := open(t, tempDir(t), thisBoot)
	full := func() bool {
		select {
		case <-j.Full():
			return true
		default:
			return false
		}
	}
	big := make([]byte, 1<<20)
	fillUp := func(n int) {
		for range n {
			_, err := j.Append(1, big)
			require.NoError(t, err)
		}
	}
	fillUp(3)
	require.False(t, full())
	fillUp(1)
	require.True(t, full())
	require.False(t, full())
	fillUp(2)
	require.True(t, full(), "it does not tell again")

	c, err := j.Compact()
	require.NoError(t, err)
	_, err = j.Compact()
	require.ErrorIs(t, err, ErrCompacting)
	require.ErrorIs(t, c.Add(1, nil), ErrNotSwitched)
	c.Switch()
	c.Abort()
	require.ErrorIs(t, c.Commit(), ErrClosed)

	c, err = j.Compact()
	require.NoError(t, err)
	c.Switch()
	require.ErrorIs(t, c.Add(1, make([]byte, MaxRecord+1)), ErrTooLong)
	require.ErrorIs(t, c.Commit(), ErrTooLong, "a snapshot that lacks a record")

	c, err = j.Compact()
	require.NoError(t, err)
	c.Switch()
	require.NoError(t, c.Add(1, make([]byte, MaxRecord)))
	require.NoError(t, c.Commit())
	c.Abort()
	fillUp(19)
	require.False(t, full())
	fillUp(2)
	require.True(t, full())
	require.NoError(t, j.Close())
	_, got, _ := open(t, string(j.dir), thisBoot)
	require.Len(t, got, 22)
}

// TestSyncFails: once a sync failed none is said to have succeeded, until a
// snapshot takes the place of what could not be written.
func TestSyncFails(t *testing.T) {
	dir := tempDir(t)
	j, err := Open(dir, Options{Boot: thisBoot, Sync: true})
	require.NoError(t, err)
	_, err = j.Replay(nil)
	require.NoError(t, err)
	want := addMany(t, j, 0, 3)
	broken := errors.New("the disk broke")
	j.syncing.Lock()
	j.cur.syncErr = broken
	j.syncing.Unlock()
	for range 2 {
		require.ErrorIs(t, j.Sync(), broken)
	}
	c, err := j.Compact()
	require.NoError(t, err)
	c.Switch()
	want = append(want, add(t, j, 1, "since"))
	require.ErrorIs(t, j.Sync(), broken)
	c.Abort()
	compact(t, j, want)
	require.NoError(t, j.Sync())
	add(t, j, 1, "more")
	require.NoError(t, j.Sync())
	require.NoError(t, j.Close())
}
