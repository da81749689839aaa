package fs

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"

	"lockfs/lockengine"
)

// simWeights say what a run does how often, in percent or as shares.
type simWeights struct {
	files, names int
	procs        int
	calls        []simWeight
	server       int // the server takes a request
	call         int // a client makes its next call
	signal, kill int
	pass, step   int
	crash, down  int // between two steps; for how many it stays down
	crashIn      int // within a step
	crashAgain   int // while it goes on where the one before was
	killInGap    int // while it does so
	snapshot     int
}

type simWeight struct {
	share int
	call  func(*simTask) bool // false: it makes no sense now
}

const (
	simFiles = 2
	simBytes = 6 // positions that are told apart; the last one reaches to the end of the file
)

var simNames = []string{"a", "b", "m_.x", "m.x"}

// drawWeights makes each run different: some have many clients on one file,
// some crash all the time.
func (s *sim) drawWeights() simWeights {
	few := func(n int) int { return []int{0, n / 4, n, 2 * n}[s.n(4)] }
	return simWeights{
		files: 1 + s.n(simFiles), names: 1 + s.n(len(simNames)), procs: 2 + s.n(4),
		calls: []simWeight{
			{6 + few(10), (*simTask).open},
			{2 + few(30), (*simTask).lockRecord},
			{few(20), (*simTask).lockDescription},
			{few(20), (*simTask).flock},
			{few(10), (*simTask).unlock},
			{few(6), (*simTask).test},
			{3 + few(6), (*simTask).close},
			{few(4), (*simTask).dup},
			{few(4), (*simTask).fork},
			{few(3), (*simTask).leave},
			{few(12), (*simTask).mkdir},
			{few(8), (*simTask).rmdir},
			{few(20), (*simTask).take},
			{few(8), (*simTask).readToken},
			{few(6), (*simTask).renew},
			{few(6), (*simTask).await},
			{few(1), (*simTask).view},
		},
		server: 40 + s.n(40), call: 30,
		signal: few(4), kill: few(2), pass: few(3), step: few(1),
		crash: few(2), down: 1 + s.n(20), crashIn: few(4), crashAgain: few(20), killInGap: few(10), snapshot: few(2),
	}
}

// simProc is a process: threads that share descriptors and are one owner of
// record locks.
type simProc struct {
	pid   int32
	owner uint64
	tasks []*simTask // those that live
	fds   []*simDescription
	dying bool
}

// simTask is a thread.
type simTask struct {
	*sim
	proc *simProc
	tid  int32
	req  *simRequest // that it waits for
	// again is a call that a signal interrupted and that is made again once
	// the handler has run.
	again func()
	uses  *simDescription // by the call it is in
	busy  bool            // in a call
}

// simDescription is an open file description.
type simDescription struct {
	*sim
	id       uint64 // the owner of its flocks and OFD locks
	node     uint64
	fh       uint64
	file     int             // -1: none of files/
	inc      *simIncarnation // of take/ and hold/
	refs     int
	released uint64 // the number of its RELEASE
}

func (d *simDescription) String() string { return "d" + itoa(d.id) }

func (s *sim) newProc() *simProc {
	s.lastTID++
	p := &simProc{pid: s.lastTID, owner: uint64(s.lastTID)<<32 | uint64(s.rng.Uint32())}
	s.procs = append(s.procs, p)
	for range 1 + s.n(2) {
		p.tasks = append(p.tasks, &simTask{sim: s, proc: p, tid: s.lastTID})
		s.lastTID++
	}
	s.note("process %d with %d threads", p.pid, len(p.tasks))
	return p
}

func (s *sim) thread(tid int32) *simTask {
	for _, p := range s.procs {
		for _, t := range p.tasks {
			if t.tid == tid {
				return t
			}
		}
	}
	return nil
}

func (s *sim) processOf(tid int32) int32 {
	if t := s.thread(tid); t != nil {
		return t.proc.pid
	}
	return 0
}

// classify is what /proc would tell of a waiting thread's call.
func (s *sim) classify(_ lockengine.Owner, who lockengine.Who) lockengine.OwnerKind {
	t := s.thread(who.TID)
	switch {
	case t == nil || t.req == nil || t.req.op.kind != askLock:
		return lockengine.KindUnknown
	case t.req.op.ofd:
		return lockengine.KindDescription
	}
	return lockengine.KindProcess
}

// send makes the thread wait for the answer to a request. A thread that has
// been killed meanwhile sends no more.
func (t *simTask) send(op *simOp, frame []byte, done func(errno syscall.Errno, body []byte)) {
	if t.proc.dying {
		t.exit()
		return
	}
	t.busy = true
	t.request(op, frame, false, done)
}

func (t *simTask) request(op *simOp, frame []byte, force bool, done func(errno syscall.Errno, body []byte)) {
	op.task = t
	t.req = &simRequest{task: t, op: op, frame: frame, force: force, done: done}
	t.kernel.queue(t.req)
}

// end ends a call.
func (t *simTask) end() {
	t.uses.put()
	t.uses, t.busy = nil, false
	if t.proc.dying {
		t.exit()
	}
}

// exit ends a thread, and with the last one its process.
func (t *simTask) exit() {
	if !slices.Contains(t.proc.tasks, t) {
		return
	}
	if t.uses != nil {
		t.uses.put()
		t.uses = nil
	}
	t.busy = false
	if len(t.proc.tasks) == 1 {
		t.closeAll()
		return
	}
	t.proc.tasks = slices.DeleteFunc(t.proc.tasks, func(o *simTask) bool { return o == t })
}

// closeAll closes what a process has open, one after the other.
func (t *simTask) closeAll() {
	p := t.proc
	if len(p.fds) == 0 {
		p.tasks = nil
		t.procs = slices.DeleteFunc(t.procs, func(o *simProc) bool { return o == p })
		t.note("process %d is gone", p.pid)
		return
	}
	d := p.fds[0]
	p.fds = p.fds[1:]
	t.flush(d, func() { t.closeAll() })
}

// flush is filp_close: it is not given up when the thread is killed.
func (t *simTask) flush(d *simDescription, then func()) {
	t.model.closing(t.proc, d)
	op := &simOp{kind: askFlush, owner: t.proc.owner, file: d.file}
	frame := simFrame(opFlush, d.node, fuse.FlushIn{Fh: d.fh, LockOwner: t.proc.owner}, "")
	t.request(op, frame, true, func(errno syscall.Errno, _ []byte) {
		if errno != 0 {
			t.fail("FLUSH: %v", errno)
		}
		d.put()
		then()
	})
}

// put gives a reference back. With the last one RELEASE is queued, now or a
// little later.
func (d *simDescription) put() {
	if d == nil {
		return
	}
	if d.refs--; d.refs > 0 {
		return
	}
	d.model.closed(d)
	r := &simRequest{op: &simOp{kind: askRelease, desc: d, file: d.file}, done: func(errno syscall.Errno, _ []byte) {
		if errno != 0 {
			d.fail("RELEASE: %v", errno)
		}
		d.kernel.uses[d.node]--
	}}
	r.frame = simFrame(opRelease, d.node, fuse.ReleaseIn{Fh: d.fh, LockOwner: d.id}, "")
	d.sim.late = append(d.sim.late, r)
	if d.chance(70) {
		d.queueLate(len(d.sim.late) - 1)
	}
}

func (s *sim) queueLate(i int) {
	r := s.late[i]
	s.late = slices.Delete(s.late, i, i+1)
	s.kernel.queue(r)
	r.op.desc.released = r.unique
}

// kill sends a process SIGKILL.
func (s *sim) kill(p *simProc) {
	p.dying = true
	s.note("kill %d", p.pid)
	for _, t := range slices.Clone(p.tasks) {
		t.again = nil
		if t.req != nil {
			s.kernel.signal(t.req, true)
			continue
		}
		t.exit()
	}
}

func (s *sim) killOne() {
	alive := slices.DeleteFunc(slices.Clone(s.procs), func(p *simProc) bool { return p.dying })
	if len(alive) > 0 {
		s.kill(simPick(s, alive))
	}
}

// interrupt sends a signal that has a handler to a thread that waits.
func (s *sim) interrupt() {
	var waiting []*simTask
	for _, t := range s.threads() {
		if t.req != nil {
			waiting = append(waiting, t)
		}
	}
	if len(waiting) > 0 {
		t := simPick(s, waiting)
		s.note("signal for %d at %v", t.tid, t.req)
		s.kernel.signal(t.req, false)
	}
}

func (s *sim) threads() (all []*simTask) {
	for _, p := range s.procs {
		all = append(all, p.tasks...)
	}
	return all
}

// call has a thread that has nothing to do make a call.
func (s *sim) call() {
	if len(s.procs) < s.weights.procs {
		s.newProc()
	}
	var free []*simTask
	for _, t := range s.threads() {
		if !t.busy && !t.proc.dying && t.req == nil {
			free = append(free, t)
		}
	}
	if len(free) == 0 {
		return
	}
	t := simPick(s, free)
	if t.again != nil {
		again := t.again
		t.again = nil
		again()
		return
	}
	total := 0
	for _, w := range s.weights.calls {
		total += w.share
	}
	for range 5 {
		at := s.n(total)
		for _, w := range s.weights.calls {
			if at -= w.share; at < 0 {
				if w.call(t) {
					return
				}
				break
			}
		}
	}
}

func simBody[T any](s *sim, body []byte) *T {
	if len(body) < int(unsafe.Sizeof(*new(T))) {
		s.fail("answer of %d bytes is too short", len(body))
	}
	return (*T)(unsafe.Pointer(&body[0]))
}

// opened makes a description of an OPEN's answer, with a descriptor unless the
// process was killed.
func (t *simTask) opened(node uint64, file int, inc *simIncarnation, body []byte) *simDescription {
	t.lastTID++
	d := &simDescription{sim: t.sim, id: uint64(t.lastTID), node: node, fh: simBody[fuse.OpenOut](t.sim, body).Fh, file: file, inc: inc, refs: 1}
	t.kernel.uses[node]++
	if t.proc.dying {
		t.model.closing(t.proc, d)
		d.put()
		return d
	}
	t.proc.fds = append(t.proc.fds, d)
	return d
}

// openedOwn is for a descriptor that only this call uses.
func (t *simTask) openedOwn(node uint64, body []byte) *simDescription {
	d := t.opened(node, -1, nil, body)
	if !t.proc.dying {
		d.refs++
		t.uses = d
	}
	return d
}

// use picks an open description that pred is true for, and holds it during the call.
func (t *simTask) use(pred func(*simDescription) bool) *simDescription {
	var fit []*simDescription
	for _, d := range t.proc.fds {
		if pred(d) {
			fit = append(fit, d)
		}
	}
	if len(fit) == 0 {
		return nil
	}
	d := simPick(t.sim, fit)
	d.refs++
	t.uses = d
	return d
}

func isFile(d *simDescription) bool { return d.file >= 0 }

func (t *simTask) open() bool {
	file := t.n(t.weights.files)
	node := t.nodes[file]
	op := &simOp{kind: askOpen, text: "open " + simFileName(file)}
	frame := simFrame(opOpen, node, fuse.OpenIn{Flags: syscall.O_RDWR}, "")
	t.send(op, frame, func(errno syscall.Errno, body []byte) {
		switch {
		case errno == 0:
			t.opened(node, file, nil, body)
		case errno != syscall.EINTR:
			t.fail("open: %v", errno)
		}
		t.end()
	})
	return true
}

func (t *simTask) lockRecord() bool {
	d := t.use(isFile)
	return d != nil && t.lock(d, &simOp{kind: askLock, class: lockengine.Record, owner: t.proc.owner}, 0)
}

func (t *simTask) lockDescription() bool {
	d := t.use(isFile)
	return d != nil && t.lock(d, &simOp{kind: askLock, class: lockengine.Record, owner: d.id, ofd: true, desc: d}, 0)
}

func (t *simTask) flock() bool {
	d := t.use(isFile)
	return d != nil && t.lock(d, &simOp{kind: askLock, class: lockengine.Flock, owner: d.id, desc: d}, fuse.LK_FLOCK)
}

func (t *simTask) unlock() bool {
	d := t.use(isFile)
	if d == nil {
		return false
	}
	op := &simOp{kind: askUnlock, class: lockengine.Record, owner: t.proc.owner}
	switch t.n(3) {
	case 0:
		op.owner, op.ofd, op.desc = d.id, true, d
	case 1:
		op.class, op.owner, op.desc = lockengine.Flock, d.id, d
		return t.lock(d, op, fuse.LK_FLOCK)
	}
	return t.lock(d, op, 0)
}

// lock makes a call to lock or unlock some range in some mode.
func (t *simTask) lock(d *simDescription, op *simOp, flags uint32) bool {
	op.file = d.file
	op.from, op.to = t.n(simBytes), t.n(simBytes)
	if op.from, op.to = min(op.from, op.to), max(op.from, op.to); flags != 0 {
		op.from, op.to = 0, simBytes-1
	}
	op.mode = lockengine.Mode(1 + t.n(2))
	op.wait = t.chance(60)
	opcode := uint32(opSetlk)
	if op.kind == askLock && op.wait || flags != 0 && op.kind == askUnlock {
		opcode = opSetlkw
	}
	frame := simFrame(opcode, d.node, fuse.LkIn{Fh: d.fh, Owner: op.owner, Lk: op.wire(t.proc.pid), LkFlags: flags}, "")
	var ask func()
	ask = func() {
		t.send(op, slices.Clone(frame), func(errno syscall.Errno, _ []byte) {
			if errno == syscall.EINTR && !t.proc.dying && t.chance(80) {
				// SA_RESTART: made again once the handler has run
				// (ERESTARTSYS). The model keeps the place for it.
				t.again, t.busy = ask, false
				return
			}
			t.end()
		})
	}
	ask()
	return true
}

// wire is the range and mode as they are asked for.
func (op *simOp) wire(pid int32) fuse.FileLock {
	lk := fuse.FileLock{Start: uint64(op.from), End: uint64(op.to), Typ: syscall.F_WRLCK, Pid: uint32(pid)}
	if op.to == simBytes-1 {
		lk.End = lockengine.MaxEnd - 1
	}
	switch {
	case op.kind == askUnlock:
		lk.Typ, lk.Pid = syscall.F_UNLCK, 0
	case op.mode == lockengine.Shared:
		lk.Typ = syscall.F_RDLCK
	}
	return lk
}

func (t *simTask) test() bool {
	d := t.use(isFile)
	if d == nil {
		return false
	}
	op := &simOp{kind: askTest, class: lockengine.Record, owner: t.proc.owner, file: d.file, mode: lockengine.Mode(1 + t.n(2))}
	op.from, op.to = 0, t.n(simBytes)
	frame := simFrame(opGetlk, d.node, fuse.LkIn{Fh: d.fh, Owner: op.owner, Lk: op.wire(0)}, "")
	t.send(op, frame, func(errno syscall.Errno, _ []byte) { t.end() })
	return true
}

func (t *simTask) close() bool {
	var free []int
	for i, d := range t.proc.fds {
		if !slices.ContainsFunc(t.proc.tasks, func(o *simTask) bool { return o.uses == d }) {
			free = append(free, i)
		}
	}
	if len(free) == 0 {
		return false
	}
	i := simPick(t.sim, free)
	d := t.proc.fds[i]
	t.proc.fds = slices.Delete(t.proc.fds, i, i+1)
	t.busy = true
	t.flush(d, t.end)
	return true
}

func (t *simTask) dup() bool {
	if len(t.proc.fds) == 0 {
		return false
	}
	d := simPick(t.sim, t.proc.fds)
	d.refs++
	t.proc.fds = append(t.proc.fds, d)
	t.note("dup %v in %d", d, t.proc.pid)
	return true
}

func (t *simTask) fork() bool {
	if len(t.procs) > t.weights.procs+2 {
		return false
	}
	child := t.newProc()
	child.fds = slices.Clone(t.proc.fds)
	for _, d := range child.fds {
		d.refs++
	}
	t.note("%d forked %d", t.proc.pid, child.pid)
	return true
}

// leave is exit_group(2).
func (t *simTask) leave() bool {
	t.kill(t.proc)
	return true
}

// named looks a name up in a directory of the synthetic tree, and goes on with
// its node.
func (t *simTask) named(dir uint64, name string, then func(node uint64), failed func(syscall.Errno)) {
	op := &simOp{kind: askLookup, text: "LOOKUP " + name}
	t.send(op, simFrame(opLookup, dir, fuse.InHeader{}, name+"\x00"), func(errno syscall.Errno, body []byte) {
		switch {
		case t.proc.dying:
			t.exit()
		case errno != 0:
			failed(errno)
		default:
			then(simBody[fuse.EntryOut](t.sim, body).NodeId)
		}
	})
}

// over ends a call that failed, if it may.
func (t *simTask) over(may ...syscall.Errno) func(syscall.Errno) {
	return func(errno syscall.Errno) {
		if !slices.Contains(may, errno) && errno != syscall.EINTR {
			t.fail("thread %d: %v", t.tid, errno)
		}
		t.end()
	}
}

func (t *simTask) name() string { return simNames[t.n(t.weights.names)] }

// lease draws a timeout and how it is written.
func (t *simTask) lease() (time.Duration, string) {
	if t.chance(30) {
		return simTimeout, ""
	}
	d := time.Duration(1+t.n(4)) * time.Second
	return d, "+" + strconv.Itoa(int(d/time.Second))
}

func (t *simTask) mkdir() bool {
	name := t.name()
	timeout, suffix := t.lease()
	op := &simOp{kind: askMkdir, name: name, timeout: timeout, text: "mkdir " + name + suffix}
	frame := simFrame(opMkdir, staticNode(tlockRow).id, fuse.MkdirIn{Mode: 0o755}, name+suffix+"\x00")
	t.send(op, frame, func(syscall.Errno, []byte) { t.end() })
	return true
}

func (t *simTask) rmdir() bool {
	name, suffix := t.name(), ""
	op := &simOp{kind: askRmdir, name: name}
	if inc := t.model.lastOf(name); inc != nil && t.chance(60) {
		op.token, suffix = inc.token, "@"+itoa(inc.token)
	}
	op.text = "rmdir " + name + suffix
	frame := simFrame(opRmdir, staticNode(tlockRow).id, fuse.InHeader{}, name+suffix+"\x00")
	t.send(op, frame, func(syscall.Errno, []byte) { t.end() })
	return true
}

// take opens take/NAME or hold/NAME.
func (t *simTask) take() bool {
	name := t.name()
	op := &simOp{kind: askTake, name: name}
	dir, entry := holdRow, name
	if t.chance(50) {
		var suffix string
		dir = takeRow
		op.timeout, suffix = t.lease()
		entry += suffix
	}
	flags := uint32(0)
	switch t.n(4) {
	case 0:
		flags, op.try = syscall.O_NONBLOCK, true
	case 1:
		op.patience, op.bounded = time.Duration(t.n(4))*time.Second, true
		op.try = op.patience == 0
		entry += ",wait=" + strconv.Itoa(int(op.patience/time.Second))
	}
	op.text = dir.name + "/" + entry
	t.named(staticNode(dir).id, entry, func(node uint64) {
		t.send(op, simFrame(opOpen, node, fuse.OpenIn{Flags: flags}, ""), func(errno syscall.Errno, body []byte) {
			if errno == 0 {
				op.inc.desc = t.opened(node, -1, op.inc, body)
			}
			t.end()
		})
	}, t.over())
	return true
}

func (t *simTask) readToken() bool {
	d := t.use(func(d *simDescription) bool { return d.inc != nil })
	if d == nil {
		return false
	}
	op := &simOp{kind: askRead, inc: d.inc}
	t.send(op, simFrame(opRead, d.node, fuse.ReadIn{Fh: d.fh, Size: 4096}, ""), func(syscall.Errno, []byte) { t.end() })
	return true
}

// renew writes to NAME@TOKEN/timeout.
func (t *simTask) renew() bool {
	inc := t.model.lastOf(t.name())
	if inc == nil || inc.hold() {
		return false
	}
	d := time.Duration(1+t.n(6)) * time.Second
	text := strconv.Itoa(int(d/time.Second)) + "\n"
	ended := t.over(syscall.ENOENT)
	t.within(inc, "timeout", func(node uint64) {
		op := &simOp{kind: askOpen, text: "open timeout"}
		t.send(op, simFrame(opOpen, node, fuse.OpenIn{Flags: syscall.O_WRONLY}, ""), func(errno syscall.Errno, body []byte) {
			if errno != 0 {
				ended(errno)
				return
			}
			desc := t.openedOwn(node, body)
			op := &simOp{kind: askRenew, inc: inc, timeout: d}
			write := fuse.WriteIn{Fh: desc.fh, Size: uint32(len(text))}
			t.send(op, simFrame(opWrite, node, write, text), func(syscall.Errno, []byte) { t.closeOwn(desc) })
		})
	})
	return true
}

// within looks up a file of a lock's incarnation.
func (t *simTask) within(inc *simIncarnation, file string, then func(node uint64)) {
	entry := fmt.Sprintf("%s@%d", inc.name, inc.token)
	t.named(staticNode(tlockRow).id, entry, func(dir uint64) {
		t.named(dir, file, then, t.over(syscall.ENOENT))
	}, t.over(syscall.ENOENT))
}

// closeOwn ends a call that has opened something for itself.
func (t *simTask) closeOwn(d *simDescription) {
	if t.proc.dying {
		t.exit() // it is closed with the rest
		return
	}
	i := slices.Index(t.proc.fds, d)
	t.proc.fds = slices.Delete(t.proc.fds, i, i+1)
	t.flush(d, t.end)
}

// await reads tlock/NAME@TOKEN/wait.
func (t *simTask) await() bool {
	inc := t.model.lastOf(t.name())
	if inc == nil {
		return false
	}
	t.within(inc, "wait", func(node uint64) {
		op := &simOp{kind: askOpen, text: "open wait"}
		t.send(op, simFrame(opOpen, node, fuse.OpenIn{}, ""), func(errno syscall.Errno, body []byte) {
			if errno != 0 {
				t.over(syscall.ENOENT)(errno)
				return
			}
			t.readEnd(t.openedOwn(node, body), inc, "")
		})
	})
	return true
}

// readEnd reads how a lock ended until the end of the file.
func (t *simTask) readEnd(d *simDescription, inc *simIncarnation, told string) {
	op := &simOp{kind: askAwait, inc: inc}
	t.send(op, simFrame(opRead, d.node, fuse.ReadIn{Fh: d.fh, Size: 4096}, ""), func(errno syscall.Errno, body []byte) {
		switch {
		case errno == syscall.EINTR:
			t.closeOwn(d)
		case len(body) == 0:
			if strings.Count(told, "\n") != 1 {
				t.fail("a wait was told %q", told)
			}
			t.closeOwn(d)
		default:
			t.readEnd(d, inc, told+string(body))
		}
	})
}

// view opens view/locks, which is rendered on a goroutine.
func (t *simTask) view() bool {
	node := staticNode(viewRow.children[0]).id
	op := &simOp{kind: askOpen, text: "open view/locks", slow: true}
	t.send(op, simFrame(opOpen, node, fuse.OpenIn{}, ""), func(errno syscall.Errno, body []byte) {
		if errno != 0 {
			t.over()(errno)
			return
		}
		t.closeOwn(t.openedOwn(node, body))
	})
	return true
}
