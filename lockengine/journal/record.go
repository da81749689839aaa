package journal

import (
	"encoding/binary"
	"hash/crc32"
	"iter"
	"math/bits"
	"slices"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/cpu"
)

// A record, all numbers little endian, begins at a multiple of 8:
//
//	 0  uint32  CRC32C of all from byte 12 on, padding too, seeded with the place
//	 4  uint32  kind (6 bits), length of the payload (26 bits)
//	 8  uint32  place: a hash of the file's id, the offset, and the word at 4
//	12          payload, padded with zeros to a multiple of 8
//
// The first 8 bytes are written last, in one store. The place makes stale bytes,
// and a record that lies elsewhere than where it was written, invalid, and
// tells at once what is no record when one is looked for behind damage.
const (
	recordHeader = 12
	recordAlign  = 8

	// MaxRecord is the longest payload of a record.
	MaxRecord = 16 << 20
	// MaxKind is the greatest kind of record; the least is 1.
	MaxKind = 49
)

// The kinds of the journal itself.
const (
	kindSealed = 59 + iota // no payload: the log ends, the next one goes on
	kindClosed             // proof: and was closed cleanly
	kindSynced             // proof
	kindOpened             // proof, and the id of the boot from here on
	kindEnd                // uint64: the number of the snapshot's records before it
)

const (
	lengthBits = 26
	sealSize   = (recordHeader + recordAlign - 1) / recordAlign * recordAlign
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// recordSize is what a payload of n bytes takes.
func recordSize(n int) int64 {
	return int64(recordHeader+n+recordAlign-1) &^ (recordAlign - 1)
}

func recordWord(kind uint8, n int) uint32 { return uint32(kind)<<lengthBits | uint32(n) }

// place hashes where a record is (the finaliser of MurmurHash3).
func place(id uint64, off int64, word uint32) uint32 {
	x := id ^ (uint64(off)/recordAlign<<32 | uint64(word))
	x = (x ^ x>>33) * 0xff51afd7ed558ccd
	x = (x ^ x>>33) * 0xc4ceb9fe1a85ec53
	return uint32(x ^ x>>33)
}

// tail is where records are appended to a file.
type tail struct {
	id     uint64 // of the file
	end    int64  // of its records
	mem    []byte // of the file, from an offset on that is aligned
	from   int64
	base   uint64 // the position of the file's first byte
	padded []byte // used again, for payloads that need padding
}

// append writes a record for which there must be room, and returns the position
// behind it. It does not read mem: if that is mapped no cache has it yet, and to
// read what is still on its way there is to wait for it.
func (t *tail) append(kind uint8, data []byte) uint64 {
	word := recordWord(kind, len(data))
	if len(data)%recordAlign != recordAlign-recordHeader%recordAlign {
		data = t.pad(data)
	}
	seed := place(t.id, t.end, word)
	mem, end := t.mem[t.end-t.from:], recordHeader+len(data)
	t.end += int64(end)
	head, to := (*[recordHeader]byte)(mem[:recordHeader]), mem[recordHeader:end:end]
	binary.LittleEndian.PutUint32(head[8:], seed)
	copy(to, data)
	first := uint64(crc32.Update(seed, castagnoli, data)) | uint64(word)<<32
	if cpu.IsBigEndian {
		first = bits.ReverseBytes64(first)
	}
	// From this store on the record is there, whenever the process dies.
	atomic.StoreUint64((*uint64)(unsafe.Pointer(head)), first)
	return t.base + uint64(t.end)
}

// pad returns a payload with the zeros that fill up its record.
//
//go:noinline
func (t *tail) pad(data []byte) []byte {
	n := -(recordHeader + len(data)) & (recordAlign - 1)
	data = append(append(slices.Grow(t.padded[:0], len(data)+n), data...), padding[:n]...)
	if cap(data) <= keptPadded {
		t.padded = data
	}
	return data
}

// keptPadded is how large a padded payload may be whose memory is used again: that
// of all parts of a snapshot.
const keptPadded = 2 << 20

var padding [recordAlign - 1]byte // of zeros

// record is a valid record of a file.
type record struct {
	off, end int64
	kind     uint8
	data     []byte
}

// decode returns the record at off, if a valid one is there.
func decode(file []byte, id uint64, off int64) (record, bool) {
	if off+sealSize > int64(len(file)) {
		return record{}, false
	}
	head := file[off:]
	word := binary.LittleEndian.Uint32(head[4:])
	n := int(word & (1<<lengthBits - 1))
	r := record{off: off, end: off + recordSize(n), kind: uint8(word >> lengthBits)}
	if r.kind == 0 || n > MaxRecord || r.end > int64(len(file)) {
		return record{}, false
	}
	seed := place(id, off, word)
	if binary.LittleEndian.Uint32(head[8:]) != seed ||
		binary.LittleEndian.Uint32(head) != crc32.Update(seed, castagnoli, file[off+recordHeader:r.end]) {
		return record{}, false
	}
	r.data = file[off+recordHeader:][:n:n]
	return r, true
}

// records yields the records of a file up to the first that is not valid.
func records(file []byte, id uint64) iter.Seq[record] {
	return func(yield func(record) bool) {
		for off := int64(headerSize); ; {
			r, ok := decode(file, id, off)
			if !ok || !yield(r) {
				return
			}
			off = r.end
		}
	}
}

// survivors yields all that are valid at or behind off, whatever lies between.
func survivors(file []byte, id uint64, off int64) iter.Seq[record] {
	return func(yield func(record) bool) {
		for end := off + used(file[off:]); off < end; {
			r, ok := decode(file, id, off)
			if !ok {
				off += recordAlign
				continue
			}
			if !yield(r) {
				return
			}
			off = r.end
		}
	}
}

// proof tells that a log, up to an offset, and all logs before it are on disk.
type proof struct {
	seq uint64
	off int64
}

func (p proof) covers(seq uint64, off int64) bool {
	return p.seq > seq || p.seq == seq && p.off > off
}

const proofSize = 16

func (p proof) bytes() (b [proofSize]byte) {
	binary.LittleEndian.PutUint64(b[:], p.seq)
	binary.LittleEndian.PutUint64(b[8:], uint64(p.off))
	return b
}

// proof is what r proves, the zero proof if nothing.
func (r record) proof() proof {
	switch r.kind {
	case kindSynced, kindClosed, kindOpened:
		if len(r.data) >= proofSize {
			return proof{binary.LittleEndian.Uint64(r.data), int64(binary.LittleEndian.Uint64(r.data[8:]))}
		}
	}
	return proof{}
}

// boot is the boot that began with r, if one did.
func (r record) boot() (id string, ok bool) {
	if r.kind != kindOpened || len(r.data) < proofSize {
		return "", false
	}
	return string(r.data[proofSize:]), true
}
