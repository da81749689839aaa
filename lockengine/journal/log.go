package journal

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// growth is by how much a log's room on disk grows at a time.
	growth = 1 << 20
	// mapped is how much of a log is mapped at first. What is not yet allocated
	// costs addresses only, and is never touched: that would be a SIGBUS.
	mapped = 64 << 20
)

// log is a log file, mapped for appending. A mutex of its owner guards it, but
// for the calls of extend and sync.
type log struct {
	tail // its mem is the whole file, and nil once nothing is appended any more
	file
	f         *os.File
	allocated int64 // on disk

	synced  int64 // up to here it is on disk; guarded by Journal.syncing
	syncErr error // once a sync failed no later one tells the truth; likewise
}

// createLog makes a log with room for need bytes.
func createLog(d dir, h header, need int64) (*log, error) {
	f, err := d.create(h.file)
	if err != nil {
		return nil, noSpace(err)
	}
	l := &log{tail: tail{id: h.id, end: headerSize}, file: h.file, f: f}
	if err = l.build(d, h, need); err != nil {
		l.close()
		return nil, errors.Join(err, unlessMissing(os.Remove(d.path(l.file)+tmp)))
	}
	return l, nil
}

func (l *log) build(d dir, h header, need int64) error {
	size := roundUp(l.end+sealSize+need, growth)
	if err := l.reserve(0, size); err != nil {
		return err
	}
	if _, err := l.f.WriteAt(h.bytes(), 0); err != nil {
		return noSpace(err)
	}
	if err := d.publish(l.file, l.f); err != nil {
		return err
	}
	l.allocated = l.end
	return l.allocate(size)
}

// openLog opens a log whose records end at end. It is not yet mapped.
func openLog(im *image, end int64) (*log, error) {
	f, err := os.OpenFile(im.path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return &log{tail: tail{id: im.id, end: end}, file: im.file, f: f, allocated: end}, nil
}

// free is the room left. A seal fits always.
func (l *log) free() int64 { return l.allocated - l.end - sealSize }

// seal ends the log.
func (l *log) seal() { l.append(kindSealed, nil) }

// grow makes room for need bytes, and for more if the disk has it.
func (l *log) grow(need int64) error {
	need += l.end + sealSize
	err := l.allocate(roundUp(need, growth))
	if errors.Is(err, ErrNoSpace) {
		err = l.allocate(roundUp(need, int64(os.Getpagesize())))
	}
	return err
}

func (l *log) allocate(to int64) error {
	if to <= l.allocated {
		return nil
	}
	if err := l.extend(l.allocated, to); err != nil {
		return err
	}
	return l.extended(to)
}

// extend makes the disk have from..to, of zeros. They are written although the
// kernel would read unwritten blocks as zeros: to write a page first by touching
// the map takes 5 µs on ext4, and 60 ns if it is in the page cache.
func (l *log) extend(from, to int64) error {
	step("extend " + l.name())
	if err := l.reserve(from, to); err != nil {
		return err
	}
	step("zero " + l.name())
	return noSpace(writeZeros(l.f, from, to))
}

// reserve has the disk set from..to aside, or fails and changes nothing.
func (l *log) reserve(from, to int64) error {
	err := l.control(func(fd int) error { return unix.Fallocate(fd, 0, from, to-from) })
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		return nil // writing tells
	}
	return noSpace(err)
}

// extended notes that the disk has the log up to a size, and maps it.
func (l *log) extended(to int64) error {
	if to > int64(len(l.mem)) {
		if err := l.remap(to); err != nil {
			return err
		}
	}
	l.allocated = max(l.allocated, to)
	return nil
}

func (l *log) remap(size int64) error {
	size = roundUp(max(size, 2*int64(len(l.mem))), mapped)
	mem, err := unix.Mmap(int(l.f.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return os.NewSyscallError("mmap", err)
	}
	l.unmap()
	l.mem = mem
	return nil
}

func (l *log) unmap() {
	if l.mem != nil {
		unix.Munmap(l.mem) // fails for bad addresses only
		l.mem = nil
	}
}

// sync has all of the file that was written on disk.
func (l *log) sync() error {
	return l.control(unix.Fdatasync)
}

// control runs f on the descriptor, which is not closed meanwhile.
func (l *log) control(f func(fd int) error) error {
	conn, err := l.f.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	err = conn.Control(func(fd uintptr) {
		for ferr = unix.EINTR; ferr == unix.EINTR; {
			ferr = f(int(fd))
		}
	})
	return errors.Join(err, ferr)
}

func (l *log) close() error {
	l.unmap()
	return l.f.Close()
}

var zeros [growth]byte

func writeZeros(f *os.File, from, to int64) error {
	for from < to {
		n, err := f.WriteAt(zeros[:min(to-from, growth)], from)
		if err != nil {
			return err
		}
		from += int64(n)
	}
	return nil
}

func roundUp(n, to int64) int64 { return (n + to - 1) / to * to }
