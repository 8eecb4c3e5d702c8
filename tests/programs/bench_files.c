/* bench_files WORK DIRECTORY COUNT: work with many small files, timed; for scripts/bench.
 *
 * The files have 4 KiB each and lie in directories of 100 below DIRECTORY. WORK is one of:
 *   create  make DIRECTORY and COUNT files: open, write, close
 *   walk    list all directories and stat everything in them
 *   read    open, read and close every file
 *   stat    stat one file COUNT times, after once that is not timed
 *   rename  give one file another name and its own again, in turn, COUNT times together; COUNT is even
 *   remove  unlink everything, and remove the directories
 *
 * What is found is looked at: the number of files, their sizes, the name at the beginning of each. Prints
 * "seconds X count N". Exit status: 0, or 1 with a reason. */
#include "views.h"
#include <dirent.h>
#include <limits.h>

enum { SIZE = 4096, FILES_PER_DIRECTORY = 100 };

static const char *top;
static uint64_t count, began;

static const char *directory_of(uint64_t number)
{
	static char path[PATH_MAX];
	int length = snprintf(path, sizeof path, "%s/d%04ju", top, (uintmax_t)(number / FILES_PER_DIRECTORY));
	need(length < PATH_MAX, "a path that is too long");
	return path;
}

static const char *file(uint64_t number)
{
	static char path[PATH_MAX + 32];
	snprintf(path, sizeof path, "%s/f%06ju", directory_of(number), (uintmax_t)number);
	return path;
}

static void create_all(void)
{
	char data[SIZE];
	memset(data, 'x', sizeof data);
	need(mkdir(top, 0755) == 0, top);
	for (uint64_t i = 0; i < count; i++) {
		if (i % FILES_PER_DIRECTORY == 0)
			need(mkdir(directory_of(i), 0755) == 0, "mkdir");
		int fd = open(file(i), O_WRONLY | O_CREAT | O_EXCL, 0644);
		need(fd >= 0, file(i));
		memcpy(data, &i, sizeof i);
		need(write(fd, data, SIZE) == SIZE, "write");
		need(close(fd) == 0, "close");
	}
}

static uint64_t found;

static void walk(const char *path)
{
	char below[PATH_MAX];
	DIR *stream = opendir(path);
	need(stream != NULL, path);
	for (struct dirent *entry; (entry = readdir(stream));) {
		if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
			continue;
		struct stat it;
		need(fstatat(dirfd(stream), entry->d_name, &it, AT_SYMLINK_NOFOLLOW) == 0, entry->d_name);
		if (S_ISDIR(it.st_mode)) {
			need(snprintf(below, sizeof below, "%s/%s", path, entry->d_name) < PATH_MAX, "a path that is too long");
			char *next = strdup(below);
			need(next != NULL, "strdup");
			walk(next);
			free(next);
		} else {
			if (it.st_size != SIZE)
				fail("%s/%s has %jd bytes", path, entry->d_name, (intmax_t)it.st_size);
			found++;
		}
	}
	need(closedir(stream) == 0, "closedir");
}

static void walk_all(void)
{
	walk(top);
	if (found != count)
		fail("found %ju files, not %ju", (uintmax_t)found, (uintmax_t)count);
}

static void read_all(void)
{
	char data[SIZE + 1];
	for (uint64_t i = 0; i < count; i++) {
		int fd = open(file(i), O_RDONLY);
		need(fd >= 0, file(i));
		ssize_t got = read(fd, data, sizeof data);
		if (got != SIZE || memcmp(data, &i, sizeof i) != 0)
			fail("%s: not what was written", file(i));
		need(close(fd) == 0, "close");
	}
}

static void stat_one(void)
{
	struct stat it;
	const char *path = file(0);
	need(stat(path, &it) == 0, path);
	began = now_ns();
	for (uint64_t i = 0; i < count; i++)
		need(stat(path, &it) == 0, path);
}

static void rename_one(void)
{
	char home[PATH_MAX + 32], away[sizeof home + sizeof ".away"];
	snprintf(home, sizeof home, "%s", file(0));
	snprintf(away, sizeof away, "%s.away", home);
	for (uint64_t i = 0; i < count; i++)
		need((i % 2 ? rename(away, home) : rename(home, away)) == 0, home);
}

static void remove_all(void)
{
	for (uint64_t i = 0; i < count; i++) {
		need(unlink(file(i)) == 0, file(i));
		if (i % FILES_PER_DIRECTORY == FILES_PER_DIRECTORY - 1 || i == count - 1)
			need(rmdir(directory_of(i)) == 0, "rmdir");
	}
	need(rmdir(top) == 0, top);
}

static const struct {
	const char *name;
	void (*work)(void);
} WORKS[] = {
	{"create", create_all}, {"walk", walk_all}, {"read", read_all}, {"stat", stat_one},
	{"rename", rename_one}, {"remove", remove_all},
};

int main(int argc, char **argv)
{
	if (argc == 4) {
		top = argv[2];
		count = strtoull(argv[3], NULL, 10);
		for (size_t i = 0; i < sizeof WORKS / sizeof *WORKS; i++) {
			if (strcmp(argv[1], WORKS[i].name) != 0)
				continue;
			began = now_ns();
			WORKS[i].work();
			printf("seconds %.9f count %ju\n", (double)(now_ns() - began) / 1e9, (uintmax_t)count);
			return HELD;
		}
	}
	fprintf(stderr, "usage: bench_files create|walk|read|stat|rename|remove DIRECTORY COUNT\n");
	return USAGE;
}
