"""python -m tests.sim.soak MINUTES [--faults] [--first SEED]: seed after seed, each with a world of its own
(`swarm`; with --faults `fault_swarm`).

Prints the first seed, a line of progress every ten seconds, and for a violation the command that repeats it.
The exit status is 1 if there was one.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import time
from collections.abc import Callable
from itertools import count

from tests.helpers.history import Violation
from tests.sim.fault_swarm import drawn_with_faults
from tests.sim.swarm import drawn_with_sizes
from tests.sim.world import Options, Play, simulate

Draw = Callable[[int], tuple[Options, Play]]

PROGRESS_SECONDS = 10.0


def run_one(seed: int, draw: Draw) -> int:
    """One seed, told in full; the exit status."""
    options, programs = draw(seed)
    try:
        world = simulate(options, programs)
    except Violation as exc:
        print("\n".join(exc.__notes__))
        return 1
    print(f"seed {seed} is clean: {world.steps} steps, trace {world.digest()}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.soak", description=__doc__)
    parser.add_argument("minutes", type=float, nargs="?", default=1.0)
    parser.add_argument("--first", type=int, default=random.SystemRandom().randrange(1 << 32), metavar="SEED")
    parser.add_argument("--only", type=int, metavar="SEED", help="this one alone, with its story if it fails")
    parser.add_argument("--faults", action="store_true", help="things go wrong: see tests/sim/faults.py")
    arguments = parser.parse_args()
    draw: Draw = drawn_with_sizes
    if arguments.faults:
        draw = drawn_with_faults
        logging.disable(logging.CRITICAL)  # every fault is told by every client
    if arguments.only is not None:
        return run_one(arguments.only, draw)
    print(f"soak: seeds from {arguments.first}, for {arguments.minutes:g} minutes", flush=True)
    started = told = time.monotonic()
    steps, failed, seed = 0, list[int](), arguments.first
    for seed in count(arguments.first):
        now = time.monotonic()
        done = f"{seed - arguments.first} seeds, {steps} steps, {len(failed)} failed, {now - started:.0f} s"
        if now - started >= arguments.minutes * 60:
            break
        if now - told >= PROGRESS_SECONDS:
            told = now
            print(f"soak: {done}", flush=True)
        options, programs = draw(seed)
        try:
            steps += simulate(options, programs).steps
        except Violation as exc:
            failed.append(seed)
            print(f"soak: seed {seed}: {exc}", flush=True)
            how = " --faults" if arguments.faults else ""
            print(f"soak: repeat it with: scripts/soak{how} --only {seed}", flush=True)
    print(f"soak: {done}{''.join(f', seed {number} failed' for number in failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
