"""What one session has to do with one resource of one inode."""

from __future__ import annotations

from nfsfuse.protocol.intervals import Interval, IntervalMap, IntervalSet
from nfsfuse.protocol.range_index import RangeIndex
from nfsfuse.protocol.tokens import COMPATIBLE, TokenMode
from nfsfuse_server.machines.token_claims import Request
from nfsfuse_server.machines.token_effects import Recall


class Holder:
    """What one session has to do with one resource."""

    __slots__ = ("asked", "in_flight", "recalls", "tokens", "trimming", "waiting")

    def __init__(self) -> None:
        self.tokens: IntervalMap[TokenMode] = IntervalMap()
        self.in_flight: dict[int, Interval] = {}  # ticket: where it was granted something, until settled
        self.recalls: dict[int, Recall] = {}  # not acknowledged
        self.asked: RangeIndex[int, TokenMode] | None = None  # where they are, if there are any
        self.trimming: set[int] = set()  # those of the recalls that are only for EXTENTS_PER_HOLDER_MAX
        self.waiting: set[int] = set()  # tickets

    def __bool__(self) -> bool:
        return bool(self.tokens or self.in_flight or self.recalls or self.waiting)

    def holds(self, start: int, end: int, mode: TokenMode) -> bool:
        """Whether all of the range is held at *mode* or stronger, being recalled or not."""
        return self.tokens.is_at_least(start, end, mode)

    def strengthen(self, start: int, end: int, mode: TokenMode) -> None:
        """Hold all of the range at *mode*, or as strong as before."""
        self.tokens.raise_to(start, end, mode)

    def reduce(self, start: int, end: int, keep: TokenMode) -> None:
        """Hold nothing in the range that is stronger than *keep*."""
        for low, high, held in self.tokens.overlapping(start, end):
            if held > keep:
                if keep is TokenMode.NONE:
                    self.tokens.delete(low, high)
                else:
                    self.tokens.set(low, high, keep)

    def add_recall(self, recall: Recall) -> None:
        """The session is asked to give something up."""
        self.recalls[recall.recall_id] = recall
        if self.asked is None:
            self.asked = RangeIndex()
        self.asked.add(recall.token.start, recall.token.end, recall.recall_id, recall.token.mode)

    def remove_recall(self, recall_id: int) -> Recall:
        """It has done so."""
        recall = self.recalls.pop(recall_id)
        self.trimming.discard(recall_id)
        assert self.asked is not None
        self.asked.remove(recall.token.start, recall.token.end, recall_id)
        if not self.recalls:
            self.asked = None
        return recall

    def being_recalled(self, start: int, end: int) -> bool:
        """Whether any of the range is, to whatever mode."""
        return self.asked is not None and any(self.asked.lines(start, end))

    def recall_of(self, start: int, end: int) -> int:
        """One recall of any of the range, which is being recalled."""
        assert self.asked is not None
        return next(recall_id for line in self.asked.lines(start, end) for recall_id in line)

    def is_in_the_way(self, request: Request) -> bool:
        """Whether something is held that the session of *request*, another, could not have it beside."""
        for start, end in request.ranges:
            for _, _, held in self.tokens.overlapping(start, end):
                if not COMPATIBLE[request.mode, held]:
                    return True
        return False

    def recallable(self, start: int, end: int, keep: TokenMode) -> list[Interval]:
        """The parts of the range that are held stronger than *keep*, less those in flight and those that are
        being recalled to *keep* or lower already."""
        held_more = [(low, high) for low, high, held in self.tokens.overlapping(start, end) if held > keep]
        if len(held_more) <= 1 and not (self.in_flight or self.recalls):
            return held_more
        parts = IntervalSet()
        for low, high in held_more:
            parts.add(low, high)
        for low, high in self.in_flight.values():
            parts.delete(low, high)
        if self.asked is not None:
            for low, high, _, mode in self.asked.meeting(start, end):
                if mode <= keep:
                    parts.delete(low, high)
        return parts.intervals()

    def extents_around(self, start: int, end: int) -> list[tuple[int, int, TokenMode]]:
        """What is held in the range and right beside it, each extent as a whole."""
        pieces = self.tokens.overlapping(start - 1, end + 1)
        for index in {0, len(pieces) - 1} if pieces else ():
            low, _, mode = pieces[index]
            extent = self.tokens.around(low)
            assert extent is not None
            pieces[index] = (*extent, mode)
        return pieces

    def half_to_give_up(self) -> list[Interval]:
        """What to recall if there are too many extents: the lower or the upper half of them, whichever covers
        less, so that the large extents stay. Nothing while that is under way."""
        if self.trimming:
            return []
        extents = list(self.tokens)
        half = len(extents) // 2
        spans = [(extents[0][0], extents[half - 1][1]), (extents[-half][0], extents[-1][1])]
        spans.sort(key=lambda span: span[1] - span[0])
        for start, end in spans:
            parts = self.recallable(start, end, TokenMode.NONE)
            if parts:
                # The gaps in between are asked for too, as far as they are free: one recall, not hundreds.
                return self._joined(parts)
        return []

    def _joined(self, parts: list[Interval]) -> list[Interval]:
        """*parts* joined across the gaps in which nothing is held and nothing is in flight."""
        joined = parts[:1]
        for start, end in parts[1:]:
            gap = (joined[-1][1], start)
            in_flight = any(low < gap[1] and gap[0] < high for low, high in self.in_flight.values())
            if in_flight or self.tokens.overlapping(*gap):
                joined.append((start, end))
            else:
                joined[-1] = (joined[-1][0], end)
        return joined
