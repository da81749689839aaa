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
	hasWords = hasTime | hasOwner | hasAsker | hasRange | hasKey // of fixed width
	toldOnce = hasName | hasOwner | hasAsker                     // not again if the next has the same
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
// that follows comes with all that is told once, so that nothing before must be
// known.
const commandHead = 20

// command records a command: what of it differs from the one before. If that fails
// it is kept, and appended before anything else is, so that the order stays. nil is
// none.
func (r *recorder) command(cmd *command, at Instant) {
	if r.log == nil || cmd == nil {
		return
	}
	req, head := cmd.req, (*[commandHead]byte)(r.room[:])
	if req == nil {
		req = &noRequest
	}
	tell := fieldsOf[cmd.op]
	boot := at.Boot - r.at.Boot
	drift := at.Wall - r.at.Wall - boot
	// At 0 nothing was told, or it is told again.
	if r.at.Boot == 0 || uint64(boot|(drift+1<<31))>>32 != 0 {
		tell |= hasTime
	}
	r.at = at
	start, end := req.Range.Start, bits.RotateLeft64(req.Range.End, 1)
	if (start|end)>>32 == 0 {
		tell &^= hasRange
	}
	binary.LittleEndian.PutUint32(head[4:], uint32(boot))
	binary.LittleEndian.PutUint32(head[8:], uint32(drift))
	binary.LittleEndian.PutUint32(head[12:], uint32(start))
	binary.LittleEndian.PutUint32(head[16:], uint32(end))
	if req.Key == 0 && req.plain() {
		tell &^= hasKey | hasRest
	}
	if req.Owner == r.owner {
		tell &^= hasOwner
	}
	if req.Handle == r.handle && req.Who.process() == r.who.process() && req.Who.user() == r.who.user() {
		tell &^= hasAsker
	}
	if req.Name == r.name {
		tell &^= hasName
	}
	kinds := uint32(req.Class&3) | uint32(req.Mode&3)<<2 | uint32(req.Kind)<<4
	binary.LittleEndian.PutUint32(head[:], format|uint32(cmd.op)<<8|kinds<<24)
	data := head[:]
	if tell != 0 {
		data = r.follow(cmd, req, tell)
	}
	if len(r.owed) == 0 {
		if pos, err := r.log.Append(recordCommand, data); err == nil {
			r.pos = pos
			return
		}
	}
	r.owe(data)
}

// noRequest is that of a command that has none.
var noRequest Request

// process and user are Who as words.
func (p *Who) process() uint64 { return uint64(uint32(p.PID)) | uint64(uint32(p.TID))<<32 }
func (p *Who) user() uint64    { return uint64(p.UID) | uint64(p.GID)<<32 }

// follow writes what follows the head, and into it what that is.
func (r *recorder) follow(cmd *command, req *Request, tell fields) []byte {
	n := uint8(commandHead)
	word := func(w uint64) {
		binary.LittleEndian.PutUint64(r.room[n:], w)
		n += 8
	}
	if tell&hasTime != 0 {
		tell |= fieldsOf[cmd.op]
	}
	if req.Key == 0 {
		tell &^= hasKey
	}
	if req.plain() {
		tell &^= hasRest
	}
	r.room[2] = byte(tell)
	if tell&hasTime != 0 {
		word(uint64(r.at.Boot))
		word(uint64(r.at.Wall))
	}
	if tell&hasOwner != 0 {
		r.owner = req.Owner
		word(req.Owner.Session)
		word(req.Owner.ID)
	}
	if tell&hasAsker != 0 {
		r.handle, r.who = req.Handle, req.Who
		word(req.Handle)
		word(req.Who.process())
		word(req.Who.user())
	}
	if tell&hasRange != 0 {
		word(req.Range.Start)
		word(req.Range.End)
	}
	if tell&hasKey != 0 {
		word(req.Key)
	}
	if tell&^hasWords != 0 {
		return r.texts(cmd, tell, r.room[:n])
	}
	return r.room[:n]
}

// texts appends what has no fixed width.
func (r *recorder) texts(cmd *command, tell fields, buf []byte) []byte {
	w := encoder{buf}
	if tell&hasName != 0 {
		w.str(cmd.req.Name)
		r.name = cmd.req.Name
	}
	if tell&hasRest != 0 {
		w.rest(cmd.req)
	}
	if tell&hasOthers != 0 {
		w.others(cmd, tell)
	}
	return w.buf
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

// command reads what the recorder's command wrote.
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
