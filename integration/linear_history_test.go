package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A checkedObject is all calls on an object, and what porcupine says of them.
type checkedObject struct {
	linearObject
	calls   []porcupine.Operation
	verdict porcupine.CheckResult
}

// check reads all histories and looks for an order of the calls on each object.
func (l *linearLoad) check() []*checkedObject {
	l.t.Helper()
	objects := l.objects()
	var checks sync.WaitGroup
	for _, o := range objects {
		checks.Go(func() { o.verdict = porcupine.CheckOperationsTimeout(linearModels[o.Kind], o.calls, checkLimit) })
	}
	began := time.Now()
	checks.Wait()
	l.t.Logf("checked in %v", time.Since(began).Round(time.Millisecond))
	return objects
}

func (l *linearLoad) objects() (objects []*checkedObject) {
	l.t.Helper()
	numbers := make(map[int]int) // of the clients, by pid
	for _, c := range l.clients {
		numbers[c.cmd.Process.Pid] = c.number
	}
	byName := make(map[string]*checkedObject)
	for _, c := range l.clients {
		for _, object := range c.objects {
			o := byName[object.Name]
			if o == nil {
				o = &checkedObject{linearObject: object}
				byName[object.Name], objects = o, append(objects, o)
			}
			h := historyReader{t: l.t, numbers: numbers, named: object.Kind == "named"}
			o.calls = append(o.calls, h.read(c, historyPath(l.histories, object, c.number))...)
		}
	}
	return objects
}

// A historyReader reads what one client did on one object.
type historyReader struct {
	t       testing.TB
	numbers map[int]int
	named   bool
	calls   []porcupine.Operation
	call    linearCall // under way
	called  uint64     // when; 0: none is
}

func (h *historyReader) read(c *linearClient, path string) []porcupine.Operation {
	h.t.Helper()
	text, err := os.ReadFile(path)
	require.True(h.t, err == nil || c.killed, "%v", err)
	for line := range strings.Lines(string(text)) {
		if strings.HasSuffix(line, "\n") { // else the kill cut it off
			h.line(line)
		}
	}
	if c.killed {
		h.death(c)
	}
	return h.calls
}

// death is the end of a client that was killed. The kernel closes one file after the other.
func (h *historyReader) death(c *linearClient) {
	if h.called != 0 {
		h.returned(nil, c.gone)
	}
	for owner := range ownersOfClient {
		if !h.named {
			h.add(linearCall{Op: "drop", Client: c.number, Owner: owner}, nil, c.ending, c.gone)
		}
	}
	h.add(linearCall{Op: "death", Client: c.number}, linearAnswer{OK: true}, c.ending, c.gone)
}

func (h *historyReader) line(line string) {
	h.t.Helper()
	fields := strings.SplitN(line, " ", 3)
	at, text := uint64(parseInt(fields[1])), fields[2]
	if fields[0] == "c" {
		h.call, h.called = linearCall{}, at
		require.NoError(h.t, json.Unmarshal([]byte(text), &h.call), line)
		return
	}
	var answer linearAnswer
	require.NoError(h.t, json.Unmarshal([]byte(text), &answer), line)
	if answer.PID != 0 {
		answer.PID = h.clientOf(answer.PID)
	}
	h.returned(answer, at)
}

// clientOf is who has a pid: a client's number and 1, for the models, or one that is nobody's.
func (h *historyReader) clientOf(pid int) int {
	if n, ok := h.numbers[pid]; ok {
		return n + 1
	}
	return maxClients + 1
}

// returned ends the call under way; answer is nil if it has none. What is done in steps, with others between them, is as
// many calls: a flock that is converted gives up the old lock before it is granted or refused the new one (flock(2)),
// and a close drops record locks (FLUSH) before it drops those of the description (RELEASE).
func (h *historyReader) returned(answer any, at uint64) {
	step := func(c linearCall, output any) { h.add(c, output, h.called, at) }
	first := h.call
	var did any // what is never refused
	if answer != nil {
		did = linearAnswer{OK: true}
	}
	switch {
	case h.call.Converts:
		first.Op = "unlock"
		step(first, did)
	case h.call.Op == "close" && !h.named:
		h.call.Op, first.Op, first.Owner = "drop", "drop", recordOwner
		step(first, did)
	}
	step(h.call, answer)
	h.called = 0
}

func (h *historyReader) add(c linearCall, answer any, called, returned uint64) {
	h.calls = append(h.calls, porcupine.Operation{
		ClientId: c.Client, Input: c, Output: answer, Call: int64(called), Return: int64(returned),
	})
}

// requireAnswers checks that each call has had each answer at least so often.
func requireAnswers(t testing.TB, objects []*checkedObject, least map[string]int) {
	t.Helper()
	counts := make(map[string]int)
	for _, o := range objects {
		for _, op := range o.calls {
			c := op.Input.(linearCall)
			answer, answered := op.Output.(linearAnswer)
			switch {
			case !answered:
				counts["unanswered"]++
			case c.Wait:
				counts["wait"]++
			default:
				counts[fmt.Sprint(c.Op, " ", answer.OK)]++
			}
		}
	}
	t.Logf("calls: %v", counts)
	for what, n := range least {
		assert.GreaterOrEqual(t, counts[what], n, "too little of %s", what)
	}
}

// draw draws the calls on an object as far as they can be put in order, and says where.
func (o *checkedObject) draw(t testing.TB) string {
	t.Helper()
	model := linearModels[o.Kind]
	_, info := porcupine.CheckOperationsVerbose(model, o.calls, checkLimit)
	file, err := os.CreateTemp("", "lockfs-"+o.Name+"-*.html")
	require.NoError(t, err)
	defer file.Close()
	require.NoError(t, porcupine.Visualize(model, info, file))
	return file.Name()
}
