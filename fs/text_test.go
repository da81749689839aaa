package fs

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"lockfs/lockengine"
)

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"sh -c true": "sh -c true", "": "", "naïve": "naïve",
		"a\nuid 0": `a\x0auid 0`, "\x1b[2J": `\x1b[2J`, `back\slash`: `back\\slash`,
		"\xff\xfe": `\xff\xfe`, "\u202eexe.txt": `\u202eexe.txt`, "\x7f": `\x7f`, "\u0085": `\u0085`,
		"\U000e0041": `\U000e0041`, "tab\t": `tab\x09`,
	} {
		assert.Equal(t, want, printable(in), "%q", in)
	}
}

// A note has lines and backslashes of its own; no control character is among what cat(1) shows of it.
func TestPrintableNote(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "two\nlines\tof C:\\text\n": "two\nlines\tof C:\\text\n", "ä 😀": "ä 😀",
		"\x1b]0;title\a": `\x1b]0;title\x07`, "\u009b2J": `\u009b2J`, "\xff": `\xff`, "a\rb": `a\x0db`, "\u202e": `\u202e`,
	} {
		assert.Equal(t, want, printableNote(in), "%q", in)
	}
}

// What is escaped in JSON is still the same JSON.
func TestPrintableJSON(t *testing.T) {
	for _, in := range []string{"", "plain", "ä 😀", "a\nb\t\x00\x1b[2J\x7f", "\u0085\u009b2J\u202e\u200d", "\U000e0041\U0010ffff"} {
		text, err := json.Marshal(in)
		require.NoError(t, err)
		text = printableJSON(text)
		assert.Equal(t, printable(string(text)), strings.ReplaceAll(string(text), `\`, `\\`), "nothing is left to escape")
		var out string
		require.NoError(t, json.Unmarshal(text, &out), "%s", text)
		assert.Equal(t, in, out)
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

// A lock that was granted before the process of this number started was another's.
func TestCommandOfALaterProcess(t *testing.T) {
	pid := int32(os.Getpid())
	st, ok := statOf(pid)
	require.True(t, ok)
	d := (*Server)(nil).describer(lockengine.Instant{})
	command := func(pid int32, since int64) string {
		return d.command(lockengine.Who{PID: pid}, lockengine.Instant{Boot: since})
	}
	assert.Equal(t, printable(st.comm), command(pid, st.start+1))
	assert.Empty(t, command(pid, st.start-1), "whatever was asked of it before")
	assert.Equal(t, printable(st.comm), command(pid, st.start+1))
	assert.Empty(t, command(0, 1<<62))
}

// A process that started within the tick of the grant is the holder only if it started when that did.
func TestHolderAlive(t *testing.T) {
	st, ok := statOf(int32(os.Getpid()))
	require.True(t, ok)
	l := lockengine.Lock{Who: lockengine.Who{PID: int32(os.Getpid())}, Since: lockengine.Instant{Boot: st.start + 1},
		Meta: "kind take\n" + describe(int32(os.Getpid()))}
	assert.True(t, holderAlive(&l))
	l.Meta = strings.Replace(l.Meta, "pstart "+st.ticks()+"\n", "pstart 1\n", 1)
	assert.False(t, holderAlive(&l))
	l.Meta = "kind take\n"
	assert.True(t, holderAlive(&l), "a lock of a journal that has no start: by the time alone")
	l.Since.Boot = st.start - 1
	assert.False(t, holderAlive(&l))
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
