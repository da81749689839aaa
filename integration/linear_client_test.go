package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A linearPlan is what one client of a linearizability test does: random calls on each object, in a thread for each,
// which has no more than one call under way. All that it locks is locked on this one object, and it waits only for
// what comes after all that it holds there, so that no cycle of waits can close.
type linearPlan struct {
	Mount     string
	Histories string // the directory, outside the mount
	Client    int
	Objects   []linearObject
	linearPace
}

// A linearPace is how much goes on at once: with more than 8 clients on an object most of them wait most of the time,
// and the checks take long.
type linearPace struct {
	Sharing int           // clients that share an object
	Pause   time.Duration // the longest between two calls of a client on an object
	Plain   bool          // files are locked exclusively only, and never waited for
}

// A linearObject is a file with locks, or the name of a lock.
type linearObject struct{ Kind, Name string }

// A linearCall is a call as it was made. Which fields count depends on Op.
type linearCall struct {
	Op       string
	Client   int
	Owner    int      `json:",omitempty"` // of the client's: recordOwner, or that of a descriptor
	Mode     lockMode `json:",omitempty"`
	Start    int      `json:",omitempty"`
	End      int      `json:",omitempty"` // exclusive
	Wait     bool     `json:",omitempty"`
	Converts bool     `json:",omitempty"` // a flock held in the other mode, which is given up first
	Grant    uint64   `json:",omitempty"` // number of the call that took the named lock
	Token    uint64   `json:",omitempty"`
}

// A linearAnswer is what came back. A call that was never answered has none.
type linearAnswer struct {
	OK    bool     `json:",omitempty"` // done; granted; nothing in the way; it is held
	Token uint64   `json:",omitempty"` // that was read
	Mode  lockMode `json:",omitempty"` // what is in the way, and where
	Start int      `json:",omitempty"`
	End   int      `json:",omitempty"`
	PID   int      `json:",omitempty"` // whose it is; 0: not told
}

// The owners of locks that a client is on one file, and how many it can be.
const (
	recordOwner    = 0 // of the process
	firstOwner     = 1 // of its first open file description
	ownersOfClient = 3
)

// linearBytes is how many bytes of a file are locked.
const linearBytes = 3

// A history is what one client does on one object. Each line is written before what it tells of goes on, so that a
// kill loses nothing: `c TIME CALL`, then `r TIME ANSWER`.
type history struct{ file *os.File }

func historyPath(dir string, object linearObject, client int) string {
	return filepath.Join(dir, fmt.Sprintf("%s.%d", object.Name, client))
}

func (h *history) write(what string, at uint64, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(h.file, "%s %d %s\n", what, at, text)
	return err
}

// do makes a call and writes down how it went. no are the errors that are answers.
func (h *history) do(c linearCall, f func() (linearAnswer, error), no ...error) (answer linearAnswer, err error) {
	if err := h.write("c", monotonic(), c); err != nil {
		return answer, err
	}
	answer, err = f()
	at := monotonic()
	for _, expected := range no {
		if errors.Is(err, expected) {
			err, answer.OK = nil, false
		}
	}
	if err != nil {
		text, _ := json.Marshal(c)
		return answer, failed(string(text), h.file.Name(), err)
	}
	return answer, h.write("r", at, answer)
}

// done is the answer of a call that says nothing but that it worked.
func done(err error) (linearAnswer, error) { return linearAnswer{OK: err == nil}, err }

// linearMain takes the argument PLAN. It works until its standard input ends.
func linearMain() error {
	var plan linearPlan
	if err := json.Unmarshal([]byte(os.Args[1]), &plan); err != nil {
		return err
	}
	var rest atomic.Bool
	var work sync.WaitGroup
	errs := make([]error, len(plan.Objects))
	for i, object := range plan.Objects {
		r := rand.New(rand.NewPCG(uint64(plan.Client), uint64(i)))
		work.Go(func() { errs[i] = plan.work(object, r, &rest) })
	}
	_, err := io.Copy(io.Discard, os.Stdin)
	rest.Store(true)
	work.Wait()
	return errors.Join(append(errs, err)...)
}

// A linearUser makes random calls on an object, and at the end gives back what it can.
type linearUser interface {
	step() error
	finish() error
}

func (p *linearPlan) work(object linearObject, r *rand.Rand, rest *atomic.Bool) error {
	file, err := os.Create(historyPath(p.Histories, object, p.Client))
	if err != nil {
		return err
	}
	defer file.Close()
	user, err := p.user(object, &history{file: file}, r)
	if err != nil {
		return err
	}
	for !rest.Load() {
		if err := user.step(); err != nil {
			return err
		}
		time.Sleep(time.Duration(r.Int64N(int64(p.Pause))))
	}
	return user.finish()
}

func (p *linearPlan) user(object linearObject, h *history, r *rand.Rand) (linearUser, error) {
	if object.Kind == "named" {
		return &namedUser{h: h, r: r, client: p.Client, mount: p.Mount, name: object.Name, fd: -1}, nil
	}
	u := &fileUser{h: h, r: r, client: p.Client, flock: object.Kind == "flock", plain: p.Plain, owners: ownersOf[object.Kind],
		path: filepath.Join(p.Mount, "files", object.Name)}
	for i := range u.fds {
		if err := u.open(i); err != nil {
			return nil, err
		}
	}
	return u, nil
}

// ownersOf says which of its owners a client uses on a file of each kind.
var ownersOf = map[string][]int{
	"fcntl": {recordOwner, firstOwner, firstOwner + 1}, // no more than one file: EDEADLK goes by process
	"ofd":   {firstOwner, firstOwner + 1},
	"flock": {firstOwner, firstOwner + 1},
}

// A fileUser locks a file, which it has open twice.
type fileUser struct {
	h      *history
	r      *rand.Rand
	client int
	flock  bool
	plain  bool
	owners []int
	path   string
	fds    [ownersOfClient - firstOwner]int
	held   [ownersOfClient][linearBytes]lockMode // as far as this client can tell; a flock is on byte 0
}

func (u *fileUser) open(i int) (err error) {
	u.fds[i], err = openAgain(u.path, unix.O_RDWR|unix.O_CLOEXEC)
	return failed("open", u.path, err)
}

func (u *fileUser) step() error {
	c := linearCall{Client: u.client, Owner: u.owners[u.r.IntN(len(u.owners))], Mode: shared + lockMode(u.r.IntN(2)), End: 1}
	if u.plain {
		c.Mode = exclusive
	}
	if !u.flock {
		c.Start = u.r.IntN(linearBytes)
		c.End = c.Start + 1 + u.r.IntN(linearBytes-c.Start)
	}
	switch n := u.r.IntN(16); {
	case n < 4 && u.holds(c), n == 4:
		c.Op = "unlock"
		return u.unlock(c)
	case n < 13:
		c.Op = "lock"
		c.Wait = n < 8 && !u.plain && u.mayWait(c)
		return u.lock(c)
	case n < 15 && !u.flock:
		c.Op = "test"
		_, err := u.h.do(c, func() (linearAnswer, error) { return u.test(c) })
		return err
	default:
		i := u.r.IntN(len(u.fds))
		return errors.Join(u.close(i), u.open(i))
	}
}

// holds: a part of what would be unlocked is held.
func (u *fileUser) holds(c linearCall) bool {
	return slices.Max(u.held[c.Owner][c.Start:c.End]) != 0
}

// mayWait: nothing is held at or after what is asked for. A flock is given up before the wait for it in another mode.
func (u *fileUser) mayWait(c linearCall) bool {
	for owner, bytes := range u.held {
		for i, mode := range bytes {
			if mode != 0 && i >= c.Start && !(u.flock && owner == c.Owner) {
				return false
			}
		}
	}
	return true
}

// fd is a descriptor that locks as the owner.
func (u *fileUser) fd(owner int) int {
	if owner == recordOwner {
		return u.fds[u.r.IntN(len(u.fds))]
	}
	return u.fds[owner-firstOwner]
}

func (u *fileUser) lock(c linearCall) error {
	before := u.held[c.Owner][0]
	c.Converts = u.flock && before != 0 && before != c.Mode
	answer, err := u.h.do(c, func() (linearAnswer, error) { return done(u.set(c, c.Mode)) }, u.refusals(c)...)
	switch {
	case err != nil:
		return err
	case answer.OK:
		u.hold(c, c.Mode)
	case c.Converts:
		u.hold(c, 0)
	}
	return nil
}

// refusals are the errors that say that another has the lock. Who waits is never told so.
func (u *fileUser) refusals(c linearCall) []error {
	if c.Wait {
		return nil
	}
	return []error{unix.EAGAIN}
}

func (u *fileUser) hold(c linearCall, mode lockMode) {
	for i := c.Start; i < c.End; i++ {
		u.held[c.Owner][i] = mode
	}
}

func (u *fileUser) unlock(c linearCall) error {
	u.hold(c, 0)
	_, err := u.h.do(c, func() (linearAnswer, error) { return done(u.set(c, 0)) })
	return err
}

// set makes the system call; mode 0 unlocks.
func (u *fileUser) set(c linearCall, mode lockMode) error {
	if u.flock {
		how := map[lockMode]int{0: unix.LOCK_UN, shared: unix.LOCK_SH, exclusive: unix.LOCK_EX}[mode]
		if !c.Wait {
			how |= unix.LOCK_NB
		}
		return again(func() error { return unix.Flock(u.fd(c.Owner), how) })
	}
	cmd := ofdSetlk
	switch {
	case c.Owner == recordOwner && c.Wait:
		cmd = unix.F_SETLKW
	case c.Owner == recordOwner:
		cmd = unix.F_SETLK
	case c.Wait:
		cmd = ofdSetlkw
	}
	lock := unix.Flock_t{Type: fcntlTypes[mode], Start: int64(c.Start), Len: int64(c.End - c.Start)}
	return fcntlLock(u.fd(c.Owner), cmd, &lock)
}

var fcntlTypes = map[lockMode]int16{0: unix.F_UNLCK, shared: unix.F_RDLCK, exclusive: unix.F_WRLCK}

func (u *fileUser) test(c linearCall) (linearAnswer, error) {
	cmd := ofdGetlk
	if c.Owner == recordOwner {
		cmd = unix.F_GETLK
	}
	lock := unix.Flock_t{Type: fcntlTypes[c.Mode], Start: int64(c.Start), Len: int64(c.End - c.Start)}
	err := fcntlLock(u.fd(c.Owner), cmd, &lock)
	if err != nil || lock.Type == unix.F_UNLCK {
		return done(err)
	}
	mode := shared
	if lock.Type == unix.F_WRLCK {
		mode = exclusive
	}
	return linearAnswer{Mode: mode, Start: int(lock.Start), End: int(lock.Start + lock.Len), PID: int(max(lock.Pid, 0))}, nil
}

// close drops the locks of the description, and all record locks of the process.
func (u *fileUser) close(i int) error {
	c := linearCall{Op: "close", Client: u.client, Owner: firstOwner + i}
	clear(u.held[recordOwner][:])
	clear(u.held[c.Owner][:])
	_, err := u.h.do(c, func() (linearAnswer, error) { return done(unix.Close(u.fds[i])) })
	return err
}

func (u *fileUser) finish() error { return errors.Join(u.close(0), u.close(1)) }

// A namedUser takes, looks at, renews and releases a timed lock or hold in all ways.
type namedUser struct {
	h      *history
	r      *rand.Rand
	client int
	mount  string
	name   string

	calls uint64
	grant uint64 // number of the call that took what this client has, as far as it can tell
	kind  string // mkdir, take or hold
	token uint64 // of it, or of what it had before
	read  bool   // the token is that of grant
	fd    int    // its handle, unless it is closed
}

// longTimeout is one that does not run out in a test.
const longTimeout = "+1h"

func (u *namedUser) step() error {
	if u.grant == 0 {
		return u.pick(u.mkdir, u.mkdir, u.takeOrHold, u.takeOrHold, u.takeOrHold, u.exists, u.releaseAny,
			u.isMine, u.renew, u.release)
	}
	if !u.read {
		return u.pick(u.readToken, u.readToken, u.readToken, u.mkdir, u.close, u.exists)
	}
	return u.pick(u.isMine, u.isMine, u.renew, u.renew, u.mkdir, u.exists, u.close, u.readToken, u.release, u.release)
}

func (u *namedUser) pick(steps ...func() error) error { return steps[u.r.IntN(len(steps))]() }

func (u *namedUser) path(dir, suffix string) string {
	return filepath.Join(u.mount, dir, u.name+suffix)
}

func (u *namedUser) exact() string { return fmt.Sprintf("%s@%d", u.path("tlock", ""), u.token) }

// call makes a call of this client's.
func (u *namedUser) call(op string, f func() (linearAnswer, error), no ...error) (linearAnswer, error) {
	return u.h.do(linearCall{Op: op, Client: u.client, Grant: u.grant, Token: u.token}, f, no...)
}

// takes makes a call that can take the lock.
func (u *namedUser) takes(kind string, f func() (linearAnswer, error), no ...error) error {
	u.calls++
	c := linearCall{Op: kind, Client: u.client, Grant: uint64(u.client)<<32 | u.calls}
	answer, err := u.h.do(c, f, no...)
	if answer.OK {
		u.grant, u.kind, u.read = c.Grant, kind, false
	}
	return err
}

func (u *namedUser) mkdir() error {
	if u.fd >= 0 { // its handle first: there is but one
		return u.close()
	}
	return u.takes("mkdir", func() (linearAnswer, error) {
		return done(unix.Mkdir(u.path("tlock", longTimeout), 0o755))
	}, unix.EEXIST)
}

// takeOrHold tries or waits, never for long: what a killed client took by mkdir is released by nobody but releaseAny.
func (u *namedUser) takeOrHold() error {
	kind, suffix := "hold", ""
	if u.r.IntN(2) == 0 {
		kind, suffix = "take", longTimeout
	}
	flags := unix.O_RDONLY | unix.O_CLOEXEC
	if u.r.IntN(2) == 0 {
		flags |= unix.O_NONBLOCK
	} else {
		suffix += fmt.Sprintf(",wait=0.%d", 1+u.r.IntN(3))
	}
	return u.takes(kind, func() (linearAnswer, error) {
		fd, err := openAgain(u.path(kind, suffix), flags)
		u.fd = fd
		return done(err)
	}, unix.EAGAIN, unix.ETIMEDOUT)
}

// readToken reads it from the handle or, without one, by name.
func (u *namedUser) readToken() error {
	op, path := "read "+u.kind, ""
	if u.fd < 0 {
		op, path = "token", u.path("tlock", "/token")
	}
	answer, err := u.call(op, func() (linearAnswer, error) {
		token, err := readTokenAgain(path, u.fd)
		return linearAnswer{OK: err == nil, Token: token}, err
	}, unix.ENOENT, unix.EIO)
	if err != nil {
		return err
	}
	if !answer.OK {
		return u.forget()
	}
	u.token, u.read = answer.Token, true
	return nil
}

// readTokenAgain reads a token from the beginning of an open file, or of the one at path.
func readTokenAgain(path string, fd int) (token uint64, err error) {
	if fd < 0 {
		if fd, err = openAgain(path, unix.O_RDONLY|unix.O_CLOEXEC); err != nil {
			return 0, err
		}
		defer unix.Close(fd)
	}
	buf, n := make([]byte, 64), 0
	if err := again(func() error { n, err = unix.Pread(fd, buf, 0); return err }); err != nil {
		return 0, err
	}
	_, err = fmt.Sscanf(string(buf[:n]), "%d\n", &token)
	return token, err
}

func (u *namedUser) exists() error {
	_, err := u.call("exists", func() (linearAnswer, error) { return done(statAgain(u.path("tlock", ""))) }, unix.ENOENT)
	return err
}

func (u *namedUser) isMine() error {
	_, err := u.call("is mine", func() (linearAnswer, error) { return done(statAgain(u.exact())) }, unix.ENOENT)
	return err
}

func statAgain(path string) error {
	var st unix.Stat_t
	return again(func() error { return unix.Stat(path, &st) })
}

func (u *namedUser) renew() error {
	_, err := u.call("renew", func() (linearAnswer, error) {
		return done(writeText(u.exact()+"/timeout", longTimeout[1:]+"\n"))
	}, unix.ENOENT)
	return err
}

// release releases by token: what this client has, or what it had, which must do nothing.
func (u *namedUser) release() error {
	_, err := u.call("release", func() (linearAnswer, error) { return done(unix.Rmdir(u.exact())) }, unix.ENOENT)
	return errors.Join(err, u.forget())
}

// releaseAny releases by force what anyone has.
func (u *namedUser) releaseAny() error {
	_, err := u.call("release any", func() (linearAnswer, error) { return done(unix.Rmdir(u.path("tlock", ""))) }, unix.ENOENT)
	return err
}

// close closes the handle. A take whose token was read is held on.
func (u *namedUser) close() error {
	if u.fd < 0 {
		return nil
	}
	fd := u.fd
	u.fd = -1
	_, err := u.call("close", func() (linearAnswer, error) { return done(unix.Close(fd)) })
	if u.kind == "hold" || !u.read {
		u.grant = 0
	}
	return err
}

// forget is for a lock that ended; its handle is of no more use.
func (u *namedUser) forget() error {
	err := u.close()
	u.grant = 0
	return err
}

func (u *namedUser) finish() error {
	switch {
	case u.grant == 0:
		return nil
	case u.read:
		return u.release()
	case u.fd >= 0:
		return u.close()
	default:
		return u.releaseAny()
	}
}
