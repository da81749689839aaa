package journal

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const appendTo = "JOURNAL_TEST_APPEND_TO"

func TestMain(m *testing.M) {
	if dir := os.Getenv(appendTo); dir != "" {
		appendForever(dir)
	}
	os.Exit(m.Run())
}

// numbers replays records of growing numbers: each of kind 1 is one more than the
// one before, one of kind 2 stands for all up to it.
type numbers struct {
	mu   sync.Mutex
	last uint64
}

func (n *numbers) apply(kind uint8, data []byte) error {
	got := binary.LittleEndian.Uint64(data)
	if kind == 1 && got != n.last+1 {
		return fmt.Errorf("%d follows %d", got, n.last)
	}
	n.last = got
	return nil
}

// appendForever appends numbers as fast as it can, compacting when that is due,
// and writes each to its output when it is appended.
func appendForever(dir string) {
	must := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	j, err := Open(dir, Options{Boot: thisBoot})
	must(err)
	n := &numbers{}
	_, err = j.Replay(n.apply)
	must(err)
	go func() {
		for range j.Full() {
			c, err := j.Compact()
			must(err)
			var state [8]byte
			n.mu.Lock()
			c.Switch()
			binary.LittleEndian.PutUint64(state[:], n.last)
			n.mu.Unlock()
			must(c.Add(2, state[:]))
			must(c.Commit())
		}
	}()
	data := make([]byte, 4096)
	for {
		n.mu.Lock()
		binary.LittleEndian.PutUint64(data, n.last+1)
		_, err := j.Append(1, data[:8+rand.IntN(len(data)-8)])
		must(err)
		n.last++
		n.mu.Unlock()
		_, err = os.Stdout.Write(data[:8])
		must(err)
	}
}

// TestKilled: all that was appended before a kill -9 is there, in order.
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	var last uint64
	for range 20 {
		acknowledged := last
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), appendTo+"="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		var n [8]byte
		for first := true; ; first = false {
			if _, err := io.ReadFull(out, n[:]); err != nil {
				break
			}
			if first {
				time.AfterFunc(time.Duration(rand.IntN(60))*time.Millisecond, func() { cmd.Process.Kill() })
			}
			acknowledged = binary.LittleEndian.Uint64(n[:])
		}
		require.ErrorContains(t, cmd.Wait(), "killed")

		j, err := Open(dir, Options{Boot: thisBoot})
		require.NoError(t, err)
		replayed := &numbers{}
		_, err = j.Replay(replayed.apply)
		require.NoError(t, err)
		require.Greater(t, acknowledged, last, "it got nowhere")
		require.GreaterOrEqual(t, replayed.last, acknowledged)
		require.LessOrEqual(t, replayed.last, acknowledged+1)
		last = replayed.last
		j.closeFiles() // without a word, as a kill does
		close(j.quit)
		j.tasks.Wait()
	}
}
