package fs

import (
	"fmt"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"lockfs/lockengine"
)

func TestCheckName(t *testing.T) {
	long := strings.Repeat("n", MaxName)
	for name, want := range map[string]error{
		"backup": nil, "a.b_c-d": nil, "0": nil, "_": nil, "uid-0.x": nil, long: nil,
		"": syscall.EINVAL, ".x": syscall.EINVAL, "-x": syscall.EINVAL, "a b": syscall.EINVAL, "a/b": syscall.EINVAL,
		"a+b": syscall.EINVAL, "a@b": syscall.EINVAL, "a,b": syscall.EINVAL, "ä": syscall.EINVAL, "a\x00": syscall.EINVAL,
		long + "n": syscall.ENAMETOOLONG, long + "+": syscall.EINVAL,
	} {
		assert.Equal(t, want, CheckName(name), "%q", name)
	}
}

func TestParseDuration(t *testing.T) {
	for s, want := range map[string]time.Duration{
		"300": 300 * time.Second, "7.5": 7500 * time.Millisecond, ".5": time.Second / 2, "5.": 5 * time.Second,
		"90s": 90 * time.Second, "5m": 5 * time.Minute, "1h30m": 90 * time.Minute, "1d": 24 * time.Hour,
		"1d2h3m4s": 26*time.Hour + 3*time.Minute + 4*time.Second, "1.5h": 90 * time.Minute, "007": 7 * time.Second,
		"0.000000001": 1, "0.000000015": 15, "0.0000000149": 15, "31535999.999999999": 365*24*time.Hour - 1,
	} {
		got, err := ParseDuration(s, 0)
		assert.NoError(t, err, "%q", s)
		assert.Equal(t, want, got, "%q", s)
	}
	for _, s := range []string{"", "0", "0s", "-1", "+1", "nan", "NaN", "inf", "1e400", "1e3", "0x10", "1_0", "s", "5x", "5 m",
		"30m1h", "1h1h", "5m30", "1..5", ".", "99999999999999999999", "99999999999d", "1h-5m", "5ms", "\n5", "5\n",
		"0.0000000001", "1٣"} {
		_, err := ParseDuration(s, 0)
		assert.Equal(t, syscall.EINVAL, err, "%q", s)
	}
	_, err := ParseDuration("61s", time.Minute)
	assert.Equal(t, syscall.EINVAL, err, "over the bound")
}

func TestParseLockName(t *testing.T) {
	for s, want := range map[string]lockName{
		"x":        {name: "x"},
		"x+5m":     {name: "x", spelling: bySpan, timeout: 5 * time.Minute},
		"x@17":     {name: "x", spelling: byToken, token: 17},
		"a.b-c+.5": {name: "a.b-c", spelling: bySpan, timeout: time.Second / 2},
	} {
		got, err := parseLockName(s, time.Hour)
		assert.NoError(t, err, "%q", s)
		assert.Equal(t, want, got, "%q", s)
	}
	for _, s := range []string{"x@", "x@0", "x@-1", "x@+1", "x@017", "x@1 ", "x@1@2", "x@1+5m", "x+5m@1", "x+", "x+0", "x+2h",
		"+5m", "@1", "x@18446744073709551616", "x@0x1"} {
		_, err := parseLockName(s, time.Hour)
		assert.Equal(t, syscall.EINVAL, err, "%q", s)
	}
}

func TestParseWaitName(t *testing.T) {
	w, err := parseWaitName("x+5m,wait=1.5", time.Hour)
	assert.NoError(t, err)
	assert.Equal(t, waitName{lockName{"x", bySpan, 0, 5 * time.Minute}, 1500 * time.Millisecond, true}, w)
	w, err = parseWaitName("x,wait=0", time.Hour)
	assert.NoError(t, err)
	assert.True(t, w.bounded && w.wait == 0)
	for _, s := range []string{"x,", "x,wait", "x,wait=", "x,wait=-1", "x,wait=x", "x,wait=1,wait=2", "x@5", ",wait=1", "x,Wait=1"} {
		_, err := parseWaitName(s, time.Hour)
		assert.Equal(t, syscall.EINVAL, err, "%q", s)
	}
}

func TestNameUID(t *testing.T) {
	for name, want := range map[string]bool{
		"uid-0.x": true, "uid-1000.": true, "uid-4294967295.a.b": true, "uid-1000_.x": true,
		"uid-1000": false, "uid-.x": false, "uid-x.y": false, "uid-4294967296.x": false, "UID-1.x": false, "xuid-1.x": false,
	} {
		_, got := nameUID(name)
		assert.Equal(t, want, got, "%q", name)
	}
}

func TestMasterOf(t *testing.T) {
	for name, want := range map[string]string{
		"tlock.x": "tlock_.x", "m.a.b": "m_.a.b", "plain": "", "tlock_.x": "", "m.": "m_.",
	} {
		assert.Equal(t, want, masterOf(name), "%q", name)
	}
	assert.True(t, isMaster("tlock_.x"))
	assert.False(t, isMaster("tlock.x_"))
}

// print is a name as it could be written.
func (n lockName) print() string {
	switch n.spelling {
	case byToken:
		return fmt.Sprintf("%s@%d", n.name, n.token)
	case bySpan:
		return n.name + "+" + printSpan(n.timeout)
	}
	return n.name
}

func printSpan(d time.Duration) string {
	v := lockView{Lock: lockengine.Lock{Timeout: d}}
	return strings.TrimSuffix(renderTimeout(&v), "\n")
}

// What is taken for a name is one that is safe to show, and comes back from
// how it is printed.
func FuzzNames(f *testing.F) {
	for _, s := range []string{"x", "x+5m", "x@1", "x+1h30m,wait=3", "uid-0.x", "x@", "+", ",wait=", "x@18446744073709551615",
		"x+0.1", "x+8760h", "x+2e3", "-x", ".x", "x/y", "x\n", "x+5m\n", "x,wait=0", "x,wait=.5s", "x@1,wait=1", "x@017", "\x00", "x\u202ey",
		strings.Repeat("n", MaxName), strings.Repeat("n", MaxName+1), "x+8759h59m59.999999999s"} {
		f.Add(s)
	}
	safe := regexp.MustCompile(`\A[A-Za-z0-9_][A-Za-z0-9._-]*\z`)
	year := 365 * 24 * time.Hour
	f.Fuzz(func(t *testing.T, s string) {
		if CheckName(s) == nil {
			require.Regexp(t, safe, s)
			require.LessOrEqual(t, len(s), MaxName)
			again, err := parseLockName(s, year)
			require.NoError(t, err)
			require.Equal(t, lockName{name: s}, again)
		}
		if n, err := parseLockName(s, year); err == nil {
			require.Regexp(t, safe, n.name)
			require.True(t, n.timeout >= 0 && n.timeout <= year && (n.timeout > 0) == (n.spelling == bySpan))
			require.Equal(t, n.spelling == byToken, n.token != 0)
			again, err := parseLockName(n.print(), year)
			require.NoError(t, err, "%q", n.print())
			require.Equal(t, n, again)
			require.True(t, n.spelling == bySpan || s == n.print(), "%q is printed %q", s, n.print())
		}
		if w, err := parseWaitName(s, year); err == nil {
			require.Regexp(t, safe, w.name)
			_, option, bounded := strings.Cut(s, ",wait=")
			wait, _ := ParseSpan(option)
			require.True(t, w.wait == wait && w.bounded == bounded && w.spelling != byToken)
			printed := w.print()
			if w.bounded {
				printed += ",wait=" + printSpan(w.wait)
			}
			again, err := parseWaitName(printed, year)
			require.NoError(t, err, "%q", printed)
			require.Equal(t, w, again)
		}
	})
}

// A span that is taken is printed so that it is taken for the same.
func FuzzSpans(f *testing.F) {
	for _, s := range []string{"300", "7.5", ".5", "5.", "90s", "1h30m", "1d", "0", "0.0000000004", "0.1", "0.3", "1.1m", "0.000001d",
		"106751d", "4611686018", "4611686018.427387903", "31535999.999999999", "9007199.254740993", "30m1h", "1e3", "0x1", "1_0", "nan",
		"1\u0663", "53374d1110000h", "0.000000015", "99999999999999999999999999999999"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseSpan(s)
		_, tooLong := ParseDuration(s, max(1, d-1))
		if err != nil {
			require.Equal(t, syscall.EINVAL, err)
			require.Error(t, tooLong)
			return
		}
		require.GreaterOrEqual(t, d, time.Duration(0))
		require.Equal(t, d <= 0 || d > max(1, d-1), tooLong != nil)
		again, err := ParseSpan(printSpan(d))
		require.NoError(t, err, printSpan(d))
		require.Equal(t, d, again, "%q is %d, printed %q", s, d, printSpan(d))
	})
}
