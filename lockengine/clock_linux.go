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
	// What wall clock and boot time are ahead of the time since base, and when,
	// by that, this was last looked at. Boot time is ahead by more when the
	// machine was suspended. See Now.
	wall, boot, checked atomic.Int64

	mu     sync.Mutex
	fire   func() // GUARDED_BY(mu)
	closed bool   // GUARDED_BY(mu)
}

const (
	// tolerated is by how much the readings of two clocks may drift apart, since
	// they are not made at the same moment, before they are compared anew.
	tolerated = int64(100 * time.Microsecond)
	// trusted is for how long they need not be looked at again.
	trusted = int64(time.Millisecond)
)

func newSystemClock() (*systemClock, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("timerfd for boot time: %w", err)
	}
	c := &systemClock{timer: os.NewFile(uintptr(fd), "timerfd"), fd: fd, base: time.Now()}
	c.compare()
	go c.serve()
	return c, nil
}

// Now reads one clock, and no system call is made: monotonic time from the vDSO,
// to which it adds what the others are ahead. Every millisecond it looks at the
// wall clock too. Boot time is monotonic time plus what was spent in suspend, and
// any suspend moves the wall clock ahead of monotonic time. So boot time must be
// asked for only when these two have moved apart: after a suspend, or after a
// step of the wall clock. To suspend and to resume take more than the
// millisecond, and monotonic time goes on meanwhile.
func (c *systemClock) Now() Instant {
	mono := int64(time.Since(c.base))
	if mono-c.checked.Load() <= trusted {
		return c.ahead(mono)
	}
	c.check()
	return c.ahead(mono)
}

// ahead adds to a monotonic time what the others are ahead.
func (c *systemClock) ahead(mono int64) Instant {
	return Instant{Boot: mono + c.boot.Load(), Wall: mono + c.wall.Load()}
}

// check looks whether wall clock and monotonic time have moved apart.
func (c *systemClock) check() {
	t := time.Now()
	mono := int64(t.Sub(c.base))
	wall := t.UnixNano() - mono
	if moved := wall - c.wall.Load(); moved > tolerated || -moved > tolerated {
		c.compare()
		return
	}
	c.wall.Store(wall)
	c.checked.Store(mono)
}

// compare reads boot time between two other readings, again if the thread was
// held up in between.
func (c *systemClock) compare() {
	for try := 0; ; try++ {
		var ts unix.Timespec
		before := time.Now()
		// It cannot fail: the timer on the same clock could be made.
		_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
		after := time.Now()
		if took := after.Sub(before); took < 10*time.Microsecond || try == 10 {
			mono := int64(before.Sub(c.base))
			c.boot.Store(ts.Nano() - mono - int64(took)/2)
			c.wall.Store(before.UnixNano() - mono)
			c.checked.Store(mono)
			return
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
