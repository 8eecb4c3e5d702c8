/* appends RECORDS PATH...: one process per path appends RECORDS records to the file (O_APPEND) at the same time.
 *
 * Prints how many of the records are there. Exit status: 0 if all are, whole, and each writer's in its order, 1 if
 * not, 3 without progress. */
#include "views.h"

enum { RECORD = 64 };
#define PATIENCE_NS 20000000000u

static struct {
	struct barrier barrier;
	word done[PROCESSES_MAX];
} *shared;
static const char **paths;
static int writers;
static unsigned records;

static void write_record(char *record, int writer, unsigned number)
{
	memset(record, 'a' + writer, RECORD);
	snprintf(record, RECORD, "%d %08u ", writer, number);
	record[strlen(record)] = ' ';
	record[RECORD - 1] = '\n';
}

static void run(int writer)
{
	char record[RECORD];
	int fd = open(paths[writer], O_WRONLY | O_APPEND);
	need(fd >= 0, paths[writer]);
	meet(&shared->barrier, (uint32_t)writers);
	for (unsigned number = 0; number < records; number++) {
		write_record(record, writer, number);
		need(write(fd, record, RECORD) == RECORD, "write");
		shared->done[writer]++;
	}
	need(close(fd) == 0, "close");
}

static uint64_t progress(void)
{
	uint64_t sum = 0;
	for (int i = 0; i < writers; i++)
		sum += shared->done[i];
	return sum;
}

int main(int argc, char **argv)
{
	if (argc < 4 || argc > 2 + VIEWS_MAX) {
		fprintf(stderr, "usage: appends RECORDS PATH...\n");
		return USAGE;
	}
	records = (unsigned)atoi(argv[1]);
	paths = (const char **)argv + 2;
	writers = argc - 2;
	create(paths[0], 0);
	shared = shared_memory(sizeof *shared);
	pid_t pids[PROCESSES_MAX];
	for (int i = 0; i < writers; i++)
		pids[i] = start(run, i);
	int result = await_all(pids, writers, progress, PATIENCE_NS);
	if (result != HELD)
		return result;

	char found[RECORD], expected[RECORD];
	unsigned next[PROCESSES_MAX] = {0}, whole = 0, total = 0;
	FILE *file = fopen(paths[writers - 1], "r");
	need(file != NULL, paths[writers - 1]);
	while (fread(found, RECORD, 1, file) == 1) {
		total++;
		for (int w = 0; w < writers; w++) {
			write_record(expected, w, next[w]);
			if (memcmp(found, expected, RECORD) == 0) {
				next[w]++;
				whole++;
			}
		}
	}
	printf("%u of %u records\n", whole, records * (unsigned)writers);
	if (whole != total)
		fprintf(stderr, "%u records are there, %u of them whole and in order\n", total, whole);
	return whole == total && whole == records * (unsigned)writers ? HELD : BROKEN;
}
