"""python -m tests.explore [NAME]: every state of every world whose name begins so; how many there are."""

from __future__ import annotations

import logging
import sys
import time

from tests.explore.explorer import explore, shortest
from tests.explore.worlds import LARGE, SMALL
from tests.helpers.history import Violation


def main() -> int:
    """The exit status is 1 after a violation, which is told in as few steps as it takes."""
    logging.disable(logging.CRITICAL)  # what goes wrong is told by every client, every time
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    bad = 0
    for name, small in {**SMALL, **LARGE}.items():
        if not name.startswith(wanted):
            continue
        started = time.monotonic()
        try:
            found = explore(small)
        except Violation:
            bad += 1
            try:
                shortest(small)
            except Violation as exc:
                print(f"{name}: {exc}", *exc.__notes__, sep="\n", flush=True)
        else:
            seconds = time.monotonic() - started
            print(f"{name}: {found.states} states, {found.steps} steps, {seconds:.1f} s", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
