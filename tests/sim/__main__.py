"""python -m tests.sim [--seed N] [--steps M] [--clients K] [--runs R]: random programs on the whole stack.

The first line is the seed; the same seed and options give the same run, to the last step. A violation is told
with the last events of its clients, kernels and server.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import time

from tests.helpers.history import Violation
from tests.sim.names import NamesAndLocks
from tests.sim.partitions import Partitioned
from tests.sim.programs import RandomPrograms
from tests.sim.world import CUTS_PER_SECOND, LONG_CUTS, Options, Play, partitioned, simulate


def main() -> int:
    """Run; the exit status is 1 after a violation."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--steps", type=int, default=60, help="system calls of each process")
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2, help="on every client")
    parser.add_argument("--runs", type=int, default=1, help="with this seed and those that follow")
    parser.add_argument(
        "--cached-writes", action="store_true", help="write(2) goes through the page cache, mapped or not"
    )
    parser.add_argument("--names", action="store_true", help="names and locks instead of data")
    parser.add_argument("--restarts", type=int, default=0, help="how often the server is killed")
    parser.add_argument("--check-every", type=int, default=5, help="steps between checks of the invariants")
    parser.add_argument("--cuts", action="store_true", help="connections are cut at random moments")
    parser.add_argument(
        "--long-cuts", action="store_true", help="for so long that caches are dropped, but nothing is lost"
    )
    parser.add_argument(
        "--partitions", action="store_true", help="clients are cut off for longer than their lease"
    )
    arguments = parser.parse_args()
    logging.disable(logging.ERROR)  # cuts are told by every client
    print(f"seed {arguments.seed}", flush=True)
    started, steps, failures = time.monotonic(), 0, 0
    for seed in range(arguments.seed, arguments.seed + arguments.runs):
        try:
            programs: Play = RandomPrograms(arguments.steps, arguments.processes, arguments.cached_writes)
            if arguments.names:
                programs = NamesAndLocks(arguments.steps, arguments.processes)
            options = Options(
                seed,
                arguments.clients,
                write_directly=not arguments.cached_writes,
                check_every=arguments.check_every,
                restarts=arguments.restarts,
            )
            if arguments.partitions:
                options = partitioned(seed, arguments.clients)
                options.restarts = arguments.restarts
                if not arguments.names:
                    programs = Partitioned(arguments.steps)
            if arguments.cuts:
                options.cuts_per_second = CUTS_PER_SECOND
            if arguments.long_cuts:
                often, options.cut_seconds, options.finish_seconds, options.lease_seconds = LONG_CUTS
                options.cuts_per_second = often
            world = simulate(options, programs)
        except Violation as exc:
            failures += 1
            print(f"seed {seed}: {exc}", flush=True)
            if arguments.runs == 1:
                print("\n".join(exc.__notes__))
            continue
        steps += world.steps
        if arguments.runs == 1:
            reads = world.history.early_reads
            print(f"{world.steps} steps, trace {world.digest()}, {reads} reads of unanswered writes left out")
    print(f"{arguments.runs} runs, {failures} failed, {steps} steps, {time.monotonic() - started:.1f} s")
    return 1 if failures else 0


sys.exit(main())
