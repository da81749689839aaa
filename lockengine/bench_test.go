package lockengine

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func newBenchLocal(b testing.TB) *Local { return newBench(b, Config{}) }

func newBench(b testing.TB, cfg Config) *Local {
	l, err := NewLocal(cfg)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	return l
}

// ringLog is a log that only copies, over and over into the same megabyte.
type ringLog struct {
	buf [1 << 20]byte
	at  int
}

func (r *ringLog) Room(int, int) error { return nil }

func (r *ringLog) Append(_ uint8, data []byte) (uint64, error) {
	if r.at > len(r.buf)-4096 {
		r.at = 0
	}
	r.at += copy(r.buf[r.at:], data)
	return 1, nil
}

func (r *ringLog) Synced(_ uint64, done func(error)) { go done(nil) }

// withAndWithoutLog runs a benchmark on both, side by side.
func withAndWithoutLog(b *testing.B, run func(b *testing.B, l *Local)) {
	b.Run("alone", func(b *testing.B) { run(b, newBenchLocal(b)) })
	b.Run("log", func(b *testing.B) { run(b, newBench(b, Config{Log: &ringLog{}})) })
}

func benchRequest(owner uint64) Request {
	return Request{
		Class: Record, Name: "file", Owner: Owner{1, owner}, Mode: Exclusive, Range: Range{0, 10},
		Handle: owner, Who: Who{PID: int32(owner)},
	}
}

// BenchmarkUncontended is a lock and an unlock that nobody else minds.
func BenchmarkUncontended(b *testing.B) { withAndWithoutLog(b, runUncontended) }

func runUncontended(b *testing.B, l *Local) {
	req := benchRequest(7)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := l.Try(&req); err != nil {
			b.Fatal(err)
		}
		l.Unlock(&req)
	}
}

func BenchmarkUncontendedFlock(b *testing.B) { withAndWithoutLog(b, runUncontendedFlock) }

func runUncontendedFlock(b *testing.B, l *Local) {
	req := benchRequest(7)
	req.Class = Flock
	b.ReportAllocs()
	for b.Loop() {
		if _, err := l.Try(&req); err != nil {
			b.Fatal(err)
		}
		l.Unlock(&req)
	}
}

func BenchmarkNamed(b *testing.B) { withAndWithoutLog(b, runNamed) }

func runNamed(b *testing.B, l *Local) {
	req := Request{Class: Named, Name: "backup", Owner: Owner{1, 7}, Timeout: time.Hour, Who: Who{PID: 7}}
	b.ReportAllocs()
	for b.Loop() {
		g, err := l.Try(&req)
		if err != nil {
			b.Fatal(err)
		}
		if err := l.Release(req.Name, g.Token, Released); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRangesHeld is a lock and an unlock among n ranges held by others.
func BenchmarkRangesHeld(b *testing.B) {
	for n := 10; n <= 1_000_000; n *= 10 {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			l := newBenchLocal(b)
			holdRanges(l, n)
			req := benchRequest(1000)
			req.Range = Range{uint64(n)*10 + 12, uint64(n)*10 + 15}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := l.Try(&req); err != nil {
					b.Fatal(err)
				}
				l.Unlock(&req)
			}
		})
	}
}

// holdRanges has n ranges of one file held, from 20 on, by up to 100.
func holdRanges(l *Local, n int) {
	for i := range n {
		req := benchRequest(uint64(i%100 + 1))
		req.Range = Range{uint64(i+1) * 20, uint64(i+1)*20 + 10}
		l.Try(&req)
	}
}

// BenchmarkRangesHeldCold is the same at any place, after something else had the
// caches: how long most of the pairs take.
func BenchmarkRangesHeldCold(b *testing.B) {
	other := make([]uint64, 4<<20/8)
	for n := 1; n <= 1_000_000; n *= 100 {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			l := newBenchLocal(b)
			holdRanges(l, n)
			runtime.GC()
			req := benchRequest(1000)
			rnd := rand.New(rand.NewPCG(1, 1))
			var took []time.Duration
			for b.Loop() {
				at := rnd.Uint64N(uint64(n))*20 + 12
				req.Range = Range{at, at + 3}
				for i := 0; i < len(other); i += 8 {
					other[i]++
				}
				start := time.Now()
				if _, err := l.Try(&req); err != nil {
					b.Fatal(err)
				}
				l.Unlock(&req)
				took = append(took, time.Since(start))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/10].Nanoseconds()), "p10-ns")
			b.ReportMetric(float64(took[len(took)/2].Nanoseconds()), "median-ns")
		})
	}
}

// BenchmarkFiles is a lock and an unlock of one file after the other, of n that
// others hold a lock on.
func BenchmarkFiles(b *testing.B) {
	for n := 10; n <= 1_000_000; n *= 10 {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			l := newBenchLocal(b)
			names := make([]string, n)
			for i := range names {
				names[i] = fmt.Sprint("file-", i)
				req := benchRequest(uint64(i%100 + 1))
				req.Name = names[i]
				l.Try(&req)
			}
			req := benchRequest(1000)
			req.Range = Range{20, 30}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				req.Name = names[i%n]
				if _, err := l.Try(&req); err != nil {
					b.Fatal(err)
				}
				l.Unlock(&req)
			}
		})
	}
}

// BenchmarkLeases is to take a name and to release it, while n others are held
// with leases.
func BenchmarkLeases(b *testing.B) {
	for n := 10; n <= 1_000_000; n *= 10 {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			l := newBenchLocal(b)
			for i := range n {
				l.Try(&Request{Class: Named, Name: fmt.Sprintf("lock-%011d", i), Timeout: time.Hour + time.Duration(i)})
			}
			runNamed(b, l)
		})
	}
}

// BenchmarkWhileCopied is a lock and an unlock while the state is copied again
// and again, for the views or the journal, with n locks in it: how long most of
// them take, and the longest of all.
func BenchmarkWhileCopied(b *testing.B) {
	copies := map[string]func(*Local){
		"nothing":    func(*Local) { time.Sleep(time.Millisecond) },
		"snapshot":   func(l *Local) { l.Snapshot() },
		"checkpoint": func(l *Local) { chunksOf(b, l) },
	}
	for _, what := range []string{"nothing", "snapshot", "checkpoint"} {
		for _, n := range []int{20_000, 1_000_000} {
			b.Run(fmt.Sprintf("%s/%d", what, n), func(b *testing.B) {
				l := newBench(b, Config{Log: &ringLog{}})
				fillBench(l, n/2)
				runtime.GC()
				var stop atomic.Bool
				var copying sync.WaitGroup
				copying.Go(func() {
					for !stop.Load() {
						copies[what](l)
					}
				})
				req := benchRequest(1 << 40)
				req.Name = "other"
				var took []time.Duration
				for b.Loop() {
					start := time.Now()
					l.Try(&req)
					l.Unlock(&req)
					took = append(took, time.Since(start))
				}
				stop.Store(true)
				copying.Wait()
				slices.Sort(took)
				b.ReportMetric(float64(took[len(took)*999/1000].Nanoseconds())/1e3, "p99.9-us")
				b.ReportMetric(float64(took[len(took)-1].Nanoseconds())/1e3, "longest-us")
			})
		}
	}
}

// BenchmarkCutStep is how long the mutex is held for a part of a copy of n
// locks, in time of its thread, which other load does not change.
func BenchmarkCutStep(b *testing.B) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for _, n := range []int{20_000, 1_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			l := newBenchLocal(b)
			fillBench(l, n/2)
			runtime.GC()
			var took []time.Duration
			var part copies
			for b.Loop() {
				k := l.core.startCut(true)
				for more := true; more; {
					start := threadTime(b)
					more = k.step(copyStep)
					part = k.take(&part)
					took = append(took, threadTime(b)-start)
				}
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1e3, "median-us")
			b.ReportMetric(float64(took[len(took)*999/1000].Nanoseconds())/1e3, "p99.9-us")
			b.ReportMetric(float64(took[len(took)-1].Nanoseconds())/1e3, "longest-us")
		})
	}
}

func threadTime(b *testing.B) time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		b.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

// BenchmarkHandOff is an unlock that hands over to one of n who wait for the
// same byte, who then gets in line again.
func BenchmarkHandOff(b *testing.B) {
	for n := 10; n <= 100_000; n *= 10 {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			l := newBenchLocal(b)
			done := func(Grant, error) {}
			for i := range n + 1 {
				l.Wait(new(benchRequest(uint64(i+1))), done)
			}
			b.ReportAllocs()
			for i := uint64(0); b.Loop(); i++ {
				req := benchRequest(i%uint64(n+1) + 1)
				l.Unlock(&req)
				l.Wait(&req, done)
			}
		})
	}
}

// BenchmarkHandOver is the hand-over of make bench: two owners pass three bytes on, and
// whoever gets one gives one back and waits for the next, which the other holds.
func BenchmarkHandOver(b *testing.B) { withAndWithoutLog(b, runHandOver) }

func runHandOver(b *testing.B, l *Local) {
	var reqs [2][3]Request // by owner and byte
	for o := range reqs {
		for at := range reqs[o] {
			r := benchRequest(uint64(o + 1))
			r.Range = Range{uint64(2 * at), uint64(2*at) + 1}
			reqs[o][at] = r
		}
	}
	got, done := 0, func(Grant, error) {}
	wait := func(r *Request) {
		if _, id, _ := l.Wait(r, done); id == 0 {
			got++
		}
	}
	wait(&reqs[0][0])
	wait(&reqs[0][2])
	wait(&reqs[1][1])
	wait(&reqs[1][0]) // of which the first has to wait
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		o := i % 2
		l.Unlock(&reqs[o][i%3])
		wait(&reqs[o][(i+1)%3])
	}
	if got != 3 {
		b.Fatal("somebody did not have to wait:", got)
	}
}

// BenchmarkDeadlock is the refusal of a wait that closes a cycle of n owners,
// each of which holds one file and waits for the next one's.
func BenchmarkDeadlock(b *testing.B) {
	for n := 10; n <= 10_000; n *= 10 {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			l := newBenchLocal(b)
			at := func(owner, file int) Request {
				req := benchRequest(uint64(owner + 1))
				req.Name, req.Kind = fmt.Sprint(file%n), KindProcess
				return req
			}
			for i := range n {
				l.Try(new(at(i, i)))
			}
			for i := range n - 1 {
				l.Wait(new(at(i, i+1)), func(Grant, error) {})
			}
			last := at(n-1, n)
			for b.Loop() {
				if _, _, err := l.Wait(&last, nil); err != ErrDeadlock {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkWaitInLine is the common wait: for one who holds something else,
// behind many who do, too, without a cycle.
func BenchmarkWaitInLine(b *testing.B) {
	l := newBenchLocal(b)
	for i := range 1000 {
		req := benchRequest(uint64(i + 2))
		req.Name = fmt.Sprint(i)
		l.Try(&req)
		l.Wait(new(benchRequest(uint64(i+2))), func(Grant, error) {})
	}
	own := benchRequest(5000)
	own.Name = "own"
	l.Try(&own)
	for b.Loop() {
		_, id, _ := l.Wait(new(benchRequest(5000)), func(Grant, error) {})
		l.Cancel(id, false)
	}
}

// BenchmarkMillionNamed reports the memory that a named lock takes, with its
// name of 16 bytes, when a million are held.
func BenchmarkMillionNamed(b *testing.B) {
	const n = 1_000_000
	for b.Loop() {
		l := newBenchLocal(b)
		before, start := heapSize(), time.Now()
		for i := range n {
			l.Try(&Request{Class: Named, Name: fmt.Sprintf("lock-%011d", i), Owner: Owner{1, 7}, Timeout: time.Hour})
		}
		b.ReportMetric(float64(time.Since(start).Nanoseconds())/n, "ns/lock")
		b.ReportMetric(float64(heapSize()-before)/n, "B/lock")
		runtime.KeepAlive(l)
	}
}

func heapSize() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkCommand is one command as bytes.
func BenchmarkCommand(b *testing.B) {
	cmd := command{op: opTry, req: new(benchRequest(7))}
	now := Instant{1e12, 1_700_000_000e9}
	log := &ringLog{}
	r := recorder{log: log}
	b.ReportAllocs()
	for b.Loop() {
		now.Boot, now.Wall = now.Boot+20_000, now.Wall+20_000
		log.at = 0
		r.command(&cmd, now)
	}
	b.ReportMetric(float64(log.at), "B")
}

// fillBench takes n named locks and n record locks of n processes.
func fillBench(l *Local, n int) {
	for i := range n {
		req := benchRequest(uint64(i + 1))
		req.Name = fmt.Sprint("file-", i%100)
		req.Range = Range{uint64(i) * 10, uint64(i)*10 + 5}
		l.Try(&req)
		l.Try(&Request{Class: Named, Name: fmt.Sprint("lock-", i), Owner: req.Owner, Who: req.Who, Timeout: time.Hour, Key: uint64(i + 1)})
	}
}

func chunksOf(t testing.TB, l *Local) (chunks [][]byte) {
	err := l.Checkpoint(func() {}, func(chunk []byte) error {
		chunks = append(chunks, chunk)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return chunks
}

// BenchmarkCheckpoint writes the state, with 10,000 named locks and as many record locks.
func BenchmarkCheckpoint(b *testing.B) {
	l := newBenchLocal(b)
	fillBench(l, 10_000)
	for b.Loop() {
		chunksOf(b, l)
	}
}

// BenchmarkRestore reads that state.
func BenchmarkRestore(b *testing.B) {
	l := newBenchLocal(b)
	fillBench(l, 10_000)
	chunks := chunksOf(b, l)
	b.ReportAllocs()
	for b.Loop() {
		again := newBenchLocal(b)
		for _, chunk := range chunks {
			if err := again.Replay(recordState, chunk); err != nil {
				b.Fatal(err)
			}
		}
		if err := again.Resume(Resumption{Same: true}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkReplay reads the commands of that state, one a lock.
func BenchmarkReplay(b *testing.B) {
	var log keptLog
	fillBench(newBench(b, Config{Log: &log}), 10_000)
	for b.Loop() {
		again := newBenchLocal(b)
		for _, r := range log.records {
			if err := again.Replay(recordCommand, r); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(log.records)), "ns/record")
}

// keptLog keeps the commands.
type keptLog struct {
	ringLog
	records [][]byte
}

func (k *keptLog) Append(kind uint8, data []byte) (uint64, error) {
	if kind == recordCommand {
		k.records = append(k.records, append([]byte(nil), data...))
	}
	return 1, nil
}
