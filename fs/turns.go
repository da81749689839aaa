package fs

import (
	"slices"
	"sync"
	"time"
)

// turns run jobs that take time, a few at once. Users take turns, and who has
// taken more than his share waits until it is paid for, as he would for a slow
// disk: who asks for much waits for himself alone.
//
// Concurrency: safe for use from any goroutine.
type turns struct {
	shares *shares
	spawn  func(f func())
	after  func(d time.Duration, f func()) stopper

	mu      sync.Mutex
	most    int // jobs at once
	running int
	queues  []turnQueue // of users with jobs that wait; whose turn is next comes first
}

type turnQueue struct {
	uid    uint32
	asleep bool // until the user's share allows more: a timer wakes it
	jobs   []func()
}

// turn is a job to be run now.
type turn struct {
	uid uint32
	job func()
}

// add takes a job, and returns what the caller is to run now, this one or
// another; nil: nothing.
func (t *turns) add(uid uint32, job func()) *turn {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := t.queueOf(uid)
	if i < 0 {
		i = len(t.queues)
		t.queues = append(t.queues, turnQueue{uid: uid})
	}
	t.queues[i].jobs = append(t.queues[i].jobs, job)
	return t.begin()
}

// run runs what add returned, and what comes after it.
func (t *turns) run(first *turn) {
	for next := first; next != nil; next = t.next() {
		t.shares.take(next.uid, next.job)
	}
}

func (t *turns) next() *turn {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.running--
	return t.begin()
}

// begin takes the first job of the user whose turn it is, if one more may run.
// GUARDED_BY(mu)
func (t *turns) begin() *turn {
	for i := 0; t.running < t.most && i < len(t.queues); i++ {
		if q := t.queues[i]; !t.sleeps(&t.queues[i]) {
			t.running++
			t.queues = slices.Delete(t.queues, i, i+1)
			first := &turn{q.uid, q.jobs[0]}
			if q.jobs = slices.Delete(q.jobs, 0, 1); len(q.jobs) > 0 {
				t.queues = append(t.queues, q)
			}
			return first
		}
	}
	return nil
}

// sleeps reports whether a user has to wait for his share, and has him woken.
// GUARDED_BY(mu)
func (t *turns) sleeps(q *turnQueue) bool {
	if q.asleep {
		return true
	}
	wait := t.shares.wait(q.uid)
	if q.asleep = wait > 0; q.asleep {
		uid := q.uid
		t.after(wait, func() { t.wake(uid) })
	}
	return q.asleep
}

func (t *turns) wake(uid uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if i := t.queueOf(uid); i >= 0 {
		t.queues[i].asleep = false
	}
	for next := t.begin(); next != nil; next = t.begin() {
		t.spawn(func() { t.run(next) }) // with the mutex held, so that drop comes before or after
	}
}

func (t *turns) queueOf(uid uint32) int {
	return slices.IndexFunc(t.queues, func(q turnQueue) bool { return q.uid == uid })
}

// drop forgets what waits, and what will be added: nobody is there to be
// answered.
func (t *turns) drop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.most, t.queues = 0, nil
}
