"""A process that cleans up after a rig whose owner hangs or was killed.

It reads lines from its owner: ``deadline SECONDS`` (whatever hangs in a mount then, is let go: the
connections are aborted), ``rest`` (nothing is under way), ``done`` (all is clean). At the end of the input
without ``done`` the owner has died, and everything it left is swept away.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from pathlib import Path

from scripts.rig.kernel import abort_below
from scripts.rig.sweep import end_process, marked, sweep

GRACE_SECONDS = 15.0
"""From letting programs go to killing those that go on."""


def main(directory: Path) -> None:
    """Watch over *directory* until the input ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # they are for the owner, and its end is ours
    deadline: float | None = None
    pending = b""
    while True:
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not select.select([0], [], [], timeout)[0]:
            deadline = None
            _hung(directory)
            continue
        received = os.read(0, 4096)
        if not received:
            found = sweep(directory)
            print(f"rig: its owner is gone; swept away: {', '.join(found) or directory}", file=sys.stderr)
            return
        *lines, pending = (pending + received).split(b"\n")
        for line in lines:
            word, _, argument = line.partition(b" ")
            if word == b"done":
                return
            deadline = time.monotonic() + float(argument) if word == b"deadline" else None


def _hung(directory: Path) -> None:
    print(f"rig: too slow; aborting the mounts below {directory}", file=sys.stderr, flush=True)
    abort_below(directory)
    if not select.select([0], [], [], GRACE_SECONDS)[0]:
        for pid in marked(directory):
            print(f"rig: process {pid} goes on; killing it", file=sys.stderr, flush=True)
            end_process(pid)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
