package fs

import (
	"bytes"
	"fmt"
	"os"
	"os/user"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"lockfs/lockengine"
)

// maxCommand bounds a command line as it is shown, in bytes.
const maxCommand = 200

// procMax is as much of a file of /proc as is ever looked at, in bytes.
const procMax = 4096

// readProc reads a file of /proc/PID. It calls the kernel directly: os.ReadFile
// would ask for polling and sizes, at twice the cost, for each lock taken.
func readProc(pid int32, name string) ([]byte, error) {
	fd, err := openProc(pid, name)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	b := make([]byte, procMax)
	for {
		n, err := unix.Read(fd, b)
		if err != unix.EINTR {
			return b[:max(n, 0)], err
		}
	}
}

// openProc opens a file of /proc/PID.
func openProc(pid int32, name string) (fd int, err error) {
	return unix.Open("/proc/"+strconv.Itoa(int(pid))+"/"+name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
}

// procField returns the value of a `Name:\tvalue` line of /proc/PID/status.
func procField(pid int32, name string) string {
	b, err := readProc(pid, "status")
	if err != nil {
		return ""
	}
	for line := range bytes.Lines(b) {
		if v, ok := bytes.CutPrefix(line, []byte(name+":")); ok {
			return string(bytes.TrimSpace(v))
		}
	}
	return ""
}

// processOf returns the process of a thread; 0 when the thread is gone or
// lives where we cannot see it.
func processOf(tid int32) int32 {
	pid, _ := strconv.ParseInt(procField(tid, "Tgid"), 10, 32)
	return int32(pid)
}

// commandName is the kernel's short name of a process, as ps -o comm shows it.
func commandName(pid int32) string {
	b, err := readProc(pid, "comm")
	if err != nil || pid == 0 {
		return ""
	}
	return printable(strings.TrimSuffix(string(b), "\n"))
}

// commandPatience bounds how long a command line is waited for.
const commandPatience = 5 * time.Millisecond

// commandLine is a process's command with its arguments, as ps -o command
// shows it, bounded by maxCommand.
//
// Reading it takes the process's memory map lock, which a thread of it may
// hold while it waits for a page of ours. So the reader of the device must not
// wait for it without bound: then the command's name has to do.
func commandLine(pid int32) string {
	line := make(chan string, 1)
	go func() { line <- readCommandLine(pid) }()
	late := time.NewTimer(commandPatience)
	defer late.Stop()
	select {
	case s := <-line:
		return s
	case <-late.C:
		return commandName(pid)
	}
}

func readCommandLine(pid int32) string {
	b, err := readProc(pid, "cmdline")
	b = bytes.TrimRight(b, "\x00")
	if err != nil || len(b) == 0 {
		return commandName(pid)
	}
	s := printable(string(bytes.ReplaceAll(b, []byte{0}, []byte{' '})))
	if len(s) > maxCommand {
		s = strings.ToValidUTF8(s[:maxCommand], "") + "..."
	}
	return s
}

// processStat is what one look at proc_pid_stat(5) tells of a thread.
type processStat struct {
	comm  string
	start int64 // nanoseconds of CLOCK_BOOTTIME, rounded down to 10 ms
}

// clockTick is the unit of times in proc_pid_stat(5): that of sysconf(3)'s
// _SC_CLK_TCK, 100 a second on every architecture that Go runs on.
const clockTick = int64(10 * time.Millisecond)

// ticks is when the process started, as field 22 of proc_pid_stat(5) has it.
func (st processStat) ticks() string { return strconv.FormatInt(st.start/clockTick, 10) }

// exiting is PF_EXITING of linux/sched.h: what a thread has open may still be
// being closed, but it makes no more calls.
const exiting = 0x4

// statOf reads it. ok is false when the thread is gone, or exiting, or dead and
// not yet waited for.
func statOf(tid int32) (st processStat, ok bool) {
	b, err := readProc(tid, "stat")
	// The command, field 2, may hold blanks and parentheses.
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if err != nil || tid == 0 || open < 0 || end < open {
		return st, false
	}
	f := strings.Fields(string(b[end+1:]))
	if len(f) < 20 || f[0] == "Z" || f[0] == "X" {
		return st, false
	}
	if flags, err := strconv.ParseUint(f[6], 10, 32); err != nil || flags&exiting != 0 {
		return st, false
	}
	ticks, err := strconv.ParseInt(f[19], 10, 64)
	return processStat{string(b[open+1 : end]), ticks * clockTick}, err == nil
}

// holderAlive reports whether the process that a named lock was granted to
// still runs. A later one with the same number started after the grant, or, if
// within the same tick of the clock, not when the lines about the holder say.
func holderAlive(l *lockengine.Lock) bool {
	st, ok := statOf(l.Who.PID)
	started := metaValue(l.Meta, "pstart")
	return ok && st.start <= l.Since.Boot && (started == "" || started == st.ticks())
}

// asker is the process behind a request for a named lock.
type asker struct {
	pid int32  // 0: it lives where we cannot see it
	who string // flat-keyed lines
}

// askers remembers processes that asked a moment ago: a program that takes
// lock after lock is looked at once a second. In between only its command's name
// is read, through a file that stays open: a number that was used again shows by
// an error, and to read it again is a tenth of what it takes to open a file of /proc.
//
// Concurrency: safe for use from any goroutine.
type askers struct {
	mu sync.Mutex
	m  map[int32]askerSeen // by thread
}

type askerSeen struct {
	asker
	comm int // open on its /proc/TID/comm
	name commName
	at   int64 // boot time
}

// commName is what a /proc/PID/comm holds: at most 15 bytes, a line feed, and
// zeros.
type commName [16]byte

const (
	askerFresh = int64(time.Second)
	askersMax  = 64
)

// of describes the process of a thread that waits for our answer.
func (a *askers) of(tid int32, now int64) asker {
	a.mu.Lock()
	seen, known := a.m[tid]
	known = known && now-seen.at < askerFresh && seen.runs()
	a.mu.Unlock()
	if known {
		return seen.asker
	}
	comm, err := openProc(tid, "comm")
	if err != nil {
		return asker{0, describe(0)}
	}
	name, ok := readComm(comm)
	pid := processOf(tid)
	found := asker{pid, describe(pid)}
	if ok {
		a.remember(tid, askerSeen{found, comm, name, now})
	} else {
		_ = unix.Close(comm)
	}
	return found
}

// runs reports whether the thread is still there, and runs the same command.
func (seen *askerSeen) runs() bool {
	name, ok := readComm(seen.comm)
	return ok && name == seen.name
}

func (a *askers) remember(tid int32, seen askerSeen) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.m == nil {
		a.m = map[int32]askerSeen{}
	}
	a.forget(tid)
	if len(a.m) >= askersMax {
		for other, old := range a.m {
			if seen.at-old.at >= askerFresh || len(a.m) >= askersMax {
				a.forget(other) // those that are no use any more, and at least one
			}
		}
	}
	a.m[tid] = seen
}

// forget needs mu.
func (a *askers) forget(tid int32) {
	if old, known := a.m[tid]; known {
		_ = unix.Close(old.comm)
		delete(a.m, tid)
	}
}

// readComm reads a /proc/PID/comm. ok is false when the thread is gone.
func readComm(fd int) (name commName, ok bool) {
	_, err := unix.Pread(fd, name[:], 0)
	return name, err == nil
}

// describe tells of a process, as of now, in flat-keyed lines. What is not
// known is left out.
func describe(pid int32) string {
	var b strings.Builder
	add := func(key, value string) {
		if value != "" {
			b.WriteString(key + " " + value + "\n")
		}
	}
	if st, ok := statOf(pid); ok {
		add("pstart", st.ticks())
	}
	add("command", commandLine(pid))
	if parent, _ := strconv.ParseInt(procField(pid, "PPid"), 10, 32); parent > 0 {
		add("ppid", strconv.FormatInt(parent, 10))
		add("pcommand", commandLine(int32(parent)))
	}
	if uid, err := readProc(pid, "loginuid"); err == nil && string(uid) != "4294967295" {
		add("loginuid", strings.TrimSpace(string(uid)))
	}
	cgroup := cgroupOf(pid)
	add("unit", unitOf(cgroup))
	add("container", containerOf(cgroup))
	host, _ := os.Hostname()
	add("host", printable(host))
	return b.String()
}

var (
	unitPattern      = regexp.MustCompile(`/([^/\n]+\.(?:service|scope))(?:/|\n|$)`)
	containerPattern = regexp.MustCompile(`(?:^|[/:-])([0-9a-f]{64})(?:\.scope)?(?:/|\n|$)`)
)

// cgroupOf is a process's /proc/PID/cgroup.
func cgroupOf(pid int32) string {
	b, _ := readProc(pid, "cgroup")
	return string(b)
}

// unitOf is the innermost systemd unit in a /proc/PID/cgroup.
func unitOf(cgroup string) string {
	m := unitPattern.FindAllStringSubmatch(cgroup, -1)
	if m == nil {
		return ""
	}
	return printable(m[len(m)-1][1])
}

// containerOf is the short id of the container in a /proc/PID/cgroup, as
// docker ps and podman ps show it.
func containerOf(cgroup string) string {
	m := containerPattern.FindStringSubmatch(cgroup)
	if m == nil {
		return ""
	}
	return m[1][:12]
}

// metaValue finds a key in the lines of holderOf.
func metaValue(meta, key string) string {
	for line := range strings.Lines(meta) {
		if v, ok := strings.CutPrefix(line, key+" "); ok {
			return strings.TrimSuffix(v, "\n")
		}
	}
	return ""
}

func userName(uid uint32) string {
	id := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(id); err == nil {
		return printable(u.Username)
	}
	return id
}

// Classify tells POSIX from open file description locks, which look alike on
// the wire: a thread that waits in fcntl(2) shows the command it called with
// (proc_pid_syscall(5)). It is the engine's Config.Classify.
func Classify(_ lockengine.Owner, who lockengine.Who) lockengine.OwnerKind {
	b, err := readProc(who.TID, "syscall")
	f := strings.Fields(string(b))
	if err != nil || len(f) < 3 {
		return lockengine.KindUnknown
	}
	command, err := strconv.ParseUint(strings.TrimPrefix(f[2], "0x"), 16, 64)
	switch {
	case err != nil:
		return lockengine.KindUnknown
	case command == ofdSetlkw:
		return lockengine.KindDescription
	case command == posixSetlkw, command == posixSetlkw64:
		return lockengine.KindProcess
	}
	return lockengine.KindUnknown
}

const (
	posixSetlkw   = 7  // F_SETLKW
	posixSetlkw64 = 14 // F_SETLKW64 of 32-bit programs
	ofdSetlkw     = 38 // F_OFD_SETLKW
)

// processRuns reports whether a process has a thread that is not about to end.
func processRuns(pid int32) bool {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return false
	}
	for _, task := range tasks {
		tid, _ := strconv.ParseInt(task.Name(), 10, 32)
		if _, ok := statOf(int32(tid)); ok {
			return true
		}
	}
	return false
}
