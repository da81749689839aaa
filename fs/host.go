package fs

import (
	"sync"
	"time"

	"lockfs/fs/files"
	"lockfs/lockengine/journal"
)

// host is all that a server has around it, but for the engine and the backing
// files. The simulation puts others in their place, which do nothing by chance.
type host struct {
	conn connection
	// journal; nil: there is none.
	journal recordLog
	// spawn runs f on another goroutine, after later does so when d has passed.
	spawn func(f func())
	after func(d time.Duration, f func()) stopper
	// buffers hold a request or an answer each: *[bufferSize]byte.
	buffers bufferPool
	// alive reports whether a process still runs, asker tells of that of a thread.
	alive func(pid int32) bool
	asker func(tid int32, now int64) asker
	// space is the pid namespace of a thread that waits for our answer.
	space func(tid int32) pidSpace
}

// connection is the kernel's end: frames are read from it and sent to it.
type connection interface {
	files.Passthrough
	// read fills buf with the next request. It returns 0 when the filesystem
	// is unmounted or its connection aborted.
	read(buf []byte) (int, error)
	// send gives the kernel a reply or a notification.
	send(frame []byte) error
	// answer gives the kernel a reply without data: code is 0 or a negative errno.
	answer(unique uint64, code int32) error
	// answerAndRead answers a request for a lock, whether or not anybody still waits
	// for it, and then is read.
	answerAndRead(a *lockAnswer, buf []byte) (int, error)
	// answerAll gives it up to maxHeld of those. One goroutine calls it.
	answerAll(held []lockAnswer)
	// answersMany reports whether answerAll does so at once, which is what makes it
	// worth to hold answers.
	answersMany() bool
	// tryRead is read if there is a request; else it fails with EAGAIN.
	tryRead(buf []byte) (int, error)
}

// recordLog is what a server needs of its journal.
type recordLog interface {
	files.Log
	Replay(apply func(kind uint8, data []byte) error) (journal.Report, error)
	Full() <-chan struct{}
	Compact() (*journal.Compaction, error)
	Stats() journal.Stats
}

// bufferPool is what a [sync.Pool] does.
type bufferPool interface {
	Get() any
	Put(any)
}

// stopper is a timer.
type stopper interface{ Stop() bool }

// hostOf is the host of a server that runs.
func hostOf(cfg *Config) host {
	askers := &askers{}
	h := host{
		conn:    newFuseDevice(cfg.FD),
		spawn:   func(f func()) { go f() },
		after:   func(d time.Duration, f func()) stopper { return time.AfterFunc(d, f) },
		buffers: &sync.Pool{New: newBuffer},
		alive:   processRuns,
		asker:   askers.of,
		space:   spaceOf,
	}
	if cfg.Journal != nil {
		h.journal = cfg.Journal
	}
	return h
}

// newBuffer makes a buffer for requests, with its first page in place. A read(2)
// of the device that had to wait for the page could be killed in that moment, and
// then the kernel fails the request with EIO, in place of keeping it for the next
// process (fs/fuse/dev.c, fuse_dev_do_read).
func newBuffer() any {
	b := new([bufferSize]byte)
	b[0] = 1
	return b
}
