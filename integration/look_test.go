package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestLookingChangesNothing walks the whole mount with the programs that people and backups use.
func TestLookingChangesNothing(t *testing.T) {
	m := newMount(t)
	s := newScene(t, m)
	mustSh(t, `cd "$1" && mkdir -p a/b && echo needle > a/b/text && dd if=/dev/zero of=a/zeros bs=1M count=2 status=none &&
		ln -s b a/link && ln a/b/text a/hard && mkfifo a/fifo`, s.dir)
	s.play(`
		a open f
		b open f
		c open f
		d open g
		e open g
		a setlk f w 0 10
		b ofd_setlk f r 20 0
		b setlkw f r 5 1 ...
		c setlkw f w 0 0 ...
		d flock g ex
		e flock g sh ...`)
	holder := newClient(t, m.path("tlock"))
	require.Equal(t, "ok", holder.do("mkdir x+1h"))
	require.Equal(t, "ok", holder.do("mkdir y+2h"))
	locks, stats := timeless(m.locks(t)), grantStats(t, m)

	for _, look := range []struct {
		script string
		codes  []int
	}{
		{`ls -lR "$1"`, []int{0}},
		{`ls -laRi --color=always "$1"`, []int{0}},
		{`find "$1" -ls`, []int{0}},
		{`find "$1" -type f -size -1M -exec cat {} +`, []int{0}},
		{`grep -r needle --devices=skip "$1"`, []int{0}},
		{`grep -rs no-such-word --devices=skip "$1"`, []int{1}},
		{`du -a "$1"`, []int{0}},
		{`tar cf - -C "$1" . | cat > "$2/all.tar" && tar tf "$2/all.tar"`, []int{0, 1}}, // 1: file changed as we read it
		{`cp -a "$1" "$2/copy"`, []int{0}},
		{`stat -f "$1" && df "$1" && stat "$1"/tlock/x/* "$1"/view/*`, []int{0}},
		{`file=$(mktemp) && cat "$1"/tlock/*/* "$1"/view/* > "$file" 2>/dev/null; wc -c "$file"; rm "$file"`, []int{0}},
		{`test ! -e "$1/tlock/nothing" && test -d "$1/tlock/x" && test -r "$1/take" && test -d "$1/hold"`, []int{0}},
	} {
		p := newProgram(t, 30*time.Second, "sh", "-c", look.script, "sh", m.dir, tempDir(t))
		start := time.Now()
		r := p.run(t)
		assert.Contains(t, look.codes, r.code, "%s\n%s", look.script, r.err)
		t.Logf("%4d ms  %s", time.Since(start).Milliseconds(), look.script)
		assert.Equal(t, locks, timeless(m.locks(t)), "after %s", look.script)
		assert.Equal(t, stats, grantStats(t, m), "after %s", look.script)
	}
	requireUnlisted(t, m)
	s.play("a close f\nb gets ok\nc waits")
}

// timeless strips what changes by itself.
func timeless(locks []lockLine) []lockLine {
	for i := range locks {
		locks[i].Seconds, locks[i].Left = nil, nil
	}
	return locks
}

func grantStats(t *testing.T, m *mount) map[string]string {
	t.Helper()
	grants := make(map[string]string)
	for key, value := range m.stats(t) {
		for _, prefix := range []string{"granted_", "held_", "waiting_", "deadlocks"} {
			if strings.HasPrefix(key, prefix) {
				grants[key] = value
			}
		}
	}
	require.Contains(t, grants, "granted_record")
	return grants
}

// requireUnlisted checks that nothing that blocks can be found by walking.
func requireUnlisted(t *testing.T, m *mount) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(m.dir, func(path string, entry os.DirEntry, err error) error {
		if err == nil && (entry.Name() == "wait" || entry.Name() == "events") {
			t.Errorf("%s is listed", path)
		}
		return err
	}))
	require.Empty(t, entries(t, m.path("take")))
	require.Empty(t, entries(t, m.path("hold")))
}

// sendfileStorm reads a file of the tree by sendfile(2) at places where the daemon may tell the kernel something, while
// it is opened again and again.
const sendfileStorm = `
import os, random, sys, time
path, end = sys.argv[1], time.time() + 3
null = os.open("/dev/null", os.O_WRONLY)
def storm(offset):
    while time.time() < end:
        fd = os.open(path, os.O_RDONLY)
        os.sendfile(null, fd, offset(), 4096)
        os.close(fd)
for offset in (lambda: 0, lambda: (1 << 30) - 4096, lambda: (1 << 30) + random.randrange(1 << 44)):
    if os.fork() == 0:
        storm(offset)
        os._exit(0)
while time.time() < end:
    os.close(os.open(path, os.O_RDONLY))
for _ in range(3):
    assert os.wait()[1] == 0
print("done")
`

// TestSendfileStopsNobody: whatever one process does with sendfile(2), the daemon goes on.
func TestSendfileStopsNobody(t *testing.T) {
	m := newMount(t)
	require.NoError(t, os.Mkdir(m.path("tlock/x"), 0o755))
	r := newProgram(t, time.Minute, "python3", "-c", sendfileStorm, m.path("tlock/x/token")).run(t)
	require.Equal(t, "done\n", r.out, r.err)
	require.NoError(t, os.Remove(m.path("tlock/x")))
}
