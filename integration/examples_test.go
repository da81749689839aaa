package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

const exampleDir = "../examples"

// An example is a program of examples/ that takes, renews and releases a lock.
type example struct {
	language string
	tool     string   // what has to be on the machine for it
	required bool     // make deps installs the tool
	source   string   // below examples/
	build    []string // makes an executable; OUT and SOURCE stand for paths
	run      []string // runs it; OUT and SOURCE stand for paths
}

var takeExamples = []example{
	{language: "sh", tool: "sh", required: true, source: "take.sh", run: []string{"sh", "SOURCE"}},
	{language: "Perl", tool: "perl", required: true, source: "take.pl", run: []string{"perl", "SOURCE"}},
	{language: "Python", tool: "python3", required: true, source: "take.py", run: []string{"python3", "SOURCE"}},
	{language: "Go", tool: "go", required: true, source: "go/take.go",
		build: []string{"go", "build", "-o", "OUT", "SOURCE"}, run: []string{"OUT"}},
	{language: "C", tool: "gcc", required: true, source: "take.c",
		build: []string{"gcc", "-Wall", "-Wextra", "-Werror", "-o", "OUT", "SOURCE"}, run: []string{"OUT"}},
	{language: "Ruby", tool: "ruby", source: "take.rb", run: []string{"ruby", "SOURCE"}},
	{language: "Node", tool: "node", source: "take.js", run: []string{"node", "SOURCE"}},
	{language: "Java", tool: "java", source: "Take.java", run: []string{"java", "SOURCE"}},
	{language: "Rust", tool: "rustc", source: "take.rs",
		build: []string{"rustc", "-D", "warnings", "--edition", "2021", "-o", "OUT", "SOURCE"}, run: []string{"OUT"}},
}

// prepare builds the example and returns the command that runs it, or nil where its language is not installed.
func (e example) prepare(t *testing.T) []string {
	t.Helper()
	if _, err := exec.LookPath(e.tool); err != nil {
		require.False(t, e.required, "%s is needed for the examples: install it with make deps", e.tool)
		t.Logf("%s is not on this machine: %s was not tried", e.tool, e.source)
		return nil
	}
	source, err := filepath.Abs(filepath.Join(exampleDir, e.source))
	require.NoError(t, err)
	paths := strings.NewReplacer("OUT", filepath.Join(tempDir(t), "take"), "SOURCE", source)
	fill := func(words []string) []string {
		var filled []string
		for _, word := range words {
			filled = append(filled, paths.Replace(word))
		}
		return filled
	}
	if len(e.build) > 0 {
		build := fill(e.build)
		r := newProgram(t, 3*time.Minute, build[0], build[1:]...).run(t)
		require.Zero(t, r.code, "%s%s", r.out, r.err)
	}
	return fill(e.run)
}

var exampleOutput = regexp.MustCompile(`^took (\S+), token ([0-9]+)\n(?:part [123] done, renewed\n){3}released (\S+)\n$`)

// TestExamplesTakeTurns runs two of each at once: both work, one after the other.
func TestExamplesTakeTurns(t *testing.T) {
	m := newMount(t)
	for _, e := range takeExamples {
		t.Run(e.language, func(t *testing.T) {
			run := e.prepare(t)
			if run == nil {
				return
			}
			// Both have to queue behind us, so that they do contend.
			require.NoError(t, unix.Mkdir(m.path("tlock", e.language), 0o755))
			events := m.events(t)
			var both [2]*job
			for i := range both {
				both[i] = start(t, newProgram(t, time.Minute, run[0], append(run[1:], m.dir, e.language)...))
			}
			eventually(t, time.Minute, "both wait", func() bool { return len(m.queue(t, e.language)) == 2 })
			require.NoError(t, unix.Rmdir(m.path("tlock", e.language)))
			var tokens []string
			for _, j := range both {
				r := j.wait(t)
				require.Zero(t, r.code, "%s%s", r.out, r.err)
				assert.Empty(t, r.err)
				match := exampleOutput.FindStringSubmatch(r.out)
				require.NotNil(t, match, "%s", r.out)
				assert.Equal(t, []string{e.language, e.language}, []string{match[1], match[3]})
				tokens = append(tokens, match[2])
			}
			assert.NotEqual(t, tokens[0], tokens[1])
			assert.Empty(t, entries(t, m.path("tlock")))
			requireTurns(t, events, "tlock/"+e.language, 3)
		})
	}
}

// requireTurns: of n locks of one name each was released before the next was granted. The first was ours.
func requireTurns(t *testing.T, events *eventStream, path string, n int) {
	t.Helper()
	ends := 0
	events.find(t, "the last release", func(e event) bool {
		if e.Path == path && e.Event == "released" {
			ends++
		}
		return ends == n
	})
	events.mu.Lock()
	defer events.mu.Unlock()
	held := uint64(0)
	for _, e := range events.events {
		switch {
		case e.Path != path:
		case e.Event == "granted":
			require.Zero(t, held, "granted while it was held: %s", e.raw)
			held = e.Token
		case e.Event == "released":
			held = 0
		}
	}
}

// TestExamplesFail with one line and a status when something is wrong: no mount, or the lock taken away meanwhile.
func TestExamplesFail(t *testing.T) {
	m := newMount(t)
	for _, e := range takeExamples {
		t.Run(e.language, func(t *testing.T) {
			run := e.prepare(t)
			if run == nil {
				return
			}
			nowhere := tempDir(t)
			for _, args := range [][]string{{}, {nowhere}, {m.dir, "no/name"}, {m.dir, "no name"}} {
				r := newProgram(t, time.Minute, run[0], append(run[1:], args...)...).run(t)
				assert.NotZero(t, r.code, "%v", args)
				assert.Equal(t, 1, strings.Count(r.err, "\n"), "%v: one line, not\n%s", args, r.err)
				assert.Empty(t, r.out)
			}
			assert.Empty(t, entries(t, m.path("tlock")))
			requireNoticesLoss(t, m, e.language, run)
		})
	}
}

// requireNoticesLoss stops the example in the middle of its work and releases its lock by force. The whole program
// takes a third of a second, so it may be done before it is stopped: then once more.
func requireNoticesLoss(t *testing.T, m *mount, name string, run []string) {
	t.Helper()
	lock := m.path("tlock", name)
	eventually(t, 2*time.Minute, "a loss of the lock in the middle", func() bool {
		j := start(t, newProgram(t, time.Minute, run[0], append(run[1:], m.dir, name)...))
		eventually(t, waitLimit, "the lock is taken, or everything done", func() bool {
			_, err := os.Stat(lock)
			return err == nil || j.ended()
		})
		syscall.Kill(-j.p.Process.Pid, syscall.SIGSTOP)
		lost := unix.Rmdir(lock) == nil
		syscall.Kill(-j.p.Process.Pid, syscall.SIGCONT)
		r := j.wait(t)
		if !lost || !strings.HasPrefix(r.out, "took") && r.code == 0 {
			return false
		}
		assert.NotZero(t, r.code, "%s", r.out)
		assert.NotContains(t, r.out, "released")
		assert.Equal(t, 1, strings.Count(r.err, "\n"), "one line, not\n%s", r.err)
		return true
	})
	require.NoDirExists(t, lock)
}

// TestLockfileExample counts with many at once, each under the lock of the file.
func TestLockfileExample(t *testing.T) {
	m := newMount(t)
	inParallel(t, 10, func(int) *program {
		return newProgram(t, time.Minute, "python3", exampleDir+"/lockfile.py", m.dir, "count")
	})
	require.Equal(t, "10", readValue(t, m.path("files/count")))
	require.Empty(t, m.locks(t))
	r := newProgram(t, time.Minute, "python3", exampleDir+"/lockfile.py", tempDir(t)).run(t)
	require.NotZero(t, r.code)
	require.Equal(t, 1, strings.Count(r.err, "\n"), "%s", r.err)
}

// TestEveryExampleIsListed in examples/README.md, and every program there is one of these.
func TestEveryExampleIsListed(t *testing.T) {
	readme := readFile(t, exampleDir+"/README.md")
	known := map[string]bool{"README.md": true, "lockfile.py": true}
	for _, e := range takeExamples {
		known[e.source] = true
	}
	for path := range known {
		require.FileExists(t, filepath.Join(exampleDir, path))
		if path != "README.md" {
			assert.Contains(t, readme, "]("+path+")")
		}
	}
	require.NoError(t, filepath.WalkDir(exampleDir, func(path string, d os.DirEntry, err error) error {
		rel, _ := filepath.Rel(exampleDir, path)
		if err == nil && !d.IsDir() {
			assert.True(t, known[rel], "%s is not in takeExamples", rel)
		}
		return err
	}))
}
