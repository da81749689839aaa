package fs

import (
	"errors"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"lockfs/fs/files"
	"lockfs/lockengine"
)

// raw serves go-fuse's calls: those for nodes of files/ are the embedded FS's,
// those for synthetic nodes are answered here.
type raw struct {
	*files.FS
	s *Server
}

var _ fuse.RawFileSystem = (*raw)(nil)

func (r *raw) String() string { return "lockfs" }

func statusOf(err error) fuse.Status { return fuse.Status(errnoOf(err)) }

func callerOf(h *fuse.InHeader) caller { return caller{h.Uid, h.Gid, int32(h.Pid)} }

// refusal is the errno for changing what cannot be changed below a node.
func (s *Server) refusal(id uint64) fuse.Status {
	n, ok := s.node(id)
	if !ok {
		return fuse.Status(syscall.ESTALE)
	}
	if n.inView() {
		return fuse.EROFS
	}
	return fuse.EPERM
}

// inView reports whether a node is view/ or below it, or the tree's README.
func (n node) inView() bool {
	if n.row == viewDirRow || n.row == viewFileRow || n.row == viewPidRow {
		return true
	}
	for r := n.row; r != nil; r = r.parent {
		if r == viewRow || r.text != nil {
			return true
		}
	}
	return false
}

// Lookup and attributes.

const staticTimeout = time.Hour // of names that never change

func (r *raw) Lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if !isSynthetic(h.NodeId) {
		return r.FS.Lookup(cancel, h, name, out)
	}
	dir, ok := r.s.node(h.NodeId)
	if !ok {
		return fuse.Status(syscall.ESTALE)
	}
	if len(name) > 255 {
		return fuse.Status(syscall.ENAMETOOLONG)
	}
	n, err := r.s.lookup(dir, name, callerOf(h))
	if err != nil {
		return statusOf(err)
	}
	return statusOf(r.s.fillEntry(n, out))
}

// static nodes are always there.
func (n node) static() bool { return n.token == 0 && n.id&dynamic == 0 }

// attrTimeout is how long the kernel may believe a node's attributes. Those of the
// fixed directories never change, and it asks for them to check every path
// through them; not so the root's, by which a dead mount shows in stat(2). Nor do
// those of take/NAME and hold/NAME; but before protocol 7.35 (Linux 5.16) it would
// believe in the size that notifySize tells of as well. (Their names could be
// believed too, but to have it forget many takes so long that others notice.)
func (s *Server) attrTimeout(n node) time.Duration {
	const sizeIsAsked = 35
	if n.static() && n.row.isDir() && n.row != rootRow || n.row.take && s.instance.minor() >= sizeIsAsked {
		return staticTimeout
	}
	return 0
}

// lookup finds an entry of a synthetic directory.
func (s *Server) lookup(dir node, name string, c caller) (node, error) {
	if c := dir.row.child(name); c != nil {
		return s.fixedChild(dir, c)
	}
	if dir.row.find == nil {
		return node{}, syscall.ENOENT
	}
	return dir.row.find(s, dir, name, c)
}

func (s *Server) fixedChild(dir node, r *row) (node, error) {
	if dir.token == 0 {
		return staticNode(r), nil
	}
	l, err := s.lockOf(dir)
	if err != nil {
		return node{}, err
	}
	if !r.exists(&l) {
		return node{}, syscall.ENOENT
	}
	return dir.sibling(r, s.removed.of(dir.token)), nil
}

// lockOf is the lock that a node belongs to; ENOENT when it has ended.
func (s *Server) lockOf(n node) (lockengine.Lock, error) {
	l, ok := s.engine.GetToken(n.token)
	if !ok {
		return l, syscall.ENOENT
	}
	return l, nil
}

func (s *Server) fillEntry(n node, out *fuse.EntryOut) error {
	if n.row == filesRow {
		out.NodeId = files.Root
		out.SetEntryTimeout(staticTimeout)
		s.files.RootAttr(&out.Attr)
		return nil
	}
	out.NodeId = n.id
	if n.static() {
		out.SetEntryTimeout(staticTimeout)
	}
	out.SetAttrTimeout(s.attrTimeout(n))
	return s.fillAttr(n, &out.Attr)
}

func (s *Server) fillAttr(n node, out *fuse.Attr) error {
	*out = fuse.Attr{Ino: n.id, Mode: n.row.mode, Nlink: 1, Blksize: 4096, Owner: fuse.Owner{Uid: ownUID, Gid: ownGID}}
	if n.row.isDir() {
		out.Nlink = 2
	}
	when := s.started.Wall
	switch {
	case n.row.once:
		out.Size = apparentSize
	case n.row == tokenRow && s.cfg.TokenMode != 0:
		out.Mode = file | s.cfg.TokenMode
	}
	switch {
	case n.row == viewRow:
		out.Mode = dir | s.cfg.ViewMode
	case n.row == tlockRow:
		out.Nlink = 1 // as where subdirectories are not counted
	case n.ended:
	case n.token != 0:
		l, err := s.lockOf(n)
		if err != nil && s.handles.isOpen(n.id) {
			// As of any open file that was removed: fstat(2) of a wait that
			// is over must not fail.
			out.Nlink = 0
			break
		}
		if err != nil {
			return err
		}
		out.Owner = fuse.Owner{Uid: l.Who.UID, Gid: l.Who.GID}
		when = l.Start * int64(time.Second)
		s.fillLockAttr(n, &l, out)
		if n.row == durationRow {
			when = tlockDuration(&l) * int64(time.Second)
		}
	}
	t := time.Unix(0, when)
	out.SetTimes(&t, &t, &t)
	return nil
}

func (s *Server) fillLockAttr(n node, l *lockengine.Lock, out *fuse.Attr) {
	if n.row != lockRow {
		return
	}
	out.Nlink = 3
	if l.Timeout != 0 {
		out.Size = uint64(max(0, ceilSeconds(time.Duration(l.Expiry.Boot-s.now().Boot))))
	}
}

func (r *raw) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	if !isSynthetic(in.NodeId) {
		return r.FS.GetAttr(cancel, in, out)
	}
	n, ok := r.s.node(in.NodeId)
	if !ok {
		return fuse.Status(syscall.ESTALE)
	}
	out.SetTimeout(r.s.attrTimeout(n))
	return statusOf(r.s.fillAttr(n, &out.Attr))
}

func (r *raw) Statx(cancel <-chan struct{}, in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	if !isSynthetic(in.NodeId) {
		return r.FS.Statx(cancel, in, out)
	}
	return fuse.ENOSYS // the kernel asks GETATTR instead
}

func (r *raw) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if !isSynthetic(in.NodeId) {
		return r.FS.SetAttr(cancel, in, out)
	}
	n, ok := r.s.node(in.NodeId)
	if !ok {
		return fuse.Status(syscall.ESTALE)
	}
	if err := r.s.fillAttr(n, &out.Attr); err != nil {
		return statusOf(err)
	}
	out.SetTimeout(r.s.attrTimeout(n))
	before := out.Attr
	if err := r.s.setAttr(n, in); err != nil {
		return statusOf(err)
	}
	if r.s.fillAttr(n, &out.Attr) != nil {
		out.Attr = before // a time in the past has ended the lock
	}
	return fuse.OK
}

// setAttr takes what does no harm (the truncation of an open for writing,
// mkdir -m) and refuses what would change a lock by accident.
func (s *Server) setAttr(n node, in *fuse.SetAttrIn) error {
	const times = fuse.FATTR_ATIME | fuse.FATTR_MTIME | fuse.FATTR_ATIME_NOW | fuse.FATTR_MTIME_NOW
	switch {
	case n.inView():
		return syscall.EROFS
	case in.Valid&(fuse.FATTR_UID|fuse.FATTR_GID) != 0:
		return s.chown(n, in)
	case in.Valid&times != 0:
		return s.setTimes(n, in)
	case in.Valid&fuse.FATTR_MODE != 0 && n.row != lockRow && n.row != durationRow:
		return syscall.EPERM
	case in.Valid&fuse.FATTR_SIZE != 0 && n.row.write != nil:
		return s.truncate(n, in)
	case in.Valid&fuse.FATTR_SIZE != 0 && !n.row.take:
		return syscall.EPERM
	}
	return nil
}

// truncate empties a note, and does nothing to what cannot be empty.
func (s *Server) truncate(n node, in *fuse.SetAttrIn) error {
	if err := s.mayWrite(n, callerOf(&in.InHeader)); err != nil {
		return err
	}
	l, err := s.lockOf(n)
	if err != nil || n.row != noteRow || in.Size != 0 {
		return err
	}
	return s.engine.SetNote(l.Name, l.Token, "")
}

func (r *raw) Forget(id, lookups uint64) {
	if !isSynthetic(id) {
		r.FS.Forget(id, lookups)
	} else if id&dynamic != 0 {
		r.s.dynamic.forget(id, lookups)
	}
}

func (r *raw) StatFs(cancel <-chan struct{}, h *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	there := *h
	if isSynthetic(h.NodeId) {
		there.NodeId = files.Root // the space that there is
	}
	return r.FS.StatFs(cancel, &there, out)
}

func (r *raw) Access(cancel <-chan struct{}, in *fuse.AccessIn) fuse.Status {
	if !isSynthetic(in.NodeId) {
		return r.FS.Access(cancel, in)
	}
	return fuse.OK // default_permissions: the kernel has checked
}

// Taking and releasing.

func (r *raw) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	if !isSynthetic(in.NodeId) {
		return r.FS.Mkdir(cancel, in, name, out)
	}
	dir, ok := r.s.node(in.NodeId)
	switch {
	case !ok:
		return fuse.Status(syscall.ESTALE)
	case dir.row == lockRow && name == durationRow.name:
		return fuse.Status(syscall.EEXIST)
	case dir.row != tlockRow:
		return r.s.refusal(in.NodeId)
	}
	n, err := r.s.take(name, &in.InHeader)
	if err != nil {
		return statusOf(err)
	}
	return statusOf(r.s.fillEntry(n, out))
}

// take is mkdir in tlock/: it takes the named lock or fails with EEXIST.
func (s *Server) take(name string, h *fuse.InHeader) (node, error) {
	p, err := parseLockName(name, s.cfg.MaxTimeout)
	if err != nil {
		return node{}, err
	}
	if p.spelling == byToken {
		return node{}, syscall.EINVAL
	}
	if p.timeout == 0 {
		p.timeout = s.defaultTimeout(p.name)
	}
	req, err := s.namedRequest(p.name, "mkdir", p.timeout, h)
	if err != nil {
		return node{}, err
	}
	g, err := s.engine.Try(&req)
	if errors.Is(err, lockengine.ErrHeld) {
		return node{}, syscall.EEXIST
	}
	return lockNode(g.Token, p.spelling, lockRow, 0), err
}

func (r *raw) Rmdir(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	if !isSynthetic(h.NodeId) {
		return r.FS.Rmdir(cancel, h, name)
	}
	dir, ok := r.s.node(h.NodeId)
	switch {
	case !ok:
		return fuse.Status(syscall.ESTALE)
	case dir.row == lockRow && name == durationRow.name:
		_, err := r.s.lockOf(dir)
		r.s.removed.add(r.s, dir.token)
		return statusOf(err)
	case dir.row != tlockRow:
		return r.s.refusal(h.NodeId)
	}
	return statusOf(r.s.releaseNamed(name, h))
}

// releaseNamed is rmdir in tlock/.
func (s *Server) releaseNamed(name string, h *fuse.InHeader) error {
	c := callerOf(h)
	if s.janitors.is(c.tid) {
		return s.swept(name)
	}
	if in, again := s.intended(h.Unique); again {
		_ = s.engine.Release(in.name, in.token, in.how) // not held: this very request released it
		return nil
	}
	n, err := findLock(s, node{}, name, c)
	if err != nil {
		return err
	}
	l, err := s.lockOf(n)
	if err != nil {
		return err
	}
	if !c.may(l.Who.UID) {
		return syscall.EPERM
	}
	how := lockengine.Released
	if l.Timeout == 0 || c.uid != l.Who.UID {
		how = lockengine.Forced
		s.notices.forced.tell(s.log, "name", l.Name, "token", l.Token, "holder_uid", l.Who.UID,
			"holder_pid", l.Who.PID, "by_uid", c.uid, "by_pid", c.tid)
	}
	s.intend(h.Unique, intent{token: l.Token, name: l.Name, how: how})
	// The token fences: if it ended meanwhile, a later holder keeps its lock.
	return s.engine.Release(l.Name, l.Token, how)
}

// removals count how often the d of a lock was removed: each time it comes
// back with a new node number, as a directory made anew would.
type removals struct {
	mu    sync.Mutex
	m     map[uint64]uint64 // by token
	sweep int               // at how many those that ended are looked for
}

func (r *removals) of(token uint64) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.m[token]
}

func (r *removals) set(token, n uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.m == nil {
		r.m = map[uint64]uint64{}
	}
	r.m[token] = n
}

func (r *removals) records() (out []keptRecord) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for token, n := range r.m {
		out = append(out, keptRecord{recRemoved, encodeRemoved(token, n)})
	}
	return out
}

func (r *removals) add(s *Server, token uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.m == nil {
		r.m = map[uint64]uint64{}
	}
	r.m[token]++
	s.record(recRemoved, encodeRemoved(token, r.m[token]))
	if len(r.m) < max(r.sweep, 1024) {
		return
	}
	for t := range r.m {
		if _, held := s.engine.GetToken(t); !held {
			delete(r.m, t)
		}
	}
	r.sweep = 2 * len(r.m) // so that many that are held are not looked through each time
}

func encodeRemoved(token, n uint64) (e encoder) {
	e.uint(token)
	e.uint(n)
	return e
}

// What the synthetic tree has none of.

func (r *raw) Unlink(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	if !isSynthetic(h.NodeId) {
		return r.FS.Unlink(cancel, h, name)
	}
	return r.s.refusal(h.NodeId)
}

func (r *raw) Rename(cancel <-chan struct{}, in *fuse.RenameIn, from, to string) fuse.Status {
	switch {
	case isSynthetic(in.NodeId):
		return r.s.refusal(in.NodeId)
	case isSynthetic(in.Newdir):
		return r.s.refusal(in.Newdir)
	}
	return r.FS.Rename(cancel, in, from, to)
}

func (r *raw) Link(cancel <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	switch {
	case isSynthetic(in.NodeId):
		return r.s.refusal(in.NodeId)
	case isSynthetic(in.Oldnodeid):
		return r.s.refusal(in.Oldnodeid)
	}
	return r.FS.Link(cancel, in, name, out)
}

func (r *raw) Mknod(cancel <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	if !isSynthetic(in.NodeId) {
		return r.FS.Mknod(cancel, in, name, out)
	}
	return r.s.refusal(in.NodeId)
}

func (r *raw) Symlink(cancel <-chan struct{}, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	if !isSynthetic(h.NodeId) {
		return r.FS.Symlink(cancel, h, target, name, out)
	}
	return r.s.refusal(h.NodeId)
}

func (r *raw) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	if !isSynthetic(in.NodeId) {
		return r.FS.Create(cancel, in, name, out)
	}
	// take/ and hold/ have every name that there can be.
	if dir, ok := r.s.node(in.NodeId); ok && (dir.row == takeRow || dir.row == holdRow) {
		return fuse.EINVAL
	}
	return r.s.refusal(in.NodeId)
}

func (r *raw) Tmpfile(cancel <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	if !isSynthetic(in.NodeId) {
		return r.FS.Tmpfile(cancel, in, out)
	}
	return fuse.Status(syscall.EOPNOTSUPP)
}

func (r *raw) Readlink(cancel <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	if !isSynthetic(h.NodeId) {
		return r.FS.Readlink(cancel, h)
	}
	return nil, fuse.EINVAL
}

func (r *raw) GetXAttr(cancel <-chan struct{}, h *fuse.InHeader, attr string, dest []byte) (uint32, fuse.Status) {
	if !isSynthetic(h.NodeId) {
		return r.FS.GetXAttr(cancel, h, attr, dest)
	}
	return 0, fuse.ENODATA
}

func (r *raw) ListXAttr(cancel <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	if !isSynthetic(h.NodeId) {
		return r.FS.ListXAttr(cancel, h, dest)
	}
	return 0, fuse.OK
}

func (r *raw) SetXAttr(cancel <-chan struct{}, in *fuse.SetXAttrIn, attr string, data []byte) fuse.Status {
	if !isSynthetic(in.NodeId) {
		return r.FS.SetXAttr(cancel, in, attr, data)
	}
	return fuse.Status(syscall.EOPNOTSUPP)
}

func (r *raw) RemoveXAttr(cancel <-chan struct{}, h *fuse.InHeader, attr string) fuse.Status {
	if !isSynthetic(h.NodeId) {
		return r.FS.RemoveXAttr(cancel, h, attr)
	}
	return fuse.Status(syscall.EOPNOTSUPP)
}
