/* locked KIND ROUNDS PATH...: a counter that is taken with a lock; and whether locks exclude at all.
 *
 * KIND is fcntl (POSIX record locks), ofd or flock. First one process per path tries to lock while another one
 * holds the lock: exit status 4 if that succeeds, as locks do not exclude then. After that one process per path
 * takes the lock ROUNDS times and increments a counter in the file: by turns through a mapping and by pread(2) and
 * pwrite(2), with nothing atomic about it.
 *
 * Prints "counter N". Exit status: 0 if that is ROUNDS times the number of paths, 1 if not, 3 if stuck. */
#include "views.h"
#include <sys/file.h>

enum { NOT_EXCLUSIVE = 4 };
#define PATIENCE_NS 20000000000u

static struct {
	struct barrier barrier;
	word done[PROCESSES_MAX];
} *shared;
static const char *kind, **paths;
static int count;
static uint64_t rounds;

/* Lock (type F_WRLCK) or unlock (F_UNLCK); 0, or -1 with EAGAIN if not *wait*. */
static int lock(int fd, short type, int wait)
{
	if (strcmp(kind, "flock") == 0)
		return flock(fd, type == F_UNLCK ? LOCK_UN : wait ? LOCK_EX : LOCK_EX | LOCK_NB);
	struct flock range = {.l_type = type, .l_whence = SEEK_SET, .l_start = 0, .l_len = 8};
	if (strcmp(kind, "ofd") == 0)
		return fcntl(fd, wait ? F_OFD_SETLKW : F_OFD_SETLK, &range);
	return fcntl(fd, wait ? F_SETLKW : F_SETLK, &range);
}

static void run(int number)
{
	struct view it = view(paths[number], PAGE);
	meet(&shared->barrier, (uint32_t)count);
	for (int holder = 0; holder < count; holder++) {
		if (number == holder)
			need(lock(it.fd, F_WRLCK, 1) == 0, "lock");
		meet(&shared->barrier, (uint32_t)count);
		if (number != holder && (lock(it.fd, F_WRLCK, 0) == 0 || (errno != EAGAIN && errno != EACCES)))
			_exit(NOT_EXCLUSIVE);
		meet(&shared->barrier, (uint32_t)count);
		if (number == holder)
			need(lock(it.fd, F_UNLCK, 1) == 0, "unlock");
		meet(&shared->barrier, (uint32_t)count);
	}
	for (uint64_t i = 0; i < rounds; i++) {
		enum access how = (i + (uint64_t)number) & 1 ? BY_MAP : BY_CALL;
		need(lock(it.fd, F_WRLCK, 1) == 0, "lock");
		store(it, 0, load(it, 0, how) + 1, how);
		need(lock(it.fd, F_UNLCK, 1) == 0, "unlock");
		shared->done[number]++;
	}
	meet(&shared->barrier, (uint32_t)count);
	uint64_t found = load(it, 0, BY_MAP);
	if (found != rounds * (uint64_t)count)
		fail("LOST: process %d finds %ju, not %ju", number, (uintmax_t)found,
		     (uintmax_t)(rounds * (uint64_t)count));
	if (number == 0)
		printf("counter %ju\n", (uintmax_t)found);
}

static uint64_t progress(void)
{
	uint64_t sum = 0;
	for (int i = 0; i < count; i++)
		sum += shared->done[i];
	return sum;
}

int main(int argc, char **argv)
{
	if (argc < 5 || argc > 3 + VIEWS_MAX) {
		fprintf(stderr, "usage: locked fcntl|ofd|flock ROUNDS PATH...\n");
		return USAGE;
	}
	kind = argv[1];
	rounds = strtoull(argv[2], NULL, 10);
	paths = (const char **)argv + 3;
	count = argc - 3;
	create(paths[0], PAGE);
	shared = shared_memory(sizeof *shared);
	pid_t pids[PROCESSES_MAX];
	for (int i = 0; i < count; i++)
		pids[i] = start(run, i);
	int result = await_all(pids, count, progress, PATIENCE_NS);
	if (result == STUCK)
		for (int i = 0; i < count; i++)
			fprintf(stderr, "stuck: process %d has done %ju\n", i, (uintmax_t)shared->done[i]);
	return result;
}
