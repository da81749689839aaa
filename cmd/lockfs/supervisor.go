package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"runtime/debug"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// diedAtOnce: a worker that ends sooner after its start has hardly served.
	diedAtOnce = 2 * time.Second
	// killedAtOnce: a worker that is killed sooner had no chance to serve.
	killedAtOnce = 20 * time.Millisecond
	// maxDeaths of this kind in a row: another start would not help either.
	maxDeaths = 5
	// maxUnready in a row that were killed before they served are too many,
	// however long that took: for want of memory, maybe.
	maxUnready = 2 * maxDeaths
	// upgradeLimit is for how long the worker of a new program may take to
	// serve.
	upgradeLimit = 30 * time.Second
	// endPatience is how long the worker may take to end after the unmount.
	endPatience = time.Second
)

// supervisor keeps a mount alive: it holds the connection to the kernel, and
// starts a worker on it whenever there is none. To crash is not for it, so it
// does nothing else. It looks at no path inside the mount: without a worker
// that would not return.
//
// Concurrency: what its goroutines learn they send to run, which alone uses
// the fields; the store is the worker's goroutine's.
type supervisor struct {
	settings string // for the worker: see settings.encode
	mortal   bool   // no worker can go on where one died
	fuse     *os.File
	state    []*os.File // locked, as long as we or a worker live
	program  program    // what workers run
	path     string     // where the next program is looked for
	unmount  func(lazy bool) error
	patient  func()        // unmounts when the mount is no longer busy, or lazily
	announce func()        // the first worker serves
	limit    time.Duration // upgradeLimit
	notify   notifier
	log      *slog.Logger

	store     fdStore
	worker    *worker
	served    bool     // a worker has served: the mount was announced
	lost      *loss    // of the last worker, until another one serves
	deaths    int      // at once, in a row
	unready   int      // died before they served, in a row
	upgrading *upgrade // until the new worker serves, or does not
	ending    bool     // a signal has ended the mount, perhaps lazily
	// terminal: we were started from one.
	terminal bool
}

// loss is when and of what a worker died.
type loss struct {
	why  string
	when time.Time
}

// upgrade is one that goes on.
type upgrade struct {
	old     program
	version string // of old
	done    func(upgraded)
	limit   *time.Timer // kills the new worker
	failed  string      // why the old program is to serve again
}

// worker is a child that serves, or is about to.
type worker struct {
	cmd     *exec.Cmd
	started time.Time
	events  chan event
	ready   bool
	version string
	dropped bool // killed by us, for an upgrade
}

// event is what happens to a worker.
type event struct {
	gone bool   // it has ended; otherwise it is ready
	beat bool   // the mount answers
	text string // its version, or why it says that it failed
}

// run serves until the mount is gone. Its error is the command's.
func (s *supervisor) run(signals <-chan os.Signal, asked <-chan func(upgraded)) error {
	var unmounting chan struct{} // closed when patient has returned
	var lastResort <-chan time.Time
	s.start()
	for {
		select {
		case e := <-s.worker.events:
			if e.beat {
				s.notify.tell("WATCHDOG=1")
			} else if !e.gone {
				s.serving(e.text)
			} else if over, err := s.ended(e.text); over {
				return err
			}
		case done := <-asked:
			s.upgrade(done)
		case sig := <-signals:
			switch {
			case sig == syscall.SIGHUP && !s.hungUp():
				s.upgrade(func(upgraded) {})
			case unmounting == nil && !s.ending:
				s.notify.tell("STOPPING=1")
				unmounting = make(chan struct{})
				go func() {
					defer close(unmounting)
					s.patient()
				}()
			default: // the second one
				s.ending = true
				_ = s.unmount(true)
				s.worker.kill()
			}
		case <-unmounting:
			s.ending, unmounting = true, nil
			lastResort = time.After(endPatience)
		case <-lastResort: // it was busy: its users get ENOTCONN
			s.worker.kill()
		}
	}
}

// start starts a worker. One that cannot be started is gone at once.
func (s *supervisor) start() {
	s.worker = &worker{cmd: s.program.command("mount"), started: time.Now(), events: make(chan event, 2)}
	link, err := s.spawn(s.worker.cmd)
	if err != nil {
		s.worker.events <- event{gone: true, text: err.Error()}
		return
	}
	go s.attend(s.worker, link)
}

// spawn runs a worker's command and returns our end of its link.
func (s *supervisor) spawn(cmd *exec.Cmd) (*net.UnixConn, error) {
	ours, theirs, err := newLink()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	cmd.Env = append(os.Environ(), workerEnv+"="+s.settings)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.ExtraFiles = append([]*os.File{s.fuse, theirs}, s.state...) // see workerFuse
	if err := cmd.Start(); err != nil {
		ours.Close()
		return nil, err
	}
	return ours, nil
}

// attend serves a worker until it has ended and all that it sent was read.
func (s *supervisor) attend(w *worker, link *net.UnixConn) {
	why := ""
	in := newReceiver(link)
	for {
		p, err := in.next()
		if err != nil {
			break
		}
		switch p.kind {
		case msgReady:
			w.events <- event{text: string(p.body)}
		case msgBeat:
			w.events <- event{beat: true}
		case msgFailed:
			why = string(p.body)
		default:
			s.store.serve(link, p)
		}
	}
	link.Close()
	_ = w.cmd.Wait()
	if why == "" {
		why = w.cmd.ProcessState.String()
	}
	w.events <- event{gone: true, text: why}
}

func (w *worker) kill() {
	if w.cmd.Process != nil {
		_ = w.cmd.Process.Kill()
	}
}

// serving: the worker is ready.
func (s *supervisor) serving(version string) {
	w := s.worker
	w.ready, w.version = true, version
	switch {
	case !s.served:
		s.served = true
		s.announce()
		s.notify.tell("READY=1")
		debug.FreeOSMemory() // from here on next to nothing happens
	case s.upgrading != nil:
		u := s.upgrading
		s.upgrading = nil
		if u.failed == "" {
			u.limit.Stop()
			u.old.close()
		}
		s.tell(u.done, upgraded{Old: u.version, New: version, Err: u.failed})
	case s.lost != nil:
		s.log.Warn("the worker died; another one serves", "died", s.lost.why,
			"pid", w.cmd.Process.Pid, "after", time.Since(s.lost.when).Round(time.Millisecond))
	}
	s.lost = nil
}

// ended: the worker is gone. It starts another one, or reports that the mount
// has come to its end.
func (s *supervisor) ended(why string) (over bool, err error) {
	w := s.worker
	switch {
	case s.connectionOver():
		return true, codeOf(w.cmd.ProcessState)
	case s.ending:
		return true, nil
	case w.dropped:
		s.start()
		s.upgrading.limit = time.AfterFunc(s.limit, s.worker.kill)
	case s.upgrading != nil && s.upgrading.failed == "":
		s.revert(why)
	case !s.served:
		s.takeDown()
		return true, w.failure(why)
	case s.mortal:
		s.takeDown()
		return true, fail(exitUnreachable, "the worker died (%s), and without a journal no other can go on: the mount is taken down", why)
	case s.hopeless():
		s.takeDown()
		return true, fail(exitUnreachable, "%d workers in a row ended at once, the last one of: %s; the mount is taken down, "+
			"its timed locks are kept: mend that and mount again", max(s.deaths, s.unready), why)
	default:
		if !w.ready {
			s.log.Error("a worker died before it served", "died", why)
		}
		if s.lost == nil {
			s.lost = &loss{why, time.Now()}
		}
		s.start()
	}
	return false, nil
}

// failure is the error of a worker that ended before it served. Most have said
// why.
func (w *worker) failure(why string) error {
	if err := codeOf(w.cmd.ProcessState); err != nil {
		return err
	}
	return fail(exitUnreachable, "the worker ended before it served: %s", why)
}

// hopeless counts the deaths at once.
func (s *supervisor) hopeless() bool {
	if s.unready++; s.worker.ready {
		s.unready = 0
	}
	if s.deaths++; !s.worker.diedAtOnce() {
		s.deaths = 0
	}
	return s.deaths >= maxDeaths || s.unready >= maxUnready
}

// diedAtOnce: by itself soon after its start, or killed before it could do
// anything. One that is killed later, by somebody or for want of memory, is not
// at fault.
func (w *worker) diedAtOnce() bool {
	lived := time.Since(w.started)
	if signalOf(w.cmd.ProcessState) == syscall.SIGKILL {
		return !w.ready && lived < killedAtOnce
	}
	return lived < diedAtOnce
}

// connectionOver reports whether the filesystem is unmounted, or aborted
// (linux/fs/fuse/dev.c, fuse_dev_poll).
func (s *supervisor) connectionOver() bool {
	p := []unix.PollFd{{Fd: int32(s.fuse.Fd())}}
	_, _ = unix.Poll(p, 0)
	return p[0].Revents&unix.POLLERR != 0
}

// takeDown ends the mount, which no worker serves.
func (s *supervisor) takeDown() {
	s.fuse.Close() // the last one: who waits gets an error, so nothing keeps umount waiting
	if errors.Is(s.unmount(false), syscall.EBUSY) {
		_ = s.unmount(true)
	}
}

// upgrade starts the worker anew from what is now at the program's path.
// Killing the old one is safe at any instant.
func (s *supervisor) upgrade(done func(upgraded)) {
	if s.upgrading != nil || !s.worker.ready {
		s.tell(done, upgraded{Err: "a worker is just being started; ask again"})
		return
	}
	next, err := openProgram(s.path)
	if err != nil {
		s.tell(done, upgraded{Err: err.Error()})
		return
	}
	s.upgrading = &upgrade{old: s.program, version: s.worker.version, done: done}
	s.program = next
	s.worker.dropped = true
	s.worker.kill()
}

// revert goes back to the old program: the new one does not serve.
func (s *supervisor) revert(why string) {
	u := s.upgrading
	u.limit.Stop()
	u.failed = fmt.Sprintf("%s does not serve (%s); the old program goes on", s.path, why)
	s.program.close()
	s.program = u.old
	s.start()
}

// tell says what came of an upgrade.
func (s *supervisor) tell(done func(upgraded), u upgraded) {
	defer done(u)
	if u.Err != "" {
		s.log.Error("upgrade failed", "err", u.Err)
	} else {
		s.log.Info("upgraded", "from", u.Old, "to", u.New)
	}
}

// codeOf is the exit code of a child that has said itself what was wrong; nil
// if it ended well, or by a signal.
func codeOf(p *os.ProcessState) error {
	if p.ExitCode() > 0 {
		return &failure{code: p.ExitCode()}
	}
	return nil
}

// signalOf is the signal that ended a process, or 0.
func signalOf(p *os.ProcessState) syscall.Signal {
	if p == nil {
		return 0
	}
	if status := p.Sys().(syscall.WaitStatus); status.Signaled() {
		return status.Signal()
	}
	return 0
}

// hungUp reports whether a SIGHUP came because our terminal went away, which
// is no wish for an upgrade.
func (s *supervisor) hungUp() bool { return s.terminal && !hasTerminal() }

func hasTerminal() bool {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	tty.Close()
	return true
}
