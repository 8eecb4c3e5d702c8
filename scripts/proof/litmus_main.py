"""scripts/litmus: the litmus tests and the lost-update test for as long as one likes."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from scripts.proof import increments, litmus
from scripts.proof.programs import Programs, Status
from scripts.rig.rig import Failed, Rig


def main(argv: Sequence[str] | None = None) -> int:
    """Run; the exit status: 0 if everything held."""
    options = parser().parse_args(argv)
    if unknown := set(options.test) - set(litmus.TESTS):
        print(f"litmus: no such test: {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    try:
        with Rig(options.dir) as rig:
            rig.environment["NFSFUSE_GUARD"] = "1"
            server = rig.server(arguments=options.server)
            mounts = [rig.mount(server) for _ in range(options.mounts)]
            held = run(Programs(rig), mounts, options.test or litmus.TESTS, options.seconds, options.seed)
            logs = [server.log, *map(rig.log_of, mounts)]
            for log in logs:
                if "Traceback" in log.read_text():
                    print(f"\n{log.name}:\n{log.read_text()}", file=sys.stderr)
                    held = False
    except Failed as exc:
        print(f"litmus: error: {exc}", file=sys.stderr)
        return 1
    return 0 if held else 1


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="scripts/litmus",
        description="Litmus tests of sequential consistency over real mounts: message passing, store and load "
        "buffering, coherence of one location, causality, IRIW; by all kinds of access, within a page and "
        "across two; then increments of neighbours in one page. Exit status 0 if no outcome was seen that "
        "sequential consistency forbids, and nothing was lost.",
    )
    result.add_argument("--seconds", type=float, default=1.0, help="for each of the tests (default: 1)")
    result.add_argument("--mounts", type=int, choices=(2, 3), default=2, help="how many (default: 2)")
    result.add_argument("--seed", type=int, default=time.time_ns() % 10**9, help="of the random delays")
    result.add_argument("--dir", type=Path, help="make the temporary export in DIR (default: TMPDIR or /tmp)")
    result.add_argument("--server", action="append", default=[], help="an argument for the server")
    result.add_argument("test", nargs="*", metavar="TEST", help=f"of {', '.join(litmus.TESTS)} (default: all)")
    return result


def run(programs: Programs, mounts: Sequence[Path], tests: Sequence[str], seconds: float, seed: int) -> bool:
    """All tests; whether everything held."""
    todo = list(litmus.cases(tests))
    print(f"{len(todo)} litmus tests of {seconds:g} s over {len(mounts)} mounts, seed {seed}", flush=True)
    broken = rounds = 0
    for number, case in enumerate(todo, 1):
        progress(f"[{number}/{len(todo)}] {case}")
        result = litmus.judge(programs, mounts, case, seconds, seed)
        rounds += result.rounds
        broken += not result.held
        progress("")
        print(result, flush=True)
        if result.status == Status.STUCK:
            print("the mounts hang: giving up", flush=True)
            return False
    print(f"{rounds} rounds, {broken} of {len(todo)} tests broken", flush=True)
    for writers, readers in ((2, 0), (len(mounts), 4)):
        name = f"increments-{writers}-{readers}"
        counted = increments.count(programs, mounts, name, max(seconds, 2), writers, readers)
        print(counted, flush=True)
        broken += counted.status != Status.HELD
    return not broken


def progress(text: str) -> None:
    """A line that the next one replaces, if somebody watches."""
    if sys.stdout.isatty():
        print(f"\r\033[K{text}", end="", flush=True)


if __name__ == "__main__":
    sys.exit(main())
