/* visible ROW TIMES PATH1 PATH2: after a call has returned on mount 1, how long until mount 2 sees what it did.
 *
 * ROW is one of the names in ROWS below; the paths are one name on two mounts, not in use. Mount 2 has the file
 * open and mapped, and has looked at it right before. All is done TIMES times by one process, so that nothing
 * but the two mounts stands between the action and the look.
 *
 * Prints "ROW looks N late N median_us X max_us N": how many times it was looked, how often the first look did not
 * show it, and the median and the longest time from the action's return to the end of the look that showed it. Exit status: 0 if every
 * first look showed it, 1 if not, 3 if it was never seen (the row is then given up after 3 s). */
#include "views.h"

#define GIVE_UP_NS 3000000000u

static int by_size(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
	return x < y ? -1 : x > y;
}

static const char *path1, *path2;
static struct view one, two;

static void by_call(uint64_t n) { store(one, 0, n, BY_CALL); }
static void by_map(uint64_t n) { store(one, 0, n, BY_MAP); }
static int seen_by_call(uint64_t n) { return load(two, 0, BY_CALL) == n; }
static int seen_by_map(uint64_t n) { return load(two, 0, BY_MAP) == n; }

static void grow(uint64_t n) { need(pwrite(one.fd, "x", 1, (off_t)(PAGE + n)) == 1, "pwrite"); }
static int has_grown(uint64_t n)
{
	struct stat found;
	need(stat(path2, &found) == 0, "stat");
	return found.st_size == (off_t)(PAGE + n + 1);
}

static void cut(uint64_t n) { need(ftruncate(one.fd, (off_t)(PAGE + n)) == 0, "ftruncate"); }
static int is_cut(uint64_t n)
{
	char byte;
	return pread(two.fd, &byte, 1, (off_t)(PAGE + n)) == 0 && pread(two.fd, &byte, 1, (off_t)(PAGE + n - 1)) == 1;
}

static void change_mode(uint64_t n) { need(chmod(path1, 0600 + (mode_t)(n & 077)) == 0, "chmod"); }
static int has_mode(uint64_t n)
{
	struct stat found;
	need(stat(path2, &found) == 0, "stat");
	return (found.st_mode & 0777) == 0600 + (n & 077);
}

/* Every other time it is made again. */
static void unlink_or_make(uint64_t n)
{
	if (n & 1)
		need(unlink(path1) == 0, "unlink");
	else
		need(close(open(path1, O_CREAT | O_EXCL | O_RDWR, 0644)) == 0, "open");
}
static int is_gone_or_there(uint64_t n)
{
	struct stat found;
	return (stat(path2, &found) == 0) == !(n & 1);
}

static const struct {
	const char *name;
	void (*act)(uint64_t);
	int (*look)(uint64_t);
} ROWS[] = {
	{"write-read", by_call, seen_by_call},  {"store-load", by_map, seen_by_map},
	{"write-load", by_call, seen_by_map},   {"store-read", by_map, seen_by_call},
	{"grew-stat", grow, has_grown},         {"cut-read", cut, is_cut},
	{"chmod-stat", change_mode, has_mode},  {"unlink-stat", unlink_or_make, is_gone_or_there},
};

int main(int argc, char **argv)
{
	if (argc != 5) {
		fprintf(stderr, "usage: visible ROW TIMES PATH1 PATH2\n");
		return USAGE;
	}
	path1 = argv[3];
	path2 = argv[4];
	uint64_t late = 0, longest = 0, n, times = strtoull(argv[2], NULL, 10);
	uint64_t *all = calloc(times + 1, sizeof *all);
	need(all != NULL, "calloc");
	for (size_t row = 0; row < sizeof ROWS / sizeof *ROWS; row++) {
		if (strcmp(argv[1], ROWS[row].name) != 0)
			continue;
		create(path1, 2 * PAGE);
		one = view(path1, PAGE);
		two = view(path2, PAGE);
		if (ROWS[row].act == grow) /* it is to grow from here */
			need(ftruncate(one.fd, PAGE) == 0, "ftruncate");
		for (n = 1; n <= times; n++) {
			ROWS[row].look(n);
			ROWS[row].act(n);
			uint64_t returned = now_ns(), took;
			int looks = 1;
			while (!ROWS[row].look(n) && now_ns() - returned < GIVE_UP_NS)
				looks++;
			took = now_ns() - returned;
			all[n - 1] = took;
			late += looks > 1;
			longest = took > longest ? took : longest;
			if (took >= GIVE_UP_NS) {
				printf("%s looks %ju late %ju max_us never\n", argv[1], (uintmax_t)n, (uintmax_t)late);
				return STUCK;
			}
		}
		qsort(all, times, sizeof *all, by_size);
		printf("%s looks %ju late %ju median_us %.1f max_us %ju\n", argv[1], (uintmax_t)times, (uintmax_t)late,
		       (double)all[times / 2] / 1e3, (uintmax_t)longest / 1000);
		return late ? BROKEN : HELD;
	}
	fprintf(stderr, "visible: no row %s\n", argv[1]);
	return USAGE;
}
