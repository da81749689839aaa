package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestCrowdInOrder: 10,000 that wait for one byte are served in the order in which they came, and a hand-over to the
// next of them costs hardly more than one between two. What a tmpfs does is told beside it: to wake one of 10,000
// threads costs the kernel itself more than to wake one of two.
func TestCrowdInOrder(t *testing.T) {
	rounds := 3
	if os.Getenv("LOCKFS_LONG") != "" {
		rounds = 9
	}
	t.Run("kernel", func(t *testing.T) { measureCrowd(t, nil, (rounds+2)/3) }) // where it is slow to begin to wait
	t.Run("lockfs", func(t *testing.T) {
		binary, err := plainBinary()
		require.NoError(t, err)
		base := tempDir(t)
		m := mountAt(t, binary, filepath.Join(base, "mnt"), filepath.Join(base, "state"))
		wall, cpu := measureCrowd(t, m, rounds)
		assert.Less(t, cpu, 3.0, "CPU time; the aim is 1.5")
		assert.Less(t, wall, 6.0, "time by the clock, which other load can make longer")
	})
}

// measureCrowd has 10,000 threads wait and serves them, by turns with as many hand-overs between two threads, and
// returns how many times as much the former takes. On a tmpfs if m is nil.
func measureCrowd(t *testing.T, m *mount, rounds int) (wall, cpu float64) {
	t.Helper()
	const n = 10_000
	var order strings.Builder
	for i := range n {
		fmt.Fprint(&order, " ", i)
	}
	c := newCrowd(t, m, n)
	var line, pairs []benchCost
	for range rounds {
		cost, _ := c.cost(fmt.Sprint("pairs ", n))
		pairs = append(pairs, cost)
		require.Equal(t, "queued", c.do(fmt.Sprint("queue ", n)))
		c.requireWaiting(n)
		cost, turns := c.cost("serve")
		require.True(t, turns == order.String(), "not in order of arrival: %.300s", turns)
		c.requireWaiting(0)
		line = append(line, cost)
	}
	wall, cpu = ratio(line, pairs, benchCost.wallTime), ratio(line, pairs, benchCost.cpuTime)
	each := func(costs []benchCost, of func(benchCost) float64) float64 { return middle(costs, of) / n / 1e3 }
	t.Logf("a hand-over with %d in line: %.1f us, CPU %.1f us; between two: %.1f us, CPU %.1f us; ratio %.2f, CPU %.2f", n,
		each(line, benchCost.wallTime), each(line, benchCost.cpuTime),
		each(pairs, benchCost.wallTime), each(pairs, benchCost.cpuTime), wall, cpu)
	return wall, cpu
}

// A crowd is a process whose threads wait for one byte (testdata/crowd.c). It shares a CPU with the server: on two, what
// a hand-over takes depends most of all on whether the next thread is on the same one.
type crowd struct {
	*script
	m *mount // nil: a tmpfs
}

func newCrowd(t *testing.T, m *mount, threads int) *crowd {
	t.Helper()
	client := filepath.Join(tempDir(t), "crowd")
	out, err := exec.Command("gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-o", client, "testdata/crowd.c").CombinedOutput()
	require.NoError(t, err, "%s", out)
	file := newScene(t, m).dir + "/f"
	c := &crowd{startScript(t, newProgram(t, hangLimit, client, file, strconv.Itoa(threads))), m}
	require.Equal(t, "ready", c.answer("its start"))
	pin(t, c.p.Process.Pid)
	if m != nil {
		pin(t, m.worker())
	}
	return c
}

// do has the client do something and returns what it says then.
func (c *crowd) do(command string) string {
	c.t.Helper()
	_, err := fmt.Fprintln(c.in, command)
	require.NoError(c.t, err)
	return c.answer(command)
}

// answer waits longer than next: ten thousand system calls may be behind it.
func (c *crowd) answer(what string) string {
	c.t.Helper()
	select {
	case line := <-c.lines:
		return line
	case <-time.After(time.Minute):
		c.t.Fatalf("no answer within a minute: %s", what)
		return ""
	}
}

// requireWaiting checks how many wait by what the mount says.
func (c *crowd) requireWaiting(n int) {
	c.t.Helper()
	if c.m != nil {
		require.Equal(c.t, strconv.Itoa(n), c.m.stats(c.t)["waiting_record"])
	}
}

// cost has the client do something, and returns what that cost it and the server, and what it said besides.
func (c *crowd) cost(command string) (cost benchCost, said string) {
	c.t.Helper()
	before := c.cpu()
	answer := c.do(command)
	used := c.cpu() - before
	var what string
	var wall int64
	_, err := fmt.Sscan(answer, &what, &wall)
	require.NoError(c.t, err, "%.300s", answer)
	return benchCost{wall: float64(wall), cpu: float64(used)}, strings.TrimPrefix(answer, fmt.Sprint(what, " ", wall))
}

// cpu is how long the client and the server have run, in nanoseconds.
func (c *crowd) cpu() int64 {
	used := cpuTime(c.t, c.p.Process.Pid)
	if c.m != nil {
		used += cpuTime(c.t, c.m.worker())
	}
	return used
}
