package fs

import (
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestWaitGivesWay has the runtime stop all goroutines while the reader waits in
// a system call that it knows nothing of.
func TestWaitGivesWay(t *testing.T) {
	var ends [2]int
	require.NoError(t, unix.Pipe2(ends[:], unix.O_CLOEXEC))
	defer unix.Close(ends[0])
	defer unix.Close(ends[1])
	newFuseDevice(ends[0])
	require.Equal(t, preempts, newFuseDevice(ends[0]).busy, "a second device in a process waits in the same way")
	got := make(chan int)
	go func() {
		n, _ := newFuseDevice(ends[0]).read(make([]byte, 64))
		got <- n
	}()
	for range 20 {
		begin := time.Now()
		runtime.GC()
		require.Less(t, time.Since(begin), 5*time.Second)
		time.Sleep(3 * time.Millisecond)
	}
	_, err := unix.Write(ends[1], []byte("request"))
	require.NoError(t, err)
	select {
	case n := <-got:
		require.Equal(t, 7, n)
	case <-time.After(5 * time.Second):
		t.Fatal("the reader did not see what came")
	}
}
