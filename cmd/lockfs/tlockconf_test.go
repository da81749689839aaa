package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestParseTlockConf(t *testing.T) {
	conf, err := parseTlockConf("tlock 1\n# comment\n\n dir\t/var/locks/ # there\nmarker my-mark\nowner 12\npatience   7.5\ndir /second\n")
	require.NoError(t, err)
	assert.Equal(t, map[string]string{"dir": "/var/locks/", "marker": "my-mark", "owner": "12", "patience": "7.5"}, conf)
	for text, want := range map[string]string{
		"":                       "line 1",
		"dir /x\n":               "line 1",
		"tlock\n":                "line 1",
		"tlock 2\n":              `line 1: version "2" is not known`,
		"# c\ntlock 0\n":         "line 1",
		"tlock 0\nfoo bar\n":     `line 2: directive "foo" is not known; expected dir, marker, owner or patience`,
		"tlock 0\n\n#x\nmarker":  "line 4: directive marker has no value",
		"tlock 0\nDir /x\n":      "line 2",
		"tlock 0\ndir #nothing":  "line 2",
		"tlock 0\nmarker=tlock1": "line 2",
	} {
		_, err := parseTlockConf(text)
		assert.ErrorContains(t, err, want, "%q", text)
	}
}

func TestTlockSettingsInOrder(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "conf")
	require.NoError(t, os.WriteFile(file, []byte("tlock 0\nmarker file\npatience 3\ndir "+dir+"\n"), 0o644))
	t.Setenv("tlock_conf", file)
	t.Setenv("tlock_patience", "2")
	c, err := tlockOptions{marker: "flag"}.resolve()
	require.NoError(t, err)
	assert.Equal(t, tlockConf{dir: dir, marker: "flag", owner: -1, patience: 2 * time.Second}, c)
	c, err = tlockOptions{}.resolve()
	require.NoError(t, err)
	assert.Equal(t, "file", c.marker)
}

func TestTlockBadSettings(t *testing.T) {
	for _, o := range []tlockOptions{{marker: "_x"}, {marker: "x_"}, {marker: "a.b"}, {marker: "ä"}, {patience: "0"}, {patience: "-1"},
		{patience: "nan"}, {patience: "1e3"}, {owner: "no such user"}, {owner: "-2"}, {dir: "/nonexistent"}, {conf: "/nonexistent"}} {
		if o.dir == "" {
			o.dir = t.TempDir()
		}
		_, err := o.resolve()
		assert.Error(t, err, "%+v", o)
	}
}

// What is taken for a configuration has values that can be used, and comes
// back from a file that says them plainly.
func FuzzTlockConf(f *testing.F) {
	for _, s := range []string{"tlock 1\ndir /x\nmarker m\n# c\n", "tlock 0\npatience", "", "tlock 2\n", "tlock 0\nowner 0\nowner -1\n",
		"tlock 0\nowner root\n", "tlock 0\nowner 4294967295\n", "tlock 0\npatience 1e3\n", "tlock 0\npatience 0.0000000001\n",
		"tlock 0\npatience 1000000000\n", "tlock 0\npatience .5", "tlock 0\ndir\t/a b\t# c", "tlock 0\r\ndir /x\r\n", "tlock\u00a00\n",
		"tlock 0\nmarker tlock-1\nmarker b", "tlock 0\ndir\u00a0/x", "tlock 0\ndir \x00", " tlock 0 ", "tlock 0\ndir /x \v\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		conf, err := parseTlockConf(text)
		if err != nil {
			require.NotContains(t, err.Error(), "\n", "an error is one line")
			return
		}
		plain := "tlock 1\n"
		for k, v := range conf {
			require.Contains(t, []string{"dir", "marker", "owner", "patience"}, k)
			require.NoError(t, checkTlockValue(k, v))
			require.NotContains(t, v, "\n")
			plain += k + " " + v + "\n"
		}
		if p := conf["patience"]; p != "" {
			d, _ := parsePatience(p)
			require.Positive(t, d)
		}
		again, err := parseTlockConf(plain)
		require.NoError(t, err, "%q", plain)
		require.Equal(t, conf, again)
	})
}
