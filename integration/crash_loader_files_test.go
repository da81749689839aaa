package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// A fileRound is what a loader does with one file of its own, in its working directory.
type fileRound struct {
	r    *rand.Rand
	name string
	fd   int
	text []byte // what has to be in it
	ino  uint64
}

// filesRound makes a file, changes it in every way, and removes it while it is open.
func filesRound(l *loader, r *rand.Rand) (err error) {
	f := &fileRound{r: r, name: fmt.Sprintf("f%d", r.IntN(1000)), fd: -1}
	defer func() {
		if f.fd >= 0 {
			err = errors.Join(err, failed("close", f.name, unix.Close(f.fd)))
		}
		if err != nil {
			unix.Unlink(f.name)
		}
	}()
	for _, step := range []func() error{f.create, f.write, f.rename, f.link, f.appendMore, f.reopen, f.attributes,
		f.directory, f.symlink, f.replace, f.unlink, f.useUnlinked, f.tmpfile} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func (f *fileRound) create() (err error) {
	if f.fd, err = unix.Open(f.name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o644); err != nil {
		return failed("create", f.name, err)
	}
	st, err := f.stat(0)
	f.ino = st.Ino
	return err
}

// stat checks the size and, once it is known, the node number of the open file.
func (f *fileRound) stat(size int) (st unix.Stat_t, err error) {
	if err := unix.Fstat(f.fd, &st); err != nil {
		return st, failed("fstat", f.name, err)
	}
	if st.Size != int64(size) || f.ino != 0 && st.Ino != f.ino {
		return st, fmt.Errorf("fstat %s: size %d, should be %d; node %d, was %d", f.name, st.Size, size, st.Ino, f.ino)
	}
	return st, nil
}

// some is text to write.
func (f *fileRound) some() []byte {
	text := make([]byte, 1+f.r.IntN(20000))
	for i := 0; i < len(text); i += 64 { // not all of it, for speed
		text[i] = byte(f.r.Uint32())
	}
	return text
}

func (f *fileRound) write() error {
	f.text = f.some()
	if n, err := unix.Write(f.fd, f.text); err != nil || n != len(f.text) {
		return fmt.Errorf("write %s: %d of %d, %s", f.name, n, len(f.text), errnoName(err))
	}
	_, err := f.stat(len(f.text))
	return err
}

func (f *fileRound) rename() error {
	to := "renamed-" + f.name
	if err := unix.Renameat2(unix.AT_FDCWD, f.name, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE); err != nil {
		return failed("rename without replacing to", to, err)
	}
	old := f.name
	f.name = to
	var st unix.Stat_t
	if err := unix.Stat(old, &st); !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("stat %s after it was renamed: %s", old, errnoName(err))
	}
	if err := unix.Stat(to, &st); err != nil || st.Ino != f.ino {
		return fmt.Errorf("stat %s: %s, node %d, was %d", to, errnoName(err), st.Ino, f.ino)
	}
	return nil
}

func (f *fileRound) link() error {
	other := "linked-" + f.name
	if err := unix.Link(f.name, other); err != nil {
		return failed("link to", other, err)
	}
	st, err := f.stat(len(f.text))
	if err == nil && st.Nlink != 2 {
		err = fmt.Errorf("fstat %s: %d links after link", f.name, st.Nlink)
	}
	return errors.Join(err, failed("unlink", other, unix.Unlink(other)))
}

func (f *fileRound) appendMore() error {
	fd, err := unix.Open(f.name, unix.O_WRONLY|unix.O_APPEND|unix.O_CLOEXEC, 0)
	if err != nil {
		return failed("open to append", f.name, err)
	}
	more := f.some()
	f.text = append(f.text, more...)
	if n, err := unix.Write(fd, more); err != nil || n != len(more) {
		return errors.Join(fmt.Errorf("append to %s: %d of %d, %s", f.name, n, len(more), errnoName(err)), unix.Close(fd))
	}
	if err := unix.Close(fd); err != nil {
		return failed("close", f.name, err)
	}
	return f.compare(f.fd)
}

// reopen reads the file by another description.
func (f *fileRound) reopen() error {
	fd, err := unix.Open(f.name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return failed("open", f.name, err)
	}
	return errors.Join(f.compare(fd), failed("close", f.name, unix.Close(fd)))
}

func (f *fileRound) compare(fd int) error {
	buf := make([]byte, len(f.text)+1)
	n := 0
	for {
		k, err := unix.Pread(fd, buf[n:], int64(n))
		if err != nil {
			return failed("read", f.name, err)
		}
		if n += k; k == 0 || n == len(buf) {
			break
		}
	}
	if !bytes.Equal(buf[:n], f.text) {
		return fmt.Errorf("read %s: %d bytes, not the %d that were written", f.name, n, len(f.text))
	}
	return nil
}

func (f *fileRound) attributes() error {
	if err := unix.Fchmod(f.fd, 0o640); err != nil {
		return failed("fchmod", f.name, err)
	}
	st, err := f.stat(len(f.text))
	if err == nil && st.Mode&0o777 != 0o640 {
		err = fmt.Errorf("fstat %s: mode %o", f.name, st.Mode)
	}
	f.text = f.text[:len(f.text)/2]
	return errors.Join(err, failed("ftruncate", f.name, unix.Ftruncate(f.fd, int64(len(f.text)))), f.compare(f.fd))
}

func (f *fileRound) directory() error {
	dir := "dir-" + f.name
	if err := unix.Mkdir(dir, 0o755); err != nil {
		return failed("mkdir", dir, err)
	}
	inner, outer := dir+"/"+f.name, f.name
	err := errors.Join(failed("rename to", inner, unix.Rename(outer, inner)),
		failed("rename to", outer, unix.Rename(inner, outer)))
	return errors.Join(err, failed("rmdir", dir, unix.Rmdir(dir)))
}

func (f *fileRound) symlink() error {
	link := "link-" + f.name
	if err := unix.Symlink(f.name, link); err != nil {
		return failed("symlink", link, err)
	}
	to, err := os.Readlink(link)
	if err == nil && to != f.name {
		err = fmt.Errorf("readlink %s: %q", link, to)
	}
	return errors.Join(failed("readlink", link, err), failed("unlink", link, unix.Unlink(link)))
}

// replace renames the file over another that is open.
func (f *fileRound) replace() error {
	to := "replaced-" + f.name
	fd, err := unix.Open(to, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return failed("create", to, err)
	}
	old := &fileRound{r: f.r, name: to, fd: fd}
	err = old.write()
	if err == nil {
		err = failed("rename over", to, unix.Rename(f.name, to))
		f.name = to
	}
	if err == nil {
		err = old.compare(fd)
	}
	return errors.Join(err, failed("close", to, unix.Close(fd)))
}

func (f *fileRound) unlink() error {
	if err := unix.Unlink(f.name); err != nil {
		return failed("unlink", f.name, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(f.name, &st); !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("stat %s after unlink: %s", f.name, errnoName(err))
	}
	return nil
}

func (f *fileRound) useUnlinked() error {
	st, err := f.stat(len(f.text))
	if err == nil && st.Nlink != 0 {
		err = fmt.Errorf("fstat %s: %d links after unlink", f.name, st.Nlink)
	}
	more := f.some()
	if _, werr := unix.Pwrite(f.fd, more, int64(len(f.text))); werr != nil {
		return errors.Join(err, failed("write to the unlinked", f.name, werr))
	}
	f.text = append(f.text, more...)
	return errors.Join(err, f.compare(f.fd))
}

// tmpfile makes a file without a name. Not every backing filesystem can.
func (f *fileRound) tmpfile() error {
	fd, err := unix.Open(".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	if err != nil {
		return failed("open O_TMPFILE", ".", err)
	}
	t := &fileRound{r: f.r, name: "O_TMPFILE", fd: fd}
	err = t.write()
	if err == nil {
		err = t.compare(fd)
	}
	return errors.Join(err, failed("close", t.name, unix.Close(fd)))
}

// A line of the file that all append to: who, and how many before.
const appendedFormat = "%03d %08d %16s\n"

// appendRound adds a line to a file that all add to, and counts it once it is there.
func appendRound(l *loader, _ *rand.Rand) error {
	const path = "files/load/log"
	fd, err := unix.Open(l.path(path), unix.O_WRONLY|unix.O_APPEND|unix.O_CLOEXEC, 0)
	if err != nil {
		return failed("open", path, err)
	}
	l.mu.Lock()
	before := l.counts["append"]
	l.mu.Unlock()
	line := fmt.Sprintf(appendedFormat, l.id, before, "")
	if n, err := unix.Write(fd, []byte(line)); err != nil || n != len(line) {
		unix.Close(fd)
		return fmt.Errorf("append to %s: %d of %d, %s", path, n, len(line), errnoName(err))
	}
	return failed("close", path, unix.Close(fd))
}

// manyFiles are in the directory that readdirRound reads, named by manyName.
const manyFiles = 800

func manyName(i int) string { return fmt.Sprintf("entry-%04d", i) }

// readdirRound reads a large directory in small pieces: each name is there once.
func readdirRound(l *loader, r *rand.Rand) (err error) {
	const path = "files/load/many"
	fd, err := unix.Open(l.path(path), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return failed("open", path, err)
	}
	defer func() { err = errors.Join(err, failed("close", path, unix.Close(fd))) }()
	seen := make(map[string]int)
	buf := make([]byte, 512+r.IntN(4096))
	for {
		n, err := unix.ReadDirent(fd, buf)
		if err != nil {
			return failed("getdents", path, err)
		}
		if n == 0 {
			break
		}
		_, _, names := unix.ParseDirent(buf[:n], -1, nil)
		for _, name := range names {
			seen[name]++
		}
	}
	for i := range manyFiles {
		if n := seen[manyName(i)]; n != 1 {
			return fmt.Errorf("getdents %s: %s is there %d times", path, manyName(i), n)
		}
	}
	if len(seen) != manyFiles {
		return fmt.Errorf("getdents %s: %d names instead of %d", path, len(seen), manyFiles)
	}
	return nil
}

// lookRound reads what can be read.
func lookRound(l *loader, r *rand.Rand) error {
	for _, look := range []func(*rand.Rand) error{l.lookAtViews, l.lookAtLocks} {
		if err := look(r); err != nil {
			return err
		}
	}
	return nil
}

func (l *loader) lookAtViews(r *rand.Rand) error {
	for name, begins := range map[string]string{
		"view/locks": "CLASS", "view/stats": "held_named ", "view/graph.dot": "digraph", "README": "",
		fmt.Sprintf("view/pid/%d", os.Getpid()): "held ",
	} {
		if r.IntN(3) > 0 {
			continue
		}
		text, err := os.ReadFile(l.path(name))
		if err != nil {
			return failed("read", name, err)
		}
		if !strings.HasPrefix(string(text), begins) || !strings.HasSuffix(string(text), "\n") && !strings.HasSuffix(string(text), "}") {
			return fmt.Errorf("read %s: %.60q…", name, text)
		}
	}
	return nil
}

func (l *loader) lookAtLocks(*rand.Rand) error {
	list, err := os.ReadDir(l.path("tlock"))
	if err != nil {
		return failed("list", "tlock", err)
	}
	mine := false
	for i, entry := range list {
		mine = mine || entry.Name() == fmt.Sprintf("kept-mkdir-%d", l.id)
		if i%8 != int(l.id)%8 {
			continue
		}
		path := l.path("tlock", entry.Name(), "json")
		text, err := os.ReadFile(path)
		if err == nil && !json.Valid(text) {
			return fmt.Errorf("read %s: %q", path, text)
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return failed("read", path, err)
		}
	}
	if !mine {
		return fmt.Errorf("LOST: tlock/ does not list kept-mkdir-%d", l.id)
	}
	return nil
}
