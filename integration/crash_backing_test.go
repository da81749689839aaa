package integration

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestAnotherBacking: timed locks belong to the state, not to the files. What the journal knows of another backing
// directory, or of another mount, is of no matter to the next mount.
func TestAnotherBacking(t *testing.T) {
	m := newMount(t)
	c := newClient(t, m.dir)
	require.Equal(t, "ok", c.do("mkdir tlock/kept+1h"))
	require.NoError(t, os.WriteFile(m.path("files/old"), []byte("text"), 0o644))
	require.Equal(t, "ok", c.do("open files/old"))
	m.killWorker() // so that there are records of a worker that went on
	m.crash()

	next := mountAt(t, m.binary, m.dir, m.state, "--files", tempDir(t))
	require.Equal(t, []string{"kept"}, entries(t, next.path("tlock")))
	require.Empty(t, entries(t, next.path("files")))
	next.killWorker()
	require.Equal(t, []string{"kept"}, entries(t, next.path("tlock")))
}
