package integration

import (
	"fmt"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A board is memory that the processes of a load share, in a file outside the mount. It has a cell for everything that
// they lock. Who is granted a lock enters its cell and leaves it before the unlock; that the cell is as it has to be
// shows that nobody else was let in. This is no lock: nobody ever waits for a cell.
type board struct {
	words []atomic.Uint64
}

// The words of a board: first when the worker was last killed (CLOCK_MONOTONIC, nanoseconds), how often it was killed,
// then the cells.
const (
	boardKilledAt = iota
	boardKills
	boardCells

	boardSize = 4096
)

func createBoard(path string) (*board, error) {
	if err := os.WriteFile(path, make([]byte, boardSize), 0o600); err != nil {
		return nil, err
	}
	return openBoard(path)
}

func openBoard(path string) (*board, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	mem, err := unix.Mmap(fd, 0, boardSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return &board{unsafe.Slice((*atomic.Uint64)(unsafe.Pointer(&mem[0])), boardSize/8)}, nil
}

func (b *board) cell(i int) *cell { return (*cell)(&b.words[boardCells+i]) }

// noteKill records that the worker is about to be killed.
func (b *board) noteKill() {
	b.words[boardKilledAt].Store(monotonic())
	b.words[boardKills].Add(1)
}

// sinceKill says when the worker was last killed, for the report of a failure.
func (b *board) sinceKill() string {
	kills := b.words[boardKills].Load()
	if kills == 0 {
		return "before any kill"
	}
	since := time.Duration(monotonic() - b.words[boardKilledAt].Load())
	return fmt.Sprintf("%v after kill %d", since.Round(time.Microsecond), kills)
}

func monotonic() uint64 {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		panic(err)
	}
	return uint64(now.Nano())
}

// A cell is 0 when nobody is in it, else the number of those who share it, or alone and the id of the one who is in it
// alone.
type cell atomic.Uint64

const alone = 1 << 63

type lockMode int

const (
	shared lockMode = iota + 1
	exclusive
)

func (c *cell) word() *atomic.Uint64 { return (*atomic.Uint64)(c) }

// enter is called with the lock just granted.
func (c *cell) enter(id uint64, mode lockMode) error {
	if mode == exclusive {
		return c.swap("granted exclusive", 0, alone|id)
	}
	for {
		v := c.word().Load()
		if v&alone != 0 {
			return overlap("granted shared", v)
		}
		if c.word().CompareAndSwap(v, v+1) {
			return nil
		}
	}
}

// leave is called with the lock still held.
func (c *cell) leave(id uint64, mode lockMode) error {
	if mode == exclusive {
		return c.swap("before an unlock of exclusive", alone|id, 0)
	}
	for {
		v := c.word().Load()
		if v&alone != 0 || v == 0 {
			return overlap("before an unlock of shared", v)
		}
		if c.word().CompareAndSwap(v, v-1) {
			return nil
		}
	}
}

// upgrade is called with the lock just granted as exclusive, downgrade with it still held so.
func (c *cell) upgrade(id uint64) error { return c.swap("upgraded", 1, alone|id) }

func (c *cell) downgrade(id uint64) error { return c.swap("before a downgrade", alone|id, 1) }

func (c *cell) swap(when string, from, to uint64) error {
	if !c.word().CompareAndSwap(from, to) {
		return overlap(when, c.word().Load())
	}
	return nil
}

// overlapped begins the report of two holders of one lock.
const overlapped = "OVERLAP"

func overlap(when string, v uint64) error {
	if v&alone != 0 {
		return fmt.Errorf("%s %s: process %d is in it alone", overlapped, when, v&^alone)
	}
	return fmt.Errorf("%s %s: %d are in it", overlapped, when, v)
}
