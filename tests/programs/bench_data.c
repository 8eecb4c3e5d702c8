/* bench_data WORK PATH SIZE COUNT: work with the data of one file, timed; for scripts/bench.
 *
 * WORK is one of:
 *   write   a new file of SIZE bytes in calls of 1 MiB, fsync, close
 *   read    the file from end to end, in calls of 128 KiB
 *   scan    the same through a mapping
 *   store   every byte of the file through a mapping, msync
 *   random  COUNT times 4 KiB of somewhere in the file
 *   fsync   COUNT times 4 KiB to somewhere in the file, each followed by fsync
 *   append  COUNT times 100 bytes to the end of a new file, close
 *
 * What is read is looked at: each page begins with its own offset. Prints "seconds X bytes N count N", from before
 * open to after close; for random only the calls are timed, not the opening. Exit status: 0, or 1 with a reason. */
#include "views.h"

enum { LARGE = 1 << 20, MIDDLE = 128 << 10, RECORD = 100 };

static const char *path;
static size_t size;
static uint64_t count, began, state = 88172645463325252u;

static int opened(int flags)
{
	int fd = open(path, flags, 0644);
	need(fd >= 0, path);
	return fd;
}

static void label(unsigned char *data, size_t offset, size_t length)
{
	for (uint64_t at = 0; at < length; at += PAGE) {
		uint64_t number = offset + at;
		memcpy(data + at, &number, sizeof number);
	}
}

static void look(const unsigned char *data, size_t offset, size_t length)
{
	for (size_t at = 0; at < length; at += PAGE) {
		uint64_t number;
		memcpy(&number, data + at, sizeof number);
		if (number != offset + at)
			fail("page at %zu has the label %ju", offset + at, (uintmax_t)number);
	}
}

static unsigned char *buffer(size_t length)
{
	unsigned char *data = aligned_alloc(PAGE, length);
	need(data != NULL, "aligned_alloc");
	memset(data, 'x', length);
	return data;
}

static off_t somewhere(void)
{
	return (off_t)(chance(&state) % (size / PAGE) * PAGE);
}

static void write_all(void)
{
	unsigned char *data = buffer(LARGE);
	int fd = opened(O_WRONLY | O_CREAT | O_TRUNC);
	for (size_t at = 0; at < size; at += LARGE) {
		label(data, at, LARGE);
		need(write(fd, data, LARGE) == LARGE, "write");
	}
	need(fsync(fd) == 0, "fsync");
	need(close(fd) == 0, "close");
}

static void read_all(void)
{
	unsigned char *data = buffer(MIDDLE);
	int fd = opened(O_RDONLY);
	for (size_t at = 0; at < size; at += MIDDLE) {
		need(read(fd, data, MIDDLE) == MIDDLE, "read");
		look(data, at, MIDDLE);
	}
	need(close(fd) == 0, "close");
}

static unsigned char *mapped(int fd, int protection)
{
	unsigned char *map = mmap(NULL, size, protection, MAP_SHARED, fd, 0);
	need(map != MAP_FAILED, "mmap");
	return map;
}

static void scan(void)
{
	int fd = opened(O_RDONLY);
	unsigned char *map = mapped(fd, PROT_READ);
	look(map, 0, size);
	need(munmap(map, size) == 0, "munmap");
	need(close(fd) == 0, "close");
}

static void store_all(void)
{
	int fd = opened(O_RDWR);
	unsigned char *map = mapped(fd, PROT_READ | PROT_WRITE);
	for (size_t at = 0; at < size; at += PAGE) {
		memset(map + at, 'y', PAGE);
		label(map + at, at, PAGE);
	}
	need(msync(map, size, MS_SYNC) == 0, "msync");
	need(munmap(map, size) == 0, "munmap");
	need(close(fd) == 0, "close");
}

static void read_somewhere(void)
{
	unsigned char *data = buffer(PAGE);
	int fd = opened(O_RDONLY);
	began = now_ns();
	for (uint64_t i = 0; i < count; i++) {
		off_t at = somewhere();
		need(pread(fd, data, PAGE, at) == PAGE, "pread");
		look(data, (size_t)at, PAGE);
	}
}

static void write_and_sync(void)
{
	unsigned char *data = buffer(PAGE);
	int fd = opened(O_WRONLY);
	for (uint64_t i = 0; i < count; i++) {
		off_t at = somewhere();
		label(data, (size_t)at, PAGE);
		need(pwrite(fd, data, PAGE, at) == PAGE, "pwrite");
		need(fsync(fd) == 0, "fsync");
	}
	need(close(fd) == 0, "close");
}

static void append(void)
{
	unsigned char *data = buffer(PAGE);
	int fd = opened(O_WRONLY | O_CREAT | O_EXCL | O_APPEND);
	for (uint64_t i = 0; i < count; i++)
		need(write(fd, data, RECORD) == RECORD, "write");
	need(close(fd) == 0, "close");
}

static const struct {
	const char *name;
	void (*work)(void);
} WORKS[] = {
	{"write", write_all},       {"read", read_all},        {"scan", scan},     {"store", store_all},
	{"random", read_somewhere}, {"fsync", write_and_sync}, {"append", append},
};

int main(int argc, char **argv)
{
	if (argc == 5) {
		path = argv[2];
		size = strtoull(argv[3], NULL, 10);
		count = strtoull(argv[4], NULL, 10);
		if (size == 0 || size % LARGE != 0)
			fail("SIZE must be a multiple of %d", LARGE);
		for (size_t i = 0; i < sizeof WORKS / sizeof *WORKS; i++) {
			if (strcmp(argv[1], WORKS[i].name) != 0)
				continue;
			began = now_ns();
			WORKS[i].work();
			printf("seconds %.9f bytes %zu count %ju\n", (double)(now_ns() - began) / 1e9, size,
			       (uintmax_t)count);
			return HELD;
		}
	}
	fprintf(stderr, "usage: bench_data write|read|scan|store|random|fsync|append PATH SIZE COUNT\n");
	return USAGE;
}
