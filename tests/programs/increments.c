/* increments SECONDS WRITERS READERS PATH...: lost updates, monotonic readers, and false sharing.
 *
 * WRITERS processes each increment 8 bytes of their own, all in one page, through a mapping, as fast as they can.
 * READERS processes load all of them, half of them through a mapping, half with pread(2). Process i uses path
 * i modulo their number: the same file on different mounts.
 *
 * Every load must be at least what its process loaded before, and at least what the writer had announced, outside
 * of the file, before the load began. At the end every process must find exactly what was stored.
 *
 * Prints a line for each writer: "writer I stores N turns N gap_ms X". A turn begins with a store by which the
 * writer sees that another one has stored since its last; gap is its longest time between two stores. And
 * "reader I loads N changes N". Exit status: 0, 1 if something was lost, 3 without progress. */
#include "views.h"

#define PATIENCE_NS 20000000000u

static struct {
	struct barrier barrier;
	_Atomic int over;
	word announced[PROCESSES_MAX];
	struct {
		word count, changes;
		uint64_t gap_ns;
		_Atomic int phase;
	} of[PROCESSES_MAX];
} *shared;

static int writers, readers, views;
static const char **paths;
static uint64_t length_ns;

static void finish(int number, struct view it)
{
	shared->of[number].phase = 2;
	meet(&shared->barrier, (uint32_t)(writers + readers));
	for (int how = BY_MAP; how <= BY_CALL; how++)
		for (int w = 0; w < writers; w++) {
			uint64_t found = load(it, (size_t)w * 8, (enum access)how), stored = shared->announced[w];
			if (found != stored)
				fail("LOST: writer %d stored %ju, process %d finds %ju by %s in the end", w,
				     (uintmax_t)stored, number, (uintmax_t)found, how == BY_MAP ? "map" : "call");
		}
	shared->of[number].phase = 3;
	meet(&shared->barrier, (uint32_t)(writers + readers));
}

static void write_all(int number, struct view it)
{
	volatile uint64_t *mine = (volatile uint64_t *)it.map + number;
	uint64_t seen[PROCESSES_MAX] = {0}, last = now_ns();
	while (!shared->over) {
		uint64_t value = ++*mine; /* a load and a store; no other process may come between for its own bytes */
		atomic_store_explicit(&shared->announced[number], value, memory_order_release);
		if (value != ++shared->of[number].count)
			fail("LOST: writer %d stored %ju and then found %ju", number,
			     (uintmax_t)shared->of[number].count - 1, (uintmax_t)value - 1);
		uint64_t now = now_ns();
		if (now - last > shared->of[number].gap_ns)
			shared->of[number].gap_ns = now - last;
		last = now;
		int turn = 0;
		for (int w = 0; w < writers; w++) {
			/* The same page, most likely still here: what is looked at is whose turn came before. */
			uint64_t other = w == number ? 0 : ((volatile uint64_t *)it.map)[w];
			turn |= other != seen[w];
			seen[w] = other;
		}
		shared->of[number].changes += (uint64_t)turn;
	}
}

static void read_all(int number, struct view it)
{
	enum access how = (number - writers) & 1 ? BY_CALL : BY_MAP;
	uint64_t seen[PROCESSES_MAX] = {0};
	while (!shared->over) {
		for (int w = 0; w < writers; w++) {
			uint64_t announced = atomic_load_explicit(&shared->announced[w], memory_order_acquire);
			uint64_t found = load(it, (size_t)w * 8, how);
			if (found < announced)
				fail("STALE: reader %d found %ju of writer %d by %s, who had stored %ju before", number,
				     (uintmax_t)found, w, how == BY_MAP ? "map" : "call", (uintmax_t)announced);
			if (found < seen[w])
				fail("BACKWARDS: reader %d found %ju of writer %d by %s, and %ju before", number,
				     (uintmax_t)found, w, how == BY_MAP ? "map" : "call", (uintmax_t)seen[w]);
			shared->of[number].changes += found != seen[w];
			seen[w] = found;
		}
		shared->of[number].count++;
	}
}

static void run(int number)
{
	struct view it = view(paths[number % views], PAGE);
	shared->of[number].phase = 1;
	meet(&shared->barrier, (uint32_t)(writers + readers));
	(number < writers ? write_all : read_all)(number, it);
	finish(number, it);
}

static uint64_t progress(void)
{
	static uint64_t end_ns;
	uint64_t sum = 0;
	int begun = 1;
	for (int i = 0; i < writers + readers; i++) {
		sum += shared->of[i].count + (uint64_t)shared->of[i].phase;
		begun &= shared->of[i].phase >= 1;
	}
	if (begun && end_ns == 0)
		end_ns = now_ns() + length_ns;
	if (end_ns != 0 && now_ns() >= end_ns)
		shared->over = 1;
	return sum;
}

static int usage(void)
{
	fprintf(stderr, "usage: increments SECONDS WRITERS READERS PATH...\n");
	return USAGE;
}

int main(int argc, char **argv)
{
	if (argc < 5 || argc > 4 + VIEWS_MAX)
		return usage();
	length_ns = (uint64_t)(strtod(argv[1], NULL) * 1e9);
	writers = atoi(argv[2]);
	readers = atoi(argv[3]);
	if (writers < 1 || readers < 0 || writers + readers > PROCESSES_MAX)
		return usage();
	paths = (const char **)argv + 4;
	views = argc - 4;
	create(paths[0], PAGE);
	shared = shared_memory(sizeof *shared);
	pid_t pids[PROCESSES_MAX];
	for (int i = 0; i < writers + readers; i++)
		pids[i] = start(run, i);
	int result = await_all(pids, writers + readers, progress, PATIENCE_NS);
	for (int i = 0; i < writers + readers; i++) {
		if (result == STUCK)
			fprintf(stderr, "process %d in phase %d after %ju\n", i, shared->of[i].phase,
				(uintmax_t)shared->of[i].count);
		if (i < writers)
			printf("writer %d stores %ju turns %ju gap_ms %.1f\n", i, (uintmax_t)shared->of[i].count,
			       (uintmax_t)shared->of[i].changes, (double)shared->of[i].gap_ns / 1e6);
		else
			printf("reader %d loads %ju changes %ju\n", i, (uintmax_t)shared->of[i].count,
			       (uintmax_t)shared->of[i].changes);
	}
	return result;
}
