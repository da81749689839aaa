/*
 * A lock server on libfuse's low-level API, with locks in memory: what lockfs is measured against.
 *
 *     locks [-m] DIR       -m: several threads (fuse_session_loop_mt), else one
 *
 * It has what the benchmark uses of lockfs's tree, and real locks: record and OFD locks in a sorted list of ranges,
 * flock, waiting in order of arrival, NAMEs taken by mkdir, take/ and hold/. It keeps nothing, finds no deadlocks,
 * and its files are empty.
 */
#define FUSE_USE_VERSION 312
#include <errno.h>
#include <fuse_lowlevel.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>

struct lock {
	struct lock *next;
	uint64_t owner, handle;
	off_t start, end; /* inclusive */
	int type;         /* F_RDLCK or F_WRLCK */
	pid_t pid;
};

/* A waiter is a request that is answered when its lock is granted. */
struct waiter {
	struct waiter *next;
	struct lock *lock;
	int class;
	fuse_req_t req;
	int opens; /* the request is an OPEN, of take/ or hold/ */
	struct fuse_file_info fi;
};

enum { RECORD, FLOCK, CLASSES };

/* A node is a file in files/, or a NAME, which is held when it has a lock. */
struct node {
	struct node *next;
	uint64_t id;
	int in_files;
	struct lock *locks[CLASSES]; /* sorted by start */
	struct waiter *waiters, **last;
	uint64_t token;
	char name[];
};

/* Node numbers: the directories, then the nodes, each with two bits that say in which directory it is seen. */
enum { ROOT = FUSE_ROOT_ID, FILES, TLOCK, TAKE, HOLD, VIEW, LOCKS, FIRST = 16 };
enum { AS_FILE, AS_LOCK, AS_TAKE, AS_HOLD };
static const char *const top[] = { [FILES] = "files", [TLOCK] = "tlock", [TAKE] = "take", [HOLD] = "hold", [VIEW] = "view" };

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER; /* guards all below */
static struct node *nodes;
static struct node *by_id[1 << 16]; /* it does not move: requests about a node look it up without the mutex */
static size_t count;
static uint64_t last_token = 1732190000000000, last_handle;

static void *allocate(size_t size)
{
	void *p = calloc(1, size);
	if (!p) {
		perror("locks");
		exit(1);
	}
	return p;
}

/* node_of finds the node of a name, whose options (NAME+TIMEOUT,wait=... NAME@TOKEN) do not count. */
static struct node *node_of(const char *name, int in_files)
{
	size_t len = in_files ? strlen(name) : strcspn(name, "+,@");
	for (struct node *n = nodes; n; n = n->next)
		if (n->in_files == in_files && strlen(n->name) == len && !memcmp(n->name, name, len))
			return n;
	if (count == sizeof by_id / sizeof *by_id) {
		fputs("locks: too many names\n", stderr);
		exit(1);
	}
	struct node *n = allocate(sizeof *n + len + 1);
	memcpy(n->name, name, len);
	n->in_files = in_files;
	n->last = &n->waiters;
	n->id = count++;
	n->next = nodes;
	nodes = n;
	by_id[n->id] = n;
	return n;
}

static struct node *node(fuse_ino_t ino) { return ino < FIRST ? NULL : by_id[(ino - FIRST) >> 2]; }
static int seen_as(fuse_ino_t ino) { return (ino - FIRST) & 3; }
static fuse_ino_t number(struct node *n, int as) { return FIRST + (n->id << 2 | as); }

/* conflict finds a lock of another owner that a lock cannot be beside. */
static struct lock *conflict(struct node *n, int class, const struct lock *want)
{
	for (struct lock *l = n->locks[class]; l && l->start <= want->end; l = l->next)
		if (l->end >= want->start && l->owner != want->owner && (l->type == F_WRLCK || want->type == F_WRLCK))
			return l;
	return NULL;
}

static void insert(struct lock **list, struct lock *l)
{
	while (*list && (*list)->start < l->start)
		list = &(*list)->next;
	l->next = *list;
	*list = l;
}

/* cut takes a range away from an owner. */
static void cut(struct lock **list, uint64_t owner, off_t start, off_t end)
{
	struct lock *rest = NULL;
	while (*list && (*list)->start <= end) {
		struct lock *l = *list;
		if (l->owner != owner || l->end < start) {
			list = &l->next;
			continue;
		}
		*list = l->next;
		if (l->end > end) {
			rest = allocate(sizeof *rest);
			*rest = *l;
			rest->start = end + 1;
		}
		if (l->start < start) {
			l->end = start - 1;
			l->next = *list;
			*list = l;
			list = &l->next;
		} else {
			free(l);
		}
	}
	if (rest)
		insert(list, rest);
}

static void grant(struct node *n, int class, struct lock *l)
{
	cut(&n->locks[class], l->owner, l->start, l->end);
	insert(&n->locks[class], l);
	if (!n->in_files)
		n->token = ++last_token;
}

/* grants takes those off the queue that nothing stands in the way of any more, and gives them their locks. */
static struct waiter *grants(struct node *n)
{
	struct waiter *granted = NULL, **end = &granted, **at = &n->waiters;
	while (*at) {
		struct waiter *w = *at;
		if (conflict(n, w->class, w->lock)) {
			at = &w->next;
			continue;
		}
		*at = w->next;
		grant(n, w->class, w->lock);
		w->next = NULL;
		*end = w;
		end = &w->next;
	}
	n->last = at;
	return granted;
}

/* tell answers requests, without the mutex: libfuse takes locks of its own. */
static void tell(struct waiter *granted)
{
	while (granted) {
		struct waiter *w = granted;
		granted = w->next;
		if (w->opens)
			fuse_reply_open(w->req, &w->fi);
		else
			fuse_reply_err(w->req, 0);
		free(w);
	}
}

static void interrupted(fuse_req_t req, void *data)
{
	struct node *n = data;
	struct waiter *gone = NULL;
	pthread_mutex_lock(&mutex);
	for (struct waiter **at = &n->waiters; *at; at = &(*at)->next)
		if ((*at)->req == req) {
			gone = *at;
			*at = gone->next;
			if (!*at)
				n->last = at;
			break;
		}
	pthread_mutex_unlock(&mutex);
	if (gone) {
		fuse_reply_err(req, EINTR);
		free(gone->lock);
		free(gone);
	}
}

/* acquire grants a lock or, if the request may wait, has it wait; 0 or an errno is the answer, -1: there will be one. */
static int acquire(struct node *n, int class, struct lock *l, fuse_req_t req, int wait, struct fuse_file_info *fi)
{
	if (!conflict(n, class, l)) {
		grant(n, class, l);
		return 0;
	}
	if (!wait || fuse_req_interrupted(req)) {
		free(l);
		return wait ? EINTR : EAGAIN;
	}
	struct waiter *w = allocate(sizeof *w);
	w->lock = l;
	w->class = class;
	w->req = req;
	if (fi) {
		w->opens = 1;
		w->fi = *fi;
	}
	*n->last = w;
	n->last = &w->next;
	return -1;
}

static struct lock *whole(uint64_t owner, uint64_t handle, int type)
{
	struct lock *l = allocate(sizeof *l);
	*l = (struct lock){ .owner = owner, .handle = handle, .end = LLONG_MAX, .type = type };
	return l;
}

static void lock_or_unlock(fuse_req_t req, struct node *n, int class, struct lock *l, int wait)
{
	struct waiter *granted = NULL;
	int answer = 0;
	if (wait)
		fuse_req_interrupt_func(req, interrupted, n);
	pthread_mutex_lock(&mutex);
	if (l->type == F_UNLCK) {
		cut(&n->locks[class], l->owner, l->start, l->end);
		free(l);
	} else {
		answer = acquire(n, class, l, req, wait, NULL);
	}
	if (answer == 0) /* an unlock, or maybe a downgrade */
		granted = grants(n);
	pthread_mutex_unlock(&mutex);
	if (answer >= 0)
		fuse_reply_err(req, answer);
	tell(granted);
}

static struct lock *wanted(struct fuse_file_info *fi, const struct flock *f)
{
	struct lock *l = allocate(sizeof *l);
	*l = (struct lock){ .owner = fi->lock_owner, .handle = fi->fh, .start = f->l_start, .type = f->l_type, .pid = f->l_pid };
	l->end = f->l_len ? f->l_start + f->l_len - 1 : LLONG_MAX;
	return l;
}

static void do_setlk(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi, struct flock *f, int sleep)
{
	lock_or_unlock(req, node(ino), RECORD, wanted(fi, f), sleep);
}

static void do_flock(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi, int op)
{
	int type = op & LOCK_UN ? F_UNLCK : op & LOCK_EX ? F_WRLCK : F_RDLCK;
	lock_or_unlock(req, node(ino), FLOCK, whole(fi->lock_owner, fi->fh, type), type != F_UNLCK && !(op & LOCK_NB));
}

static void do_getlk(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi, struct flock *f)
{
	struct lock *l = wanted(fi, f);
	pthread_mutex_lock(&mutex);
	struct lock *held = conflict(node(ino), RECORD, l);
	f->l_type = F_UNLCK;
	if (held) {
		f->l_type = held->type;
		f->l_start = held->start;
		f->l_len = held->end == LLONG_MAX ? 0 : held->end - held->start + 1;
		f->l_pid = held->pid;
	}
	pthread_mutex_unlock(&mutex);
	free(l);
	fuse_reply_lock(req, f);
}

/* let_go drops all locks of an owner, or of a handle. */
static void let_go(struct node *n, int class, uint64_t owner, uint64_t handle)
{
	pthread_mutex_lock(&mutex);
	for (struct lock **at = &n->locks[class]; *at;) {
		struct lock *l = *at;
		if (handle ? l->handle == handle : l->owner == owner) {
			*at = l->next;
			free(l);
		} else {
			at = &l->next;
		}
	}
	struct waiter *granted = grants(n);
	pthread_mutex_unlock(&mutex);
	tell(granted);
}

static void do_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct node *n = node(ino);
	if (n && n->in_files)
		let_go(n, RECORD, fi->lock_owner, 0);
	fuse_reply_err(req, 0);
}

static void do_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct node *n = node(ino);
	for (int class = RECORD; n && class < CLASSES; class++)
		let_go(n, class, 0, fi->fh);
	fuse_reply_err(req, 0);
}

static void attributes(fuse_ino_t ino, struct stat *st)
{
	int dir = ino < LOCKS || (ino >= FIRST && !node(ino)->in_files && seen_as(ino) == AS_LOCK);
	*st = (struct stat){ .st_ino = ino, .st_nlink = dir ? 2 : 1, .st_mode = dir ? S_IFDIR | 0777 : S_IFREG | 0666 };
}

/* timeout is how long names and attributes are believed: as package noop has it. */
static double timeout(fuse_ino_t ino)
{
	return ino < LOCKS ? 3600 : ino >= FIRST && node(ino)->in_files ? 1 : 0;
}

/* find is the number of a name in a directory, 0 if it is not there. */
static fuse_ino_t find(fuse_ino_t parent, const char *name)
{
	switch (parent) {
	case ROOT:
		for (fuse_ino_t i = FILES; i <= VIEW; i++)
			if (!strcmp(name, top[i]))
				return i;
		return 0;
	case FILES:
		return number(node_of(name, 1), AS_FILE);
	case TAKE:
		return number(node_of(name, 0), AS_TAKE);
	case HOLD:
		return number(node_of(name, 0), AS_HOLD);
	case VIEW:
		return strcmp(name, "locks") ? 0 : LOCKS;
	case TLOCK: {
		struct node *n = node_of(name, 0);
		const char *token = strchr(name, '@');
		int there = n->locks[FLOCK] && (!token || strtoull(token + 1, NULL, 10) == n->token);
		return there ? number(n, AS_LOCK) : 0;
	}
	}
	return 0;
}

static void reply_entry(fuse_req_t req, fuse_ino_t ino)
{
	struct fuse_entry_param e = { .ino = ino, .attr_timeout = timeout(ino), .entry_timeout = timeout(ino) };
	attributes(ino, &e.attr);
	fuse_reply_entry(req, &e);
}

static void do_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	pthread_mutex_lock(&mutex);
	fuse_ino_t ino = find(parent, name);
	pthread_mutex_unlock(&mutex);
	if (ino)
		reply_entry(req, ino);
	else
		fuse_reply_err(req, ENOENT);
}

static void do_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct stat st;
	attributes(ino, &st);
	fuse_reply_attr(req, &st, timeout(ino));
}

static void do_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int set, struct fuse_file_info *fi)
{
	do_getattr(req, ino, fi);
}

static void do_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
	pthread_mutex_lock(&mutex);
	struct node *n = parent == TLOCK ? node_of(name, 0) : NULL;
	int answer = n ? acquire(n, FLOCK, whole(++last_handle, 0, F_WRLCK), req, 0, NULL) : EPERM;
	pthread_mutex_unlock(&mutex);
	if (answer)
		fuse_reply_err(req, answer == EAGAIN ? EEXIST : answer);
	else
		reply_entry(req, number(n, AS_LOCK));
}

static void do_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct waiter *granted = NULL;
	pthread_mutex_lock(&mutex);
	fuse_ino_t ino = parent == TLOCK ? find(parent, name) : 0;
	if (ino) {
		struct node *n = node(ino);
		cut(&n->locks[FLOCK], n->locks[FLOCK]->owner, 0, LLONG_MAX);
		granted = grants(n);
	}
	pthread_mutex_unlock(&mutex);
	fuse_reply_err(req, ino ? 0 : ENOENT);
	tell(granted);
}

/* do_open takes the lock if the file is in take/ or hold/. */
static void do_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct node *n = node(ino);
	int answer = 0, takes = n && !n->in_files;
	if (takes)
		fuse_req_interrupt_func(req, interrupted, n);
	pthread_mutex_lock(&mutex);
	fi->fh = ++last_handle;
	fi->direct_io = !n || takes;
	if (takes)
		answer = acquire(n, FLOCK, whole(fi->fh, fi->fh, F_WRLCK), req, 1, fi);
	pthread_mutex_unlock(&mutex);
	if (answer == 0)
		fuse_reply_open(req, fi);
	else if (answer > 0)
		fuse_reply_err(req, answer);
}

/* table writes all locks, a line each. */
static size_t table(char **text)
{
	size_t size;
	FILE *out = open_memstream(text, &size);
	for (struct node *n = nodes; n; n = n->next)
		for (int class = RECORD; class < CLASSES; class++)
			for (struct lock *l = n->locks[class]; l; l = l->next)
				fprintf(out, "%s %s %s %lld %lld %d\n", n->name, class == RECORD ? "record" : "flock",
					l->type == F_WRLCK ? "exclusive" : "shared", (long long)l->start, (long long)l->end, l->pid);
	fclose(out);
	return size;
}

static void do_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *fi)
{
	char token[32], *text = token, *made = NULL;
	size_t length = 0;
	struct node *n = node(ino);
	pthread_mutex_lock(&mutex);
	if (ino == LOCKS) {
		length = table(&made);
		text = made;
	} else if (n && !n->in_files) {
		length = snprintf(token, sizeof token, "%llu\n", (unsigned long long)n->token);
		for (struct lock *l = n->locks[FLOCK]; l && seen_as(ino) == AS_TAKE; l = l->next)
			if (l->handle == fi->fh)
				l->handle = 0; /* its token was read: it stays when this is closed */
	}
	pthread_mutex_unlock(&mutex);
	if ((size_t)offset > length)
		offset = length;
	fuse_reply_buf(req, text + offset, length - offset < size ? length - offset : size);
	free(made);
}

static const struct fuse_lowlevel_ops ops = {
	.lookup = do_lookup, .getattr = do_getattr, .setattr = do_setattr, .mkdir = do_mkdir, .rmdir = do_rmdir,
	.open = do_open, .read = do_read, .flush = do_flush, .release = do_release,
	.getlk = do_getlk, .setlk = do_setlk, .flock = do_flock,
};

int main(int argc, char **argv)
{
	int threads = argc == 3 && !strcmp(argv[1], "-m");
	if (argc != 2 + threads) {
		fprintf(stderr, "usage: locks [-m] DIR\n");
		return 2;
	}
	char *options[] = { "locks", "-oallow_other,default_permissions,fsname=locks" };
	struct fuse_args args = FUSE_ARGS_INIT(2, options);
	struct fuse_session *session = fuse_session_new(&args, &ops, sizeof ops, NULL);
	if (!session || fuse_set_signal_handlers(session) || fuse_session_mount(session, argv[1 + threads]))
		return 1;
	puts("ready");
	fflush(stdout);
	int failed;
	if (threads) {
		struct fuse_loop_config *config = fuse_loop_cfg_create();
		failed = fuse_session_loop_mt(session, config);
		fuse_loop_cfg_destroy(config);
	} else {
		failed = fuse_session_loop(session);
	}
	fuse_session_unmount(session);
	fuse_session_destroy(session);
	return failed < 0;
}
