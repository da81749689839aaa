package integration

import (
	"bytes"
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// closeRounds are many: a server that does not keep the order of the device refuses three in a hundred.
const closeRounds = 2000

// TestCloseFrees: once close(2) has returned, another process finds the lock free. Two processes hand each other the
// turn through pipes; in its turn each opens the file, has to get the lock without waiting, and closes the file.
func TestCloseFrees(t *testing.T) {
	m := newMount(t)
	file := m.path("files/f")
	require.NoError(t, os.WriteFile(file, nil, 0o644))
	for _, kind := range []string{"flock", "ofd", "posix"} {
		t.Run(kind, func(t *testing.T) {
			start := time.Now()
			require.Zero(t, pingpong(t, kind, file), "refusals by a lock whose file was closed")
			t.Logf("%d rounds: %v each", closeRounds, (time.Since(start) / closeRounds).Round(time.Microsecond))
		})
	}
}

// pingpong plays closeRounds turns and returns the number of stale refusals.
func pingpong(t *testing.T, kind, file string) int {
	t.Helper()
	fromA, toB, err := os.Pipe()
	require.NoError(t, err)
	fromB, toA, err := os.Pipe()
	require.NoError(t, err)
	rounds := strconv.Itoa(closeRounds / 2)
	a, b := role("pingpong", kind, file, rounds), role("pingpong", kind, file, rounds)
	var refusedA, refusedB bytes.Buffer
	a.Stdin, a.Stdout, a.Stderr = fromB, toB, &refusedA
	b.Stdin, b.Stdout, b.Stderr = fromA, toA, &refusedB
	require.NoError(t, a.Start())
	require.NoError(t, b.Start())
	stuck := time.AfterFunc(time.Minute, func() { a.Process.Kill(); b.Process.Kill() })
	defer stuck.Stop()
	_, err = toA.Write([]byte{0}) // a begins
	require.NoError(t, err)
	for _, f := range []*os.File{fromA, toB, fromB, toA} {
		f.Close()
	}
	require.NoError(t, errors.Join(a.Wait(), b.Wait()), "%s%s", &refusedA, &refusedB)
	return countOf(t, refusedA.String()) + countOf(t, refusedB.String())
}

func countOf(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(s))
	require.NoError(t, err, s)
	return n
}

// pingpongMain takes the arguments KIND FILE ROUNDS and writes the number of refusals to standard error.
func pingpongMain() error {
	kind, file, rounds := os.Args[1], os.Args[2], int(parseInt(os.Args[3]))
	refused := 0
	turn := make([]byte, 1)
	for range rounds {
		if n, err := unix.Read(0, turn); n != 1 {
			return errors.Join(errors.New("no turn"), err)
		}
		err := openLockClose(kind, file)
		if errors.Is(err, unix.EAGAIN) {
			refused++
		} else if err != nil {
			return err
		}
		if _, err := unix.Write(1, turn); err != nil && !errors.Is(err, unix.EPIPE) {
			return err
		}
	}
	_, err := os.Stderr.WriteString(strconv.Itoa(refused) + "\n")
	return err
}

func openLockClose(kind, file string) error {
	fd, err := unix.Open(file, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	switch kind {
	case "flock":
		return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
	case "ofd":
		return unix.FcntlFlock(uintptr(fd), ofdSetlk, &lock)
	default:
		return unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &lock)
	}
}
