/* pingpong TURNS PATH1 PATH2 [spin]: a word in a mapped page goes back and forth between two mounts.
 *
 * Two processes wait in turn for the other's number and store the next one. While the page is away a look waits
 * in the fault for it. While it is here, with the old number, a process sleeps a moment between two looks, or
 * else it would take a processor from what serves the mounts, which may have no other: with "spin" it does, but
 * for giving it away each time (sched_yield). Then the same two processes' turns are taken over a TCP connection
 * on the loopback interface, 8 bytes each way.
 *
 * A turn is half of a round trip. Prints "mmap turns N median_us X p90_us X p99_us X max_us X" and the same for
 * "tcp". Exit status: 0, 3 without progress. */
#include "views.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#define PATIENCE_NS 20000000000u
#define MOMENT_NS 20000 /* and the timer's slack, 50 us */

static struct {
	word turn;
	_Atomic int done;
} *shared;
static const char **paths;
static uint64_t turns;
static int listener, port, spinning;

static int by_size(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
	return x < y ? -1 : x > y;
}

static void report(const char *what, uint64_t *trips, uint64_t count)
{
	qsort(trips, count, sizeof *trips, by_size);
	printf("%s turns %ju median_us %.1f p90_us %.1f p99_us %.1f max_us %.1f\n", what, (uintmax_t)(2 * count),
	       (double)trips[count / 2] / 2e3, (double)trips[count * 9 / 10] / 2e3,
	       (double)trips[count * 99 / 100] / 2e3, (double)trips[count - 1] / 2e3);
}

static void give_way(void)
{
	const struct timespec moment = {.tv_nsec = MOMENT_NS};
	if (spinning)
		sched_yield();
	else
		nanosleep(&moment, NULL);
}

static void play(int side, word *ball, uint64_t *trips)
{
	uint64_t before = now_ns();
	for (uint64_t trip = 0; trip < turns / 2; trip++) {
		uint64_t mine = 2 * trip + (uint64_t)side;
		while (atomic_load(ball) != mine)
			give_way();
		atomic_store(ball, mine + 1);
		shared->turn = mine + 1;
		uint64_t now = now_ns();
		trips[trip] = now - before; /* from my last store to this one */
		before = now;
	}
}

static void exchange(int side, uint64_t *trips)
{
	int yes = 1, connection;
	uint64_t number = 0;
	if (side == 0) {
		connection = accept(listener, NULL, NULL);
	} else {
		struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = (in_port_t)port};
		to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		connection = socket(AF_INET, SOCK_STREAM, 0);
		need(connect(connection, (struct sockaddr *)&to, sizeof to) == 0, "connect");
	}
	need(connection >= 0, "accept");
	need(setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes) == 0, "TCP_NODELAY");
	uint64_t before = now_ns();
	for (uint64_t trip = 0; trip < turns / 2; trip++) {
		if (side == 0)
			need(write(connection, &number, sizeof number) == sizeof number, "write");
		need(read(connection, &number, sizeof number) == sizeof number, "read");
		if (side == 1)
			need(write(connection, &number, sizeof number) == sizeof number, "write");
		uint64_t now = now_ns();
		trips[trip] = now - before;
		before = now;
		shared->turn++;
	}
}

static void run(int side)
{
	uint64_t *trips = calloc(turns, sizeof *trips);
	need(trips != NULL, "calloc");
	struct view it = view(paths[side], PAGE);
	play(side, (word *)it.map, trips);
	if (side == 0)
		report("mmap", trips + 1, turns / 2 - 1);
	shared->done++;
	while (shared->done < 2)
		give_way();
	exchange(side, trips);
	if (side == 0)
		report("tcp", trips, turns / 2);
}

static uint64_t progress(void)
{
	return shared->turn;
}

int main(int argc, char **argv)
{
	spinning = argc == 5 && strcmp(argv[4], "spin") == 0;
	if (argc != 4 + spinning || (turns = strtoull(argv[1], NULL, 10)) < 8) {
		fprintf(stderr, "usage: pingpong TURNS PATH1 PATH2 [spin]     (8 turns at least)\n");
		return USAGE;
	}
	paths = (const char **)argv + 2;
	struct sockaddr_in address = {.sin_family = AF_INET};
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	socklen_t size = sizeof address;
	listener = socket(AF_INET, SOCK_STREAM, 0);
	need(bind(listener, (struct sockaddr *)&address, size) == 0, "bind");
	need(listen(listener, 1) == 0, "listen");
	need(getsockname(listener, (struct sockaddr *)&address, &size) == 0, "getsockname");
	port = address.sin_port;
	create(paths[0], PAGE);
	shared = shared_memory(sizeof *shared);
	pid_t pids[2];
	for (int side = 0; side < 2; side++)
		pids[side] = start(run, side);
	int result = await_all(pids, 2, progress, PATIENCE_NS);
	if (result == STUCK)
		fprintf(stderr, "stuck after %ju turns\n", (uintmax_t)shared->turn);
	return result;
}
