"""Looks at the first word of a file all the time, by read(2) and by a mapping in turn, until its input ends.

    python -m scripts.proof.load.watcher FILE NAME CONTROL

Journals what it saw (``CONTROL/NAME.journal``), as ``look`` with ``how`` and ``value``.
"""

from __future__ import annotations

import mmap
import os
import select
import sys
from pathlib import Path

from scripts.proof.load.journal import Journal
from scripts.proof.load.worker import SLOT

PAUSE_SECONDS = 0.005


def main(path: str, name: str, control: str) -> None:
    """Watch."""
    journal = Journal(Path(control) / f"{name}.journal")
    descriptor = os.open(path, os.O_RDONLY)
    with (
        mmap.mmap(descriptor, mmap.PAGESIZE, prot=mmap.PROT_READ) as mapped,
        memoryview(mapped) as view,
        view.cast("Q") as words,  # loaded by one instruction each
    ):
        while not select.select([sys.stdin], [], [], PAUSE_SECONDS)[0]:
            with journal.operation("look", how="read") as learned:
                (learned["value"],) = SLOT.unpack(os.pread(descriptor, SLOT.size, 0))
            with journal.operation("look", how="map") as learned:
                learned["value"] = words[0]
    journal.end()


if __name__ == "__main__":
    main(*sys.argv[1:])
