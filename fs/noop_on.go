//go:build lockfs_noop

package fs

import (
	"syscall"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"

	"lockfs/fs/noop"
)

// Built with -tags lockfs_noop, lockfs reads and answers as ever, but serves
// package noop: what its own loop costs, without locks and tree. The benchmarks
// measure lockfs against it.

// serving is what requests are parsed for.
func serving(fuse.RawFileSystem) fuse.RawFileSystem { return noop.New() }

// answersAtOnce answers every request. Those about locks take the short way
// that they also take in lockfs.
func (s *Server) answersAtOnce(in []byte, out *[bufferSize]byte) bool {
	h := request[fuse.InHeader](in)
	if h == nil {
		return false
	}
	switch h.Opcode {
	case opSetlk, opSetlkw:
		s.answerLock(request[fuse.LkIn](in), 0)
	case opGetlk:
		found := request[fuse.LkIn](in).Lk
		found.Typ = syscall.F_UNLCK
		lk := fuse.LkOut{Lk: found}
		s.dev.reply(h.Unique, unsafe.Slice((*byte)(unsafe.Pointer(&lk)), unsafe.Sizeof(lk)))
	case opInterrupt:
	default:
		s.answer(in, out)
	}
	return true
}
