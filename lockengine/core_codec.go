package lockengine

import "time"

// fields says what of a command counts for an op besides its number.
type fields uint16

const (
	hasReq    fields = 1 << iota // all of the request
	hasName                      // of the request, the name
	hasLock                      // of the request, class, owner and range
	hasHandle                    // of the request
	hasHolder                    // of the request, Who and Timeout
	hasToken
	hasHow
	hasMax // and second
	hasNote
	hasWaiter
	hasWatch
	hasKinds
	hasBoot
)

var fieldsOf = [...]fields{
	opTick:       0,
	opTry:        hasReq,
	opWait:       hasReq,
	opCancel:     hasWaiter,
	opUnlock:     hasName | hasLock,
	opDropOwner:  hasName | hasLock,
	opDropHandle: hasHandle,
	opRelease:    hasName | hasToken | hasHow,
	opRenew:      hasName | hasToken | hasHolder | hasMax,
	opSetNote:    hasName | hasToken | hasNote,
	opSetStart:   hasName | hasToken | hasMax,
	opSetSpan:    hasName | hasToken | hasMax,
	opSetHolder:  hasName | hasToken | hasHolder,
	opWatch:      hasName | hasToken | hasWatch,
	opUnwatch:    hasWatch,
	opClassify:   hasKinds,
	opClose:      0,
	opDetach:     hasName | hasToken,
	opResume:     hasToken | hasBoot,
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

// Flags of a command, beside its own.
const (
	relative  = 1 << 3 // at is told by the one before
	sameName  = 1 << 4 // as before
	sameOwner = 1 << 5
	sameAsker = 1 << 6 // handle and who
	plain     = 1 << 7 // the request has nothing that only some have
)

// command writes a command, when it was done, and what differs from the one before.
func (w *encoder) command(cmd *command, at Instant, before *told) {
	f, flags := fieldsOf[cmd.op], cmd.flags()
	if before.at != (Instant{}) {
		flags |= relative
		if f&(hasReq|hasName) != 0 && cmd.req.Name == before.name {
			flags |= sameName
		}
		if f&(hasReq|hasLock) != 0 && cmd.req.Owner == before.owner {
			flags |= sameOwner
		}
		if f&hasReq != 0 && cmd.req.Handle == before.handle && cmd.req.Who == before.who {
			flags |= sameAsker
		}
	}
	if f&hasReq != 0 && cmd.req.plain() {
		flags |= plain
	}
	w.buf = append(w.buf, format, byte(cmd.op), flags)
	if flags&relative != 0 {
		w.instantAfter(at, before.at)
	} else {
		w.instant(at)
	}
	before.at = at
	if f&(hasReq|hasName) != 0 && flags&sameName == 0 {
		w.str(cmd.req.Name)
		before.name = cmd.req.Name
	}
	if f&(hasReq|hasLock) != 0 {
		w.kinds(cmd.req.Class, cmd.req.Mode, cmd.req.Kind)
		if flags&sameOwner == 0 {
			w.owner(cmd.req.Owner)
			before.owner = cmd.req.Owner
		}
		w.rng(cmd.req.Range)
	}
	if f&hasReq != 0 {
		if flags&sameAsker == 0 {
			w.asker(&cmd.req)
			before.handle, before.who = cmd.req.Handle, cmd.req.Who
		}
		if flags&plain == 0 {
			w.rest(&cmd.req)
		}
		return
	}
	if f&^(hasName|hasLock) != 0 {
		w.others(cmd, f)
	}
}

// others is the fields that the commands of most locks have not.
func (w *encoder) others(cmd *command, f fields) {
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

// command reads what the encoder's command wrote.
func (r *decoder) command(before *told) (cmd command, at Instant) {
	r.format()
	cmd.op = op(r.byte())
	if int(cmd.op) >= len(fieldsOf) {
		r.fail(errVersion)
		return command{}, Instant{}
	}
	flags := r.byte()
	cmd.keep, cmd.extend, cmd.fresh = flags&1 != 0, flags&2 != 0, flags&4 != 0
	switch {
	case flags&(relative|sameName|sameOwner|sameAsker) == 0:
		at = r.instant()
	case before.at == Instant{} || flags&relative == 0:
		r.fail(errOrder)
	default:
		at = r.instantAfter(before.at)
	}
	before.at = at
	f := fieldsOf[cmd.op]
	if r.old {
		r.oldFields(&cmd, f)
	} else {
		r.fields(&cmd, f, flags, before)
	}
	return cmd, at
}

func (r *decoder) fields(cmd *command, f fields, flags byte, before *told) {
	if f&(hasReq|hasName) != 0 {
		if flags&sameName == 0 {
			before.name = r.str()
		}
		cmd.req.Name = before.name
	}
	if f&(hasReq|hasLock) != 0 {
		cmd.req.Class, cmd.req.Mode, cmd.req.Kind = r.kinds()
		if flags&sameOwner == 0 {
			before.owner = r.owner()
		}
		cmd.req.Owner = before.owner
		cmd.req.Range = r.rng()
	}
	if f&hasReq != 0 {
		if flags&sameAsker == 0 {
			r.asker(&cmd.req)
			before.handle, before.who = cmd.req.Handle, cmd.req.Who
		}
		cmd.req.Handle, cmd.req.Who = before.handle, before.who
		if flags&plain == 0 {
			r.rest(&cmd.req)
		}
		return
	}
	r.others(cmd, f)
}

// oldFields reads them in oldFormat.
func (r *decoder) oldFields(cmd *command, f fields) {
	if f&hasReq != 0 {
		cmd.req = r.request()
		return
	}
	if f&hasName != 0 {
		cmd.req.Name = r.str()
	}
	if f&hasLock != 0 {
		cmd.req.Class, _, _ = r.kinds()
		cmd.req.Owner, cmd.req.Range = r.owner(), r.rng()
	}
	r.others(cmd, f)
}

func (r *decoder) others(cmd *command, f fields) {
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
