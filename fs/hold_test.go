package fs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// asking is a connection with so many requests more to read, which says what is done with it.
type asking struct {
	connection
	more int
	said []any
}

func (a *asking) say(what any)                        { a.said = append(a.said, what) }
func (a *asking) answer(unique uint64, _ int32) error { a.say(unique); return nil }
func (a *asking) answerAndRead(l *lockAnswer, _ []byte) (int, error) {
	_ = a.answer(l.unique, l.code)
	return a.read(nil)
}
func (a *asking) answerAll(held []lockAnswer) { a.say(held) }
func (a *asking) read([]byte) (int, error)    { a.say("read"); return 1, nil }
func (a *asking) take() (what []any)          { what, a.said = a.said, nil; return what }
func newAsking() (*Server, *asking) {
	a := &asking{}
	s := &Server{dev: device{a}}
	s.held.may = true
	return s, a
}
func (a *asking) ask(s *Server, unique uint64, tid, owner uint32) {
	s.answerLock(&fuse.LkIn{InHeader: fuse.InHeader{Unique: unique, Caller: fuse.Caller{Pid: tid}}, Owner: uint64(owner)}, unix.EAGAIN)
}

func (a *asking) tryRead([]byte) (int, error) {
	if a.more == 0 {
		return 0, unix.EAGAIN
	}
	a.more--
	a.say("tryRead")
	return 1, nil
}

func lockAnswers(from, to uint64) []lockAnswer {
	var all []lockAnswer
	for u := from; u <= to; u++ {
		all = append(all, lockAnswer{u, 100 + u, -int32(unix.EAGAIN)})
	}
	return all
}

// Few that ask by turns are answered one by one.
func TestFewAreAnsweredAtOnce(t *testing.T) {
	s, a := newAsking()
	for tid := range uint32(3) {
		a.ask(s, 1, 10+tid, 1) // they are new
	}
	s.answerHeld()
	a.take()
	for u := range uint64(12) {
		a.ask(s, u, 10+uint32(u%3), 100)
		_, err := s.next(nil)
		require.NoError(t, err)
		require.Equal(t, []any{u, "read"}, a.take())
	}
}

// Many are answered when nobody asks any more, or when so many are that the first would wait for long; and who asks
// again before that, first.
func TestManyAreAnsweredTogether(t *testing.T) {
	s, a := newAsking()
	ask := func(u uint64) { a.ask(s, u, uint32(u), 100+uint32(u)) }
	a.more = 2
	for u := range uint64(3) {
		ask(10 + u)
		_, err := s.next(nil)
		require.NoError(t, err)
	}
	require.Equal(t, []any{"tryRead", "tryRead", lockAnswers(10, 12), "read"}, a.take())
	a.more = 1000
	for u := range uint64(maxHeld) {
		ask(20 + u)
		_, err := s.next(nil)
		require.NoError(t, err)
	}
	said := a.take()
	require.Equal(t, []any{lockAnswers(20, 19+maxHeld), "read"}, said[maxHeld-1:])
	ask(40)
	for range maxHeld { // requests that are answered otherwise, or wait
		require.Equal(t, 1, s.held.n)
		_, err := s.next(nil)
		require.NoError(t, err)
	}
	require.Equal(t, []any{lockAnswers(40, 40), "read"}, a.take()[maxHeld-1:])
	a.more = 0
	ask(50)
	a.ask(s, 51, 50, 151) // by a thread that asked just now: after the one before it
	require.True(t, s.held.of(150))
	require.False(t, s.held.of(149))
	require.Empty(t, a.take())
	_, err := s.next(nil)
	require.NoError(t, err)
	require.Equal(t, []any{lockAnswers(50, 51), "read"}, a.take())
	s.held.may = false
	ask(60)
	require.Equal(t, []any{uint64(60)}, a.take())
}

// TestAnswerAndRead: the next request is there already, or comes when the answer has.
func TestAnswerAndRead(t *testing.T) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	limit := unix.NsecToTimeval(int64(10 * time.Second))
	for _, end := range ends {
		require.NoError(t, unix.SetsockoptTimeval(end, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit))
		defer unix.Close(end)
	}
	d := newFuseDevice(ends[0])
	for unique := range uint64(100) {
		kernel := make(chan error, 1)
		ask := func() error { return unix.Send(ends[1], []byte{byte(unique), 1}, 0) }
		hear := func() error {
			var b [64]byte
			n, _, err := unix.Recvfrom(ends[1], b[:], 0)
			if err == nil && (n != sizeofOutHeader || binary.NativeEndian.Uint64(b[8:]) != unique || int32(binary.NativeEndian.Uint32(b[4:])) != -11) {
				err = fmt.Errorf("answer %v", b[:n])
			}
			return err
		}
		if unique%2 == 0 {
			require.NoError(t, ask())
		}
		go func() {
			err := hear()
			if unique%2 == 1 {
				err = errors.Join(err, ask())
			}
			kernel <- err
		}()
		buf := make([]byte, 64)
		n, err := d.answerAndRead(&lockAnswer{unique: unique, code: -11}, buf)
		require.NoError(t, err)
		require.Equal(t, []byte{byte(unique), 1}, buf[:n])
		require.NoError(t, <-kernel)
	}
}

// TestAnswerAll: with io_submit(2) and without, whatever number of answers it is, and after more than the kernel keeps results of.
func TestAnswerAll(t *testing.T) {
	for _, aio := range []bool{true, false} {
		ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		require.NoError(t, err)
		d := newFuseDevice(ends[0])
		require.True(t, d.answersMany(), "io_setup")
		if !aio {
			d.aio.id = 0
		}
		unique, done := uint64(0), 0
		for round := range 3 * aioRoom {
			held := make([]lockAnswer, 1+round%maxHeld)
			for i := range held {
				unique++
				held[i] = lockAnswer{unique: unique, code: -int32(unique % 100)}
			}
			d.answerAll(held)
			for _, a := range held {
				var b [64]byte
				n, _, err := unix.Recvfrom(ends[1], b[:], unix.MSG_DONTWAIT)
				require.NoError(t, err)
				require.Equal(t, sizeofOutHeader, n)
				require.Equal(t, a.unique, binary.NativeEndian.Uint64(b[8:]))
				require.Equal(t, a.code, int32(binary.NativeEndian.Uint32(b[4:])))
			}
			if aio && len(held) > 1 {
				require.NotEqual(t, done, d.aio.done, "by io_submit")
			}
			done = d.aio.done
		}
		require.NoError(t, unix.Close(ends[0]))
		require.NoError(t, unix.Close(ends[1]))
	}
}
