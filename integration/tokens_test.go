package integration

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

const (
	tokenTakers = 16
	tokenNames  = 50
	manyTakes   = 100_000 // takes minutes, so only where there is time: with LOCKFS_LONG set
	fewTakes    = 20_000
)

// TestTokensGrow: over many takes of 50 names by 16 processes, tokens are strictly increasing in order of grant.
// Three witnesses know something of that order: each process of its own takes; for each name a file to which its holder
// appends while it holds it; and view/events, for what it was not too slow to see.
func TestTokensGrow(t *testing.T) {
	takes := fewTakes
	if os.Getenv("LOCKFS_LONG") != "" {
		takes = manyTakes
	}
	binary, err := plainBinary() // the number of takes is the point, not the race detector
	require.NoError(t, err)
	base := tempDir(t)
	m := mountAt(t, binary, base+"/mnt", base+"/state")
	witness, err := os.MkdirTemp("/dev/shm", "lockfs-tokens-")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(witness) })
	granted := followGrants(t, m)

	began := time.Now()
	outputs := make([]bytes.Buffer, tokenTakers)
	var takers []*exec.Cmd
	for i := range tokenTakers {
		taker := role("taker", m.path("tlock"), witness, strconv.Itoa(takes/tokenTakers))
		taker.Stdout = &outputs[i]
		require.NoError(t, taker.Start())
		t.Cleanup(func() { taker.Process.Kill(); taker.Wait() })
		takers = append(takers, taker)
	}
	for _, taker := range takers {
		require.NoError(t, taker.Wait())
	}
	t.Logf("%d takes by %d processes in %v", takes, tokenTakers, time.Since(began).Round(time.Millisecond))

	seen := make(map[uint64]bool, takes)
	for i := range outputs {
		tokens := tokensIn(outputs[i].Bytes())
		require.Len(t, tokens, takes/tokenTakers)
		requireGrowing(t, fmt.Sprint("process ", i), tokens)
		for _, token := range tokens {
			require.False(t, seen[token], "token %d was given twice", token)
			seen[token] = true
		}
	}
	total := 0
	for i := range tokenNames {
		name := takerName(i)
		text, err := os.ReadFile(filepath.Join(witness, name))
		require.NoError(t, err)
		tokens := tokensIn(text)
		requireGrowing(t, name, tokens)
		total += len(tokens)
	}
	assert.Equal(t, takes, total)
	assert.Empty(t, entries(t, m.path("tlock")))
	granted.require(t)
}

func takerName(i int) string { return "name" + strconv.Itoa(i) }

func tokensIn(b []byte) []uint64 {
	var tokens []uint64
	for len(b) >= 8 {
		tokens, b = append(tokens, binary.LittleEndian.Uint64(b)), b[8:]
	}
	return tokens
}

func requireGrowing(t *testing.T, whose string, tokens []uint64) {
	t.Helper()
	for i := 1; i < len(tokens); i++ {
		require.Greater(t, tokens[i], tokens[i-1], "take %d of %s", i, whose)
	}
}

// grants checks the tokens of view/events as they come.
type grants struct {
	cat   *exec.Cmd
	last  uint64
	n     int
	wrong string // the first grant whose token is not larger than the one before
}

func followGrants(t *testing.T, m *mount) *grants {
	t.Helper()
	g := &grants{cat: exec.Command("cat")}
	events, err := os.Open(m.path("view/events"))
	require.NoError(t, err)
	g.cat.Stdin = events
	g.cat.Stdout = &lineWriter{line: g.add}
	require.NoError(t, g.cat.Start())
	events.Close()
	t.Cleanup(func() { g.cat.Process.Kill(); g.cat.Wait() })
	return g
}

func (g *grants) add(line string) {
	if !strings.Contains(line, `"event":"granted"`) {
		return
	}
	var e event
	if err := json.Unmarshal([]byte(line), &e); err != nil || e.Token <= g.last && g.wrong == "" {
		g.wrong = fmt.Sprintf("after %d: %s", g.last, line)
	}
	g.last = e.Token
	g.n++
}

// require ends the stream, so that nothing is added any more.
func (g *grants) require(t *testing.T) {
	t.Helper()
	g.cat.Process.Kill()
	g.cat.Wait()
	t.Logf("%d grants seen in view/events", g.n)
	require.NotZero(t, g.n)
	require.Empty(t, g.wrong)
}

// The taker is a role of this binary (see playRole) that has its entry here.
func init() {
	if os.Getenv(roleEnv) != "taker" {
		return
	}
	if err := takerMain(); err != nil {
		fmt.Fprintln(os.Stderr, "taker:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// takerMain takes the arguments TLOCK WITNESS N: it takes N locks and writes their tokens, 8 bytes each, to standard
// output and, while it holds them, to a file for each name.
func takerMain() error {
	tlock, witness, n := os.Args[1], os.Args[2], int(parseInt(os.Args[3]))
	var files [tokenNames]int
	for i := range files {
		fd, err := unix.Open(filepath.Join(witness, takerName(i)), unix.O_WRONLY|unix.O_CREAT|unix.O_APPEND, 0o600)
		if err != nil {
			return err
		}
		files[i] = fd
	}
	var all []byte
	for len(all) < 8*n {
		i := rand.IntN(tokenNames)
		token, err := takeOnce(filepath.Join(tlock, takerName(i)), files[i])
		if errors.Is(err, unix.EEXIST) {
			continue // another has it
		}
		if err != nil {
			return err
		}
		all = binary.LittleEndian.AppendUint64(all, token)
	}
	_, err := os.Stdout.Write(all)
	return err
}

func takeOnce(lock string, witness int) (uint64, error) {
	if err := unix.Mkdir(lock, 0o755); err != nil {
		return 0, err
	}
	text, err := readText(lock + "/token")
	if err != nil {
		return 0, err
	}
	token, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, err
	}
	if _, err := unix.Write(witness, binary.LittleEndian.AppendUint64(nil, token)); err != nil {
		return 0, err
	}
	return token, unix.Rmdir(lock + "@" + text)
}
