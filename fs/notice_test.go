package fs

import (
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
)

// sharedText is written by timers and read by the test.
type sharedText struct {
	mu   sync.Mutex
	text strings.Builder
}

func (s *sharedText) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *sharedText) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// A flood costs the log so many lines a second, and one that says how many were left out.
func TestNoticesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out sharedText
		log := slog.New(slog.NewTextHandler(&out, nil))
		n := newNotices()
		lines := func(what string) int { return strings.Count(out.String(), what) }
		for range 1000 {
			n.expired.tell(log, "name", "x")
		}
		n.forced.tell(log, "name", "y")
		assert.Equal(t, noticesASecond, lines("lock expired"))
		assert.Equal(t, 1, lines("lock released by force"), "a flood of one kind hides no other")
		time.Sleep(time.Second)
		synctest.Wait()
		assert.Equal(t, 1, lines("and more of them"))
		assert.Equal(t, 1, lines("left_out=990"))
		n.expired.tell(log, "name", "later")
		assert.Equal(t, 1, lines("name=later"))
		time.Sleep(2 * time.Second)
		synctest.Wait()
		assert.Equal(t, 1, lines("left_out"), "nothing was left out of the second after")
	})
}
