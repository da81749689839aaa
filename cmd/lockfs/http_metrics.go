package main

import (
	"net/http"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"lockfs/lockengine"
	"lockfs/lockengine/journal"
)

// newRegistry answers /metrics.
func newRegistry(of served, h *health, f *follower) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(newCollector(of, h), f.waited, f.held, f.missed, buildInfo(),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		DisableCompression: true, MaxRequestsInFlight: 4, Timeout: 2 * healthLimit,
	})
}

func buildInfo() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "lockfs_build_info", Help: "Always 1; its labels say what serves the mount.",
		ConstLabels: prometheus.Labels{"version": version, "revision": strings.TrimSpace(commit()), "goversion": runtime.Version()},
	}, func() float64 { return 1 })
}

// figures are those of one moment.
type figures struct {
	stats    lockengine.Stats
	oldest   [4]time.Duration
	journal  journal.Stats
	restarts uint64
	healthy  bool
}

// metric is one that is exported.
type metric struct {
	name, help string
	kind       prometheus.ValueType
	label      string // "": it has none
	values     func(f *figures, put func(value float64, label ...string))
}

const (
	counter = prometheus.CounterValue
	gauge   = prometheus.GaugeValue
)

// byClass is for metrics that have a value for each class of locks.
func byClass(value func(f *figures, c lockengine.Class) float64) func(*figures, func(float64, ...string)) {
	return func(f *figures, put func(float64, ...string)) {
		for _, c := range lockengine.Classes {
			put(value(f, c), c.String())
		}
	}
}

// plain is for metrics with one value.
func plain(value func(f *figures) float64) func(*figures, func(float64, ...string)) {
	return func(f *figures, put func(float64, ...string)) { put(value(f)) }
}

var lockMetrics = []metric{
	{"lockfs_locks_held", "Locks held now.", gauge, "class",
		byClass(func(f *figures, c lockengine.Class) float64 { return float64(f.stats.Held[c]) })},
	{"lockfs_locks_waiting", "Requests that wait for a lock now.", gauge, "class",
		byClass(func(f *figures, c lockengine.Class) float64 { return float64(f.stats.Waiting[c]) })},
	{"lockfs_oldest_lock_seconds", "How long the lock that is held longest has been held; 0: none is held. Absent where there are too many.", gauge, "class",
		func(f *figures, put func(float64, ...string)) {
			for _, c := range lockengine.Classes {
				if c == lockengine.Named || f.stats.Held[c] <= oldestLimit {
					put(f.oldest[c].Seconds(), c.String())
				}
			}
		}},
	{"lockfs_grants_total", "Locks granted, at once or after a wait.", counter, "class",
		byClass(func(f *figures, c lockengine.Class) float64 { return float64(f.stats.Granted[c]) })},
	{"lockfs_releases_total", "Locks given back by their holders.", counter, "class",
		byClass(func(f *figures, c lockengine.Class) float64 { return float64(f.stats.Released[c]) })},
	{"lockfs_refusals_total", "Requests refused since the lock was held. Counts from the start of the worker.", counter, "class",
		byClass(func(f *figures, c lockengine.Class) float64 { return float64(f.stats.Refused[c]) })},
	{"lockfs_waits_total", "Requests that had to wait.", counter, "class",
		byClass(func(f *figures, c lockengine.Class) float64 { return float64(f.stats.Waited[c]) })},
	{"lockfs_waits_canceled_total", "Waits that were given up.", counter, "class",
		byClass(func(f *figures, c lockengine.Class) float64 { return float64(f.stats.Canceled[c]) })},
	{"lockfs_expiries_total", "Timed locks whose time ran out.", counter, "",
		plain(func(f *figures) float64 { return float64(f.stats.Expired) })},
	{"lockfs_forced_releases_total", "Timed locks and holds released by somebody else's hand.", counter, "",
		plain(func(f *figures) float64 { return float64(f.stats.Forced) })},
	{"lockfs_deadlocks_total", "Waits that closed a cycle: refused with EDEADLK, or only possibly a deadlock and left to wait.", counter, "outcome",
		func(f *figures, put func(float64, ...string)) {
			put(float64(f.stats.Deadlocks), "refused")
			put(float64(f.stats.Possible), "possible")
		}},
	{"lockfs_quota_refusals_total", "Requests refused since a user had too many locks. Counts from the start of the worker.", counter, "",
		plain(func(f *figures) float64 { return float64(f.stats.OverQuota) })},
	{"lockfs_unrecorded_changes", "Changes that a crash now would undo, since the journal has no room.", gauge, "",
		plain(func(f *figures) float64 { return float64(f.stats.Unrecorded) })},
	{"lockfs_healthy", "1 if new locks can be recorded, as /healthz says; else 0.", gauge, "",
		plain(func(f *figures) float64 {
			if f.healthy {
				return 1
			}
			return 0
		})},
	{"lockfs_worker_restarts_total", "How often another worker has taken over the mount, after a crash or for an upgrade.", counter, "",
		plain(func(f *figures) float64 { return float64(f.restarts) })},
}

var journalMetrics = []metric{
	{"lockfs_journal_log_bytes", "Length of the logs in use.", gauge, "",
		plain(func(f *figures) float64 { return float64(f.journal.Log) })},
	{"lockfs_journal_allocated_bytes", "Room on disk of the log that is appended to.", gauge, "",
		plain(func(f *figures) float64 { return float64(f.journal.Allocated) })},
	{"lockfs_journal_snapshot_bytes", "Length of the last snapshot.", gauge, "",
		plain(func(f *figures) float64 { return float64(f.journal.Snapshot) })},
	{"lockfs_journal_records_total", "Records appended. Counts from the start of the worker.", counter, "",
		plain(func(f *figures) float64 { return float64(f.journal.Appends) })},
	{"lockfs_journal_syncs_total", "Syncs of logs to the disk. Counts from the start of the worker.", counter, "",
		plain(func(f *figures) float64 { return float64(f.journal.Syncs) })},
	{"lockfs_journal_compactions_total", "Snapshots written. Counts from the start of the worker.", counter, "",
		plain(func(f *figures) float64 { return float64(f.journal.Compactions) })},
	{"lockfs_journal_replayed_records", "Records that the worker read when it started.", gauge, "",
		plain(func(f *figures) float64 { return float64(f.journal.Replayed) })},
	{"lockfs_journal_replay_seconds", "How long that took.", gauge, "",
		plain(func(f *figures) float64 { return f.journal.ReplayTime.Seconds() })},
}

// collector reads the figures.
type collector struct {
	of      served
	health  *health
	refused [4]uint64 // when the worker started
	metrics []metric
	descs   []*prometheus.Desc

	mu     sync.Mutex
	oldest [4]time.Duration // GUARDED_BY(mu)
	looked time.Time        // GUARDED_BY(mu): when oldest was of
}

// To find the oldest lock on a file is to look at all of them, and no lock is
// granted meanwhile. So oldest is good for oldestPause, and not looked for among
// more than oldestLimit.
const (
	oldestPause = time.Second
	oldestLimit = 10_000
)

// newCollector counts refusals from now on: not all are in the journal, so the
// engine's count may fall back in a crash, which a counter must not.
func newCollector(of served, h *health) *collector {
	c := &collector{of: of, health: h, refused: of.engine.Stats().Refused, metrics: lockMetrics}
	if of.journal != nil {
		c.metrics = append(c.metrics[:len(c.metrics):len(c.metrics)], journalMetrics...)
	}
	for _, m := range c.metrics {
		var labels []string
		if m.label != "" {
			labels = []string{m.label}
		}
		c.descs = append(c.descs, prometheus.NewDesc(m.name, m.help, labels, nil))
	}
	return c
}

// Describe implements [prometheus.Collector].
func (c *collector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range c.descs {
		to <- d
	}
}

// Collect implements [prometheus.Collector].
func (c *collector) Collect(to chan<- prometheus.Metric) {
	f := c.read()
	for i, m := range c.metrics {
		m.values(&f, func(value float64, label ...string) {
			to <- prometheus.MustNewConstMetric(c.descs[i], m.kind, value, label...)
		})
	}
}

func (c *collector) read() figures {
	f := figures{
		healthy: c.health.err() == nil, stats: c.of.engine.Stats(), oldest: c.ages(),
		restarts: c.of.server.Restarts(),
	}
	for class := range f.stats.Refused {
		f.stats.Refused[class] -= c.refused[class]
	}
	if c.of.journal != nil {
		f.journal = c.of.journal.Stats()
	}
	return f
}

// ages is how long the oldest lock of each class has been held.
func (c *collector) ages() [4]time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.looked) < oldestPause {
		return c.oldest
	}
	since, now := c.of.engine.Oldest(oldestLimit)
	for class := range since {
		c.oldest[class] = 0
		if since[class] != (lockengine.Instant{}) {
			c.oldest[class] = time.Duration(now.Boot - since[class].Boot)
		}
	}
	c.looked = time.Now()
	return c.oldest
}
