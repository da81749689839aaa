/*
 * The benchmarks' client: it measures what one thing costs on each of several mounts, in turns.
 *
 *     client ROW ROUNDS MILLISECONDS NUMBER NAME=DIR...
 *
 * A round measures each mount once, for so long, each round in another order. For each of these a line
 * "NAME ROUND OPERATIONS NANOSECONDS" is printed. NUMBER is of ranges that another process holds on the file, or of
 * clients: it depends on the row.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct target {
	const char *name, *dir;
	char file[PATH_MAX], lock[PATH_MAX], take[PATH_MAX], hold[PATH_MAX], view[PATH_MAX];
	int fd;       /* of file */
	off_t at;     /* the byte that is locked */
	int peer[2];  /* to and from the other process of a hand-over */
	int *clients; /* to and from each of several */
	struct handed *handed; /* NULL: nobody asks how long a hand-over took */
};

/* What two processes know of their hand-overs. */
struct handed {
	int64_t given[3]; /* when each of the bytes was given up last */
	int64_t took, n;  /* from there until the other one had it, in all; of how many */
};

static int number;
static int64_t counted; /* see all of a row */
static const char *doing = "start"; /* what is under way, for the message when it fails */

static void fail(const struct target *t, const char *what)
{
	fprintf(stderr, "client: %s: %s: %s: %s\n", doing, t->name, what, strerror(errno));
	exit(1);
}

static void check(const struct target *t, int result, const char *what)
{
	if (result < 0)
		fail(t, what);
}

static int64_t now(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

static void lock(struct target *t, int command, int type, off_t at)
{
	struct flock f = { .l_type = type, .l_whence = SEEK_SET, .l_start = at, .l_len = 1 };
	check(t, fcntl(t->fd, command, &f), "lock");
}

static void open_file(struct target *t)
{
	t->fd = open(t->file, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
	check(t, t->fd, "open");
}

/* child forks a process that ends with its parent; it returns two descriptors that lead to it and from it. */
static int child(struct target *t, int ends[2])
{
	int to[2], from[2];
	check(t, pipe2(to, O_CLOEXEC), "pipe");
	check(t, pipe2(from, O_CLOEXEC), "pipe");
	int pid = fork();
	check(t, pid, "fork");
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		ends[0] = to[0];
		ends[1] = from[1];
		close(to[1]);
		close(from[0]);
		return 1;
	}
	ends[0] = to[1];
	ends[1] = from[0];
	close(to[0]);
	close(from[1]);
	return 0;
}

static void say(struct target *t, int fd, int64_t v)
{
	check(t, write(fd, &v, sizeof v) == sizeof v ? 0 : -1, "tell the other process");
}

static int64_t hear(struct target *t, int fd)
{
	int64_t v = 0;
	ssize_t n = read(fd, &v, sizeof v);
	if (n == 0) /* it is gone, and has said why */
		exit(1);
	check(t, n == sizeof v ? 0 : -1, "hear the other process");
	return v;
}

/* The rows: what is made before, and what is measured. */

static void setlk(struct target *t)
{
	lock(t, F_SETLK, F_WRLCK, t->at);
	lock(t, F_SETLK, F_UNLCK, t->at);
}

static void ofd(struct target *t)
{
	lock(t, F_OFD_SETLK, F_WRLCK, 0);
	lock(t, F_OFD_SETLK, F_UNLCK, 0);
}

static void flock_pair(struct target *t)
{
	check(t, flock(t->fd, LOCK_EX), "flock");
	check(t, flock(t->fd, LOCK_UN), "flock");
}

static void getlk(struct target *t) { lock(t, F_GETLK, F_WRLCK, 0); }

static void mkdir_rmdir(struct target *t)
{
	check(t, mkdir(t->lock, 0777), "mkdir");
	check(t, rmdir(t->lock), "rmdir");
}

static void take_release(struct target *t)
{
	char path[PATH_MAX];
	int length = snprintf(path, sizeof path, "%s@", t->lock);
	int fd = open(t->take, O_RDONLY | O_CLOEXEC);
	check(t, fd, "open take/");
	ssize_t n = read(fd, path + length, 32);
	check(t, n > 1 ? 0 : -1, "read the token");
	path[length + n - 1] = 0;
	check(t, close(fd), "close");
	check(t, rmdir(path), "rmdir");
}

static void hold_close(struct target *t)
{
	int fd = open(t->hold, O_RDONLY | O_CLOEXEC);
	check(t, fd, "open hold/");
	check(t, close(fd), "close");
}

static void open_lock_close(struct target *t)
{
	open_file(t);
	lock(t, F_SETLK, F_WRLCK, 0);
	check(t, close(t->fd), "close");
}

static void stat_path(struct target *t, const char *path)
{
	struct stat st;
	check(t, stat(path, &st), "stat");
}

static void stat_file(struct target *t) { stat_path(t, t->file); }
static void stat_lock(struct target *t) { stat_path(t, t->lock); }

static void make_lock(struct target *t) { check(t, mkdir(t->lock, 0777), "mkdir"); }
static void drop_lock(struct target *t) { check(t, rmdir(t->lock), "rmdir"); }

static void hold_byte(struct target *t)
{
	open_file(t);
	lock(t, F_SETLK, F_WRLCK, 0);
}

static void view(struct target *t)
{
	static char text[1 << 16];
	int fd = open(t->view, O_RDONLY | O_CLOEXEC);
	check(t, fd, "open view/locks");
	ssize_t n, all = 0;
	while ((n = read(fd, text, sizeof text)) > 0)
		all += n;
	check(t, n, "read view/locks");
	errno = 0;
	check(t, all > 0 ? 0 : -1, "view/locks is empty");
	check(t, close(fd), "close");
}

/* others_hold: another process holds so many bytes, every second one, and the pair is in their middle. */
static void others_hold(struct target *t)
{
	open_file(t);
	t->at = 101 + number;
	if (child(t, t->peer)) {
		for (int i = 0; i < number; i++)
			lock(t, F_SETLK, F_WRLCK, 100 + 2 * i);
		say(t, t->peer[1], 0);
		for (;;)
			pause();
	}
	hear(t, t->peer[1]);
}

/*
 * A hand-over is an unlock and the F_SETLKW of another process that gets the lock by it. Two processes pass three
 * bytes about: each gives up the byte that the other waits for, or is about to, and waits for one that the other holds
 * until it has got that. So nobody can take back what it gave up before the other came for it.
 */
enum { X, Y, Z, STEPS = 32, HANDOVERS = 6 * STEPS };

static void give(struct target *t, off_t at)
{
	if (t->handed)
		t->handed->given[at] = now();
	lock(t, F_SETLK, F_UNLCK, at);
}

static void get(struct target *t, off_t at)
{
	struct handed *h = t->handed;
	int64_t asked = h ? now() : 0;
	lock(t, F_SETLKW, F_WRLCK, at);
	if (h && h->given[at] > asked) {
		__atomic_fetch_add(&h->took, now() - h->given[at], __ATOMIC_RELAXED);
		__atomic_fetch_add(&h->n, 1, __ATOMIC_RELAXED);
	}
}

static void hand_over(struct target *t)
{
	say(t, t->peer[0], 0);
	for (int i = 0; i < STEPS; i++) {
		give(t, X), get(t, Y);
		give(t, Z), get(t, X);
		give(t, Y), get(t, Z);
	}
	hear(t, t->peer[1]);
}

static void hand_over_begin(struct target *t)
{
	open_file(t);
	if (child(t, t->peer)) {
		get(t, Y);
		say(t, t->peer[1], 0);
		for (;;) {
			hear(t, t->peer[0]);
			for (int i = 0; i < STEPS; i++) {
				get(t, X), give(t, Y);
				get(t, Z), give(t, X);
				get(t, Y), give(t, Z);
			}
			say(t, t->peer[1], 0);
		}
	}
	get(t, X);
	get(t, Z);
	hear(t, t->peer[1]);
}

/* From an unlock until the other process, which waits, returns from its F_SETLKW. */
static void handed_begin(struct target *t)
{
	t->handed = mmap(NULL, sizeof *t->handed, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	check(t, t->handed == MAP_FAILED ? -1 : 0, "mmap");
	hand_over_begin(t);
}

static int64_t handed(struct target *t, int64_t length)
{
	struct handed *h = t->handed;
	h->took = h->n = 0;
	while (h->took < length)
		hand_over(t);
	counted = h->took;
	return h->n;
}

/* Clients lock and unlock, each a byte of its own of the same file, until a time that they are told. */
static void clients_begin(struct target *t)
{
	open_file(t);
	t->clients = calloc(number, 2 * sizeof *t->clients);
	check(t, t->clients ? 0 : -1, "calloc");
	for (int i = 0; i < number; i++) {
		int *ends = t->clients + 2 * i;
		if (!child(t, ends))
			continue;
		t->at = 2 * i;
		for (;;) {
			int64_t end = hear(t, ends[0]), n = 0;
			do
				setlk(t);
			while (n++, now() < end);
			say(t, ends[1], n);
		}
	}
}

static int64_t clients(struct target *t, int64_t length)
{
	int64_t all = 0, end = now() + length;
	for (int i = 0; i < number; i++)
		say(t, t->clients[2 * i], end);
	for (int i = 0; i < number; i++)
		all += hear(t, t->clients[2 * i + 1]);
	return all;
}

static const struct row {
	const char *name;
	void (*begin)(struct target *);
	void (*op)(struct target *);
	/* measures itself, and returns how many operations there were; sets counted if not all of the time counts */
	int64_t (*all)(struct target *, int64_t);
	void (*end)(struct target *);
	int worth; /* operations in one op; 0: 1 */
} rows[] = {
	{ .name = "setlk", .begin = open_file, .op = setlk },
	{ .name = "flock", .begin = open_file, .op = flock_pair },
	{ .name = "ofd", .begin = open_file, .op = ofd },
	{ .name = "getlk", .begin = open_file, .op = getlk },
	{ .name = "mkdir", .op = mkdir_rmdir },
	{ .name = "take", .op = take_release },
	{ .name = "hold", .op = hold_close },
	{ .name = "open", .op = open_lock_close },
	{ .name = "statfile", .begin = open_file, .op = stat_file },
	{ .name = "statlock", .begin = make_lock, .op = stat_lock, .end = drop_lock },
	{ .name = "view", .begin = hold_byte, .op = view },
	{ .name = "handover", .begin = hand_over_begin, .op = hand_over, .worth = HANDOVERS },
	{ .name = "handed", .begin = handed_begin, .op = hand_over, .all = handed },
	{ .name = "clients", .begin = clients_begin, .all = clients },
	{ .name = "ranges", .begin = others_hold, .op = setlk },
};

static void measure(const struct row *row, struct target *t, int round, int64_t length)
{
	int64_t n = 0, begin, took, worth = row->worth ? row->worth : 1;
	if (row->op)
		row->op(t); /* warm */
	begin = now();
	if (row->all) {
		n = row->all(t, length);
		took = counted ? counted : now() - begin;
	} else {
		do { /* the clock is read seldom: on tmpfs it would be a tenth */
			for (int i = 0; i < (worth > 1 ? 1 : 16); i++, n++)
				row->op(t);
			took = now() - begin;
		} while (took < length);
	}
	printf("%s %d %lld %lld\n", t->name, round, (long long)(n * worth), (long long)took);
}

static void set_target(struct target *t, char *arg)
{
	char *dir = strchr(arg, '=');
	if (!dir) {
		fprintf(stderr, "client: %s is not NAME=DIR\n", arg);
		exit(2);
	}
	*dir++ = 0;
	t->name = arg;
	t->dir = dir;
	snprintf(t->file, sizeof t->file, "%s/files/bench", dir);
	snprintf(t->lock, sizeof t->lock, "%s/tlock/bench", dir);
	snprintf(t->take, sizeof t->take, "%s/take/bench+5m", dir);
	snprintf(t->hold, sizeof t->hold, "%s/hold/bench", dir);
	snprintf(t->view, sizeof t->view, "%s/view/locks", dir);
}

/* Whoever comes first finds the scheduler and the caches as another left them: so each round has another order. */
static void shuffle(struct target **order, struct target *targets, int count)
{
	for (int i = 0; i < count; i++) {
		int at = random() % (i + 1);
		order[i] = order[at];
		order[at] = &targets[i];
	}
}

static void run(const struct row *row, int rounds, int64_t length, struct target *targets, int count)
{
	doing = row->name;
	for (int i = 0; i < count && row->begin; i++)
		row->begin(&targets[i]);
	struct target *order[count];
	for (int round = 0; round < rounds; round++) {
		shuffle(order, targets, count);
		for (int i = 0; i < count; i++)
			measure(row, order[i], round, length);
	}
	for (int i = 0; i < count && row->end; i++)
		row->end(&targets[i]);
}

int main(int argc, char **argv)
{
	if (argc < 6) {
		fputs("usage: client ROW ROUNDS MILLISECONDS NUMBER NAME=DIR...\n", stderr);
		return 2;
	}
	number = atoi(argv[4]);
	srandom(now());
	int count = argc - 5;
	struct target *targets = calloc(count, sizeof *targets);
	if (!targets)
		return 1;
	for (int i = 0; i < count; i++)
		set_target(&targets[i], argv[5 + i]);
	for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
		if (!strcmp(rows[i].name, argv[1])) {
			run(&rows[i], atoi(argv[2]), atoll(argv[3]) * 1000000, targets, count);
			return 0;
		}
	fprintf(stderr, "client: no row %s\n", argv[1]);
	return 2;
}
