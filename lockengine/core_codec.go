package lockengine

import (
	"encoding/binary"
	"math/bits"
	"time"
)

// fields says what of a command counts for an op besides its number.
type fields uint32

// Those that most commands have.
const (
	hasTime  fields = 1 << iota // when it was done: of any op
	hasName                     // of the request
	hasOwner                    // of the request
	hasRange                    // of the request
	hasAsker                    // of the request, Handle and Who
	hasKey                      // of the request
	hasRest                     // of the request, what only some have

	hasLock  = hasOwner | hasRange // and class, mode and kind
	hasReq   = hasName | hasLock | hasAsker | hasKey | hasRest
	toldOnce = hasName | hasOwner | hasAsker // not again if the next has the same
)

// The others.
const (
	hasFlags  fields = 1 << (8 + iota) // keep, extend and fresh
	hasHandle                          // of the request
	hasHolder                          // of the request, Who and Timeout
	hasToken
	hasHow
	hasMax // and second
	hasNote
	hasWaiter
	hasWatch
	hasKinds
	hasBoot

	hasOthers = ^fields(0xff)
)

var fieldsOf = [...]fields{
	opTick:       0,
	opTry:        hasReq,
	opWait:       hasReq,
	opCancel:     hasFlags | hasWaiter,
	opUnlock:     hasName | hasLock,
	opDropOwner:  hasName | hasLock,
	opDropHandle: hasHandle,
	opRelease:    hasName | hasToken | hasHow,
	opRenew:      hasName | hasFlags | hasToken | hasHolder | hasMax,
	opSetNote:    hasName | hasToken | hasNote,
	opSetStart:   hasName | hasToken | hasMax,
	opSetSpan:    hasName | hasToken | hasMax,
	opSetHolder:  hasName | hasToken | hasHolder,
	opWatch:      hasName | hasToken | hasWatch,
	opUnwatch:    hasWatch,
	opClassify:   hasKinds,
	opClose:      0,
	opDetach:     hasName | hasToken,
	opResume:     hasFlags | hasToken | hasBoot,
}

// told is what was told of the command before in a sequence, and need not be told
// of the next one again. The zero value is that of the first.
type told struct {
	at     Instant
	name   string
	owner  Owner
	handle uint64
	who    Who
}

// A command begins with a head, all numbers little endian:
//
//	 0  the format, and the op
//	 2  which of hasTime to hasRest follow
//	 3  class (2 bits), mode (2 bits) and kind (4 bits) of the request
//	 4  uint32  boot time since the command before
//	 8  int32   by how much more the wall clock went on
//	12  uint32  start of the range
//	16  uint32  its end, as rng has it
//
// That is all of most commands. What has no room there, or differs from what was
// told before, follows; what is told once is as before if it does not. A time
// that follows comes with all, so that nothing before must be known.
const commandHead = 20

// command writes a command, when it was done, and what differs from the one
// before, in the place of what was written last.
func (w *encoder) command(cmd *command, at Instant, before *told) {
	if cap(w.buf) < commandHead {
		w.grow()
	}
	req := cmd.req
	if req == nil {
		req = &noRequest
	}
	sameName := req.Name == before.name
	has := fieldsOf[cmd.op]
	tell := has
	if sameName {
		tell &^= hasName
	}
	if req.Owner == before.owner {
		tell &^= hasOwner
	}
	if req.Handle == before.handle && req.Who == before.who {
		tell &^= hasAsker
	}
	boot := at.Boot - before.at.Boot
	drift := at.Wall - before.at.Wall - boot
	// At 0 nothing was told, or it is told again.
	if before.at.Boot == 0 || uint64(boot)>>32 != 0 || int64(int32(drift)) != drift {
		tell = has | hasTime
	}
	before.at = at
	start, end := req.Range.Start, bits.RotateLeft64(req.Range.End, 1)
	if (start|end)>>32 == 0 {
		tell &^= hasRange
	}
	if req.Key == 0 {
		tell &^= hasKey
	}
	if req.plain() {
		tell &^= hasRest
	}
	kinds := byte(req.Class&3) | byte(req.Mode&3)<<2 | byte(req.Kind)<<4
	w.buf = w.buf[:commandHead]
	head := (*[commandHead]byte)(w.buf)
	binary.LittleEndian.PutUint64(head[:], format|uint64(cmd.op)<<8|uint64(byte(tell))<<16|uint64(kinds)<<24|uint64(boot)<<32)
	binary.LittleEndian.PutUint64(head[8:], uint64(uint32(drift))|start<<32)
	binary.LittleEndian.PutUint32(head[16:], uint32(end))
	if tell != 0 {
		w.follow(cmd, at, tell, before)
	}
}

// noRequest is that of a command that has none.
var noRequest Request

//go:noinline
func (w *encoder) grow() { w.buf = make([]byte, commandRoom) }

// follow writes what follows the head.
func (w *encoder) follow(cmd *command, at Instant, tell fields, before *told) {
	req := cmd.req
	if tell&hasTime != 0 {
		w.instant(at)
	}
	if tell&hasOwner != 0 {
		w.word(req.Owner.Session)
		w.word(req.Owner.ID)
		before.owner = req.Owner
	}
	if tell&hasAsker != 0 {
		w.word(req.Handle)
		w.word(uint64(uint32(req.Who.PID)) | uint64(uint32(req.Who.TID))<<32)
		w.word(uint64(req.Who.UID) | uint64(req.Who.GID)<<32)
		before.handle, before.who = req.Handle, req.Who
	}
	if tell&hasRange != 0 {
		w.word(req.Range.Start)
		w.word(req.Range.End)
	}
	if tell&hasKey != 0 {
		w.word(req.Key)
	}
	if tell&hasName != 0 {
		w.str(req.Name)
		before.name = req.Name
	}
	if tell&hasRest != 0 {
		w.rest(req)
	}
	if tell&hasOthers != 0 {
		w.others(cmd, tell)
	}
}

// others is the fields that the commands of most locks have not.
func (w *encoder) others(cmd *command, f fields) {
	if f&hasFlags != 0 {
		w.byte(cmd.flags())
	}
	if f&hasHandle != 0 {
		w.num(cmd.req.Handle)
	}
	if f&hasHolder != 0 {
		w.who(cmd.req.Who)
		w.int(int64(cmd.req.Timeout))
	}
	if f&hasToken != 0 {
		w.num(cmd.token)
	}
	if f&hasMax != 0 {
		w.int(cmd.max)
		w.int(cmd.second)
	}
	if f&hasHow != 0 {
		w.byte(byte(cmd.how))
	}
	if f&hasNote != 0 {
		w.str(cmd.note)
	}
	if f&hasWaiter != 0 {
		w.num(uint64(cmd.waiter))
	}
	if f&hasWatch != 0 {
		w.num(uint64(cmd.watch))
	}
	if f&hasKinds != 0 {
		w.num(uint64(len(cmd.kinds)))
		for _, k := range cmd.kinds {
			w.owner(k.owner)
			w.byte(byte(k.kind))
		}
	}
	if f&hasBoot != 0 {
		w.str(cmd.boot)
	}
}

func (cmd *command) flags() (b byte) {
	if cmd.keep {
		b |= 1
	}
	if cmd.extend {
		b |= 2
	}
	if cmd.fresh {
		b |= 4
	}
	return b
}

func (cmd *command) setFlags(b byte) {
	cmd.keep, cmd.extend, cmd.fresh = b&1 != 0, b&2 != 0, b&4 != 0
}

// command reads what the encoder's command wrote.
func (r *decoder) command(before *told) (cmd command, at Instant) {
	r.format()
	cmd.op, cmd.req = op(r.byte()), new(Request)
	if int(cmd.op) >= len(fieldsOf) {
		r.fail(errVersion)
		return command{}, Instant{}
	}
	f := fieldsOf[cmd.op]
	if r.version != format {
		at = r.oldCommand(&cmd, f, before)
		return cmd, at
	}
	tell, kinds := fields(r.byte()), r.byte()
	boot, drift := int64(r.half()), int64(int32(r.half()))
	start, end := uint64(r.half()), uint64(r.half())
	req := cmd.req
	req.Class, req.Mode, req.Kind = Class(kinds&3), Mode(kinds>>2&3), OwnerKind(kinds>>4)
	req.Range = Range{start, bits.RotateLeft64(end, -1)}
	switch {
	case tell&^(f|hasTime) != 0:
		r.fail(errVersion)
	case tell&hasTime == 0:
		if before.at == (Instant{}) {
			r.fail(errOrder)
		}
		at = Instant{before.at.Boot + boot, before.at.Wall + boot + drift}
	default:
		if f&toldOnce&^tell != 0 {
			r.fail(errOrder)
		}
		at = r.instant()
	}
	before.at = at
	r.follow(&cmd, f, tell, before)
	return cmd, at
}

func (r *decoder) follow(cmd *command, f, tell fields, before *told) {
	req := cmd.req
	if tell&hasOwner != 0 {
		before.owner = Owner{r.word(), r.word()}
	}
	if tell&hasAsker != 0 {
		before.handle = r.word()
		before.who = Who{int32(r.half()), int32(r.half()), r.half(), r.half()}
	}
	if tell&hasRange != 0 {
		req.Range = Range{r.word(), r.word()}
	}
	if tell&hasKey != 0 {
		req.Key = r.word()
	}
	if tell&hasName != 0 {
		before.name = r.str()
	}
	before.give(req, f)
	if tell&hasRest != 0 {
		r.rest(req)
	}
	r.others(cmd, f)
}

// give gives a request what it has of what was told.
func (t *told) give(req *Request, f fields) {
	if f&hasName != 0 {
		req.Name = t.name
	}
	if f&hasOwner != 0 {
		req.Owner = t.owner
	}
	if f&hasAsker != 0 {
		req.Handle, req.Who = t.handle, t.who
	}
}

func (r *decoder) others(cmd *command, f fields) {
	if f&hasFlags != 0 {
		cmd.setFlags(r.byte())
	}
	if f&hasHandle != 0 {
		cmd.req.Handle = r.num()
	}
	if f&hasHolder != 0 {
		cmd.req.Who, cmd.req.Timeout = r.who(), time.Duration(r.int())
	}
	if f&hasToken != 0 {
		cmd.token = r.num()
	}
	if f&hasMax != 0 {
		cmd.max, cmd.second = r.int(), r.int()
	}
	if f&hasHow != 0 {
		cmd.how = End(r.byte())
	}
	if f&hasNote != 0 {
		cmd.note = r.str()
	}
	if f&hasWaiter != 0 {
		cmd.waiter = WaiterID(r.num())
	}
	if f&hasWatch != 0 {
		cmd.watch = WatchID(r.num())
	}
	if f&hasKinds != 0 {
		for n := r.num(); n > 0 && r.err == nil; n-- {
			cmd.kinds = append(cmd.kinds, ownerKind{r.owner(), OwnerKind(r.byte())})
		}
	}
	if f&hasBoot != 0 {
		cmd.boot = r.str()
	}
}
