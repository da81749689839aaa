package enginetest

import (
	"sync"
	"time"

	"lockfs/lockengine"
)

// Clock is a clock that stands still until it is told to go on.
type Clock struct {
	mu    sync.Mutex
	now   lockengine.Instant
	alarm int64 // 0: not set
	fire  func()
}

var _ lockengine.Clock = (*Clock)(nil)

// NewClock returns a clock that shows a second after boot, on a day in 2023.
func NewClock() *Clock {
	return &Clock{now: lockengine.Instant{Boot: int64(time.Second), Wall: 1_700_000_000 * int64(time.Second)}}
}

// Now implements [lockengine.Clock].
func (c *Clock) Now() lockengine.Instant {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Alarm implements [lockengine.Clock]. It never fires from within Alarm, but
// when time passes next.
func (c *Clock) Alarm(boot int64, fire func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.alarm, c.fire = boot, fire
}

// Close implements [lockengine.Clock].
func (c *Clock) Close() error {
	c.Alarm(0, nil)
	return nil
}

// Pass lets time pass on both clocks. The alarm fires at its moment, on this
// goroutine, and has been answered when Pass returns.
func (c *Clock) Pass(d time.Duration) {
	c.mu.Lock()
	end := c.now.Boot + int64(d)
	for c.alarm != 0 && c.alarm <= end {
		c.goTo(max(c.alarm, c.now.Boot))
		fire := c.fire
		c.alarm = 0
		c.mu.Unlock()
		fire()
		c.mu.Lock()
	}
	c.goTo(end)
	c.mu.Unlock()
}

// Skip lets time pass without firing the alarm, as if it were late.
func (c *Clock) Skip(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.goTo(c.now.Boot + int64(d))
}

func (c *Clock) goTo(boot int64) {
	c.now.Wall += boot - c.now.Boot
	c.now.Boot = boot
}

// Step sets the wall clock forward, or back if d is negative. No time passes.
func (c *Clock) Step(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now.Wall += int64(d)
}
