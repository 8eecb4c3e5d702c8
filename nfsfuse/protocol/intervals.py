"""A map from half-open integer intervals to values: the one shape in which state about pages is kept.

State is per *extent*, never per page: a terabyte under one token is one entry. Adjacent intervals with equal
values are merged, so the map is canonical and two maps that say the same compare equal.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Generic, TypeVar

V = TypeVar("V")
N = TypeVar("N", bound=int)

Interval = tuple[int, int]


class IntervalMap(Generic[V]):
    """Disjoint, sorted, merged intervals with a value each. Every operation is O(log n + touched), plus the
    list's own shifting."""

    __slots__ = ("_ends", "_starts", "_values")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._values: list[V] = []

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[tuple[int, int, V]]:
        return iter(list(zip(self._starts, self._ends, self._values, strict=True)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, IntervalMap):
            return NotImplemented
        return list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        inside = ", ".join(f"[{start}, {end}): {value!r}" for start, end, value in self)
        return f"{type(self).__name__}({inside})"

    def at(self, point: int) -> V | None:
        """The value at *point*, None where there is none."""
        index = bisect_right(self._starts, point) - 1
        if index >= 0 and point < self._ends[index]:
            return self._values[index]
        return None

    def overlapping(self, start: int, end: int) -> list[tuple[int, int, V]]:
        """The intervals that meet ``[start, end)``, cut to it, in order."""
        starts, ends, values = self._starts, self._ends, self._values
        if len(starts) == 1:  # so it mostly is, and this is asked for every page and message
            begin, stop = starts[0], ends[0]
            if begin >= end or stop <= start:
                return []
            return [(begin if begin > start else start, stop if stop < end else end, values[0])]
        low = bisect_right(ends, start)  # the first that ends after *start*
        high = bisect_left(starts, end)
        if low >= high:
            return []
        found = list(zip(starts[low:high], ends[low:high], values[low:high], strict=True))
        begin, stop, value = found[0]
        found[0] = (max(begin, start), stop, value)
        begin, stop, value = found[-1]
        found[-1] = (begin, min(stop, end), value)
        return found

    def gaps(self, start: int, end: int) -> list[Interval]:
        """The parts of ``[start, end)`` without a value, in order."""
        if not self._starts:
            return [(start, end)] if start < end else []
        missing = []
        at = start
        for begin, stop, _ in self.overlapping(start, end):
            if at < begin:
                missing.append((at, begin))
            at = stop
        if at < end:
            missing.append((at, end))
        return missing

    def covers(self, start: int, end: int) -> bool:
        """Whether every point of ``[start, end)`` has a value."""
        starts, ends = self._starts, self._ends
        index = bisect_right(ends, start)
        while start < end:
            if index >= len(starts) or starts[index] > start:
                return False
            start = ends[index]
            index += 1
        return True

    def is_at_least(self: IntervalMap[N], start: int, end: int, least: N) -> bool:
        """Whether every point of ``[start, end)`` has a value, which is *least* or more."""
        starts, ends, values = self._starts, self._ends, self._values
        if len(starts) == 1:
            return start >= end or (starts[0] <= start and end <= ends[0] and values[0] >= least)
        index = bisect_right(ends, start)
        while start < end:
            if index >= len(starts) or starts[index] > start or values[index] < least:
                return False
            start = ends[index]
            index += 1
        return True

    def raise_to(self: IntervalMap[N], start: int, end: int, least: N) -> None:
        """Give *least* to every point of ``[start, end)`` that has no value, or less."""
        if not self._starts:
            self.set(start, end, least)
            return
        weaker = self.gaps(start, end)
        weaker += [(low, high) for low, high, value in self.overlapping(start, end) if value < least]
        for low, high in weaker:
            self.set(low, high, least)

    def set(self, start: int, end: int, value: V) -> None:
        """Give every point of ``[start, end)`` *value*, whatever it had."""
        if start >= end:
            return
        starts, ends, values = self._starts, self._ends, self._values
        if not starts:  # so it mostly is, of most inodes
            starts.append(start)
            ends.append(end)
            values.append(value)
            return
        # A neighbour that merely touches is taken in too, in case it can be merged.
        low = bisect_left(ends, start)
        high = bisect_right(starts, end)
        new_starts, new_ends, new_values = [start], [end], [value]
        if low < high:
            begin, stop, first, last = starts[low], ends[high - 1], values[low], values[high - 1]
            if begin < start and first == value:
                new_starts[0] = begin
            elif begin < start:
                new_starts, new_ends, new_values = [begin, start], [start, end], [first, value]
            if end < stop and last == value:
                new_ends[-1] = stop
            elif end < stop:
                new_starts.append(end)
                new_ends.append(stop)
                new_values.append(last)
        starts[low:high], ends[low:high], values[low:high] = new_starts, new_ends, new_values

    def delete(self, start: int, end: int) -> None:
        """Leave no value in ``[start, end)``."""
        starts, ends = self._starts, self._ends
        if not starts or start >= end:
            return
        if start <= starts[0] and ends[-1] <= end:
            self.clear()
            return
        low = bisect_right(ends, start)
        high = bisect_left(starts, end)
        if low >= high:
            return
        values = self._values
        stop = ends[high - 1]
        if starts[low] < start:
            ends[low] = start  # its beginning stays
            if stop > end and low + 1 == high:
                starts.insert(high, end)
                ends.insert(high, stop)
                values.insert(high, values[low])
                return
            low += 1
        if stop > end:
            high -= 1
            starts[high] = end  # its end stays
        del starts[low:high], ends[low:high], values[low:high]

    def clear(self) -> None:
        """Leave no value anywhere."""
        self._starts.clear()
        self._ends.clear()
        self._values.clear()

    def check(self) -> None:
        """Assert what makes the map canonical."""
        previous: tuple[int, int, V] | None = None
        for start, end, value in self:
            assert start < end, self
            if previous is not None:
                assert previous[1] <= start, self
                assert previous[1] < start or previous[2] != value, self
            previous = (start, end, value)


class IntervalSet(IntervalMap[bool]):
    """A set of integers as intervals."""

    __slots__ = ()

    def add(self, start: int, end: int) -> None:
        """Put ``[start, end)`` in."""
        self.set(start, end, True)

    def intervals(self, start: int = 0, end: int = 2**63) -> list[Interval]:
        """The parts of ``[start, end)`` that are in, in order."""
        if not self._starts:
            return []
        pieces = self.overlapping(start, end)
        if len(pieces) == 1:
            return [pieces[0][:2]]
        return [(begin, stop) for begin, stop, _ in pieces]

    def size(self, start: int = 0, end: int = 2**63) -> int:
        """How many integers of ``[start, end)`` are in."""
        return sum([stop - begin for begin, stop, _ in self.overlapping(start, end)]) if self._starts else 0

    def overlaps(self, start: int, end: int) -> bool:
        """Whether any point of ``[start, end)`` is in."""
        starts = self._starts
        if not starts:
            return False
        index = bisect_right(self._ends, start)
        return index < len(starts) and starts[index] < end
