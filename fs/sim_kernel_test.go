package fs

import (
	"encoding/binary"
	"slices"
	"syscall"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// simKernel does with requests what fs/fuse/dev.c does: they are pending until
// they are read, sent until they are answered, may be interrupted, and are sent
// again when the server asks for it.
type simKernel struct {
	*sim
	last       uint64 // number given out
	pending    []*simRequest
	sent       []*simRequest // in the order in which they were read
	interrupts []*simRequest // to be told of, oldest first
	forgets    []simForget
	known      []simForget    // nodes with a name that were looked up
	uses       map[uint64]int // of their numbers, by open files and requests
}

type simForget struct{ node, lookups uint64 }

// simRequest is a request on its way.
type simRequest struct {
	unique      uint64 // as in its header
	frame       []byte
	sent        bool
	interrupted bool
	force       bool     // waited for though its thread is killed (FR_FORCE)
	task        *simTask // nil: nobody waits for it
	op          *simOp   // what the model knows of it
	done        func(errno syscall.Errno, body []byte)
}

func (r *simRequest) String() string {
	again := ""
	if isResent(r.unique) {
		again = " again"
	}
	return "#" + itoa(requestID(r.unique)/numberStep) + again + " " + r.op.String()
}

// simFrame makes a request of its fixed part and what follows it.
func simFrame[T any](opcode uint32, node uint64, in T, rest string) []byte {
	fixed := unsafe.Slice((*byte)(unsafe.Pointer(&in)), unsafe.Sizeof(in))
	b := append(slices.Clone(fixed), rest...)
	h := (*fuse.InHeader)(unsafe.Pointer(&b[0]))
	h.Length, h.Opcode, h.NodeId = uint32(len(b)), opcode, node
	h.Uid, h.Gid = ownUID, ownGID
	return b
}

// queue makes a request pending.
func (k *simKernel) queue(r *simRequest) {
	k.last += numberStep
	r.unique = k.last
	h := (*fuse.InHeader)(unsafe.Pointer(&r.frame[0]))
	if r.task != nil {
		h.Pid = uint32(r.task.tid)
	}
	k.uses[h.NodeId]++
	k.pending = append(k.pending, r)
	k.model.begin(r.op, r.unique)
	k.note("  queued %v", r)
}

// idle reports whether there is nothing to be read.
func (k *simKernel) idle() bool { return len(k.pending)+len(k.interrupts)+len(k.forgets) == 0 }

// read is fuse_dev_do_read.
func (k *simKernel) read(buf []byte) int {
	if len(k.interrupts) > 0 {
		r := k.interrupts[0]
		k.interrupts = k.interrupts[1:]
		k.note("read INTERRUPT of %v", r)
		in := simFrame(opInterrupt, 0, fuse.InterruptIn{Unique: r.unique}, "")
		binary.NativeEndian.PutUint64(in[8:], r.unique|1)
		return copy(buf, in)
	}
	if len(k.forgets) > 0 && (len(k.pending) == 0 || k.n(2) == 0) {
		f := k.forgets[0]
		k.forgets = k.forgets[1:]
		k.note("read FORGET")
		return copy(buf, simFrame(opForget, f.node, fuse.ForgetIn{Nlookup: f.lookups}, ""))
	}
	if len(k.pending) == 0 {
		return 0
	}
	r := k.pending[0]
	k.pending = k.pending[1:]
	r.sent = true
	k.sent = append(k.sent, r)
	if r.interrupted {
		k.tellInterrupt(r)
	}
	k.note("read %v", r)
	k.model.read(r.op)
	binary.NativeEndian.PutUint64(r.frame[8:], r.unique)
	return copy(buf, r.frame)
}

func (k *simKernel) tellInterrupt(r *simRequest) {
	if !slices.Contains(k.interrupts, r) {
		k.interrupts = append(k.interrupts, r)
	}
}

// write is fuse_dev_do_write: a reply, or a notification.
func (k *simKernel) write(frame []byte) error {
	unique, code := binary.NativeEndian.Uint64(frame[8:]), int32(binary.NativeEndian.Uint32(frame[4:]))
	if unique == 0 {
		if code == notifyResend {
			k.resend()
		}
		return nil
	}
	i := slices.IndexFunc(k.sent, func(r *simRequest) bool { return r.unique == unique })
	if i < 0 {
		k.note("reply to nobody: #%d", requestID(unique)/numberStep)
		return syscall.ENOENT
	}
	r := k.sent[i]
	k.sent = slices.Delete(k.sent, i, i+1)
	k.interrupts = slices.DeleteFunc(k.interrupts, func(o *simRequest) bool { return o == r })
	errno := syscall.Errno(-code)
	k.note("reply to %v: %d", r, int(errno))
	if errno == syscall.EINTR && !r.interrupted {
		k.fail("EINTR for a request that was not interrupted: %v", r)
	}
	k.finish(r, errno, slices.Clone(frame[sizeofOutHeader:]))
	return nil
}

func (k *simKernel) finish(r *simRequest, errno syscall.Errno, body []byte) {
	k.uses[r.node()]--
	if r.op.kind == askLookup && errno == 0 {
		k.meet(simBody[fuse.EntryOut](k.sim, body).NodeId)
	}
	if r.task != nil {
		r.task.req = nil
	}
	k.model.reply(r.op, errno, body)
	r.done(errno, body)
}

func (r *simRequest) node() uint64 { return (*fuse.InHeader)(unsafe.Pointer(&r.frame[0])).NodeId }

// meet counts a lookup of a node.
func (k *simKernel) meet(node uint64) {
	if node&dynamic == 0 {
		return
	}
	for i := range k.known {
		if k.known[i].node == node {
			k.known[i].lookups++
			return
		}
	}
	k.known = append(k.known, simForget{node, 1})
}

// shrink forgets a node that nobody uses.
func (k *simKernel) shrink() {
	if len(k.known) == 0 {
		return
	}
	i := k.n(len(k.known))
	if f := k.known[i]; k.uses[f.node] == 0 {
		k.note("forget a node with %d lookups", f.lookups)
		k.known = slices.Delete(k.known, i, i+1)
		k.forgets = append(k.forgets, f)
	}
}

// resend is fuse_resend: what was sent is pending again, before all else. By
// its hash table it comes in no order.
func (k *simKernel) resend() {
	again := k.sent
	k.sent = nil
	k.rng.Shuffle(len(again), func(i, j int) { again[i], again[j] = again[j], again[i] })
	for _, r := range again {
		r.sent = false
		r.unique |= resentBit
	}
	k.pending = append(again, k.pending...)
	k.note("the kernel sends %d requests again", len(again))
}

// signal is a signal that comes while a thread waits for an answer
// (request_wait_answer).
func (k *simKernel) signal(r *simRequest, fatal bool) {
	r.interrupted = true
	if r.sent {
		k.tellInterrupt(r)
		return
	}
	if !fatal || r.force {
		return
	}
	k.pending = slices.DeleteFunc(k.pending, func(o *simRequest) bool { return o == r })
	k.interrupts = slices.DeleteFunc(k.interrupts, func(o *simRequest) bool { return o == r })
	k.note("  gone before it was read: %v", r)
	k.uses[r.node()]--
	r.task.req = nil
	k.model.vanish(r.op)
	r.task.exit()
}
