"""What became of a file's write-backs, and who is still to be told: a pure machine.

Two things are kept apart. *Reports* are what programs are told: each open file learns once, by its next fsync
or close, of everything that went wrong since it was last told (errseq_t of Linux, lib/errseq.c). A *refusal*
is a state: the server does not take what is dirty. It lasts until all of that is written or gone, is one report
and one line in the log however often it is tried again, and is tried again ever less often.
"""

from __future__ import annotations

from typing import Final

from nfsfuse.protocol.errors import FsError

RETRY_SECONDS_MIN: Final = 1.0
"""From a refusal to the first attempt in the background: a server that was full for a moment costs no more."""

RETRY_SECONDS_MAX: Final = 10.0
"""The longest pause: how late the background notices that there is room again. One request a file is no load.
Programs need not wait for it: fsync, close and write try at once."""


class WriteErrors:
    """The errors of one file's write-backs. *now* is in seconds, of any clock that does not go back."""

    def __init__(self) -> None:
        self.reports = 0
        """How many times something went wrong that programs have to be told of."""
        self.newest: FsError | None = None
        self.refusal: FsError | None = None
        """Why the server does not take what is dirty; None if it does."""
        self.attempts_failed = 0
        self.overflowed = False
        """There was no memory left for what would be refused as well: said once."""
        self.retry_at = 0.0
        self._pause = RETRY_SECONDS_MIN

    def refused(self, error: FsError, now: float) -> bool:
        """The server has refused data, which stay dirty; whether that is news, and to be logged."""
        news = self.refusal is None or self.refusal.errno != error.errno
        self.attempts_failed += 1
        self.refusal = error.alone()
        if news:
            self._pause = RETRY_SECONDS_MIN
            self._report(error)
        if news or self.retry_due(now):  # several requests fail at once, and are one attempt
            self.retry_at = now + self._pause
            self._pause = min(2 * self._pause, RETRY_SECONDS_MAX)
        return news

    def retry_due(self, now: float) -> bool:
        """Whether the background may try again what was refused."""
        return self.refusal is not None and now >= self.retry_at

    def accepted(self, now: float) -> None:
        """The server has taken some of what it refused: the rest may follow soon."""
        self._pause = RETRY_SECONDS_MIN
        self.retry_at = min(self.retry_at, now + RETRY_SECONDS_MIN)

    def settled(self) -> bool:
        """Nothing that was refused is left, it is written or gone; whether that is news."""
        news = self.refusal is not None
        self.refusal = None
        self.overflowed = False
        return news

    def lost(self, error: FsError) -> None:
        """Data are lost. That is a report of its own, also if it was told before that they were refused."""
        self._report(error)

    def _report(self, error: FsError) -> None:
        self.reports += 1
        self.newest = error.alone()
