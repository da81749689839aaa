package lockengine

import (
	"fmt"
	"log/slog"
	"slices"
)

// Kinds of records.
const (
	recordCommand uint8 = 1
	recordState   uint8 = 2
	recordTokens  uint8 = 3
)

// recorder appends commands to the log.
type recorder struct {
	log    Log           // nil: nothing is recorded
	pos    uint64        // of the last record
	told                 // of the last command
	room   [1 << 10]byte // for the bytes of one command: few have texts too long for it
	owed   [][]byte      // commands that there was no room for, to be appended first
	failed bool          // that was logged
	logger *slog.Logger
}

func (r *recorder) append(kind uint8, data []byte) error {
	pos, err := r.log.Append(kind, data)
	if err == nil {
		r.pos = pos
	}
	return err
}

// settle appends what is owed.
func (r *recorder) settle() error {
	for len(r.owed) > 0 {
		if err := r.append(recordCommand, r.owed[0]); err != nil {
			return err
		}
		r.owed = slices.Delete(r.owed, 0, 1)
	}
	return nil
}

// owe keeps the last command, and tries once more.
func (r *recorder) owe(data []byte) {
	r.owed = append(r.owed, slices.Clone(data))
	err := r.settle()
	if err != nil && r.logger != nil && !r.failed {
		r.logger.Error("a change of locks could not be recorded; it would be undone by a crash now", "err", err)
		r.failed = true
	}
}

// grows says whether the op may make the state larger, or is only good with a
// record: these are refused when there is no room for it. What gives back
// never is.
func (o op) grows() bool {
	switch o {
	case opTry, opWait, opRenew, opSetNote, opSetStart, opSetSpan, opSetHolder, opWatch:
		return true
	}
	return false
}

const (
	// commandRoom is more than a command takes, but for its texts.
	commandRoom = 256
	// What must stay free for what gives back, in bytes: a part for each thing
	// that is to be given back.
	reserveMin  = 64 << 10
	reserveEach = 160
	reserveMax  = 4 << 20
)

// room fails with ErrNoSpace if there is none to record a command that grows.
func (l *Local) room(cmd *command) error {
	r := cmd.req
	n := commandRoom + len(r.Name) + len(r.Guard) + len(r.Meta) + len(cmd.note)
	if len(l.record.owed) == 0 && l.record.log.Room(n, l.core.reserve()) == nil {
		return nil
	}
	return l.seekRoom(cmd, n)
}

// seekRoom asks once more for room that there was none of, and says why.
func (l *Local) seekRoom(cmd *command, n int) error {
	err := l.roomFor(n)
	if err != nil && cmd.op == opTry && normalize(cmd.req) && l.core.blocked(cmd.req) {
		return ErrHeld // as it would be with room
	}
	return err
}

// roomFor fails with ErrNoSpace if a record of n bytes has no room.
func (l *Local) roomFor(n int) error {
	var err error
	if len(l.record.owed) > 0 {
		err = l.record.settle()
	}
	if err == nil {
		err = l.record.log.Room(n, l.core.reserve())
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return nil
}

// anyRoom is what a lock with a long name and much told of its holder takes.
const anyRoom = 4 << 10

// Room returns nil if any new lock would be recorded now, else why not.
func (l *Local) Room() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return ErrClosed
	}
	if l.record.log == nil {
		return nil
	}
	return l.roomFor(anyRoom)
}

func (c *core) reserve() int {
	return min(reserveMin+reserveEach*(c.quota.all+len(c.watches)), reserveMax)
}
