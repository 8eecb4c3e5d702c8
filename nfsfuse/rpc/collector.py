"""Python's cyclic garbage collector, in a daemon.

It looks at all objects made lately after every 700 that are new (`gc.get_threshold`), on the guess that most
have died. What these daemons make in large numbers stays: an inode, its tokens, a name of a listing. They are
then looked at several times for nothing, which was 40 % of the time that granting a token took. What is in a
cycle here are tasks that were cancelled: few, and small. Nothing that has a descriptor, or data, waits for the
collector to be let go (`tests/test_failures.py`).
"""

from __future__ import annotations

import gc
from typing import Final

NEW_OBJECTS_MAX: Final = 50_000
"""New containers after which the youngest are looked at: some 10 MB of memory at most that is free later than
it could be."""


def collect_rarely() -> None:
    """To be called by a daemon when it has started: what is there by then stays for good."""
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS_MAX)
