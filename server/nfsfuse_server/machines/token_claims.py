"""What is asked for or held of one resource, by whom and where: whom a request conflicts with.

Two claims *conflict* if they are of different sessions, overlap, and `COMPATIBLE` says no.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from nfsfuse.protocol.intervals import Interval
from nfsfuse.protocol.range_index import RangeIndex
from nfsfuse.protocol.record import record
from nfsfuse.protocol.tokens import COMPATIBLE, TokenMode
from nfsfuse.protocol.types import SessionId

K = TypeVar("K")


@record(frozen=True, slots=True)
class Request:
    """*ranges* (disjoint, ascending) of the resource wanted at *mode*: by the session, or, if *transient*, by
    the operation alone."""

    ticket: int
    session: SessionId
    ranges: tuple[Interval, ...]
    mode: TokenMode
    transient: bool
    urgent: bool = False

    def conflicts(self, other: Request) -> bool:
        """Whether one has to wait for the other."""
        return (
            self.session != other.session
            and not COMPATIBLE[self.mode, other.mode]
            and any(a < d and c < b for a, b in self.ranges for c, d in other.ranges)
        )


class Claims(Generic[K]):
    """Claims, each with a key. What is compatible with a request is not looked at; its own session's claims
    are passed over one by one: it has at most REQUESTS_IN_FLIGHT_MAX, or EXTENTS_PER_HOLDER_MAX held."""

    __slots__ = ("_of_mode",)

    def __init__(self) -> None:
        self._of_mode: dict[TokenMode, RangeIndex[K, SessionId]] = {}

    def add(self, key: K, session: SessionId, start: int, end: int, mode: TokenMode) -> None:
        """One more."""
        index = self._of_mode.get(mode)
        if index is None:
            index = self._of_mode[mode] = RangeIndex()
        index.add(start, end, key, session)

    def remove(self, key: K, start: int, end: int, mode: TokenMode) -> None:
        """Take away what was added so."""
        index = self._of_mode[mode]
        index.remove(start, end, key)
        if not index:
            del self._of_mode[mode]

    def _against(self, mode: TokenMode) -> Iterator[RangeIndex[K, SessionId]]:
        return (index for other, index in self._of_mode.items() if not COMPATIBLE[mode, other])

    def lines(self, request: Request) -> Iterator[dict[K, SessionId]]:
        """The claims that *request* conflicts with, but for its own session's; those of one range together, in
        the order in which they were added."""
        for index in self._against(request.mode):
            for start, end in request.ranges:
                yield from index.lines(start, end)

    def meeting(self, start: int, end: int) -> Iterator[dict[K, SessionId]]:
        """All claims of any of the range; those of one range and mode together."""
        for index in self._of_mode.values():
            yield from index.lines(start, end)

    def someone(self, request: Request) -> K | None:
        """One of those that *request* conflicts with, None if there is none."""
        for line in self.lines(request):
            for key, session in line.items():
                if session != request.session:
                    return key
        return None

    def everyone(self, request: Request) -> Iterator[K]:
        """Those that *request* conflicts with; one may be named repeatedly."""
        for line in self.lines(request):
            yield from (key for key, session in line.items() if session != request.session)

    def free_around(
        self, session: SessionId, mode: TokenMode, start: int, end: int, low: int, high: int
    ) -> Interval:
        """The largest range around ``[start, end)``, but within ``[low, high)``, that no other session's claim
        which conflicts with *mode* reaches into from either side."""
        for index in self._against(mode):
            if low < start:
                low = max(low, _last_end(index, session, start, low))
            if end < high:
                high = min(high, _first_start(index, session, end, high))
        return low, high

    def check(self) -> None:
        """Assert that the indices are sound."""
        for index in self._of_mode.values():
            assert index, "an empty index is kept"
            index.check()


def _last_end(index: RangeIndex[K, SessionId], session: SessionId, point: int, low: int) -> int:
    for line in index.lines(point - 1, point):
        if any(other != session for other in line.values()):
            return point
    for stop, line in index.before(point - 1):
        if stop <= low or any(other != session for other in line.values()):
            return stop
    return low


def _first_start(index: RangeIndex[K, SessionId], session: SessionId, point: int, high: int) -> int:
    for line in index.lines(point, point + 1):
        if any(other != session for other in line.values()):
            return point
    for begin, line in index.behind(point + 1):
        if begin >= high or any(other != session for other in line.values()):
            return begin
    return high
