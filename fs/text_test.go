package fs

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

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
		"0::/system.slice/cron.service\n":                      {"cron.service", ""},
		"0::/user.slice/user-0.slice/session-3.scope\n":        {"session-3.scope", ""},
		"0::/system.slice/docker-" + id + ".scope\n":           {"docker-" + id + ".scope", id[:12]},
		"0::/docker/" + id + "\n":                              {"", id[:12]},
		"0::/machine.slice/libpod-" + id + ".scope/container":  {"libpod-" + id + ".scope", id[:12]},
		"9:name=systemd:/libpod_parent/libpod-" + id + "\n":    {"", id[:12]},
		"0::/../libpod-" + id + "\n":                           {"", id[:12]}, // seen from a cgroup namespace
		"0::/kubepods.slice/cri-containerd-" + id + ".scope\n": {"cri-containerd-" + id + ".scope", id[:12]},
		"0::/kubepods/burstable/pod5c1e/" + id + "\n":          {"", id[:12]},
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
	d := (*Server)(nil).describer(lockengine.Instant{}, reader{})
	command := func(pid int32, since int64) string {
		return d.process(lockengine.Who{PID: pid}, lockengine.Instant{Boot: since}).command
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
	labels := map[party]string{p(1): "1 a", p(2): `2 b"`, p(3): "3 c", p(4): "4 d"}
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

// printed undoes printable.
func printed(s string) (out []byte, err error) {
	digits := map[byte]int{'x': 2, 'u': 4, 'U': 8}
	for len(s) > 0 {
		if s[0] != '\\' {
			out, s = append(out, s[0]), s[1:]
			continue
		}
		if len(s) > 1 && s[1] == '\\' {
			out, s = append(out, '\\'), s[2:]
			continue
		}
		n := digits[s[1]]
		r, err := strconv.ParseUint(s[2:2+n], 16, 32)
		if err != nil {
			return nil, err
		}
		if n == 2 {
			out = append(out, byte(r))
		} else {
			out = utf8.AppendRune(out, rune(r))
		}
		s = s[2+n:]
	}
	return out, nil
}

// What is made printable is one line that a terminal shows as it is, and tells
// what it was made of: no two texts look alike.
func FuzzPrintable(f *testing.F) {
	for _, s := range []string{"sh -c true", "", "na\u00efve", "a\nuid 0", "\x1b[2J", `back\slash`, `\x0a`, "\n", "\xff\xfe", "\u202eexe.txt",
		"\x7f", "\u0085", "\u0080", "\x80", "\ue0001", "\U000e0001", "\ufffd", "\xed\xa0\x80", "\u2028", "\U0010ffff", "\xc2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := printable(s)
		require.True(t, utf8.ValidString(got))
		for _, r := range got {
			require.True(t, unicode.IsPrint(r), "%q in %q", r, got)
		}
		back, err := printed(got)
		require.NoError(t, err)
		require.Equal(t, s, string(back), "shown as %q", got)
		require.LessOrEqual(t, len(got), 4*len(s))
	})
}

// The parts of a cgroup that are shown are on one line, and are in it.
func FuzzCgroup(f *testing.F) {
	id := strings.Repeat("0123456789abcdef", 4)
	for _, s := range []string{"0::/system.slice/cron.service\n", "0::/user.slice/user-0.slice/session-3.scope\n",
		"0::/system.slice/docker-" + id + ".scope\n", "0::/docker/" + id + "\n", "0::/machine.slice/libpod-" + id + ".scope/container",
		"0::/\n", "12:cpu:/a.service\n11:memory:/b.service\n", "/\x1b.service", "/.service", id, "/a\xff.scope"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if unit := unitOf(s); unit != "" {
			back, err := printed(unit)
			require.NoError(t, err)
			require.Contains(t, s, "/"+string(back))
			require.Equal(t, unit, printable(string(back)))
			require.Regexp(t, `.\.(service|scope)$`, unit)
		}
		if c := containerOf(s); c != "" {
			require.Regexp(t, `^[0-9a-f]{12}$`, c)
			require.Contains(t, s, c)
		}
	})
}

// A mount is found under its very name, whatever that is; other lines are no
// mounts of ours.
func FuzzMountinfo(f *testing.F) {
	f.Add("mnt", "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n")
	f.Add("a b\tc\nd\\040", "1 2 0:3 / /x rw - fuse.lockfs")
	f.Add("a\u00a0b\vc\rd\x85", " - \n\n")
	f.Add(" - ", "1 2 0:3 / /x rw - fuse.lockfsx lockfs rw\n- - -")
	escape := strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`).Replace // fs/proc_namespace.c
	f.Fuzz(func(t *testing.T, dir, other string) {
		dir = "/" + dir
		before := len(mountsIn(other + "\n"))
		line := fmt.Sprintf("101 30 0:57 / %s rw,nosuid shared:1 - fuse.lockfs lockfs rw,user_id=0\n", escape(dir))
		found := mountsIn(other + "\n" + line)
		require.Len(t, found, before+1)
		require.Equal(t, MountInfo{Dir: dir, Device: 57}, found[before])
	})
}

// What is written to timeout or note is refused, and then changes nothing, or
// is there, and comes back the same when it is written as it is read.
func FuzzControl(f *testing.F) {
	for _, s := range []string{"5m", "+5m", "5m\n", "+5m\n\n", "", "\n", "+", "++1", "-1", "0", "1e9", "8760h", "24h", "+24h", "0.1", "free text",
		"two\nlines\n", "\xff\x00", strings.Repeat("n", maxNote), strings.Repeat("n", maxNote+1), " 5m", "23h59m59.999999999s"} {
		f.Add(s)
	}
	k := newKernel(f, f.TempDir())
	f.Cleanup(k.finish)
	unique := uint64(0)
	write := func(t *testing.T, r *row, text string) (before, after lockengine.Lock, err error) {
		unique += numberStep
		before, _ = k.engine.Get("held")
		err = r.write(k.s, unique, before, text)
		after, _ = k.engine.Get("held")
		if err != nil {
			require.Equal(t, before, after)
		}
		return before, after, err
	}
	f.Fuzz(func(t *testing.T, text string) {
		if _, l, err := write(t, timeoutRow, text); err == nil {
			require.True(t, l.Timeout > 0 && l.Timeout <= k.s.cfg.MaxTimeout)
			require.LessOrEqual(t, l.Expiry.Boot-k.s.now().Boot, int64(k.s.cfg.MaxTimeout))
			_, again, err := write(t, timeoutRow, renderTimeout(&lockView{Lock: l}))
			require.NoError(t, err)
			require.Equal(t, l.Timeout, again.Timeout)
		}
		if _, l, err := write(t, noteRow, text); err == nil {
			require.Equal(t, text, l.Note)
			require.LessOrEqual(t, len(text), maxNote)
			shown := renderNote(&lockView{Lock: l})
			require.Equal(t, printableNote(strings.TrimSuffix(text, "\n")), strings.TrimSuffix(shown, "\n"))
			require.True(t, text == "" || strings.HasSuffix(shown, "\n"))
		}
	})
}
