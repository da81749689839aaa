package fs

import (
	"errors"
	"slices"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"

	"lockfs/lockengine"
)

// A server may go on where one of a process before it stopped, on the same
// connection to the kernel. The journal tells it what the kernel knows: nodes,
// handles, locks. What was asked meanwhile the kernel keeps until it is read,
// and what was asked and not answered it sends again when told to
// (FUSE_NOTIFY_RESEND, Linux 6.9).

// restore brings the state of the journal back, if there is one.
func (s *Server) restore() error {
	j, engine := s.host.journal, s.keeper()
	if j == nil || engine == nil {
		return nil
	}
	s.expectRecords()
	report, err := j.Replay(func(kind uint8, data []byte) error {
		switch {
		case s.files.Owns(kind):
			return s.files.Replay(kind, data)
		case kind >= recInstance:
			return s.replay(kind, data)
		}
		return engine.Replay(kind, data)
	})
	if err != nil {
		return err
	}
	if s.cfg.Janitor != nil {
		s.cfg.Janitor.OnStart(s.janitorStarted)
		s.sweeps = true
	}
	s.resumed = !report.Fresh && s.instance.id == s.cfg.Instance && s.cfg.Instance != ""
	if err := engine.Resume(lockengine.Resumption{Same: s.resumed, Lost: !report.SameBoot && !report.Clean}); err != nil {
		return err
	}
	if s.resumed {
		s.started = s.instance.started
		s.instance.restarts++
		s.dynamic.beyond(s.instance.restarts)
		s.record(recInstance, s.instance.encode())
		return s.restoreHandles()
	}
	s.begin()
	return s.files.Resume()
}

// expectRecords readies what replay fills.
func (s *Server) expectRecords() {
	s.found = map[uint64][]byte{}
	s.deadly = map[uint64]bool{}
	s.intents.inherited = map[uint64]intent{}
}

// keeper is the engine, if it keeps its state; else nil.
func (s *Server) keeper() engineKeeper {
	k, _ := s.engine.(engineKeeper)
	return k
}

// begin starts with a new connection: what belonged to another one is gone.
// Locks of take/ of which nobody can have learned the token are released.
func (s *Server) begin() {
	for _, data := range s.found {
		t := s.decodeHandle(&decoder{rest: data}).taking
		if t != nil && !t.hold && !t.detached {
			_ = s.engine.Release(t.name, t.token, lockengine.Released)
		}
	}
	s.reset()
	s.instance = instance{id: s.cfg.Instance, started: s.started}
	s.record(recInstance, s.instance.encode())
}

// reset forgets what was replayed so far: it belonged to another connection.
func (s *Server) reset() {
	s.expectRecords()
	s.janitors.swept = nil
	s.dynamic.reset()
	s.removed.m = nil
	s.files.Reset()
}

func (s *Server) restoreHandles() error {
	texts, err := s.takeTexts()
	if err != nil {
		s.log.Error("open views, and files that were deleted, are lost", "error", err)
	}
	for _, data := range s.found {
		d := &decoder{rest: data}
		h := s.decodeHandle(d)
		if d.err != nil || h.node.row == nil {
			s.log.Error("an open file of the process before cannot be restored", "handle", h.fh, "node", h.node.id, "error", d.err)
			continue
		}
		if h.inStore {
			s.takeText(h, texts)
		}
		s.handles.add(h)
	}
	s.found = nil
	s.dropTexts(texts)
	return s.files.Resume()
}

// notifyResend is FUSE_NOTIFY_RESEND.
const notifyResend = 7

// takeOver continues the service of the process before: it has the kernel send
// again what was not answered, and serves that first, in the order in which it
// was asked.
func (s *Server) takeOver() {
	begin := time.Now()
	if len(s.instance.init) > 0 {
		out := s.buffer()
		s.protocol.HandleRequest([][]byte{s.instance.init}, [][]byte{out[:]})
		s.host.buffers.Put(out)
	}
	for _, h := range s.handles.all() {
		if h.stream != nil {
			h.stream.goOn()
		}
	}
	var resent, fresh [][]byte
	resends := s.dev.resend()
	if resends {
		resent, fresh = s.collect()
	} else {
		defer s.failInFlight()
	}
	slices.SortFunc(resent, func(a, b []byte) int {
		return int(int64(requestID(uniqueOf(a)) - requestID(uniqueOf(b))))
	})
	again := map[uint64]bool{}
	for _, in := range resent {
		again[requestID(uniqueOf(in))] = true
	}
	s.keeper().Expect(again)
	slow := &pending{done: s.allAnswered}
	slow.add()
	for _, in := range resent {
		s.dispatchCopy(in, slow)
	}
	s.keeper().Claimed()
	s.dropOrphans(again, resends)
	for _, in := range fresh {
		s.dispatchCopy(in, slow)
	}
	slow.less()
	s.sweepOn()
	s.log.Debug("went on where the process before stopped", "handles", s.handles.count()+s.files.NumHandles(),
		"nodes", s.files.NumNodes(), "requests_sent_again", len(resent), "took", time.Since(begin).Round(time.Microsecond))
}

// allAnswered: what was sent again is answered, and will not come again.
func (s *Server) allAnswered() {
	s.files.Claimed()
	s.intents.claimed()
}

func uniqueOf(in []byte) uint64 { return (*fuse.InHeader)(unsafe.Pointer(&in[0])).Unique }

// collect reads what the kernel sends again. It does so before all else but
// interrupts and FORGETs, so the first other request ends it.
func (s *Server) collect() (resent, fresh [][]byte) {
	buf := s.buffer()
	defer s.host.buffers.Put(buf)
	for {
		n, err := s.dev.tryRead(buf[:])
		if err != nil || n < sizeofInHeader {
			return resent, fresh // there are no more; or the reader will meet it again
		}
		in := slices.Clone(buf[:n])
		h := (*fuse.InHeader)(unsafe.Pointer(&in[0]))
		switch {
		case isResent(h.Unique) && h.Opcode != opInterrupt:
			resent = append(resent, in)
			continue
		case h.Opcode == opForget, h.Opcode == opBatchForget, h.Opcode == opInterrupt:
			fresh = append(fresh, in)
			continue
		}
		return resent, append(fresh, in)
	}
}

// Numbers of requests are a counter's, which goes up by numberStep
// (FUSE_REQ_ID_STEP); so many of the last ones may be in flight.
const (
	numberStep  = 2
	maxInFlight = 1 << 16
)

// failInFlight is for kernels before 6.9, which cannot send requests again:
// nobody knows them, but they must not wait for ever. It waits for the next
// request and answers those before it with EIO; to most of these numbers no
// request waits, and the kernel says so. If the process had served one and held
// the answer, who is told EIO has the lock until it closes the file.
func (s *Server) failInFlight() {
	s.log.Warn("this kernel cannot send requests again (Linux 6.9 can): what was asked for when the process before died fails with EIO")
	buf, out := s.buffer(), s.buffer()
	defer s.host.buffers.Put(out)
	defer s.condemn(&buf)
	n, err := s.dev.read(buf[:])
	if err != nil || n < sizeofInHeader {
		return // the reader will meet it again
	}
	next := uniqueOf(buf[:]) &^ 1 // an INTERRUPT has its request's number plus one
	for id := next; id >= numberStep && id > next-min(next, maxInFlight*numberStep); id -= numberStep {
		if id != uniqueOf(buf[:]) {
			s.dev.replyError(id, syscall.EIO)
		}
	}
	if s.dispatch(buf, n, out, nil) {
		s.host.buffers.Put(buf)
	}
}

// pending counts what is under way, and calls done when nothing is any more.
type pending struct {
	n    atomic.Int64
	done func()
}

func (p *pending) add() { p.n.Add(1) }

func (p *pending) less() {
	if p.n.Add(-1) == 0 {
		p.done()
	}
}

// dispatchCopy dispatches a request that is not in a buffer of ours.
func (s *Server) dispatchCopy(in []byte, slow *pending) {
	buf, out := s.buffer(), s.buffer()
	defer s.host.buffers.Put(out)
	defer s.condemn(&buf)
	n := copy(buf[:], in)
	slow.add()
	if s.dispatch(buf, n, out, slow.less) {
		slow.less()
		s.host.buffers.Put(buf)
	}
}

// orphaned: nobody knows the handle, for all that can be known. In doubt it
// stays; it is seen in tlock/, and rmdir ends it.
func (s *Server) orphaned(h *handle, resends bool) bool {
	t := h.taking
	if !resends {
		return true // it is told EIO
	}
	return t.pid != 0 && !s.host.alive(t.pid)
}

// dropOrphans gives back what was granted to an open that nobody waits for any
// more: it was killed in the moment between the kernel's being told to send it
// again and our reading it. again: those that were read.
func (s *Server) dropOrphans(again map[uint64]bool, resends bool) {
	for _, h := range s.handles.all() {
		t := h.taking
		if t == nil || again[h.fh&^synthetic] || h.answered() {
			continue
		}
		if s.orphaned(h, resends) {
			s.engine.DropHandle(h.fh)
			s.closeHandle(h.fh)
			continue
		}
		// It was answered, if only that could not be recorded any more. Not to
		// be asked again: others may have the handle when its opener is gone.
		h.mu.Lock()
		t.answered = true
		s.saveHandle(h)
		h.mu.Unlock()
	}
	for _, fh := range s.keeper().NamedHandles() {
		if !again[fh&^synthetic] && s.handles.get(fh) == nil {
			s.engine.DropHandle(fh)
		}
	}
}

// resend has the kernel send again what was read and not answered; false where
// it cannot.
func (d device) resend() bool {
	var b [sizeofOutHeader]byte
	putOutHeader(b[:], len(b), notifyResend, 0)
	return !errors.Is(d.send(b[:]), syscall.EINVAL)
}

func numbered(n uint64) (e encoder) {
	e.uint(n)
	return e
}

// compact writes a snapshot each time the journal has outgrown the last one,
// until stop is closed.
func (s *Server) compact(stop <-chan struct{}) {
	for {
		select {
		case <-s.host.journal.Full():
		case <-stop:
			return
		}
		if err := s.snapshot(); err != nil {
			s.log.Error("the journal cannot be compacted: it goes on growing", "error", err)
		}
	}
}

// snapshot replaces the journal so far by the state it has led to.
func (s *Server) snapshot() error {
	c, err := s.host.journal.Compact()
	if err != nil {
		return err
	}
	err = s.addState(c.Switch, c.Add)
	if err != nil {
		c.Abort()
		return err
	}
	return c.Commit()
}

// addState adds the state as of a moment at which it calls switchLog, or later
// where a record of what happened since does no harm.
func (s *Server) addState(switchLog func(), add func(kind uint8, data []byte) error) error {
	engine := func(chunk []byte) error { return add(stateKind, chunk) }
	if err := s.keeper().Checkpoint(switchLog, engine); err != nil {
		return err
	}
	if err := s.dump(add); err != nil {
		return err
	}
	return s.files.Dump(add)
}
