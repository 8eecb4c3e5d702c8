"""scripts/bench-pingpong: how long a page takes from one mount to another, in TCP round trips."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Final

from scripts.proof.programs import Programs, Status, fields
from scripts.rig.rig import Failed, Rig

SECONDS_A_TURN_MAX: Final = 0.05

LOOP_STEPS: Final = 1_000_000


def main(argv: Sequence[str] | None = None) -> int:
    """Run; the exit status: 0 if it ran."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench-pingpong",
        description="A word in a mapped page goes back and forth between two mounts of one server on this "
        "machine. Prints the median turn, and its ratio to a round trip of 8 bytes over loopback TCP between "
        "the same two processes. Meaningful on an idle machine only, and of a guest its host decides that: so "
        "it is printed, too, how long a fixed loop of Python took before and after, for which only the speed "
        "of the processor matters.",
    )
    parser.add_argument("--turns", type=int, default=4000, help="how many (default: 4000)")
    parser.add_argument("--unix", action="store_true", help="reach the server over a Unix socket, not TCP")
    parser.add_argument(
        "--spin", action="store_true", help="have who waits for its turn look without sleeping in between"
    )
    options = parser.parse_args(argv)
    try:
        with Rig() as rig:
            server = rig.server(listen=None if options.unix else "127.0.0.1:0")
            paths = [rig.mount(server) / "ball" for _ in range(2)]
            limit = 30 + options.turns * SECONDS_A_TURN_MAX
            how = ["spin"] if options.spin else []
            before = loop_seconds()
            ran = Programs(rig).run("pingpong", options.turns, *paths, *how, seconds=limit)
            after = loop_seconds()
    except Failed as exc:
        print(f"bench-pingpong: error: {exc}", file=sys.stderr)
        return 1
    print(ran.output, end="")
    if ran.status != Status.HELD:
        print(ran.errors, file=sys.stderr)
        return 1
    turn, tcp = (float(fields(line.split(maxsplit=1)[1])["median_us"]) for line in ran.output.splitlines())
    print(f"loop of {LOOP_STEPS} steps: {before * 1000:.0f} ms before, {after * 1000:.0f} ms after")
    print(f"a turn is {turn / 1000:.3f} ms: {turn / (2 * tcp):.1f} TCP round trips of {2 * tcp:.1f} us")
    return 0


def loop_seconds() -> float:
    """What `LOOP_STEPS` steps of the interpreter take now."""
    began, total = time.perf_counter(), 0
    for number in range(LOOP_STEPS):
        total += number & 7
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
