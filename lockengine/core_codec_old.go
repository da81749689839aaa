package lockengine

// What programs of the formats before wrote is read: in format2 a command told
// what the one before had not, by numbers of variable length; in format1 all of
// itself.

// Flags of a command in format2, beside its own.
const (
	relative  = 1 << 3 // at is told by the one before
	sameName  = 1 << 4 // as before
	sameOwner = 1 << 5
	sameAsker = 1 << 6 // handle and who
	plain     = 1 << 7 // the request has nothing that only some have
)

// oldCommand reads a command behind its op.
func (r *decoder) oldCommand(cmd *command, f fields, before *told) (at Instant) {
	flags := r.byte()
	cmd.setFlags(flags)
	switch {
	case flags&(relative|sameName|sameOwner|sameAsker) == 0:
		at = r.instant()
	case before.at == Instant{} || flags&relative == 0:
		r.fail(errOrder)
	default:
		boot := r.int()
		at = Instant{before.at.Boot + boot, before.at.Wall + boot + r.int()}
	}
	before.at = at
	f &^= hasFlags
	if r.version == format1 {
		r.oldestFields(cmd, f)
	} else {
		r.oldFields(cmd, f, flags, before)
	}
	return at
}

func (r *decoder) oldFields(cmd *command, f fields, flags byte, before *told) {
	req := cmd.req
	if f&hasName != 0 && flags&sameName == 0 {
		before.name = r.str()
	}
	if f&hasLock != 0 {
		req.Class, req.Mode, req.Kind = r.kinds()
		if flags&sameOwner == 0 {
			before.owner = r.owner()
		}
		req.Range = r.rng()
	}
	if f&hasAsker != 0 && flags&sameAsker == 0 {
		r.asker(req)
		before.handle, before.who = req.Handle, req.Who
	}
	before.give(req, f)
	if f&hasRest != 0 && flags&plain == 0 {
		r.rest(req)
		req.Key = r.num()
	}
	r.others(cmd, f)
}

func (r *decoder) oldestFields(cmd *command, f fields) {
	if f&hasReq == hasReq {
		*cmd.req = r.request()
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
