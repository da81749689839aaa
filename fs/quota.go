package fs

import "syscall"

// One user must not take the memory that others need. Locks and waits are the
// engine's to count; here it is what a user has open outside files/. A READ
// that waits needs a thread of the user's, which the kernel counts. A name
// looked up in take/ is kept as long as the kernel keeps it: see dynamicNodes.
const (
	// Who has all the locks he may, each by an open file of hold/, can look too.
	openPerLock = 2
	openMore    = 64
	// maxText bounds the text in a user's open files, in bytes: it is not
	// rendered again while it is open. What is open alone may be larger.
	maxText = 256 << 20
	// maxFollowers bounds a user's open files view/events: each is woken for each
	// event.
	maxFollowers = 16
)

// opened is what one user has open.
type opened struct{ files, text, followers int }

func (o *opened) count(h *handle, n int) {
	o.files += n
	o.text += n * int(h.size())
	if h.node.row == eventsRow {
		o.followers += n
	}
}

// exempt reports whether a user has no limits.
func (s *Server) exempt(uid uint32) bool {
	return s.cfg.MaxPerUser == 0 || uid == 0 && !s.cfg.LimitRoot
}

// sharesNothing reports whether a user may have all the time that he can get:
// also who has the mount for himself.
func (s *Server) sharesNothing(uid uint32) bool { return !s.cfg.AllowOther || s.exempt(uid) }

// mayOpen says whether a user may open one more.
func (s *Server) mayOpen(uid uint32, n node) error {
	if s.exempt(uid) {
		return nil
	}
	o := s.handles.opened(uid)
	if o.files >= openPerLock*s.cfg.MaxPerUser+openMore || o.text >= maxText || n.row == eventsRow && o.followers >= maxFollowers {
		return syscall.EDQUOT
	}
	return nil
}
