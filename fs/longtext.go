package fs

import (
	"fmt"

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
	fd, err := memoryOf(h.data)
	if err == nil {
		err = s.cfg.Store.Put(h.fh, fd)
		unix.Close(fd)
	}
	return err == nil
}

func memoryOf(text []byte) (int, error) {
	fd, err := unix.MemfdCreate("lockfs view", unix.MFD_CLOEXEC)
	if err != nil {
		return -1, err
	}
	for rest := text; len(rest) > 0; {
		n, err := unix.Write(fd, rest)
		if err != nil && err != unix.EINTR {
			unix.Close(fd)
			return -1, err
		}
		rest = rest[max(n, 0):]
	}
	return fd, nil
}

func textOf(fd int) ([]byte, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	text := make([]byte, st.Size)
	for n := 0; n < len(text); {
		k, err := unix.Pread(fd, text[n:], int64(n))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return nil, err
		case k == 0:
			return nil, fmt.Errorf("%d bytes of %d", n, len(text))
		}
		n += max(k, 0)
	}
	return text, nil
}

// filesStore is the part of the store that belongs to package files.
type filesStore struct {
	files.Store
	taken map[uint64]int
}

// Take gives what is left when the texts were taken out.
func (f *filesStore) Take() (map[uint64]int, error) { return f.taken, nil }

// takeTexts gives handles the texts that were kept for them.
func (s *Server) takeTexts() error {
	if s.cfg.Store == nil {
		return nil
	}
	kept, err := s.cfg.Store.Take()
	if err != nil {
		return err
	}
	for fh, fd := range kept {
		if fh&synthetic == 0 {
			continue
		}
		delete(kept, fh)
		h := s.handles.get(fh)
		if h == nil {
			s.cfg.Store.Drop(fh)
		} else if h.data, err = textOf(fd); err != nil {
			s.log.Error("the text of an open view is lost", "node", h.node.id, "error", err)
		}
		unix.Close(fd)
	}
	s.filesStore.taken = kept
	return nil
}
