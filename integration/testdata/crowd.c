/*
 * Threads that wait in line for one byte, each through an open file description of its own.
 *
 *     crowd FILE THREADS
 *
 * It is told what to do line by line:
 *
 *     queue N   lock the byte, and have N threads ask for it, each when the one before waits: "queued"
 *     serve     unlock it, and wait until each of them has had its turn: "served NANOSECONDS TURN...", from that unlock
 *               to the last grant, and who had which turn
 *     pairs N   pass locks about between two threads until N were handed over: "passed NANOSECONDS"
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

struct waiter {
	pthread_t thread;
	sem_t ask;
	int fd, tid;
};

static struct waiter *waiters;
static int asked;          /* how many wait, or have had their turn */
static int *turns, served; /* kept by the lock that is tested: who has it writes */
static int64_t last;       /* when the last of them got it */
static sem_t ready, done;

static void check(int failed, const char *what)
{
	if (!failed)
		return;
	fprintf(stderr, "crowd: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int64_t now(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

static void lock(int fd, int command, int type, off_t at)
{
	struct flock f = { .l_type = type, .l_whence = SEEK_SET, .l_start = at, .l_len = 1 };
	int r;
	while ((r = fcntl(fd, command, &f)) && errno == EINTR)
		;
	check(r, "lock");
}

static int open_file(const char *path)
{
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
	check(fd < 0, path);
	return fd;
}

static void start(struct waiter *w, void *(*run)(void *))
{
	pthread_attr_t attr;
	check(pthread_attr_init(&attr) || pthread_attr_setstacksize(&attr, 64 << 10), "stack");
	check(errno = pthread_create(&w->thread, &attr, run, w), "pthread_create");
	pthread_attr_destroy(&attr);
}

/* The line. */

enum { BYTE, X, Y, Z }; /* of the file: that of the line, and those that are passed about */

static void *wait_in_line(void *arg)
{
	struct waiter *w = arg;
	w->tid = syscall(SYS_gettid);
	sem_post(&ready);
	for (;;) {
		sem_wait(&w->ask);
		lock(w->fd, F_OFD_SETLKW, F_WRLCK, BYTE);
		int64_t at = now();
		turns[served] = w - waiters;
		int is_last = ++served == asked;
		if (is_last)
			last = at;
		lock(w->fd, F_OFD_SETLK, F_UNLCK, BYTE);
		if (is_last)
			sem_post(&done);
	}
	return NULL;
}

/*
 * A thread waits in line when it sleeps in this very call: /proc/PID/syscall has its number and arguments while it
 * sleeps, and "running" while it does not. What is asked of a FUSE server is in its queue then.
 */
static void await_waiting(struct waiter *w)
{
	char path[64], want[64], text[64];
	snprintf(path, sizeof path, "/proc/self/task/%d/syscall", w->tid);
	int length = snprintf(want, sizeof want, "%d 0x%x 0x%x ", SYS_fcntl, w->fd, F_OFD_SETLKW);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	check(fd < 0, path);
	do {
		sched_yield();
		check(pread(fd, text, sizeof text, 0) < 0, path);
	} while (strncmp(text, want, length));
	close(fd);
}

static void queue(int fd, int n)
{
	lock(fd, F_OFD_SETLK, F_WRLCK, BYTE);
	served = 0;
	asked = n;
	for (int i = 0; i < n; i++) {
		sem_post(&waiters[i].ask);
		await_waiting(&waiters[i]);
	}
	puts("queued");
}

static void serve(int fd)
{
	int64_t begin = now();
	lock(fd, F_OFD_SETLK, F_UNLCK, BYTE);
	sem_wait(&done);
	printf("served %lld", (long long)(last - begin));
	for (int i = 0; i < served; i++)
		printf(" %d", turns[i]);
	puts("");
}

/*
 * Two threads pass three bytes about: each gives up the byte that the other waits for, or is about to, and waits for
 * one that the other holds until it has got that. So nobody can take back what it gave up before the other came for it.
 */

static sem_t go, gone;
static int passes;
static struct waiter other;

static void give(int fd, off_t at) { lock(fd, F_OFD_SETLK, F_UNLCK, at); }
static void get(int fd, off_t at) { lock(fd, F_OFD_SETLKW, F_WRLCK, at); }

static void *pass_back(void *arg)
{
	int fd = ((struct waiter *)arg)->fd;
	get(fd, Y);
	for (sem_post(&gone);; sem_post(&gone)) {
		sem_wait(&go);
		for (int i = 0; i < passes; i++) {
			get(fd, X), give(fd, Y);
			get(fd, Z), give(fd, X);
			get(fd, Y), give(fd, Z);
		}
	}
	return NULL;
}

static void pairs(int fd, int n)
{
	passes = n / 6;
	int64_t begin = now();
	sem_post(&go);
	for (int i = 0; i < passes; i++) {
		give(fd, X), get(fd, Y);
		give(fd, Z), get(fd, X);
		give(fd, Y), get(fd, Z);
	}
	sem_wait(&gone);
	printf("passed %lld\n", (long long)(now() - begin));
}

int main(int argc, char **argv)
{
	if (argc != 3) {
		fputs("usage: crowd FILE THREADS\n", stderr);
		return 2;
	}
	int n = atoi(argv[2]);
	struct rlimit files;
	check(getrlimit(RLIMIT_NOFILE, &files), "getrlimit");
	files.rlim_cur = files.rlim_max;
	check(setrlimit(RLIMIT_NOFILE, &files), "setrlimit");
	waiters = calloc(n, sizeof *waiters);
	turns = calloc(n, sizeof *turns);
	check(!waiters || !turns, "calloc");
	sem_init(&ready, 0, 0), sem_init(&done, 0, 0), sem_init(&go, 0, 0), sem_init(&gone, 0, 0);
	for (int i = 0; i < n; i++) {
		sem_init(&waiters[i].ask, 0, 0);
		waiters[i].fd = open_file(argv[1]);
		start(&waiters[i], wait_in_line);
		sem_wait(&ready);
	}
	int fd = open_file(argv[1]), own = open_file(argv[1]);
	get(own, X);
	get(own, Z);
	other.fd = open_file(argv[1]);
	start(&other, pass_back);
	sem_wait(&gone);

	setvbuf(stdout, NULL, _IOLBF, 0);
	puts("ready");
	for (char line[64]; fgets(line, sizeof line, stdin);) {
		int count;
		if (sscanf(line, "queue %d", &count) == 1 && count > 0 && count <= n)
			queue(fd, count);
		else if (!strcmp(line, "serve\n"))
			serve(fd);
		else if (sscanf(line, "pairs %d", &count) == 1)
			pairs(own, count);
		else
			return 2;
	}
	return 0;
}
