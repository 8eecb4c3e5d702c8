"""Who was granted pages that another client wants, and may not have used them yet.

Each gets to use them once, or programs that want one page could take it from each other for ever and none get
any further. When the daemon has answered a read its part is done, but the program's is not: its thread has to
be given a processor, which on a busy machine takes longer than the next recall. The kernel tells nobody when
a thread goes on in its fault. But what it had of a processor can be looked up, and it sleeps from before the
daemon has its request until the answer: when it is given one again it has the page.
"""

from __future__ import annotations

import math
from typing import Final

from nfsfuse.protocol.record import record

CONTENDED_SECONDS: Final = 1.0
"""How long after a recall of a file its readers are watched."""

TURN_SECONDS_MAX: Final = 0.01
"""How long a thread is waited for, from its answer: a few slices of a scheduler."""


@record(frozen=True, slots=True)
class Turn:
    """The pages ``[start, end)`` were read for *thread*, which had been given a processor so many *times* when
    it asked, for so many *nanoseconds*. It is waited for *until* then, in the clock's seconds, not longer."""

    start: int
    end: int
    thread: int
    times: int
    nanoseconds: int
    until: float


class Turns:
    """Those of one file."""

    def __init__(self) -> None:
        self._contended_until = -math.inf
        self._turns: list[Turn] = []

    def recalled(self, now: float) -> None:
        """Another client wants some of the file."""
        self._contended_until = now + CONTENDED_SECONDS

    def are_watched(self, now: float) -> bool:
        """Whether it is to be known of who reads what he had of the processor."""
        return now < self._contended_until

    def answered(self, start: int, end: int, thread: int, had: tuple[int, int], now: float) -> None:
        """What was granted for *thread*, which *had* so much, has been read: the kernel is about to have it."""
        self._turns = [turn for turn in self._turns if now < turn.until]
        self._turns.append(Turn(start, end, thread, *had, now + TURN_SECONDS_MAX))

    def take(self, start: int, end: int, now: float) -> Turn | None:
        """The newest that whoever takes ``[start, end)`` from the kernel has to wait for, if any: those before
        it have had longer. All of them have had their turn then."""
        taken = [turn for turn in self._turns if turn.start < end and start < turn.end]
        if not taken:
            return None
        self._turns = [turn for turn in self._turns if turn not in taken]
        return taken[-1] if now < taken[-1].until else None
