"""Whether an event loop turns: what is to be done about one that does not.

The loop counts *beats* in a task of its own. Somebody else looks at the count, and at whether the loop could
have run at all: a process that is stopped (SIGSTOP, a debugger), or that no processor is given to, is not to
blame. Time is counted from look to look, and no more of it than lies between two of them in order: who looks
was stopped too, if it is more, or the whole machine was.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

BEAT_SECONDS: Final = 1.0
"""From one beat to the next."""

LOOK_SECONDS: Final = 1.0
"""From one look to the next."""

TELL_SECONDS: Final = 5.0
"""A loop that has not turned for so long is told of. Nothing that runs on it should take a hundredth of
that."""


class Do(Enum):
    """What whoever looks is to do."""

    NOTHING = auto()
    TELL = auto()
    """Say that it does not turn, and where it is."""
    ABORT = auto()
    """Free those that wait for it; once."""
    TURNS_AGAIN = auto()
    """Say that it does, after `TELL`."""


class Watchdog:
    """Watches one loop. *abort_seconds*: how long it may not turn; None: for ever."""

    def __init__(self, abort_seconds: float | None) -> None:
        self._abort_seconds = abort_seconds
        self._tell_seconds = TELL_SECONDS if abort_seconds is None else min(TELL_SECONDS, abort_seconds / 2)
        self._looked_at: float | None = None
        self._beats = -1
        self._told = self._aborted = False
        self.seconds = 0.0
        """How long it has not turned, though it could have."""
        self.stalled_seconds = 0.0
        """The same, when it last turned again after `Do.TELL`."""

    def look(self, now: float, beats: int, *, could_run: bool) -> Do:
        """*beats* are counted at *now*, seconds of a clock that stands still while the machine sleeps;
        *could_run*: whether the loop has been able to run since the last look, or has waited for something."""
        elapsed = 0.0 if self._looked_at is None else min(now - self._looked_at, 2 * LOOK_SECONDS)
        self._looked_at = now
        if beats != self._beats:
            told, self._told = self._told, False
            if told:
                self.stalled_seconds = self.seconds
            self._beats, self.seconds = beats, 0.0
            return Do.TURNS_AGAIN if told else Do.NOTHING
        if could_run:
            self.seconds += elapsed
        if self._abort_seconds is not None and self.seconds >= self._abort_seconds and not self._aborted:
            self._aborted = True
            return Do.ABORT
        if self.seconds >= self._tell_seconds and not self._told:
            self._told = True
            return Do.TELL
        return Do.NOTHING
