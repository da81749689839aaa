package fs

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"lockfs/lockengine"
)

// The kernel tells us processes by their numbers in the pid namespace of
// whoever mounted (ours), 0 for those outside it. It translates the pid of an
// F_GETLK for the caller by itself. In texts we do: a number is that of the
// reader's namespace, 0 for a process that has none there.

// pidSpace is a pid namespace (pid_namespaces(7)), as seen from ours. The zero
// value is ours.
type pidSpace struct {
	depth int    // levels below ours; outside: not below ours
	inode uint64 // what the kernel tells namespaces apart by; 0 of ours
}

const outside = -1

// spaceOf is the namespace of a thread that waits for our answer.
func spaceOf(tid int32) pidSpace {
	if tid == 0 {
		return pidSpace{depth: outside}
	}
	depth := len(nsPids(tid)) - 1
	if depth <= 0 {
		return pidSpace{}
	}
	inode, ok := pidNamespace(tid, 0)
	if !ok {
		return pidSpace{depth: outside} // we may not look: then we know nothing
	}
	return pidSpace{depth, inode}
}

// pid is the number there of a process that had this number of ours at a
// moment; 0 if it has none, or is gone.
func (s pidSpace) pid(ours int32, since lockengine.Instant) int32 {
	switch {
	case s.depth == 0:
		return ours
	case s.depth == outside:
		return 0
	}
	if st, ok := statOf(ours); !ok || st.start > since.Boot {
		return 0
	}
	numbers := nsPids(ours)
	below := len(numbers) - 1 - s.depth
	if below < 0 {
		return 0
	}
	if inode, ok := pidNamespace(ours, below); !ok || inode != s.inode {
		return 0
	}
	n, _ := strconv.ParseInt(numbers[s.depth], 10, 32)
	return int32(n)
}

// nsPids are a process's numbers, in our namespace and each one below it up to
// its own (proc_pid_status(5)).
func nsPids(pid int32) []string { return strings.Fields(procField(pid, "NSpid")) }

// pidNamespace is the inode of the pid namespace so many levels above a
// process's own.
func pidNamespace(pid int32, above int) (inode uint64, ok bool) {
	fd, err := unix.Open("/proc/"+strconv.Itoa(int(pid))+"/ns/pid", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, false
	}
	defer func() { unix.Close(fd) }()
	for range above {
		parent, err := unix.IoctlRetInt(fd, unix.NS_GET_PARENT)
		if err != nil {
			return 0, false
		}
		unix.Close(fd)
		fd = parent
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	return st.Ino, err == nil
}
