/* Takes a lock, works under it, renews it meanwhile, and releases it.
 *
 *     cc -o take take.c && ./take MOUNT [NAME]
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static void fail(const char *what, const char *path)
{
	fprintf(stderr, "take: %s %s: %s\n", what, path, strerror(errno));
	exit(1);
}

/* The open waits in line. A signal with a handler interrupts it: open again within a second and the place is kept. */
static void take(const char *path, char *token, size_t size)
{
	int fd;
	ssize_t n;

	while ((fd = open(path, O_RDONLY | O_CLOEXEC)) < 0)
		if (errno != EINTR)
			fail("take", path);
	n = read(fd, token, size - 1); /* closed unread, the lock would be released again */
	if (n < 0)
		fail("read", path);
	close(fd);
	token[n] = '\0';
	token[strcspn(token, "\n")] = '\0';
}

static void renew(const char *path)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, "30s\n", 4) != 4)
		fail("renew", path);
	close(fd);
}

int main(int argc, char **argv)
{
	const struct timespec work = { .tv_nsec = 100 * 1000 * 1000 };
	const char *name = argc > 2 ? argv[2] : "example";
	char token[32], path[4096], lock[4096];
	struct stat st;

	if (argc < 2 || argc > 3) {
		fprintf(stderr, "usage: take MOUNT [NAME]\n");
		return 1;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	snprintf(path, sizeof path, "%s/take/%s+30s", argv[1], name);
	take(path, token, sizeof token);
	/* This path exists only as long as this very lock is held. */
	snprintf(lock, sizeof lock, "%s/tlock/%s@%s", argv[1], name, token);
	snprintf(path, sizeof path, "%s/tlock/%s@%s/timeout", argv[1], name, token);
	printf("took %s, token %s\n", name, token);

	for (int part = 1; part <= 3; part++) {
		nanosleep(&work, NULL); /* in place of work: each part must take less than the timeout */
		if (stat(lock, &st) != 0)
			fail("no longer ours, stopping before harm is done:", lock);
		renew(path);
		printf("part %d done, renewed\n", part);
	}

	if (rmdir(lock) != 0) /* by token: never somebody else's */
		fail("release", lock);
	printf("released %s\n", name);
	return 0;
}
