"""The byte ranges that one owner has locked on one inode: split, merge, upgrade, downgrade.

POSIX (fcntl, "File Locking"): a new lock of an owner replaces what that owner holds on those bytes, so that
every byte has at most one mode per owner. What sticks out of the new lock on either side stays as it was
(split); neighbours of equal mode become one (merge).

A segment remembers the open file it was taken through, because the locks of an open file end with it (see
`nfsfuse_server.machines.locks.LockManager.release`). Therefore segments of different open files are kept
apart even where their modes are equal; `OwnerRanges.run_around` joins them for F_GETLK: Linux knows no such
seam.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import replace

from nfsfuse.protocol.locks import CONFLICTS, LockMode
from nfsfuse.protocol.record import record
from nfsfuse.protocol.types import OFFSET_MAX, LockOpenId


@record(frozen=True, slots=True)
class Segment:
    """Bytes *start* to *end* (both included), held in one mode (never UNLOCK) through one open file.

    *pid* is the process that last locked any of these bytes: of an owner that several processes share (OFD
    locks across fork), merged segments tell of the most recent.
    """

    start: int
    end: int
    mode: LockMode
    open_id: LockOpenId
    pid: int

    def merges_with(self, after: Segment) -> bool:
        """Whether *after* begins where this one ends and differs in nothing that must be remembered."""
        return self.end + 1 == after.start and self.mode is after.mode and self.open_id == after.open_id


@record(frozen=True, slots=True)
class Splice:
    """A change worked out but not made: segments *low* up to *high* (excluded) give way to *segments*.

    Worked out first, so that a limit can refuse it while nothing has changed."""

    low: int
    high: int
    segments: tuple[Segment, ...]

    @property
    def growth(self) -> int:
        """By how many segments the owner's list becomes longer: at most 2, and negative for a merge."""
        return len(self.segments) - (self.high - self.low)


class OwnerRanges:
    """Sorted, disjoint segments of one owner; finding a byte costs a binary search."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._segments: list[Segment] = []

    def __len__(self) -> int:
        return len(self._segments)

    def __iter__(self) -> Iterator[Segment]:
        return iter(self._segments)

    def overlapping(self, start: int, end: int) -> Iterator[Segment]:
        """The segments that share a byte with *start* to *end*, in ascending order."""
        for index in range(self._first_ending_at_or_after(start), bisect_right(self._starts, end)):
            yield self._segments[index]

    def in_the_way(self, mode: LockMode, start: int, end: int) -> bool:
        """Whether somebody else cannot have *mode* on these bytes as long as this owner keeps its own."""
        return any((seg.mode, mode) in CONFLICTS for seg in self.overlapping(start, end))

    def run_around(self, seg: Segment) -> Segment:
        """*seg*, one of this owner's, joined with its neighbours of equal mode, through whichever open file
        they came."""
        first = last = bisect_left(self._starts, seg.start)
        while first and self._continues(first - 1):
            first -= 1
        while last + 1 < len(self) and self._continues(last):
            last += 1
        return replace(seg, start=self._segments[first].start, end=self._segments[last].end)

    def _continues(self, index: int) -> bool:
        seg, after = self._segments[index], self._segments[index + 1]
        return seg.end + 1 == after.start and seg.mode is after.mode

    def plan_lock(self, new: Segment) -> Splice:
        """What taking *new* changes: it replaces its bytes and merges with its neighbours."""
        return self._plan(new.start, new.end, new)

    def plan_unlock(self, start: int, end: int) -> Splice:
        """What freeing these bytes changes; nothing, where nothing was held."""
        return self._plan(start, end, None)

    def window(self, splice: Splice) -> list[Segment]:
        """The segments that *splice* would remove."""
        return self._segments[splice.low : splice.high]

    def apply(self, splice: Splice) -> None:
        """Make a change that was planned on the list as it is now."""
        self._segments[splice.low : splice.high] = splice.segments
        self._starts[splice.low : splice.high] = [seg.start for seg in splice.segments]

    def _first_ending_at_or_after(self, offset: int) -> int:
        index = bisect_right(self._starts, offset)
        return index - 1 if index and self._segments[index - 1].end >= offset else index

    def _plan(self, start: int, end: int, new: Segment | None) -> Splice:
        # One byte more on each side: a neighbour that only touches may have to be merged.
        low = self._first_ending_at_or_after(max(start - 1, 0))
        high = max(low, bisect_right(self._starts, min(end + 1, OFFSET_MAX)))
        window = self._segments[low:high]
        parts = [replace(seg, end=min(seg.end, start - 1)) for seg in window if seg.start < start]
        parts += [new] if new is not None else []
        parts += [replace(seg, start=max(seg.start, end + 1)) for seg in window if seg.end > end]
        return Splice(low, high, tuple(_merged(parts, new)))

    def check(self) -> None:
        """Sorted, disjoint, within the offsets, merged wherever nothing is lost by it."""
        assert self._starts == [seg.start for seg in self._segments], "the index of starts is stale"
        for seg in self._segments:
            assert 0 <= seg.start <= seg.end <= OFFSET_MAX, f"not a range: {seg}"
            assert seg.mode is not LockMode.UNLOCK, f"an unlocked segment is held: {seg}"
        for seg, after in zip(self._segments, self._segments[1:], strict=False):
            assert seg.end < after.start, f"one owner's ranges overlap or are unsorted: {seg} {after}"
            assert not seg.merges_with(after), f"not merged: {seg} {after}"


def _merged(parts: list[Segment], new: Segment | None) -> list[Segment]:
    """*parts* with equal neighbours joined. Only *new* can have brought two together, so its pid counts."""
    merged: list[Segment] = []
    for seg in parts:
        if merged and new is not None and merged[-1].merges_with(seg):
            merged[-1] = replace(merged[-1], end=seg.end, pid=new.pid)
        else:
            merged.append(seg)
    return merged
