package fs

import (
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"lockfs/lockengine"
)

// The dialect of Perl's Sys::Tlock: a lock MARKER.LABEL is taken, renewed and
// released under its master lock MARKER_.LABEL. The mtime of its directory is
// when it was taken, that of its d for how many seconds.

// masterTimeout is that of a master lock, held for a moment only, by a script
// that may die meanwhile.
const masterTimeout = 10 * time.Second

// isMaster reports whether a name is that of a master lock.
func isMaster(name string) bool {
	marker, _, _ := strings.Cut(name, ".")
	return strings.HasSuffix(marker, "_")
}

// masterOf is the name of a lock's master lock; "" if it has none.
func masterOf(name string) string {
	marker, label, ok := strings.Cut(name, ".")
	if !ok || strings.HasSuffix(marker, "_") {
		return ""
	}
	return marker + "_." + label
}

func (s *Server) defaultTimeout(name string) time.Duration {
	if isMaster(name) {
		return min(masterTimeout, s.cfg.MaxTimeout)
	}
	return min(s.cfg.DefaultTimeout, s.cfg.MaxTimeout)
}

// tlockDuration is the mtime of d, in seconds: the expiry, rounded up, less
// the start. 0 for a hold.
func tlockDuration(l *lockengine.Lock) int64 {
	if l.Timeout == 0 {
		return 0
	}
	return epochCeil(l.Expiry.Wall) - l.Start
}

// setTimes sets the start of a lock (its directory's mtime) or its duration
// (that of d), for whoever holds its master lock. The access time is nothing
// here.
func (s *Server) setTimes(n node, in *fuse.SetAttrIn) error {
	c := callerOf(&in.InHeader)
	if n.row != lockRow && n.row != durationRow {
		return syscall.EPERM
	}
	l, err := s.lockOf(n)
	if err != nil {
		return err
	}
	master, held := s.engine.Get(masterOf(l.Name))
	if !held || master.Who.UID != c.uid || !c.may(l.Who.UID) {
		return syscall.EPERM
	}
	mtime, ok := in.GetMTime()
	switch {
	case !ok:
		return nil
	case n.row == lockRow:
		return s.engine.SetStart(l.Name, l.Token, mtime.Unix(), s.cfg.MaxTimeout)
	}
	return s.engine.SetSpan(l.Name, l.Token, mtime.Unix(), s.cfg.MaxTimeout)
}

// chown lets root hand a lock to another user. Giving it to whom it belongs,
// as -1 does, changes nothing.
func (s *Server) chown(n node, in *fuse.SetAttrIn) error {
	if n.row != lockRow && n.row != durationRow {
		return syscall.EPERM
	}
	l, err := s.lockOf(n)
	if err != nil {
		return err
	}
	uid, gid := l.Who.UID, l.Who.GID
	if u, ok := in.GetUID(); ok {
		uid = u
	}
	if g, ok := in.GetGID(); ok {
		gid = g
	}
	switch {
	case uid == l.Who.UID && gid == l.Who.GID:
		return nil
	case in.InHeader.Uid != 0:
		return syscall.EPERM
	}
	return s.engine.SetHolder(l.Name, l.Token, uid, gid)
}
