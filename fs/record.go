package fs

import (
	"encoding/binary"
	"errors"
)

// encoder writes the fields of a record one after the other.
type encoder []byte

func (e *encoder) uint(v uint64)  { *e = binary.AppendUvarint(*e, v) }
func (e *encoder) int(v int64)    { *e = binary.AppendVarint(*e, v) }
func (e *encoder) text(s string)  { e.uint(uint64(len(s))); *e = append(*e, s...) }
func (e *encoder) bytes(b []byte) { e.uint(uint64(len(b))); *e = append(*e, b...) }

func (e *encoder) bool(v bool) {
	if v {
		e.uint(1)
	} else {
		e.uint(0)
	}
}

// decoder reads them again. After the first field that is not there all are
// zero, and err tells.
type decoder struct {
	rest []byte
	err  error
}

var errShort = errors.New("record is cut short")

func (d *decoder) uint() uint64 {
	v, n := binary.Uvarint(d.rest)
	if n <= 0 {
		d.rest, d.err = nil, errShort
		return 0
	}
	d.rest = d.rest[n:]
	return v
}

func (d *decoder) int() int64 {
	v, n := binary.Varint(d.rest)
	if n <= 0 {
		d.rest, d.err = nil, errShort
		return 0
	}
	d.rest = d.rest[n:]
	return v
}

// bytes returns a copy.
func (d *decoder) bytes() []byte {
	n := d.uint()
	if n > uint64(len(d.rest)) {
		d.rest, d.err = nil, errShort
		return nil
	}
	b := append([]byte(nil), d.rest[:n]...)
	d.rest = d.rest[n:]
	return b
}

func (d *decoder) text() string { return string(d.bytes()) }
func (d *decoder) bool() bool   { return d.uint() != 0 }
