/* bench_locks ROUNDS PATH1 PATH2: fcntl locks handed from one mount to another and back; for scripts/bench.
 *
 * Two processes go round over three bytes: each locks the next one, then unlocks the one it had. So none can
 * lap the other, and each lock is one that the other has just given up (the scheme of ctdb's ping_pong). First
 * it is tried whether locks exclude at all: exit status 4 if not.
 *
 * Prints "locks N seconds X". Exit status: 0, 3 if stuck, 4. */
#include "views.h"

enum { NOT_EXCLUSIVE = 4, BYTES = 3 };
#define PATIENCE_NS 10000000000u

static struct {
	struct barrier barrier;
	word done[2];
} *shared;
static const char **paths;
static uint64_t rounds;

static int lock(int fd, short type, off_t at, int how)
{
	struct flock range = {.l_type = type, .l_whence = SEEK_SET, .l_start = at, .l_len = 1};
	return fcntl(fd, how, &range);
}

static void run(int number)
{
	int fd = open(paths[number], O_RDWR);
	need(fd >= 0, paths[number]);
	if (number == 0)
		need(lock(fd, F_WRLCK, 0, F_SETLKW) == 0, "lock");
	meet(&shared->barrier, 2);
	if (number == 1) {
		if (lock(fd, F_WRLCK, 0, F_SETLK) == 0)
			_exit(NOT_EXCLUSIVE);
		need(errno == EAGAIN || errno == EACCES, "a lock that is held elsewhere");
		need(lock(fd, F_WRLCK, 1, F_SETLK) == 0, "lock");
	}
	meet(&shared->barrier, 2);
	uint64_t began = now_ns();
	off_t at = number;
	for (uint64_t i = 0; i < rounds; i++) {
		off_t next = (at + 1) % BYTES;
		need(lock(fd, F_WRLCK, next, F_SETLKW) == 0, "lock");
		need(lock(fd, F_UNLCK, at, F_SETLKW) == 0, "unlock");
		at = next;
		shared->done[number]++;
	}
	if (number == 0)
		printf("locks %ju seconds %.9f\n", (uintmax_t)rounds, (double)(now_ns() - began) / 1e9);
}

static uint64_t progress(void)
{
	return shared->done[0] + shared->done[1];
}

int main(int argc, char **argv)
{
	if (argc != 4) {
		fprintf(stderr, "usage: bench_locks ROUNDS PATH1 PATH2\n");
		return USAGE;
	}
	rounds = strtoull(argv[1], NULL, 10);
	paths = (const char **)argv + 2;
	create(paths[0], PAGE);
	shared = shared_memory(sizeof *shared);
	pid_t pids[2];
	for (int i = 0; i < 2; i++)
		pids[i] = start(run, i);
	int result = await_all(pids, 2, progress, PATIENCE_NS);
	if (result == STUCK)
		fprintf(stderr, "stuck after %ju locks\n", (uintmax_t)progress());
	return result;
}
