package fs

import (
	"bufio"
	"bytes"
	"io"
	"math"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"lockfs/fs/files"
)

// A reader sees one state of a view, also when it reads the rest of it from a
// successor. So its text is kept: in the handle's record if it is short, and
// else in memory (memfd_create(2)) that the supervisor holds for us, since
// views can be larger than all the rest of the journal.

// maxRecordedText is the longest text that is in a record, in bytes.
const maxRecordedText = 2048

// keepText gives the text of a handle to the store, and reports whether it is
// kept there.
func (s *Server) keepText(h *handle) bool {
	if s.cfg.Store == nil {
		return false
	}
	file := h.long
	if file == nil {
		text := longText{buf: h.data}
		if !text.reserve() {
			return false
		}
		defer text.free()
		if text.flush(); text.err != nil {
			return false
		}
		file = text.file
	}
	return s.cfg.Store.Put(h.fh, int(file.Fd())) == nil
}

// longText collects a text in memory that the garbage collector does not have
// to look after (memfd_create(2)): of many locks it is large, and to allocate
// as much at once would make everybody who allocates help to collect. Where there
// is none to be had, as without a descriptor to spare, it is kept as any other.
type longText struct {
	buf    []byte   // what is not in memory yet
	file   *os.File // nil: nothing is
	refuse error    // there is no such memory
	err    error    // of the first Write that failed: who writes need not look
}

// textStep is how much is written to memory at once, in bytes.
// One that is not longer is kept as any other, since there are fewer descriptors
// than users may have files open.
const textStep = 1 << 20

func (t *longText) Write(b []byte) (int, error) {
	if len(t.buf)+len(b) > textStep && t.reserve() {
		t.flush()
	}
	if t.err != nil {
		return 0, t.err
	}
	t.buf = append(t.buf, b...)
	return len(b), nil
}

// reserve reports whether there is such memory.
func (t *longText) reserve() bool {
	if t.file == nil && t.refuse == nil {
		var fd int
		if fd, t.refuse = unix.MemfdCreate("lockfs view", unix.MFD_CLOEXEC); t.refuse == nil {
			t.file = os.NewFile(uintptr(fd), "view")
		}
	}
	return t.refuse == nil
}

func (t *longText) flush() {
	if t.err == nil {
		_, t.err = t.file.Write(t.buf)
	}
	t.buf = t.buf[:0]
}

// reader reads what was written so far.
func (t *longText) reader() (*bufio.Reader, error) {
	if t.file == nil {
		return bufio.NewReader(bytes.NewReader(t.buf)), nil
	}
	t.flush()
	return bufio.NewReaderSize(io.NewSectionReader(t.file, 0, math.MaxInt64), textStep), t.err
}

// free gives the memory back.
func (t *longText) free() {
	if t.file != nil {
		_ = t.file.Close()
	}
}

// setText gives a handle its text.
func (h *handle) setText(t *longText) error {
	if t.file == nil {
		h.data = slices.Clone(t.buf)
		return t.err
	}
	if t.flush(); t.err != nil {
		t.free()
		return t.err
	}
	return h.setMemory(t.file)
}

// setMemory gives a handle a text that is in memory, where it stays if it is long.
func (h *handle) setMemory(file *os.File) error {
	st, err := file.Stat()
	if err == nil && st.Size() > textStep {
		h.long, h.longSize = file, st.Size()
		return nil
	}
	if err == nil {
		h.data, err = io.ReadAll(io.NewSectionReader(file, 0, st.Size()))
	}
	_ = file.Close()
	return err
}

// size is the length of the text, in bytes.
func (h *handle) size() int64 { return int64(len(h.data)) + h.longSize }

// readText reads the text from an offset on.
func (h *handle) readText(buf []byte, offset uint64) ([]byte, error) {
	at := int64(min(offset, uint64(h.size())))
	if h.inStore && h.size() == 0 {
		return nil, syscall.ESTALE // it was lost with the process before
	}
	if h.long == nil {
		return h.data[at:min(at+int64(len(buf)), h.size())], nil
	}
	n, err := h.long.ReadAt(buf, at)
	if err == io.EOF {
		err = nil
	}
	return buf[:n], err
}

// filesStore is the part of the store that belongs to package files.
type filesStore struct {
	files.Store
	taken map[uint64]int
}

// Take gives what is left when the texts were taken out.
func (f *filesStore) Take() (map[uint64]int, error) { return f.taken, nil }

// takeTexts takes what is in the store. It returns the texts by handle, and leaves
// the rest to package files.
func (s *Server) takeTexts() (texts map[uint64]int, err error) {
	if s.cfg.Store == nil {
		return nil, nil
	}
	kept, err := s.cfg.Store.Take()
	if err != nil {
		return nil, err
	}
	texts = map[uint64]int{}
	for fh, fd := range kept {
		if fh&synthetic != 0 {
			texts[fh] = fd
			delete(kept, fh)
		}
	}
	s.filesStore.taken = kept
	return texts, nil
}

// takeText gives a handle the text that was kept for it.
func (s *Server) takeText(h *handle, texts map[uint64]int) {
	fd, ok := texts[h.fh]
	if !ok {
		return
	}
	delete(texts, h.fh)
	if err := h.setMemory(os.NewFile(uintptr(fd), "view")); err != nil {
		s.log.Error("the text of an open view is lost", "node", h.node.id, "error", err)
	}
}

// dropTexts drops the texts of handles that are no more.
func (s *Server) dropTexts(texts map[uint64]int) {
	for fh, fd := range texts {
		s.cfg.Store.Drop(fh)
		_ = unix.Close(fd)
	}
}
