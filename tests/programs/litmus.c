/* litmus TEST STORES LOADS LAYOUT SECONDS SEED PATH...: a litmus test of sequential consistency.
 *
 *   TEST    MP, SB, LB, CoRR, CoWW, CoWR, WRC or IRIW, as in the literature (Alglave et al., "Herding Cats", 2014)
 *   STORES  map (through a mapping), call (pwrite) or any (chosen anew each time); LOADS likewise (pread)
 *   LAYOUT  one (all locations in one page) or two (a page for each)
 *   PATH    the same file on different mounts; each process uses another one each round, by chance
 *
 * The processes of the test run it round by round, started together by a barrier, with random delays. What they
 * loaded in a round is its outcome. Allowed are the outcomes of all interleavings of the test's programs, which
 * are enumerated here rather than listed. Besides, what was stored in a round must be loaded in the next: a
 * barrier is between them ("stale" if not).
 *
 * Prints a line per outcome that could be or was: OUTCOME COUNT allowed|FORBIDDEN, then "rounds N stale N".
 * Exit status: 0 all allowed, 1 forbidden or stale outcomes or an error, 3 no progress. */
#include "views.h"

enum { THREADS_MAX = 4, OPS_MAX = 2, LOCATIONS = 2, REGISTERS_MAX = 4, OUTCOMES_MAX = 4096, STEP = 4 };
#define PATIENCE_NS 20000000000u

struct op {
	char kind; /* 'W' or 'R', 0 for none */
	int location, value;
};

struct test {
	const char *name;
	int threads;
	struct op programs[THREADS_MAX][OPS_MAX];
};

static const struct test TESTS[] = {
	{"MP", 2, {{{'W', 0, 1}, {'W', 1, 1}}, {{'R', 1, 0}, {'R', 0, 0}}}},
	{"SB", 2, {{{'W', 0, 1}, {'R', 1, 0}}, {{'W', 1, 1}, {'R', 0, 0}}}},
	{"LB", 2, {{{'R', 0, 0}, {'W', 1, 1}}, {{'R', 1, 0}, {'W', 0, 1}}}},
	{"CoRR", 3, {{{'W', 0, 1}}, {{'R', 0, 0}, {'R', 0, 0}}, {{'R', 0, 0}, {'R', 0, 0}}}},
	{"CoWW", 2, {{{'W', 0, 1}, {'W', 0, 2}}, {{'R', 0, 0}, {'R', 0, 0}}}},
	{"CoWR", 2, {{{'W', 0, 1}, {'R', 0, 0}}, {{'W', 0, 2}, {'R', 0, 0}}}},
	{"WRC", 3, {{{'W', 0, 1}}, {{'R', 0, 0}, {'W', 1, 1}}, {{'R', 1, 0}, {'R', 0, 0}}}},
	{"IRIW", 4, {{{'W', 0, 1}}, {{'W', 1, 1}}, {{'R', 0, 0}, {'R', 1, 0}}, {{'R', 1, 0}, {'R', 0, 0}}}},
};

/* An outcome: what each load got, in the order of the programs, then the final values; 2 bits each. */
static const struct test *test;
static unsigned char allowed[OUTCOMES_MAX];

static int first_register(int thread)
{
	int count = 0;
	for (int t = 0; t < thread; t++)
		for (int o = 0; o < OPS_MAX; o++)
			count += test->programs[t][o].kind == 'R';
	return count;
}

static unsigned encode(const unsigned *registers, const unsigned *final)
{
	unsigned outcome = 0;
	for (int i = 0; i < REGISTERS_MAX; i++)
		outcome |= registers[i] << 2 * i;
	for (int i = 0; i < LOCATIONS; i++)
		outcome |= final[i] << 2 * (REGISTERS_MAX + i);
	return outcome;
}

static void enumerate(const int *done, const unsigned *memory, const unsigned *registers)
{
	int over = 1;
	for (int t = 0; t < test->threads; t++) {
		struct op op = done[t] < OPS_MAX ? test->programs[t][done[t]] : (struct op){0};
		if (op.kind == 0)
			continue;
		over = 0;
		int next_done[THREADS_MAX], at = first_register(t);
		unsigned next_memory[LOCATIONS], next_registers[REGISTERS_MAX];
		memcpy(next_done, done, sizeof next_done);
		memcpy(next_memory, memory, sizeof next_memory);
		memcpy(next_registers, registers, sizeof next_registers);
		for (int o = 0; o < done[t]; o++)
			at += test->programs[t][o].kind == 'R';
		if (op.kind == 'W')
			next_memory[op.location] = (unsigned)op.value;
		else
			next_registers[at] = memory[op.location];
		next_done[t]++;
		enumerate(next_done, next_memory, next_registers);
	}
	if (over)
		allowed[encode(registers, memory)] = 1;
}

/* --- running --- */

static struct {
	struct barrier barrier;
	_Atomic uint64_t round;
	_Atomic int over;
	uint64_t registers[REGISTERS_MAX], final[THREADS_MAX][LOCATIONS], before[LOCATIONS];
	struct {
		_Atomic int view, step;
	} at[THREADS_MAX];
	uint64_t counts[OUTCOMES_MAX], stale, disagreed;
} *shared;

static const char *stores, *loads, **paths;
static int views;
static size_t stride;
static uint64_t end_ns, seed;

static enum access how(const char *wanted, uint64_t *state)
{
	if (strcmp(wanted, "any") == 0)
		return chance(state) & 1 ? BY_MAP : BY_CALL;
	return strcmp(wanted, "map") == 0 ? BY_MAP : BY_CALL;
}

/* Half of the time none, else up to half a millisecond, short ones as often as long ones. */
static void delay(uint64_t *state)
{
	uint64_t drawn = chance(state);
	if (drawn & 1)
		spin_ns((drawn >> 8) % (1000u << (drawn >> 1) % 10));
}

/* What a location held, relative to the round: 0 is what the round before left there. */
static unsigned in_round(uint64_t value, int location, uint64_t round)
{
	if (value >= round * STEP)
		return (unsigned)(value - round * STEP);
	if (value != shared->before[location] && shared->stale++ < 5)
		fprintf(stderr, "stale: in round %ju a load got %ju, of round %ju, where %ju was left\n",
			(uintmax_t)round, (uintmax_t)value, (uintmax_t)(value / STEP),
			(uintmax_t)shared->before[location]);
	return 0;
}

/* One process only: what the round came to. */
static void judge(uint64_t round)
{
	unsigned registers[REGISTERS_MAX] = {0}, final[LOCATIONS] = {0};
	for (int t = 0, at = 0; t < test->threads; t++)
		for (int o = 0; o < OPS_MAX; o++)
			if (test->programs[t][o].kind == 'R') {
				registers[at] = in_round(shared->registers[at], test->programs[t][o].location, round);
				at++;
			}
	for (int l = 0; l < LOCATIONS; l++) {
		final[l] = in_round(shared->final[0][l], l, round);
		for (int t = 1; t < test->threads; t++) {
			if (shared->final[t][l] == shared->final[0][l])
				continue;
			if (shared->disagreed++ < 5)
				fprintf(stderr, "after round %ju location %d is %ju to process 0, %ju to %d\n",
					(uintmax_t)round, l, (uintmax_t)shared->final[0][l],
					(uintmax_t)shared->final[t][l], t);
		}
	}
	memcpy(shared->before, shared->final[0], sizeof shared->before);
	shared->counts[encode(registers, final)]++;
}

static void run(int thread)
{
	struct view view_of[VIEWS_MAX];
	uint64_t state = seed * 1000003 + (uint64_t)thread + 1;
	for (int i = 0; i < views; i++)
		view_of[i] = view(paths[i], LOCATIONS * PAGE);
	meet(&shared->barrier, (uint32_t)test->threads);
	for (uint64_t round = 1; !shared->over; round++) {
		int number = (int)(chance(&state) % (unsigned)views), at = first_register(thread);
		shared->at[thread].view = number;
		meet(&shared->barrier, (uint32_t)test->threads);
		for (int o = 0; o < OPS_MAX; o++) {
			struct op op = test->programs[thread][o];
			if (op.kind == 0)
				break;
			delay(&state);
			shared->at[thread].step = o + 1;
			size_t offset = (size_t)op.location * stride;
			if (op.kind == 'W')
				store(view_of[number], offset, round * STEP + (uint64_t)op.value, how(stores, &state));
			else
				shared->registers[at++] = load(view_of[number], offset, how(loads, &state));
		}
		meet(&shared->barrier, (uint32_t)test->threads);
		shared->at[thread].step = OPS_MAX + 1;
		for (int l = 0; l < LOCATIONS; l++)
			shared->final[thread][l] = load(view_of[number], (size_t)l * stride, how(loads, &state));
		shared->at[thread].step = 0;
		meet(&shared->barrier, (uint32_t)test->threads);
		if (thread == 0) {
			judge(round);
			shared->round = round;
			shared->over = now_ns() >= end_ns;
		}
		meet(&shared->barrier, (uint32_t)test->threads);
	}
}

static uint64_t progress(void)
{
	return shared->round;
}

static int report(void)
{
	int broken = shared->stale || shared->disagreed, count = first_register(test->threads);
	for (unsigned outcome = 0; outcome < OUTCOMES_MAX; outcome++) {
		if (!allowed[outcome] && !shared->counts[outcome])
			continue;
		for (int i = 0; i < count; i++)
			putchar('0' + (int)(outcome >> 2 * i & 3));
		putchar('/');
		for (int l = 0; l < LOCATIONS; l++)
			putchar('0' + (int)(outcome >> 2 * (REGISTERS_MAX + l) & 3));
		printf(" %ju %s\n", (uintmax_t)shared->counts[outcome], allowed[outcome] ? "allowed" : "FORBIDDEN");
		broken |= !allowed[outcome];
	}
	printf("rounds %ju stale %ju disagreed %ju\n", (uintmax_t)shared->round, (uintmax_t)shared->stale,
	       (uintmax_t)shared->disagreed);
	return broken ? BROKEN : HELD;
}

static int usage(void)
{
	fprintf(stderr, "usage: litmus TEST map|call|any map|call|any one|two SECONDS SEED PATH...\n");
	return USAGE;
}

int main(int argc, char **argv)
{
	if (argc < 8 || argc > 7 + VIEWS_MAX)
		return usage();
	for (size_t i = 0; i < sizeof TESTS / sizeof *TESTS; i++)
		if (strcmp(argv[1], TESTS[i].name) == 0)
			test = &TESTS[i];
	if (test == NULL)
		return usage();
	stores = argv[2];
	loads = argv[3];
	stride = strcmp(argv[4], "one") == 0 ? 64 : PAGE;
	seed = strtoull(argv[6], NULL, 10);
	paths = (const char **)argv + 7;
	views = argc - 7;
	enumerate((int[THREADS_MAX]){0}, (unsigned[LOCATIONS]){0}, (unsigned[REGISTERS_MAX]){0});
	shared = shared_memory(sizeof *shared);
	for (int i = 0; i < views; i++) /* once if it is one file */
		if (i == 0 || access(paths[i], F_OK) != 0)
			create(paths[i], LOCATIONS * PAGE);
	end_ns = now_ns() + (uint64_t)(strtod(argv[5], NULL) * 1e9);

	pid_t pids[THREADS_MAX];
	for (int t = 0; t < test->threads; t++)
		pids[t] = start(run, t);
	int result = await_all(pids, test->threads, progress, PATIENCE_NS);
	if (result == STUCK)
		for (int t = 0; t < test->threads; t++)
			fprintf(stderr, "stuck in round %ju: process %d at step %d in %s\n",
				(uintmax_t)shared->round + 1, t, shared->at[t].step, paths[shared->at[t].view]);
	int broken = report();
	return result != HELD ? result : broken;
}
