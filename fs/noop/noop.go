// Package noop is a filesystem that says yes: its names are those that a lock
// server would have, every lock is granted, and nothing is kept. What a request
// to it costs is the floor for any server on the same loop (see
// integration/bench).
package noop

import (
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// The nodes. Every file of a directory is the same node.
const (
	root = iota + fuse.FUSE_ROOT_ID
	files
	tlock
	take
	hold
	view
	file  // in files/
	lock  // a directory in tlock/
	taken // a file in take/ or hold/
	text  // a file in view/
)

var names = map[string]uint64{"files": files, "tlock": tlock, "take": take, "hold": hold, "view": view}

// Fixed names and attributes are believed as long as lockfs's are, but for those
// of the root, which lockfs is asked for with each path.
const (
	fixed  = time.Hour
	backed = time.Second
)

// FS is the filesystem. There is one thing that it must know: whether the lock
// that mkdir(2) made is there, since the kernel asks before each call.
type FS struct {
	fuse.RawFileSystem
	made atomic.Bool
}

// New makes one.
func New() *FS { return &FS{RawFileSystem: fuse.NewDefaultRawFileSystem()} }

// Lookup finds every name, and in tlock/ the one that was made; NAME@TOKEN is
// that of a lock taken by take/.
func (f *FS) Lookup(_ <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	switch in.NodeId {
	case root:
		id, ok := names[name]
		if !ok {
			return fuse.ENOENT
		}
		found(id, out)
	case files:
		found(file, out)
	case take, hold:
		found(taken, out)
	case view:
		found(text, out)
	case tlock:
		if !f.made.Load() && !strings.Contains(name, "@") {
			return fuse.ENOENT
		}
		found(lock, out)
	default:
		return fuse.ENOENT
	}
	return fuse.OK
}

func found(id uint64, out *fuse.EntryOut) {
	out.NodeId = id
	attr(id, &out.Attr)
	switch {
	case id <= view:
		out.SetEntryTimeout(fixed)
		out.SetAttrTimeout(fixed)
	case id == file:
		out.SetEntryTimeout(backed)
		out.SetAttrTimeout(backed)
	}
}

func attr(id uint64, out *fuse.Attr) {
	out.Ino, out.Nlink, out.Mode = id, 1, syscall.S_IFREG|0o666
	if id <= view || id == lock {
		out.Nlink, out.Mode = 2, syscall.S_IFDIR|0o777
	}
}

func (f *FS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	attr(in.NodeId, &out.Attr)
	if in.NodeId <= file {
		out.SetTimeout(backed)
	}
	return fuse.OK
}

// SetAttr answers the truncation of an open.
func (f *FS) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	attr(in.NodeId, &out.Attr)
	return fuse.OK
}

func (f *FS) Mkdir(_ <-chan struct{}, _ *fuse.MkdirIn, _ string, out *fuse.EntryOut) fuse.Status {
	f.made.Store(true)
	found(lock, out)
	return fuse.OK
}

func (f *FS) Rmdir(<-chan struct{}, *fuse.InHeader, string) fuse.Status {
	f.made.Store(false)
	return fuse.OK
}

func (f *FS) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if in.NodeId > lock {
		out.OpenFlags = fuse.FOPEN_DIRECT_IO
	}
	return fuse.OK
}

// Read gives one line, a token for take/.
func (f *FS) Read(_ <-chan struct{}, in *fuse.ReadIn, _ []byte) (fuse.ReadResult, fuse.Status) {
	if in.Offset > 0 {
		return fuse.ReadResultData(nil), fuse.OK
	}
	return fuse.ReadResultData([]byte("1732190000123456\n")), fuse.OK
}

func (f *FS) OpenDir(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status { return fuse.OK }

// GetLk finds no lock.
func (f *FS) GetLk(_ <-chan struct{}, in *fuse.LkIn, out *fuse.LkOut) fuse.Status {
	out.Lk = in.Lk
	out.Lk.Typ = syscall.F_UNLCK
	return fuse.OK
}

func (f *FS) SetLk(<-chan struct{}, *fuse.LkIn) fuse.Status  { return fuse.OK }
func (f *FS) SetLkw(<-chan struct{}, *fuse.LkIn) fuse.Status { return fuse.OK }
