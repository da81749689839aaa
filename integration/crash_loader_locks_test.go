package integration

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Where the cells of each kind of lock begin on the board, and how many locks of the kind there are.
const (
	recordCells = 0
	ofdCells    = 32
	flockCells  = 64
	mkdirCells  = 80
	takeCells   = 96
	holdCells   = 112

	rangeCount = 24 // bytes of a file
	flockCount = 2
	namedCount = 4
)

// A rangeLocks is one of the two kinds of byte range locks.
type rangeLocks struct {
	file                 string
	setlk, setlkw, getlk int
	cells                int
}

var (
	recordLocks = rangeLocks{"record", unix.F_SETLK, unix.F_SETLKW, unix.F_GETLK, recordCells}
	ofdLocks    = rangeLocks{"ofd", ofdSetlk, ofdSetlkw, ofdGetlk, ofdCells}
)

// A rangeRound is an open file with locks on it.
type rangeRound struct {
	rangeLocks
	*claims
	path string // in the mount
	fd   int
	r    *rand.Rand
}

func (k rangeLocks) round(l *loader, r *rand.Rand) (err error) {
	path := "files/load/" + l.between(k.file)
	fd, err := unix.Open(l.path(path), unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return failed("open", path, err)
	}
	g := rangeRound{k, l.claims(k.cells), path, fd, r}
	defer func() { err = errors.Join(err, g.clear(), failed("close", path, unix.Close(fd))) }()
	for range 8 {
		if err := g.step(); err != nil {
			return err
		}
	}
	if r.IntN(2) == 0 {
		return nil // the close unlocks
	}
	return g.unlock(0, rangeCount)
}

func (g *rangeRound) step() error {
	start := g.r.IntN(rangeCount)
	n := 1 + g.r.IntN(min(6, rangeCount-start))
	switch g.r.IntN(8) {
	case 0, 1:
		return g.unlock(start, n)
	case 2:
		return g.look()
	default:
		return g.lock(start, n, shared+lockMode(g.r.IntN(2)))
	}
}

func (g *rangeRound) fcntl(cmd int, kind int16, start, n int) (unix.Flock_t, error) {
	lock := unix.Flock_t{Type: kind, Start: int64(start), Len: int64(n)}
	return lock, fcntlLock(g.fd, cmd, &lock)
}

// lock waits only when all that is held lies before: then no cycle can close, and EDEADLK is always wrong.
func (g *rangeRound) lock(start, n int, mode lockMode) error {
	cmd := g.setlk
	if start > g.last() && g.r.IntN(2) == 0 {
		cmd = g.setlkw
	}
	weakened, err := g.weaken(start, n, mode)
	if err != nil {
		return err
	}
	kind := map[lockMode]int16{shared: unix.F_RDLCK, exclusive: unix.F_WRLCK}[mode]
	switch _, err := g.fcntl(cmd, kind, start, n); {
	case err == nil:
		return g.cover(start, n, mode)
	case errors.Is(err, unix.EAGAIN) && cmd == g.setlk:
		return g.restore(weakened)
	default:
		return failed(fmt.Sprintf("fcntl(%d) %d+%d", cmd, start, n), g.path, err)
	}
}

// weaken turns the exclusive cells of a range into shared ones before the call that lets others in.
func (g *rangeRound) weaken(start, n int, mode lockMode) (weakened []int, err error) {
	for i := start; mode == shared && i < start+n; i++ {
		if g.in[i] == exclusive {
			weakened = append(weakened, i)
			err = errors.Join(err, g.set(i, shared))
		}
	}
	return weakened, err
}

// restore takes weaken back: the lock was refused, so that nobody was let in.
func (g *rangeRound) restore(weakened []int) (err error) {
	for _, i := range weakened {
		err = errors.Join(err, g.set(i, exclusive))
	}
	return err
}

func (g *rangeRound) cover(start, n int, mode lockMode) (err error) {
	for i := start; i < start+n; i++ {
		err = errors.Join(err, g.set(i, mode))
	}
	if err != nil || g.r.IntN(30) > 0 {
		return err
	}
	from, to := uint64(start), uint64(start+n-1)
	return g.l.requireSeen(lockLine{Class: "record", Path: g.path, Mode: modeName(mode), Start: &from, End: &to})
}

func modeName(mode lockMode) string {
	if mode == exclusive {
		return "exclusive"
	}
	return "shared"
}

func (g *rangeRound) unlock(start, n int) (err error) {
	for i := start; i < start+n; i++ {
		err = errors.Join(err, g.set(i, 0))
	}
	if err != nil {
		return err
	}
	_, err = g.fcntl(g.setlk, unix.F_UNLCK, start, n)
	return failed(fmt.Sprintf("unlock %d+%d", start, n), g.path, err)
}

// look asks who would be in the way of a lock that is held: nobody.
func (g *rangeRound) look() error {
	for i, mode := range g.in {
		kind := map[lockMode]int16{shared: unix.F_RDLCK, exclusive: unix.F_WRLCK}[mode]
		lock, err := g.fcntl(g.getlk, kind, i, 1)
		if err == nil && lock.Type != unix.F_UNLCK {
			return fmt.Errorf("%s getlk %s at %d, which is held here: %+v is in the way", overlapped, g.path, i, lock)
		}
		return failed("getlk", g.path, err)
	}
	return nil
}

// flockRound locks a file, perhaps another way, and lets go.
func flockRound(l *loader, r *rand.Rand) (err error) {
	i := r.IntN(flockCount)
	path := fmt.Sprintf("files/load/%s%d", l.between("flock"), i)
	fd, err := unix.Open(l.path(path), unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return failed("open", path, err)
	}
	c := l.claims(flockCells)
	defer func() { err = errors.Join(err, c.clear(), failed("close", path, unix.Close(fd))) }()
	for range 1 + r.IntN(3) {
		if err := c.flock(fd, i, path, r); err != nil {
			return err
		}
	}
	if r.IntN(2) == 0 {
		return nil
	}
	return errors.Join(c.clear(), failed("flock un", path, unix.Flock(fd, unix.LOCK_UN)))
}

// flock takes or converts a lock. A conversion gives the old lock up before it asks for the new one (flock(2)).
func (c *claims) flock(fd, i int, path string, r *rand.Rand) error {
	mode, how := shared, unix.LOCK_SH
	if r.IntN(2) == 0 {
		mode, how = exclusive, unix.LOCK_EX
	}
	try := r.IntN(2) * unix.LOCK_NB
	if err := c.clear(); err != nil {
		return err
	}
	err := again(func() error { return unix.Flock(fd, how|try) })
	if errors.Is(err, unix.EAGAIN) && try != 0 {
		return failed("flock un", path, unix.Flock(fd, unix.LOCK_UN))
	}
	if err != nil {
		return failed(fmt.Sprintf("flock(%#x)", how|try), path, err)
	}
	if err := c.set(i, mode); err != nil || r.IntN(30) > 0 {
		return err
	}
	return c.l.requireSeen(lockLine{Class: "flock", Path: path, Mode: modeName(mode)})
}

// A timed is a lock of tlock/ that this process took.
type timed struct {
	*claims
	cell  int
	name  string
	token uint64
}

// mkdirRound takes a name that all want, by mkdir.
func mkdirRound(l *loader, r *rand.Rand) error {
	i := r.IntN(namedCount)
	lock := &timed{l.claims(mkdirCells), i, l.between(fmt.Sprint("shared", i)), 0}
	asked := lock.name + []string{"", "+5m", "+90.5"}[r.IntN(3)]
	err := unix.Mkdir(l.path("tlock", asked), 0o755)
	if errors.Is(err, unix.EEXIST) {
		return lock.requireOthers()
	}
	if err != nil {
		return failed("mkdir", "tlock/"+asked, err)
	}
	return lock.use(r, true)
}

// requireOthers checks after EEXIST that the lock is not this process's own: a loader takes each name in one thread.
func (k *timed) requireOthers() error {
	path := k.l.path("tlock", k.name, "holder")
	text, err := os.ReadFile(path)
	if errors.Is(err, unix.ENOENT) {
		return nil // released meanwhile
	}
	if err == nil && slices.Contains(strings.Split(string(text), "\n"), fmt.Sprint("pid ", os.Getpid())) {
		return fmt.Errorf("mkdir tlock/%s: EEXIST, and the holder is the one who asked:\n%s", k.name, text)
	}
	return failed("read", path, err)
}

// use checks a lock just taken and gives it back. mkdir says that mkdir took it, which has told no token yet.
func (k *timed) use(r *rand.Rand, mkdir bool) (err error) {
	byName := k.l.path("tlock", k.name)
	released := false
	defer func() {
		if !released {
			err = errors.Join(err, k.clear(), failed("rmdir", byName, unix.Rmdir(byName)))
		}
	}()
	if err := k.set(k.cell, exclusive); err != nil {
		return err
	}
	if mkdir {
		if k.token, err = readToken(byName+"/token", -1); err != nil {
			return err
		}
	}
	exact := fmt.Sprintf("%s@%d", byName, k.token)
	if err := k.check(r, byName, exact); err != nil {
		return err
	}
	released = true
	return errors.Join(k.clear(), failed("rmdir", exact, unix.Rmdir(exact)))
}

func (k *timed) check(r *rand.Rand, byName, exact string) error {
	var st unix.Stat_t
	if err := unix.Stat(exact, &st); err != nil {
		return failed("stat", exact, err)
	}
	if err := unix.Mkdir(byName, 0o755); !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("%s mkdir of what is held: %s", overlapped, errnoName(err))
	}
	if r.IntN(3) == 0 {
		if err := writeText(exact+"/timeout", "7m\n"); err != nil {
			return failed("renew", exact, err)
		}
		if text, err := readText(exact + "/timeout"); err != nil || text != "420" {
			return fmt.Errorf("renewed for 7m: read %s/timeout: %q %s", exact, text, errnoName(err))
		}
	}
	if r.IntN(30) > 0 {
		return nil
	}
	return k.l.requireSeen(lockLine{Class: "named", Path: "tlock/" + k.name, Token: k.token})
}

// ownNameRound takes names that nobody else takes: each call has to succeed.
func ownNameRound(l *loader, r *rand.Rand) error {
	name := fmt.Sprintf("own%d-%d", l.id, r.IntN(2))
	path := l.path("tlock", name)
	if err := unix.Mkdir(path, 0o755); err != nil {
		return failed("mkdir", path, err)
	}
	first, err := readToken(path+"/token", -1)
	if err != nil {
		return err
	}
	if err := unix.Rmdir(path); err != nil {
		return failed("rmdir", path, err)
	}
	old := fmt.Sprintf("%s@%d", path, first)
	if err := unix.Rmdir(old); !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("rmdir %s, released before: %s", old, errnoName(err))
	}
	if r.IntN(2) == 0 {
		return l.holdOwn(name, first)
	}
	if err := unix.Mkdir(path+"+90s", 0o755); err != nil {
		return failed("mkdir", path+"+90s", err)
	}
	second, err := readToken(path+"/token", -1)
	if err == nil && second <= first {
		err = fmt.Errorf("the token of %s fell from %d to %d", path, first, second)
	}
	return errors.Join(err, failed("rmdir", path, unix.Rmdir(path)))
}

// holdOwn holds a free name twice: the close frees it at once.
func (l *loader) holdOwn(name string, before uint64) error {
	path := l.path("hold", name)
	for range 2 {
		fd, err := openAgain(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC)
		if err != nil {
			return failed("open", path, err)
		}
		token, err := readToken(path, fd)
		if err == nil && token <= before {
			err = fmt.Errorf("the token of %s fell from %d to %d", path, before, token)
		}
		if err = errors.Join(err, failed("close", path, unix.Close(fd))); err != nil {
			return err
		}
		before = token
	}
	return nil
}

// briefRound sees a lock out.
func briefRound(l *loader, _ *rand.Rand) error {
	path := l.path("tlock", fmt.Sprintf("brief%d", l.id))
	if err := unix.Mkdir(path+"+0.2", 0o755); err != nil {
		return failed("mkdir", path+"+0.2", err)
	}
	fd, err := openAgain(path+"/wait", unix.O_RDONLY|unix.O_CLOEXEC)
	if errors.Is(err, unix.ENOENT) {
		return nil // it is over already
	}
	if err != nil {
		return failed("open", path+"/wait", err)
	}
	defer unix.Close(fd)
	buf, n := make([]byte, 64), 0
	err = again(func() error { n, err = unix.Read(fd, buf); return err })
	if err == nil && string(buf[:n]) != "expired\n" {
		return fmt.Errorf("read %s/wait: %q", path, buf[:n])
	}
	if err != nil {
		return failed("read", path+"/wait", err)
	}
	if err := unix.Rmdir(path); !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("rmdir %s after its end: %s", path, errnoName(err))
	}
	return nil
}

// takeRound waits its turn for a name that all want, and reads its token or does not.
func takeRound(l *loader, r *rand.Rand) error {
	i := r.IntN(namedCount)
	name := l.between(fmt.Sprint("taken", i))
	path := l.path("take", name+"+5m")
	flags := unix.O_RDONLY | unix.O_CLOEXEC
	if r.IntN(3) == 0 {
		flags |= unix.O_NONBLOCK
	} else {
		path += ",wait=100"
	}
	fd, err := openAgain(path, flags)
	if errors.Is(err, unix.EAGAIN) && flags&unix.O_NONBLOCK != 0 {
		return nil
	}
	if err != nil {
		return failed("open", path, err)
	}
	if r.IntN(5) == 0 {
		return failed("close", path, unix.Close(fd)) // unread, so that it is released
	}
	lock := &timed{l.claims(takeCells), i, name, 0}
	lock.token, err = readToken(path, fd)
	if err == nil && r.IntN(2) == 0 {
		err, fd = failed("close", path, unix.Close(fd)), -1
	}
	if err == nil {
		err = lock.use(r, false)
	}
	if fd >= 0 {
		err = errors.Join(err, failed("close", path, unix.Close(fd)))
	}
	return err
}

// holdRound waits its turn for a name that all want, and holds it while a file is open.
func holdRound(l *loader, r *rand.Rand) (err error) {
	i := r.IntN(namedCount)
	name := l.between(fmt.Sprint("held", i))
	path, flags := l.path("hold", name), unix.O_RDONLY|unix.O_CLOEXEC
	if r.IntN(3) == 0 {
		flags |= unix.O_NONBLOCK
	}
	fd, err := openAgain(path, flags)
	if errors.Is(err, unix.EAGAIN) && flags&unix.O_NONBLOCK != 0 {
		return nil
	}
	if err != nil {
		return failed("open", path, err)
	}
	c := l.claims(holdCells)
	defer func() { err = errors.Join(err, c.clear(), failed("close", path, unix.Close(fd))) }()
	if err := c.set(i, exclusive); err != nil || r.IntN(2) == 0 {
		return err
	}
	token, err := readToken(path, fd)
	if err != nil {
		return err
	}
	exact := l.path("tlock", fmt.Sprintf("%s@%d", name, token))
	var st unix.Stat_t
	if err := unix.Stat(exact, &st); err != nil || r.IntN(30) > 0 {
		return failed("stat", exact, err)
	}
	return l.requireSeen(lockLine{Class: "named", Path: "tlock/" + name, Token: token})
}
