package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestControl: a wish goes to the supervisor and its answer comes back, also
// where the path is longer than a socket's may be, and after a supervisor that
// left its socket behind.
func TestControl(t *testing.T) {
	state := filepath.Join(t.TempDir(), strings.Repeat("long/", 40))
	require.NoError(t, os.MkdirAll(state, 0o700))
	_, err := dialControl(state)
	require.ErrorIs(t, err, unix.ENOENT)
	dead, err := listenControl(state)
	require.NoError(t, err)
	dead.Close()
	_, err = dialControl(state)
	require.ErrorIs(t, err, unix.ECONNREFUSED)

	l, err := listenControl(state)
	require.NoError(t, err)
	defer l.Close()
	asked := make(chan func(upgraded))
	go serveControl(l, asked)
	for _, want := range []upgraded{{Old: "1", New: "2"}, {Old: "2", New: "2", Err: "no"}} {
		conn, err := dialControl(state)
		require.NoError(t, err)
		await(t, "the wish", asked)(want)
		var got upgraded
		require.NoError(t, json.NewDecoder(conn).Decode(&got))
		assert.Equal(t, want, got)
		conn.Close()
	}
}

// TestWorkerSettings are found in a worker's environment.
func TestWorkerSettings(t *testing.T) {
	want := settings{Dir: "/x y", State: "/s", Device: 77, Sync: syncAlways}
	s, ok := workerSettings("A=1\x00" + workerEnv + "=" + want.encode() + "\x00B=2\x00")
	require.True(t, ok)
	require.Equal(t, want, s)
	for _, environ := range []string{"", "A=1", workerEnv + "=", workerEnv + "={", "X" + workerEnv + "=" + want.encode()} {
		_, ok := workerSettings(environ)
		require.False(t, ok, "%q", environ)
	}
}

// TestOwnPath is that of the file which runs, and leads to what replaces it.
func TestOwnPath(t *testing.T) {
	path, err := ownPath()
	require.NoError(t, err)
	self, err := os.Stat("/proc/self/exe")
	require.NoError(t, err)
	there, err := os.Stat(path)
	require.NoError(t, err)
	require.True(t, os.SameFile(self, there))

	link := filepath.Join(t.TempDir(), "lockfs")
	require.NoError(t, os.Symlink(path, link))
	args := os.Args[0]
	t.Cleanup(func() { os.Args[0] = args })
	os.Args[0] = link
	path, err = ownPath()
	require.NoError(t, err)
	require.Equal(t, link, path)
	os.Args[0] = "/bin/true" // somebody lies
	path, err = ownPath()
	require.NoError(t, err)
	require.NotEqual(t, "/bin/true", path)
}
