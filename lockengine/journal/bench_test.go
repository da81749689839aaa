package journal

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// compacting compacts whenever it is due, as an owner with little state does,
// until stop is called.
func compacting(b *testing.B, j *Journal) (stop func()) {
	quit := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-j.Full():
				c, err := j.Compact()
				if err != nil {
					b.Error(err)
					return
				}
				c.Switch()
				if err := c.Commit(); err != nil {
					b.Error(err)
				}
			case <-quit:
				return
			}
		}
	})
	return func() { close(quit); wg.Wait() }
}

// BenchmarkAppend includes what growing, page faults and compactions cost.
func BenchmarkAppend(b *testing.B) {
	for _, size := range []int{40, 120, 1000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			j, _, _ := open(b, b.TempDir(), thisBoot)
			defer compacting(b, j)()
			data := make([]byte, size)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := j.Append(1, data); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkRoom(b *testing.B) {
	j, _, _ := open(b, b.TempDir(), thisBoot)
	for b.Loop() {
		if err := j.Room(120, 1<<20); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppendParallel(b *testing.B) {
	j, _, _ := open(b, b.TempDir(), thisBoot)
	defer compacting(b, j)()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		data := make([]byte, 120)
		for pb.Next() {
			if _, err := j.Append(1, data); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkSync is what one who waits for the disk waits.
func BenchmarkSync(b *testing.B) {
	j, _, _ := open(b, b.TempDir(), thisBoot)
	data := make([]byte, 120)
	for b.Loop() {
		if _, err := j.Append(1, data); err != nil {
			b.Fatal(err)
		}
		if err := j.Sync(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReplayMillion(b *testing.B) {
	dir := b.TempDir()
	j, _, _ := open(b, dir, thisBoot)
	data := make([]byte, 120)
	for range 1_000_000 {
		_, err := j.Append(1, data)
		require.NoError(b, err)
	}
	require.NoError(b, j.Close())
	var took time.Duration
	for b.Loop() {
		j, err := Open(dir, Options{Boot: thisBoot})
		require.NoError(b, err)
		began := time.Now()
		rep, err := j.Replay(func(uint8, []byte) error { return nil })
		took += time.Since(began)
		require.NoError(b, err)
		require.Equal(b, 1_000_000, rep.Records)
		b.StopTimer()
		require.NoError(b, j.Close())
		b.StartTimer()
	}
	b.ReportMetric(float64(took.Milliseconds())/float64(b.N), "replay-ms/op")
}
