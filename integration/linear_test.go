package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const (
	linearClients = 16
	// checkLimit is how long the search for an order of the calls on one object may take.
	checkLimit = 20 * time.Second
	// mistakesLimit is how long a broken engine may take to make enough mistakes.
	mistakesLimit = time.Minute
)

// TestLinearizable: whatever 16 processes do at once, while the worker is killed, and some of them are, there is an
// order of their calls in which each answer is the one that the models (linear_model_test.go) expect.
func TestLinearizable(t *testing.T) {
	const kills, killClientEvery = 10, 3
	m := newMount(t)
	l := startLinear(t, m, linearPace{Sharing: 8, Pause: 8 * time.Millisecond})
	r := rand.New(rand.NewPCG(1, uint64(time.Now().UnixNano())))
	for i := range kills {
		time.Sleep(time.Duration(300+r.IntN(600)) * time.Millisecond)
		old := m.strikeWorker()
		if i%killClientEvery == 0 {
			l.replace(r.IntN(linearClients))
		}
		m.awaitWorker(old)
	}
	assert.Empty(t, l.finish(waitLimit))
	objects := l.check()
	requireAnswers(t, objects, leastAnswers)
	for _, o := range objects {
		switch o.verdict {
		case porcupine.Illegal:
			t.Errorf("no order of the calls on %s explains their answers: see %s", o.Name, o.draw(t))
		case porcupine.Unknown:
			t.Errorf("undecided: %d calls on %s were too many to check within %v", len(o.calls), o.Name, checkLimit)
		}
	}
}

// leastAnswers is how often each call has to have had each answer, so that the test cannot pass by doing nothing. A
// machine that does nothing else gives many times as many.
var leastAnswers = map[string]int{
	"lock true": 500, "drop true": 50, "lock false": 200, "wait": 100, "unlock true": 300, "test true": 20, "test false": 20,
	"close true": 100, "mkdir true": 3, "mkdir false": 20, "take true": 10, "take false": 10, "hold true": 10, "hold false": 10,
	"read take true": 5, "read hold true": 5, "token true": 5, "exists true": 10, "exists false": 1, "is mine true": 5,
	"is mine false": 5, "renew true": 5, "renew false": 5, "release true": 5, "release false": 5, "release any true": 5,
}

// TestLinearizabilityIsChecked: the same check finds an engine out that makes a mistake now and then
// (lockengine/broken.go). Not every mistake shows, so it has to make several.
func TestLinearizabilityIsChecked(t *testing.T) {
	binary, err := buildLockfs("lockfs-broken", false, "-tags", "lockfs_broken")
	require.NoError(t, err)
	for _, tc := range []struct {
		mistake string
		several int
		pace    linearPace
	}{
		{"grant", 6, linearPace{Sharing: 4, Pause: time.Millisecond}},
		// When others wait it looks as if one of them had been granted the lock, and only told late.
		{"unlock", 14, linearPace{Sharing: 4, Pause: time.Millisecond, Plain: true}},
	} {
		t.Run(tc.mistake, func(t *testing.T) {
			t.Setenv("LOCKFS_MISTAKE", tc.mistake)
			base := tempDir(t)
			m := mountAt(t, binary, filepath.Join(base, "mnt"), filepath.Join(base, "state"))
			l := startLinear(t, m, tc.pace)
			eventually(t, mistakesLimit, "several mistakes", func() bool {
				return strings.Count(m.stderr.String(), "a wrong "+tc.mistake) >= tc.several
			})
			l.finish(time.Second) // some may wait for ever
			var found []string
			for _, o := range l.check() {
				if o.verdict == porcupine.Illegal {
					found = append(found, o.Name)
				}
			}
			t.Logf("found out on %v", found)
			require.NotEmpty(t, found, "an engine with a wrong %s passes", tc.mistake)
		})
	}
}

// A linearLoad is the clients of a linearizability test, and what became of them.
type linearLoad struct {
	t         *testing.T
	m         *mount
	histories string
	pace      linearPace
	clients   []*linearClient // by number
	places    [linearClients]*linearClient
}

type linearClient struct {
	number  int
	objects []linearObject
	cmd     *exec.Cmd
	in      io.WriteCloser
	done    chan struct{} // closed when it has been waited for
	err     error

	killed bool
	ending uint64 // when it was killed
	gone   uint64 // when it had ended
}

func startLinear(t *testing.T, m *mount, pace linearPace) *linearLoad {
	t.Helper()
	l := &linearLoad{t: t, m: m, histories: sharedMemory(t), pace: pace}
	for place := range l.places {
		for _, o := range pace.objects(place) {
			require.NoError(t, os.WriteFile(filepath.Join(m.state, "files", o.Name), nil, 0o666))
		}
	}
	for place := range l.places {
		l.start(place)
	}
	return l
}

// objects are one of each kind, shared with the clients beside.
func (p linearPace) objects(place int) (objects []linearObject) {
	for _, kind := range []string{"fcntl", "ofd", "flock", "named"} {
		objects = append(objects, linearObject{kind, fmt.Sprintf("%s%d", kind, place/p.Sharing)})
	}
	return objects
}

func (l *linearLoad) start(place int) {
	l.t.Helper()
	c := &linearClient{number: len(l.clients), objects: l.pace.objects(place), done: make(chan struct{})}
	require.Less(l.t, c.number, maxClients, "the models have no number for one more client")
	plan, err := json.Marshal(linearPlan{l.m.dir, l.histories, c.number, c.objects, l.pace})
	require.NoError(l.t, err)
	c.cmd = role("linear", string(plan))
	c.cmd.Env = append(c.cmd.Env, "GODEBUG=asyncpreemptoff=1") // fewer signals, which interrupt waits
	c.in, err = c.cmd.StdinPipe()
	require.NoError(l.t, err)
	require.NoError(l.t, c.cmd.Start())
	go func() {
		c.err = c.cmd.Wait()
		c.gone = monotonic()
		close(c.done)
	}()
	l.t.Cleanup(func() { l.destroy(c) })
	l.clients = append(l.clients, c)
	l.places[place] = c
}

// destroy kills a client; one that hangs in a call is let go by aborting the mount.
func (l *linearLoad) destroy(c *linearClient) {
	syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL)
	select {
	case <-c.done:
	case <-time.After(waitLimit):
		l.t.Errorf("client %d is still there %v after SIGKILL: %s", c.number, waitLimit, hangsIn(c.cmd.Process.Pid))
		live.abort()
		<-c.done
	}
}

// replace kills a client in whatever it does, and starts another in its place.
func (l *linearLoad) replace(place int) {
	l.t.Helper()
	l.kill(l.places[place])
	l.start(place)
}

func (l *linearLoad) kill(c *linearClient) {
	c.killed, c.ending = true, monotonic()
	l.destroy(c)
	c.ending = min(c.ending, c.gone) // it may have ended by itself
}

// finish lets all clients end, kills those that do not within the limit, and says what went wrong.
func (l *linearLoad) finish(limit time.Duration) (wrong []string) {
	l.t.Helper()
	for _, c := range l.places {
		c.in.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var killing sync.WaitGroup
	for _, c := range l.places {
		select {
		case <-c.done:
			if c.err != nil {
				wrong = append(wrong, fmt.Sprintf("client %d: %v", c.number, c.err))
			}
		case <-ctx.Done():
			wrong = append(wrong, fmt.Sprintf("client %d did not end within %v: %s", c.number, limit, hangsIn(c.cmd.Process.Pid)))
			killing.Go(func() { l.kill(c) })
		}
	}
	killing.Wait()
	return wrong
}
