package lockengine

import (
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// systemClock is the machine's clock: CLOCK_BOOTTIME, which goes on in suspend
// as Go's timers do not, read and slept on by timerfd_create(2).
type systemClock struct {
	timer *os.File // in the netpoller: a read blocks no thread
	fd    int
	base  time.Time // any moment, for its monotonic reading
	// offset is what boot time is ahead of the time since base; it grows when
	// the machine was suspended. See Now.
	offset atomic.Pointer[clockOffset]

	mu     sync.Mutex
	fire   func() // GUARDED_BY(mu)
	closed bool   // GUARDED_BY(mu)
}

// clockOffset is how the clocks stood to each other when last compared, in
// nanoseconds.
type clockOffset struct {
	wall int64 // wall clock minus monotonic time since base
	boot int64 // boot clock minus monotonic time since base
}

// tolerated is by how much the readings of two clocks may drift apart, since
// they are not made at the same moment, before they are compared anew.
const tolerated = int64(100 * time.Microsecond)

func newSystemClock() (*systemClock, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("timerfd for boot time: %w", err)
	}
	c := &systemClock{timer: os.NewFile(uintptr(fd), "timerfd"), fd: fd, base: time.Now()}
	go c.serve()
	return c, nil
}

// Now reads both clocks without a system call: time.Now reads wall and
// monotonic time from the vDSO. Boot time is monotonic time plus what was
// spent in suspend, and any suspend moves the wall clock ahead of monotonic
// time. So boot time must be asked for only when these two have moved apart:
// after a suspend, or after a step of the wall clock.
func (c *systemClock) Now() Instant {
	t := time.Now()
	mono, wall := int64(t.Sub(c.base)), t.UnixNano()
	o := c.offset.Load()
	if o == nil || wall-mono-o.wall > tolerated || o.wall-(wall-mono) > tolerated {
		o = c.compare()
	}
	return Instant{Boot: mono + o.boot, Wall: wall}
}

// compare reads boot time between two other readings, again if the thread was
// held up in between.
func (c *systemClock) compare() *clockOffset {
	for try := 0; ; try++ {
		var ts unix.Timespec
		before := time.Now()
		// It cannot fail: the timer on the same clock could be made.
		_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
		after := time.Now()
		if took := after.Sub(before); took < 10*time.Microsecond || try == 10 {
			mono := int64(before.Sub(c.base))
			o := &clockOffset{wall: before.UnixNano() - mono, boot: ts.Nano() - mono - int64(took)/2}
			c.offset.Store(o)
			return o
		}
	}
}

// Alarm implements [Clock].
func (c *systemClock) Alarm(boot int64, fire func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	c.fire = fire
	spec := unix.ItimerSpec{}
	if boot != math.MaxInt64 {
		spec.Value = unix.NsecToTimespec(boot)
	}
	// It cannot fail: the descriptor is open and the time is valid.
	_ = unix.TimerfdSettime(c.fd, unix.TFD_TIMER_ABSTIME, &spec, nil)
}

// serve waits for the timer to ring, until it is closed.
func (c *systemClock) serve() {
	var buf [8]byte
	for {
		if _, err := c.timer.Read(buf[:]); err != nil {
			return
		}
		if binary.NativeEndian.Uint64(buf[:]) == 0 {
			continue
		}
		c.compare() // so that Now is not before the time it rings for
		c.mu.Lock()
		fire := c.fire
		c.mu.Unlock()
		if fire != nil {
			fire()
		}
	}
}

// Close stops the alarm. It does not wait for one that rings now, since that
// may be who calls it.
func (c *systemClock) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	return c.timer.Close()
}
