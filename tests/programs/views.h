/* One file seen through several mounts ("views"): what the programs here have in common.
 *
 * Every program is given the paths of one file on different mounts, and starts processes that use them. What
 * the processes tell each other outside of the file goes through anonymous shared memory, never through a
 * mount. A process that waits in a page fault may be beyond help: the parent never waits for one without a
 * limit, and says what each was doing. */
#pragma once
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, VIEWS_MAX = 8, PROCESSES_MAX = 32 };
enum { HELD = 0, BROKEN = 1, USAGE = 2, STUCK = 3 }; /* exit statuses */

typedef _Atomic uint64_t word;

static inline void fail(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
static inline void fail(const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fputc('\n', stderr);
	_exit(BROKEN);
}

static inline void need(int ok, const char *what)
{
	if (!ok)
		fail("%s: %s", what, strerror(errno));
}

/* --- time and chance --- */

static inline uint64_t now_ns(void)
{
	struct timespec at;
	clock_gettime(CLOCK_MONOTONIC, &at);
	return (uint64_t)at.tv_sec * 1000000000u + (uint64_t)at.tv_nsec;
}

static inline void spin_ns(uint64_t length)
{
	for (uint64_t end = now_ns() + length; now_ns() < end;)
		__builtin_ia32_pause();
}

/* xorshift64* (Vigna 2014); a state of 0 is not allowed. */
static inline uint64_t chance(uint64_t *state)
{
	*state ^= *state >> 12;
	*state ^= *state << 25;
	*state ^= *state >> 27;
	return *state * 2685821657736338717u;
}

/* --- the file --- */

struct view {
	int fd;
	unsigned char *map;
};

static inline void create(const char *path, off_t size)
{
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0644);
	need(fd >= 0, path);
	need(ftruncate(fd, size) == 0, "ftruncate");
	need(close(fd) == 0, "close");
}

static inline struct view view(const char *path, size_t size)
{
	struct view it = {.fd = open(path, O_RDWR)};
	need(it.fd >= 0, path);
	it.map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, it.fd, 0);
	need(it.map != MAP_FAILED, "mmap");
	return it;
}

enum access { BY_MAP, BY_CALL };

static inline void store(struct view it, size_t at, uint64_t value, enum access how)
{
	if (how == BY_MAP)
		atomic_store((word *)(it.map + at), value); /* sequentially consistent: xchg, or a store and mfence */
	else
		need(pwrite(it.fd, &value, sizeof value, (off_t)at) == sizeof value, "pwrite");
}

static inline uint64_t load(struct view it, size_t at, enum access how)
{
	uint64_t value;
	if (how == BY_MAP)
		return atomic_load((word *)(it.map + at));
	need(pread(it.fd, &value, sizeof value, (off_t)at) == sizeof value, "pread");
	return value;
}

/* --- processes --- */

static inline void *shared_memory(size_t size)
{
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	need(memory != MAP_FAILED, "mmap of shared memory");
	return memory;
}

/* A barrier in shared memory. Waits in the kernel after a short spin: processors are few. */
struct barrier {
	_Atomic uint32_t arrived, generation;
};

static inline void meet(struct barrier *barrier, uint32_t count)
{
	uint32_t generation = atomic_load(&barrier->generation);
	if (atomic_fetch_add(&barrier->arrived, 1) + 1 == count) {
		atomic_store(&barrier->arrived, 0);
		atomic_fetch_add(&barrier->generation, 1);
		syscall(SYS_futex, &barrier->generation, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
		return;
	}
	for (int i = 0; i < 2000 && atomic_load(&barrier->generation) == generation; i++)
		__builtin_ia32_pause();
	while (atomic_load(&barrier->generation) == generation)
		syscall(SYS_futex, &barrier->generation, FUTEX_WAIT, generation, NULL, NULL, 0);
}

static inline pid_t start(void (*body)(int), int number)
{
	fflush(NULL);
	pid_t parent = getpid(), pid = fork();
	need(pid >= 0, "fork");
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			_exit(BROKEN);
		body(number);
		fflush(NULL);
		_exit(HELD);
	}
	return pid;
}

/* Wait for all processes; *progress* must change within *patience_ns*, or they are killed and STUCK returned.
 * The first failure ends the others. */
static inline int await_all(const pid_t *pids, int count, uint64_t (*progress)(void), uint64_t patience_ns)
{
	int status, result = HELD, left = count;
	uint64_t last = progress(), since = now_ns();
	while (left > 0) {
		pid_t pid = waitpid(-1, &status, WNOHANG);
		if (pid > 0) {
			left--;
			if (status != 0 && result == HELD) {
				result = WIFEXITED(status) ? WEXITSTATUS(status) : BROKEN;
				if (WIFSIGNALED(status))
					fprintf(stderr, "a process was killed by: %s\n", strsignal(WTERMSIG(status)));
				for (int i = 0; i < count; i++)
					kill(pids[i], SIGKILL);
			}
			continue;
		}
		if (progress() != last) {
			last = progress();
			since = now_ns();
		} else if (now_ns() - since > patience_ns) {
			for (int i = 0; i < count; i++)
				kill(pids[i], SIGKILL);
			return STUCK; /* not waited for: a process stuck in a page fault does not die of it */
		}
		usleep(2000);
	}
	return result;
}
