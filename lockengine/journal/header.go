package journal

import (
	"encoding/binary"
	"hash/crc32"
	"os"
)

// A file begins with a header that never changes, numbers little endian:
//
//	  0  "lockjrnl"
//	  8  uint32  version of the format
//	 12  uint32  1 log, 2 snapshot
//	 16  uint64  sequence number, also in the file's name
//	 24  uint64  random id
//	 32  uint8   1 if made with Options.Sync
//	 33  uint8   length of the boot id
//	 34          the id of the boot in which it was made
//	124  uint32  CRC32C of all before; here in all versions
const (
	magic      = "lockjrnl"
	version    = 1
	headerSize = 128
	headerSum  = headerSize - 4
	maxBoot    = 64
)

type fileType uint32

const (
	logFile fileType = 1 + iota
	snapshotFile
)

type header struct {
	file
	id   uint64
	sync bool
	boot string
}

func (h header) bytes() []byte {
	b := make([]byte, headerSize)
	copy(b, magic)
	binary.LittleEndian.PutUint32(b[8:], version)
	binary.LittleEndian.PutUint32(b[12:], uint32(h.what))
	binary.LittleEndian.PutUint64(b[16:], h.seq)
	binary.LittleEndian.PutUint64(b[24:], h.id)
	if h.sync {
		b[32] = 1
	}
	b[33] = uint8(len(h.boot))
	copy(b[34:34+maxBoot], h.boot)
	binary.LittleEndian.PutUint32(b[headerSum:], crc32.Checksum(b[:headerSum], castagnoli))
	return b
}

func parseHeader(path string, b []byte) (header, error) {
	if len(b) < headerSize {
		return header{}, &CorruptError{path, int64(len(b)), "the file ends within its header"}
	}
	if string(b[:len(magic)]) != magic ||
		binary.LittleEndian.Uint32(b[headerSum:]) != crc32.Checksum(b[:headerSum], castagnoli) {
		return header{}, &CorruptError{path, 0, "bad header"}
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != version {
		return header{}, &VersionError{path, v, version}
	}
	return header{
		file: file{fileType(binary.LittleEndian.Uint32(b[12:])), binary.LittleEndian.Uint64(b[16:])},
		id:   binary.LittleEndian.Uint64(b[24:]),
		sync: b[32] == 1,
		boot: string(b[34 : 34+min(b[33], maxBoot)]),
	}, nil
}

// image is a file of the journal as it was read.
type image struct {
	header
	path string
	data []byte
}

func readImage(d dir, f file) (*image, error) {
	path := d.path(f)
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	h, err := parseHeader(path, data)
	if err != nil {
		return nil, err
	}
	if h.file != f {
		return nil, &CorruptError{path, 12, "the header is of another file of a journal"}
	}
	return &image{h, path, data}, nil
}
