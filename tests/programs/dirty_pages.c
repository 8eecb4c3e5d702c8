/* dirty_pages PAGES PATH1 PATH2: mount 1 has PAGES mapped pages dirty, and mount 2 reads them all.
 *
 * Prints how long that took. Exit status: 0 if every page was as stored. */
#include "views.h"

int main(int argc, char **argv)
{
	size_t pages = argc == 4 ? strtoul(argv[1], NULL, 10) : 0;
	if (pages == 0) {
		fprintf(stderr, "usage: dirty_pages PAGES PATH1 PATH2\n");
		return USAGE;
	}
	create(argv[2], (off_t)(pages * PAGE));
	struct view one = view(argv[2], pages * PAGE);
	for (size_t page = 0; page < pages; page++)
		store(one, page * PAGE, page + 1, BY_MAP);
	int two = open(argv[3], O_RDONLY);
	need(two >= 0, argv[3]);
	unsigned char *buffer = malloc(pages * PAGE);
	need(buffer != NULL, "malloc");
	uint64_t before = now_ns();
	need(pread(two, buffer, pages * PAGE, 0) == (ssize_t)(pages * PAGE), "pread");
	uint64_t took = now_ns() - before;
	for (size_t page = 0; page < pages; page++) {
		uint64_t found;
		memcpy(&found, buffer + page * PAGE, sizeof found);
		if (found != page + 1)
			fail("page %zu holds %ju", page, (uintmax_t)found);
	}
	printf("pages %zu us %ju\n", pages, (uintmax_t)took / 1000);
	return HELD;
}
