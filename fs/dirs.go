package fs

import (
	"io"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"lockfs/lockengine"
)

// caller is who makes a request.
type caller struct {
	uid, gid uint32
	tid      int32 // thread; 0 outside our pid namespace
}

// may reports whether the caller may change what belongs to uid.
func (c caller) may(uid uint32) bool { return c.uid == 0 || c.uid == uid }

// reader is for whom a text is made: its user, who may not see every token,
// and the pid namespace that numbers of processes are of.
type reader struct {
	uid   uint32
	space pidSpace
}

func (s *Server) readerOf(c caller) reader { return reader{c.uid, s.host.space(c.tid)} }

// findLock finds NAME, NAME@TOKEN and, for its maker, NAME+DURATION in tlock/.
func findLock(s *Server, _ node, name string, c caller) (node, error) {
	if bare, ok := strings.CutSuffix(name, "@"); ok && CheckName(bare) == nil {
		return node{}, syscall.EINVAL // `rmdir NAME@$token` with token empty must not look released
	}
	n, err := parseLockName(name, s.cfg.MaxTimeout)
	if err == syscall.ENAMETOOLONG {
		return node{}, err
	}
	if err != nil {
		return node{}, syscall.ENOENT
	}
	if s.janitors.is(c.tid) {
		return s.toSweep(name)
	}
	l, ok := s.engine.Get(n.name)
	if !ok {
		return node{}, syscall.ENOENT
	}
	sp := n.spelling
	switch sp {
	case byToken:
		if n.token != l.Token {
			if n.token != uint64(l.Start) || l.PrevStart == l.Start {
				return node{}, syscall.ENOENT
			}
			sp = byStart
		}
	case bySpan:
		if l.Timeout != n.timeout || metaValue(l.Meta, "kind") != "mkdir" || l.Who.PID == 0 || processOf(c.tid) != l.Who.PID {
			return node{}, syscall.ENOENT
		}
	}
	return lockNode(l.Token, sp, lockRow, 0), nil
}

// listLocks lists tlock/: the cookie of a lock is its token, so that a listing
// goes on where it was whatever comes and goes meanwhile.
func listLocks(s *Server, _ node, _ caller, after uint64, add func(string, node, uint64) bool) {
	const batch = 512
	for {
		locks := s.engine.List(after, batch)
		for _, l := range locks {
			if !add(l.Name, lockNode(l.Token, plain, lockRow, 0), l.Token) {
				return
			}
			after = l.Token
		}
		if len(locks) < batch {
			return
		}
	}
}

// findTake answers in take/ and hold/: every name that could be a lock's is
// there, so that a shell's `exec 9>hold/x` is an open, which may wait, and
// never a create, which must not.
func findTake(s *Server, dir node, name string, _ caller) (node, error) {
	if _, err := parseWaitName(name, s.cfg.MaxTimeout); err != nil {
		if err == syscall.ENAMETOOLONG {
			return node{}, err
		}
		return node{}, syscall.ENOENT
	}
	r := takeFileRow
	if dir.row == holdRow {
		r = holdFileRow
	}
	return s.dynamic.lookup(r, name), nil
}

// locked is a file of files/ that has locks or waiters now.
type locked struct {
	path string // below files/
	key  string
}

// lockedFiles lists them by path.
func (s *Server) lockedFiles() []locked {
	var out []locked
	for _, key := range s.engine.Names() {
		if p, ok := s.files.Path(key); ok {
			out = append(out, locked{p, key})
		}
	}
	slices.SortFunc(out, func(a, b locked) int { return strings.Compare(a.path, b.path) })
	return out
}

// filePath is where a file of files/ is in the mount.
func (s *Server) filePath(key string) string {
	if p, ok := s.files.Path(key); ok {
		return "files/" + printable(p)
	}
	return "files/?"
}

// findViewFile finds an entry of view/files/ or a directory below it.
func findViewFile(s *Server, dir node, name string, _ caller) (node, error) {
	path := joinPath(dir.name, name)
	for _, f := range s.lockedFiles() {
		if f.path == path {
			return s.dynamic.lookup(viewFileRow, path), nil
		}
		if strings.HasPrefix(f.path, path+"/") {
			return s.dynamic.lookup(viewDirRow, path), nil
		}
	}
	return node{}, syscall.ENOENT
}

func joinPath(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

func listViewFiles(s *Server, dir node, _ caller, after uint64, add func(string, node, uint64) bool) {
	prefix := joinPath(dir.name, "")
	last := ""
	cookie := uint64(firstCookie)
	for _, f := range s.lockedFiles() {
		rest, ok := strings.CutPrefix(f.path, prefix)
		name, _, isDir := strings.Cut(rest, "/")
		if !ok || name == last {
			continue
		}
		last = name
		r := viewFileRow
		if isDir {
			r = viewDirRow
		}
		if cookie++; cookie > after && !add(name, node{row: r}, cookie) {
			return
		}
	}
}

func renderViewFile(s *Server, n node, c caller, w io.Writer) error {
	for _, f := range s.lockedFiles() {
		if f.path == n.name {
			locks, waiting := s.engine.Locks(f.key)
			d := s.describer(s.now(), s.readerOf(c))
			for i := range locks {
				writeLine(w, d.held(&locks[i]), false)
			}
			for i := range waiting {
				writeLine(w, d.waiting(&waiting[i], nil), false)
			}
			return nil
		}
	}
	return syscall.ENOENT
}

// pids lists the processes that hold or wait for anything by the numbers that
// a thread knows them by, ascending.
func (s *Server) pids(tid int32) []int32 {
	space, seen := s.host.space(tid), map[int32]bool{0: true}
	var out []int32
	add := func(pid int32) {
		if !seen[pid] {
			seen[pid] = true
			out = append(out, pid)
		}
	}
	s.engine.Each(func(lockengine.Instant) {},
		func(l *lockengine.Lock) { add(space.pid(l.Who.PID, l.Since)) },
		func(w *lockengine.Waiting, _ []*lockengine.Lock) { add(space.pid(w.Who.PID, w.Since)) })
	slices.Sort(out)
	return out
}

func listPids(s *Server, _ node, c caller, after uint64, add func(string, node, uint64) bool) {
	for _, pid := range s.pids(c.tid) {
		cookie := firstCookie + uint64(pid)
		if cookie > after && !add(strconv.Itoa(int(pid)), node{row: viewPidRow}, cookie) {
			return
		}
	}
}

func findPid(s *Server, _ node, name string, c caller) (node, error) {
	pid, err := strconv.ParseInt(name, 10, 32)
	if err != nil || strconv.FormatInt(pid, 10) != name {
		return node{}, syscall.ENOENT
	}
	if _, ok := slices.BinarySearch(s.pids(c.tid), int32(pid)); !ok {
		return node{}, syscall.ENOENT
	}
	return s.dynamic.lookup(viewPidRow, name), nil
}

func renderViewPid(s *Server, n node, c caller, w io.Writer) error {
	pid, _ := strconv.ParseInt(n.name, 10, 32)
	s.describeAll(c, func(j lockJSON) {
		if j.PID == int32(pid) {
			writeLine(w, j, true)
		}
	})
	return nil
}
