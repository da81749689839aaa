package lockengine

import (
	"encoding/binary"
	"errors"
	"math/bits"
	"time"
)

// format is the version of everything that is encoded here. Those before are read
// too.
const (
	format  = 3
	format2 = 2 // commands had no head
	format1 = 1 // and ranges were two words
)

var (
	errShort   = errors.New("ends too early, or has bytes too many")
	errVersion = errors.New("in a format that this version does not know")
)

// encoder appends to a buffer that is used again. What is mostly small is of
// variable length; what is mostly large is quicker as it is.
//
// What is called many times for a command is not inlined: after a round trip
// through the kernel no code is in a cache, and what counts is how much there is
// to fetch.
type encoder struct{ buf []byte }

func (w *encoder) byte(b byte) { w.buf = append(w.buf, b) }

//go:noinline
func (w *encoder) num(n uint64) { w.buf = binary.AppendUvarint(w.buf, n) }

//go:noinline
func (w *encoder) int(n int64) { w.buf = binary.AppendVarint(w.buf, n) }

//go:noinline
func (w *encoder) word(n uint64) { w.buf = binary.LittleEndian.AppendUint64(w.buf, n) }

func (w *encoder) bool(b bool) {
	if b {
		w.byte(1)
		return
	}
	w.byte(0)
}

//go:noinline
func (w *encoder) str(s string) {
	w.num(uint64(len(s)))
	w.buf = append(w.buf, s...)
}

func (w *encoder) instant(i Instant) {
	w.word(uint64(i.Boot))
	w.word(uint64(i.Wall))
}

func (w *encoder) owner(o Owner) {
	w.num(o.Session)
	w.word(o.ID)
}

// rng is short for a range at the beginning of a file, or to its end: that is
// MaxEnd, one bit, which is moved to where it makes a small number.
func (w *encoder) rng(r Range) {
	w.num(r.Start)
	w.num(bits.RotateLeft64(r.End, 1))
}

func (w *encoder) who(p Who) {
	w.num(uint64(uint32(p.PID)))
	w.num(uint64(uint32(p.TID)))
	w.num(uint64(p.UID))
	w.num(uint64(p.GID))
}

// kinds packs three small numbers.
func (w *encoder) kinds(class Class, mode Mode, kind OwnerKind) {
	w.buf = append(w.buf, byte(class), byte(mode)<<4|byte(kind)&15)
}

func (w *encoder) request(r *Request) {
	w.kinds(r.Class, r.Mode, r.Kind)
	w.str(r.Name)
	w.owner(r.Owner)
	w.rng(r.Range)
	w.asker(r)
	w.rest(r)
	w.num(r.Key)
}

// asker is through what a request comes, and from whom.
func (w *encoder) asker(r *Request) {
	w.num(r.Handle)
	w.who(r.Who)
}

// plain: there is no rest.
func (r *Request) plain() bool { return uint64(r.Timeout)|uint64(len(r.Guard)|len(r.Meta)) == 0 }

// rest is what only some requests have.
func (w *encoder) rest(r *Request) {
	w.int(int64(r.Timeout))
	w.str(r.Guard)
	w.str(r.Meta)
}

// decoder takes off its buffer what an encoder wrote. It fails once and for all
// at what cannot be; then all that is read is zero.
type decoder struct {
	buf     []byte
	err     error
	version byte // the format of what is read
}

// format reads the version of what follows.
func (r *decoder) format() {
	if r.version = r.byte(); r.version < format1 || r.version > format {
		r.fail(errVersion)
	}
}

func (r *decoder) fail(err error) {
	if r.err == nil {
		r.err = err
	}
	r.buf = nil
}

func (r *decoder) take(n int) []byte {
	if n > len(r.buf) {
		r.fail(errShort)
		return nil
	}
	b := r.buf[:n]
	r.buf = r.buf[n:]
	return b
}

func (r *decoder) byte() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *decoder) num() uint64 {
	n, size := binary.Uvarint(r.buf)
	if size <= 0 {
		r.fail(errShort)
		return 0
	}
	r.buf = r.buf[size:]
	return n
}

func (r *decoder) int() int64 {
	n, size := binary.Varint(r.buf)
	if size <= 0 {
		r.fail(errShort)
		return 0
	}
	r.buf = r.buf[size:]
	return n
}

func (r *decoder) word() uint64 {
	if b := r.take(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (r *decoder) half() uint32 {
	if b := r.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (r *decoder) bool() bool { return r.byte() != 0 }

func (r *decoder) str() string { return string(r.bytes()) }

// bytes is a text as long as the buffer lasts.
func (r *decoder) bytes() []byte {
	n := r.num()
	if n > uint64(len(r.buf)) {
		r.fail(errShort)
		return nil
	}
	return r.take(int(n))
}

func (r *decoder) instant() Instant { return Instant{int64(r.word()), int64(r.word())} }
func (r *decoder) owner() Owner     { return Owner{r.num(), r.word()} }

func (r *decoder) rng() Range {
	if r.version == format1 {
		return Range{r.word(), r.word()}
	}
	return Range{r.num(), bits.RotateLeft64(r.num(), -1)}
}

func (r *decoder) who() Who {
	return Who{int32(uint32(r.num())), int32(uint32(r.num())), uint32(r.num()), uint32(r.num())}
}

func (r *decoder) kinds() (Class, Mode, OwnerKind) {
	class, rest := r.byte(), r.byte()
	return Class(class), Mode(rest >> 4), OwnerKind(rest & 15)
}

func (r *decoder) request() (req Request) {
	req.Class, req.Mode, req.Kind = r.kinds()
	req.Name = r.str()
	req.Owner = r.owner()
	req.Range = r.rng()
	r.asker(&req)
	r.rest(&req)
	req.Key = r.num()
	return req
}

func (r *decoder) asker(req *Request) {
	req.Handle = r.num()
	req.Who = r.who()
}

func (r *decoder) rest(req *Request) {
	req.Timeout = time.Duration(r.int())
	req.Guard = r.str()
	req.Meta = r.str()
}

// end fails unless all was read.
func (r *decoder) end() error {
	if len(r.buf) > 0 {
		r.fail(errShort)
	}
	return r.err
}
