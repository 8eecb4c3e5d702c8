/* map_shared WRITER READER: writes a file through a shared mapping of one path, reads it through a shared
 * mapping of the other; then the other way round. The paths are one file on two mounts.
 *
 * Not yet simultaneous: the mapping is synchronised and closed before the other one is opened. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGES = 64, PAGE = 4096, SIZE = PAGES * PAGE };

static void check(int ok, const char *what)
{
	if (!ok) {
		perror(what);
		exit(1);
	}
}

static unsigned char *mapped(const char *path, int writable)
{
	int fd = open(path, writable ? O_RDWR : O_RDONLY);
	check(fd >= 0, path);
	void *map = mmap(NULL, SIZE, PROT_READ | (writable ? PROT_WRITE : 0), MAP_SHARED, fd, 0);
	check(map != MAP_FAILED, "mmap");
	check(close(fd) == 0, "close"); /* the mapping keeps the file open */
	return map;
}

static unsigned char value(int round, int i)
{
	return (unsigned char)(i * 31 + i / PAGE + round * 101);
}

static void exchange(int round, const char *writer, const char *reader)
{
	unsigned char *to = mapped(writer, 1);
	for (int i = 0; i < SIZE; i++)
		to[i] = value(round, i);
	check(msync(to, SIZE, MS_SYNC) == 0, "msync");
	check(munmap(to, SIZE) == 0, "munmap");

	unsigned char *from = mapped(reader, 0);
	for (int i = 0; i < SIZE; i++) {
		if (from[i] != value(round, i)) {
			fprintf(stderr, "byte %d of %s is %d, not %d\n", i, reader, from[i], value(round, i));
			exit(1);
		}
	}
	check(munmap(from, SIZE) == 0, "munmap");
}

int main(int argc, char **argv)
{
	if (argc != 3) {
		fprintf(stderr, "usage: map_shared WRITER READER\n");
		return 2;
	}
	int fd = open(argv[1], O_RDWR | O_CREAT | O_TRUNC, 0644);
	check(fd >= 0, argv[1]);
	check(ftruncate(fd, SIZE) == 0, "ftruncate");
	check(close(fd) == 0, "close");
	exchange(1, argv[1], argv[2]);
	exchange(2, argv[2], argv[1]);
	printf("%d pages each way\n", PAGES);
	return 0;
}
