package main

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"lockfs/lockengine"
)

const (
	// followPause is how long events pile up before they are looked at.
	followPause = 250 * time.Millisecond
	// followBatch is how many are asked for at once: the engine grants nothing
	// meanwhile.
	followBatch = 256
)

// durations are the bounds of buckets, in seconds: from a lock that was free to
// one that is held for a day.
var durations = []float64{.0001, .001, .01, .1, .5, 1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600}

// events is what is needed of an engine.
type events interface {
	Events(after uint64, max int) ([]lockengine.Event, uint64)
	OnEvents(after uint64, ready func()) lockengine.WatchID
	Unwatch(lockengine.WatchID) bool
	Stats() lockengine.Stats
}

// follower reads the event log for how long locks were waited for and held. It
// asks to be woken only after a pause: an engine looks at who waits for events
// in each of its calls, so locks cost as much as without a follower. What the
// log no longer has by then is counted as missed.
//
// Concurrency: run has it; the histograms and the counter are safe for all.
type follower struct {
	engine       events
	seq          uint64 // of the last event seen
	waited, held *prometheus.HistogramVec
	missed       prometheus.Counter
}

// newFollower follows what happens from now on.
func newFollower(engine events) *follower {
	f := &follower{
		engine: engine,
		seq:    engine.Stats().Events,
		waited: newDurations("lockfs_wait_duration_seconds", "How long locks that were granted had been waited for: 0 for those granted at once."),
		held:   newDurations("lockfs_hold_duration_seconds", "How long locks that ended had been held."),
		missed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "lockfs_events_missed_total",
			Help: "Events that came too fast to be seen: what the histograms of durations lack.",
		}),
	}
	for _, c := range lockengine.Classes {
		f.waited.WithLabelValues(c.String())
		f.held.WithLabelValues(c.String())
	}
	return f
}

func newDurations(name, help string) *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: durations}, []string{"class"})
}

// run follows until ctx is done.
func (f *follower) run(ctx context.Context) {
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		woken := make(chan struct{}, 1)
		id := f.engine.OnEvents(f.seq, func() { woken <- struct{}{} })
		select {
		case <-woken:
		case <-ctx.Done():
			f.engine.Unwatch(id)
			return
		}
		pause.Reset(followPause)
		select {
		case <-pause.C:
		case <-ctx.Done():
			return
		}
		f.catchUp()
	}
}

// catchUp sees the events up to now: those that come meanwhile are for the next
// time, or it might never end.
func (f *follower) catchUp() {
	for now := f.engine.Stats().Events; f.seq < now; {
		events, missed := f.engine.Events(f.seq, followBatch)
		f.missed.Add(float64(missed))
		f.seq += missed + uint64(len(events))
		for i := range events {
			f.see(&events[i])
		}
	}
}

func (f *follower) see(e *lockengine.Event) {
	switch e.Kind {
	case lockengine.EventGranted:
		f.waited.WithLabelValues(e.Class.String()).Observe(e.Waited.Seconds())
	case lockengine.EventReleased, lockengine.EventExpired, lockengine.EventForced, lockengine.EventLost:
		f.held.WithLabelValues(e.Class.String()).Observe(e.Held.Seconds())
	}
}
