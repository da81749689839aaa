package fs

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"lockfs/lockengine"
)

// noticesASecond bounds how many lines of one kind the log gets: anybody can
// let locks run out as fast as he takes them.
const noticesASecond = 10

// notice tells the log of one kind of thing that happens to locks, and of
// more than noticesASecond only how many there were.
//
// Concurrency: safe for use from any goroutine.
type notice struct {
	level slog.Level
	msg   string

	mu      sync.Mutex
	lines   int // in this second
	leftOut int
}

// notices are what a sysadmin should see without looking.
type notices struct{ expired, forced, refused, possible notice }

func newNotices() *notices {
	return &notices{
		expired:  notice{level: slog.LevelInfo, msg: "lock expired"},
		forced:   notice{level: slog.LevelWarn, msg: "lock released by force"},
		refused:  notice{level: slog.LevelWarn, msg: "deadlock refused"},
		possible: notice{level: slog.LevelWarn, msg: "deadlock possible: see view/graph.dot"},
	}
}

func (n *notice) tell(log *slog.Logger, args ...any) {
	if n.take(log) {
		log.Log(context.Background(), n.level, n.msg, args...)
	}
}

// take reports whether there is a line left in this second. The first line
// begins one.
func (n *notice) take(log *slog.Logger) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.lines == noticesASecond {
		n.leftOut++
		return false
	}
	if n.lines++; n.lines == 1 {
		time.AfterFunc(time.Second, func() { n.refill(log) })
	}
	return true
}

func (n *notice) refill(log *slog.Logger) {
	n.mu.Lock()
	leftOut := n.leftOut
	n.lines, n.leftOut = 0, 0
	n.mu.Unlock()
	if leftOut > 0 {
		log.Log(context.Background(), n.level, n.msg+", and more of them", "left_out", leftOut)
	}
}

// engineTeller is an engine that tells of what happens to locks by itself.
type engineTeller interface {
	OnExpired(func(name string, token uint64))
	OnDeadlock(func(req lockengine.Request, refused bool))
}

func (s *Server) listen() {
	if t, ok := s.engine.(engineTeller); ok {
		t.OnExpired(s.expired)
		t.OnDeadlock(s.deadlock)
	}
}

// expired is told of each lock that ran out.
func (s *Server) expired(name string, token uint64) {
	s.notices.expired.tell(s.log, "name", name, "token", token)
	if s.sweeps {
		s.sweep(name, token)
	}
}

// deadlock is told of each request that closes a cycle of waiters.
func (s *Server) deadlock(req lockengine.Request, refused bool) {
	path := "tlock/" + req.Name
	if req.Class != lockengine.Named {
		path = s.filePath(req.Name)
	}
	n := &s.notices.possible
	if refused {
		n = &s.notices.refused
	}
	n.tell(s.log, "path", path, "pid", req.Who.PID, "uid", req.Who.UID)
}
