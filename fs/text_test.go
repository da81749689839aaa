package fs

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"lockfs/lockengine"
)

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"sh -c true": "sh -c true", "": "", "naïve": "naïve",
		"a\nuid 0": `a\x0auid 0`, "\x1b[2J": `\x1b[2J`, `back\slash`: `back\\slash`,
		"\xff\xfe": `\xff\xfe`, "\u202eexe.txt": `\u202eexe.txt`, "\x7f": `\x7f`, "\u0085": `\u0085`,
	} {
		assert.Equal(t, want, printable(in), "%q", in)
	}
}

func TestGroupsOfCgroup(t *testing.T) {
	id := strings.Repeat("0123456789abcdef", 4)
	for in, want := range map[string][2]string{
		"0::/system.slice/cron.service\n":                     {"cron.service", ""},
		"0::/user.slice/user-0.slice/session-3.scope\n":       {"session-3.scope", ""},
		"0::/system.slice/docker-" + id + ".scope\n":          {"docker-" + id + ".scope", id[:12]},
		"0::/docker/" + id + "\n":                             {"", id[:12]},
		"0::/machine.slice/libpod-" + id + ".scope/container": {"libpod-" + id + ".scope", id[:12]},
		"0::/\n": {"", ""},
	} {
		assert.Equal(t, want, [2]string{unitOf(in), containerOf(in)}, "%q", in)
	}
}

func TestAlive(t *testing.T) {
	pid := int32(os.Getpid())
	st, ok := statOf(pid)
	assert.True(t, ok)
	assert.True(t, alive(pid, lockengine.Instant{Boot: st.start + int64(time.Second)}))
	assert.False(t, alive(pid, lockengine.Instant{Boot: st.start - int64(time.Second)}), "granted before this process was: its number was another's")
	assert.False(t, alive(0, lockengine.Instant{Boot: 1 << 62}))
}

func TestPeople(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0 s", time.Millisecond: "1 s", 90 * time.Second: "90 s", 5 * time.Minute: "5 min 0 s",
		3*time.Hour + 59*time.Second: "3 h 0 min", 50 * time.Hour: "2 days 2 h",
	} {
		assert.Equal(t, want, people(d))
	}
}

// dot marks exactly the edges on cycles.
func TestGraphMarksCycles(t *testing.T) {
	p := func(pid int32) party { return party{pid: pid} }
	labels := map[party]string{p(1): "a", p(2): `b"`, p(3): "c", p(4): "d"}
	text := string(dot(labels, []edge{
		{p(1), p(2), "files/x"}, {p(2), p(1), "files/y"}, {p(3), p(1), "files/x"}, {p(3), p(4), "tlock/z"}, {p(4), p(4), "files/s"},
	}))
	for _, red := range []string{"p1 -> p2", "p2 -> p1", "p4 -> p4"} {
		assert.Regexp(t, red+` \[.*color=red`, text)
	}
	for _, plain := range []string{"p3 -> p1", "p3 -> p4"} {
		assert.Regexp(t, plain+` \[label="[^"]*"\];`, text)
	}
	assert.Contains(t, text, `label="2 b\""`)
}

// A chain much longer than any stack of calls would be good for.
func TestComponentsOfALongChain(t *testing.T) {
	const n = 100_000
	var edges []edge
	for i := range int32(n) {
		edges = append(edges, edge{from: party{pid: i + 1}, to: party{pid: (i+1)%n + 1}})
	}
	assert.Len(t, components(edges), n)
	first := components(edges)[party{pid: 1}]
	for p, c := range components(edges) {
		if c != first {
			t.Fatalf("%v is in component %d, not %d: it is one cycle", p, c, first)
		}
	}
}
