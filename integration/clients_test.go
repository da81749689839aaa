package integration

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// newFilesDir makes a directory for a client's files on a mount of its own.
func newFilesDir(t *testing.T) (string, *mount) {
	t.Helper()
	m := newMount(t)
	dir := m.path("files/work")
	require.NoError(t, os.Mkdir(dir, 0o755))
	return dir, m
}

// inParallel runs n programs at once, which all have to succeed.
func inParallel(t *testing.T, n int, prepare func(i int) *program) {
	t.Helper()
	var all sync.WaitGroup
	programs := make([]*program, n)
	errs := make([]error, n)
	for i := range n {
		programs[i] = prepare(i)
		all.Go(func() { errs[i] = programs[i].Run() })
	}
	all.Wait()
	for i, p := range programs {
		r := p.ended(t, errs[i])
		assert.Zero(t, r.code, "%s%s", r.out, r.err)
	}
}

func TestUtilLinuxFlock(t *testing.T) {
	dir, m := newFilesDir(t)
	mustSh(t, `cd "$1" || exit 9
		exec 9>l
		flock -n 9 || exit 10
		flock -n l true && exit 11
		flock -n -E 77 l true; test $? = 77 || exit 12
		flock -w 0.2 -E 78 l true; test $? = 78 || exit 13
		flock -s -n l true && exit 14
		flock -u 9 || exit 15
		flock -n l true || exit 16
		flock -s 9 || exit 17
		flock -s -n l true || exit 18
		flock -x -n l true && exit 19
		flock -n . true || exit 20 # directories stay with the kernel
		exec 9>&-
		flock -x -n l true || exit 21
		exec 8<l
		flock -x 8 || exit 22
		(flock -n 8) || exit 23 # a child has the same description
		flock -o -n l true && exit 24
		exec 8<&-
		flock -n l -c 'flock -n l true' && exit 25
		exit 0`, dir)
	require.NoError(t, os.WriteFile(dir+"/n", []byte("0\n"), 0o644))
	inParallel(t, 4, func(int) *program {
		return newProgram(t, time.Minute, "sh", "-c",
			`cd "$1" && for i in 1 2 3 4 5 6 7 8 9 10; do flock l sh -c 'read n < n && echo $((n+1)) > n' || exit; done`, "sh", dir)
	})
	assert.Equal(t, "40", readValue(t, dir+"/n"))
	assert.Empty(t, m.locks(t))
}

// countingScript adds 1 to the number in $1/n, $2 times, each time under the lock of the kind $3.
const countingScript = `
import fcntl, os, struct, sys
path, rounds, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]
OFD_SETLKW = 38
def record(type): return struct.pack("hhxxxxqqixxxx", type, os.SEEK_SET, 0, 0, 0)
lock, unlock = {
    "flock": (lambda f: fcntl.flock(f, fcntl.LOCK_EX), lambda f: fcntl.flock(f, fcntl.LOCK_UN)),
    "lockf": (lambda f: fcntl.lockf(f, fcntl.LOCK_EX), lambda f: fcntl.lockf(f, fcntl.LOCK_UN)),
    "ofd": (lambda f: fcntl.fcntl(f, OFD_SETLKW, record(fcntl.F_WRLCK)),
            lambda f: fcntl.fcntl(f, OFD_SETLKW, record(fcntl.F_UNLCK))),
}[kind]
with open(path + "/l", "a+") as f:
    for i in range(rounds):
        lock(f)
        with open(path + "/n") as n: value = int(n.read())
        with open(path + "/n", "w") as n: n.write("%d\n" % (value + 1))
        unlock(f)
`

func TestPythonLocks(t *testing.T) {
	const processes, rounds = 4, 120
	dir, m := newFilesDir(t)
	for _, kind := range []string{"flock", "lockf", "ofd"} {
		t.Run(kind, func(t *testing.T) {
			require.NoError(t, os.WriteFile(dir+"/n", []byte("0\n"), 0o644))
			inParallel(t, processes, func(int) *program {
				return newProgram(t, time.Minute, "python3", "-c", countingScript, dir, strconv.Itoa(rounds), kind)
			})
			assert.Equal(t, strconv.Itoa(processes*rounds), readValue(t, dir+"/n"))
		})
	}
	assert.Empty(t, m.locks(t))
}

// forkScript checks what fork does to each kind of lock. The child exits with 0, or with the number of what is wrong.
const forkScript = `
import errno, fcntl, os, struct, sys
OFD_SETLK = 37
def record(type, start, length): return struct.pack("hhxxxxqqixxxx", type, os.SEEK_SET, start, length, 0)
def refused(call):
    try: call()
    except OSError as e: return e.errno in (errno.EAGAIN, errno.EACCES)
    return False
def in_child(check):
    pid = os.fork()
    if pid == 0:
        os._exit(check())
    code = os.waitstatus_to_exitcode(os.wait()[1])
    if code: sys.exit(code)

f = open(sys.argv[1] + "/f", "w+")
fcntl.lockf(f, fcntl.LOCK_EX, 10, 0)
def posix():
    if not refused(lambda: fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0)): return 11
    kind, _, start, length, pid = struct.unpack("hhxxxxqqixxxx", fcntl.fcntl(f, fcntl.F_GETLK, record(fcntl.F_WRLCK, 5, 1)))
    if (kind, start, length, pid) != (fcntl.F_WRLCK, 0, 10, os.getppid()): return 12
    f.close()  # a child's close drops the child's locks only
    return 0
in_child(posix)
def still():
    g = open(sys.argv[1] + "/f", "r+")
    return 0 if refused(lambda: fcntl.lockf(g, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0)) else 13
in_child(still)
fcntl.lockf(f, fcntl.LOCK_UN)

fcntl.fcntl(f, OFD_SETLK, record(fcntl.F_WRLCK, 0, 10))
def ofd():
    fcntl.fcntl(f, OFD_SETLK, record(fcntl.F_WRLCK, 0, 20))
    g = open(sys.argv[1] + "/f", "r+")
    return 0 if refused(lambda: fcntl.fcntl(g, OFD_SETLK, record(fcntl.F_RDLCK, 15, 1))) else 14
in_child(ofd)
in_child(still)  # the child's end dropped nothing
fcntl.fcntl(f, OFD_SETLK, record(fcntl.F_UNLCK, 0, 0))

fcntl.flock(f, fcntl.LOCK_EX)
in_child(lambda: 0)
def flocked():
    g = open(sys.argv[1] + "/f", "r+")
    return 0 if refused(lambda: fcntl.flock(g, fcntl.LOCK_SH | fcntl.LOCK_NB)) else 15
in_child(flocked)
def unlock():
    fcntl.flock(f, fcntl.LOCK_UN)
    return 0
in_child(unlock)
g = open(sys.argv[1] + "/f", "r+")
fcntl.flock(g, fcntl.LOCK_EX | fcntl.LOCK_NB)
`

func TestFork(t *testing.T) {
	for name, dir := range map[string]func(*testing.T) string{
		"kernel": func(t *testing.T) string { return tempDir(t) },
		"lockfs": func(t *testing.T) string { dir, _ := newFilesDir(t); return dir },
	} {
		t.Run(name, func(t *testing.T) {
			r := newProgram(t, time.Minute, "python3", "-c", forkScript, dir(t)).run(t)
			require.Zero(t, r.code, "%s%s", r.out, r.err)
		})
	}
}

// perlScript uses Perl's flock and File::FcntlLock as their manuals do.
const perlScript = `
use strict; use warnings; use Fcntl qw(:flock :seek); use File::FcntlLock;
my $path = "$ARGV[0]/f";
sub check { my ($ok, $what) = @_; $ok or die "$what: $!\n" }
sub in_child { my $check = shift; my $pid = fork // die; if (!$pid) { eval { $check->(); 1 } or warn($@), exit 1; exit 0 }
	waitpid $pid, 0; $? and exit 1 }
sub refused { my ($fh, %lock) = @_; my $fs = File::FcntlLock->new(l_type => F_WRLCK, l_whence => SEEK_SET, %lock);
	!$fs->lock($fh, F_SETLK) && ($!{EAGAIN} || $!{EACCES}) }

open my $f, '+>', $path or die $!;
check(flock($f, LOCK_EX | LOCK_NB), 'flock');
in_child(sub { open my $g, '+<', $path; check(!flock($g, LOCK_SH | LOCK_NB), 'flock was not refused') });
check(flock($f, LOCK_UN), 'unlock');

print $f 'x' x 100; $f->flush;
my $fs = File::FcntlLock->new(l_type => F_WRLCK, l_whence => SEEK_SET, l_start => 50, l_len => -10);
check($fs->lock($f, F_SETLK), 'negative length');
my $end = File::FcntlLock->new(l_type => F_RDLCK, l_whence => SEEK_END, l_start => -5, l_len => 5);
check($end->lock($f, F_SETLKW), 'from the end');
my $parent = $$;
in_child(sub {
	open my $g, '+<', $path or die $!;
	my $ask = File::FcntlLock->new(l_type => F_WRLCK, l_whence => SEEK_SET, l_start => 0, l_len => 60);
	check($ask->lock($g, F_GETLK), 'F_GETLK');
	check($ask->l_type == F_WRLCK && $ask->l_pid == $parent, 'holder ' . $ask->l_pid . ' instead of ' . $parent);
	check($ask->l_start == 40 && $ask->l_len == 10, 'range ' . $ask->l_start . '+' . $ask->l_len);
	my $tail = File::FcntlLock->new(l_type => F_WRLCK, l_whence => SEEK_END, l_start => -1, l_len => 0);
	check($tail->lock($g, F_GETLK), 'F_GETLK at the end');
	check($tail->l_type == F_RDLCK && $tail->l_start == 95 && $tail->l_len == 5, 'tail ' . $tail->l_start);
	check(refused($g, l_start => 49, l_len => 1), 'last byte was not locked');
	check(!refused($g, l_start => 50, l_len => 1), 'byte after was locked');
	check(!refused($g, l_start => 39, l_len => 1), 'byte before was locked');
	check(refused($g, l_start => 99, l_len => 1), 'end was not locked');
});
$fs->l_type(F_UNLCK);
check($fs->lock($f, F_SETLK), 'unlock of a negative length');
in_child(sub { open my $g, '+<', $path; check(!refused($g, l_start => 40, l_len => 10), 'still locked') });
`

func TestPerlLocks(t *testing.T) {
	dir, m := newFilesDir(t)
	for _, dir := range []string{tempDir(t), dir} { // the kernel's own first
		r := newProgram(t, time.Minute, "perl", "-e", perlScript, dir).run(t)
		require.Zero(t, r.code, "%s: %s%s", dir, r.out, r.err)
		require.Empty(t, r.err)
	}
	require.Empty(t, m.locks(t))
}

// TestSQLite lets four processes write one database, in both of SQLite's ways of locking.
func TestSQLite(t *testing.T) {
	const writers, rows = 4, 60
	dir, m := newFilesDir(t)
	for _, mode := range []string{"delete", "wal"} {
		t.Run(mode, func(t *testing.T) {
			db := filepath.Join(dir, mode+".db")
			require.Equal(t, mode, mustSh(t, `sqlite3 "$1" "pragma journal_mode=$2; create table t(writer, n)"`, db, mode))
			inParallel(t, writers, func(i int) *program {
				p := newProgram(t, 2*time.Minute, "sqlite3", "-bail", "-cmd", ".timeout 60000", db)
				p.Stdin = strings.NewReader(insertions(i, rows))
				return p
			})
			require.Equal(t, fmt.Sprintf("ok\n%d|%d", writers*rows, writers),
				mustSh(t, `sqlite3 "$1" 'pragma integrity_check; select count(*), count(distinct writer) from t'`, db))
		})
	}
	require.Empty(t, m.locks(t))
}

func insertions(writer, n int) string {
	var sql strings.Builder
	for i := range n {
		fmt.Fprintf(&sql, "insert into t values (%d, %d);\n", writer, i)
		if i%10 == 0 {
			sql.WriteString("begin immediate; update t set n = n + 0 where rowid = 1; commit;\nselect max(rowid) < 0 from t;\n")
		}
	}
	return sql.String()
}

// TestGit lets four processes commit to one repository; each tries again when another has the index. (A commit reads
// the index before it locks it, on any filesystem, and so can drop what was added in between: that is added again.)
func TestGit(t *testing.T) {
	const committers, commits = 4, 8
	dir, _ := newFilesDir(t)
	env := []string{"HOME=" + tempDir(t), "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@localhost",
		"GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@localhost", "GIT_CONFIG_NOSYSTEM=1"}
	git := func(script string, args ...string) *program {
		p := newProgram(t, 2*time.Minute, "sh", append([]string{"-c", `cd "$1" || exit; ` + script, "sh", dir}, args...)...)
		p.Env = append(p.Env, env...)
		return p
	}
	r := git(`git init -q . && git config gc.auto 0 && git commit -q --allow-empty -m start`).run(t)
	require.Zero(t, r.code, r.err)
	inParallel(t, committers, func(i int) *program {
		return git(`for n in $(seq $3); do echo $n > file$2
			until git add file$2 2>err$2 && git commit -q -m "$2 $n" file$2 2>err$2; do
				grep -qE 'lock|did not match' err$2 || { cat err$2; exit 1; }
			done
		done`, strconv.Itoa(i), strconv.Itoa(commits))
	})
	r = git(`git fsck --strict --no-dangling 2>&1 && git rev-list --count HEAD && git ls-tree --name-only HEAD`).run(t)
	require.Zero(t, r.code, "%s%s", r.out, r.err)
	require.Equal(t, strconv.Itoa(committers*commits+1)+"\nfile0\nfile1\nfile2\nfile3\n", r.out)
}

// TestStressNG runs the lock stressors of stress-ng, which check what they do.
func TestStressNG(t *testing.T) {
	dir, m := newFilesDir(t)
	p := newProgram(t, 2*time.Minute, "stress-ng", "--lockf", "2", "--locka", "2", "--flock", "2", "--lockofd", "2",
		"--fcntl", "2", "--verify", "-t", "5", "--temp-path", dir)
	r := p.run(t)
	require.Zero(t, r.code, "%s%s", r.out, r.err)
	require.NotRegexp(t, `(?i)\bfail(ed|ure)?:`, r.out+r.err)
	require.Empty(t, m.locks(t))
	require.Empty(t, entries(t, dir))
}

// TestDotlocks lets processes exclude each other with files alone, by link(2) and by O_EXCL, as mail programs do.
func TestDotlocks(t *testing.T) {
	const processes, rounds = 4, 60
	for _, method := range []string{"link", "excl"} {
		t.Run(method, func(t *testing.T) {
			dir, _ := newFilesDir(t)
			require.NoError(t, os.WriteFile(dir+"/n", []byte("0\n"), 0o644))
			outside := tempDir(t)
			inParallel(t, processes, func(i int) *program {
				p := newProgram(t, time.Minute, selfBinary, method, dir, outside, strconv.Itoa(rounds))
				p.Env = append(p.Env, roleEnv+"=dotlock")
				return p
			})
			require.Equal(t, strconv.Itoa(processes*rounds), readValue(t, dir+"/n"))
			require.Equal(t, []string{"n"}, entries(t, dir))
		})
	}
}

// dotlockMain takes the arguments METHOD DIR OUTSIDE ROUNDS. A file in OUTSIDE, which is not on lockfs, shows overlaps.
func dotlockMain() error {
	method, dir, outside, rounds := os.Args[1], os.Args[2], os.Args[3], int(parseInt(os.Args[4]))
	take := map[string]func(string) error{"link": takeByLink, "excl": takeExclusively}[method]
	for range rounds {
		for err := take(dir); err != nil; err = take(dir) {
			if !errors.Is(err, unix.EEXIST) {
				return err
			}
			time.Sleep(100 * time.Microsecond) // such locks can only be asked for again
		}
		if err := countAlone(dir, outside); err != nil {
			return err
		}
		if err := unix.Unlink(dir + "/lock"); err != nil {
			return err
		}
	}
	return nil
}

func takeByLink(dir string) error {
	mine := fmt.Sprintf("%s/mine.%d", dir, os.Getpid())
	if err := os.WriteFile(mine, nil, 0o644); err != nil {
		return err
	}
	return errors.Join(unix.Link(mine, dir+"/lock"), unix.Unlink(mine))
}

func takeExclusively(dir string) error {
	fd, err := unix.Open(dir+"/lock", unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func countAlone(dir, outside string) error {
	if err := os.Mkdir(outside+"/inside", 0o755); err != nil {
		return fmt.Errorf("two at once: %w", err)
	}
	text, err := os.ReadFile(dir + "/n")
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return err
	}
	return errors.Join(os.WriteFile(dir+"/n", fmt.Appendln(nil, n+1), 0o644), os.Remove(outside+"/inside"))
}

// TestClientPrograms names each program that these tests run, so that a missing one is reported as itself.
func TestClientPrograms(t *testing.T) {
	for _, name := range []string{"flock", "python3", "perl", "sqlite3", "git", "stress-ng", "fusermount3", "unshare",
		"setpriv", "tar", "find", "grep", "du", "cp"} {
		_, err := exec.LookPath(name)
		assert.NoError(t, err)
	}
	assert.Zero(t, sh(t, `/usr/bin/perl -MFile::FcntlLock -e 1`).code, "Debian: libfile-fcntllock-perl")
	_, err := os.Stat("/dev/fuse")
	assert.NoError(t, err)
}
