"""A map from half-open integer intervals to values: the one shape in which state about pages is kept.

State is per *extent*, never per page: a terabyte under one token is one entry. Adjacent intervals with equal
values are merged, so the map is canonical and two maps that say the same compare equal.

Most maps have an interval or two: these are three lists. One that grows beyond `LEAF_MAX` becomes a row of
*leaves*, each such a map, so that a change moves the entries of a leaf and not those of a file with a million
extents.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Final, Generic, TypeVar

V = TypeVar("V")
N = TypeVar("N", bound=int)

Interval = tuple[int, int]

LEAF_MAX: Final = 512
"""Intervals in one leaf: shifting 4 kB takes less than finding the place."""


class IntervalMap(Generic[V]):
    """Disjoint, sorted, merged intervals with a value each. Every operation is O(log n + touched).

    With leaves, *_starts* and *_ends* are those of the leaves: disjoint and sorted as well; none is empty."""

    __slots__ = ("_count", "_ends", "_leaves", "_starts", "_values")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._values: list[V] = []
        self._leaves: list[IntervalMap[V]] | None = None
        self._count = 0  # of the intervals in the leaves

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __len__(self) -> int:
        return len(self._starts) if self._leaves is None else self._count

    def __iter__(self) -> Iterator[tuple[int, int, V]]:
        if self._leaves is not None:
            return iter([piece for leaf in self._leaves for piece in leaf])
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
            return self._values[index] if self._leaves is None else self._leaves[index].at(point)
        return None

    def first(self, start: int, end: int) -> Interval | None:
        """The first interval that meets ``[start, end)``, cut to it."""
        if start >= end:
            return None
        starts, ends = self._starts, self._ends
        index = bisect_right(ends, start)
        while index < len(starts) and starts[index] < end:  # twice at most
            if self._leaves is None:
                return max(starts[index], start), min(ends[index], end)
            found = self._leaves[index].first(start, end)
            if found is not None:
                return found
            index += 1
        return None

    def around(self, point: int) -> Interval | None:
        """The interval that has *point*."""
        index = bisect_right(self._starts, point) - 1
        if index < 0 or point >= self._ends[index]:
            return None
        if self._leaves is not None:
            return self._leaves[index].around(point)
        return self._starts[index], self._ends[index]

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
        if self._leaves is not None:
            return [piece for leaf in self._leaves[low:high] for piece in leaf.overlapping(start, end)]
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
            if self._leaves is not None and not self._leaves[index].covers(start, min(end, ends[index])):
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
            if index >= len(starts) or starts[index] > start:
                return False
            if self._leaves is not None:
                if not self._leaves[index].is_at_least(start, min(end, ends[index]), least):
                    return False
            elif values[index] < least:
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
        if self._leaves is None:
            self._set(start, end, value)
            if len(self._starts) > LEAF_MAX:
                self._grow()
            return
        # A leaf that merely touches is taken in too, in case its last or first interval can be merged.
        low, high = bisect_left(self._ends, start), bisect_right(self._starts, end)
        if low == high:  # between two leaves
            low = max(low - 1, 0)
        leaf = self._joined(low, max(high, low + 1))
        self._count -= len(leaf)
        leaf._set(start, end, value)
        self._changed(low, leaf)

    def _set(self, start: int, end: int, value: V) -> None:
        """`set`, without leaves."""
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
        if self._leaves is not None:
            leaf = self._joined(low, high)
            self._count -= len(leaf)
            leaf.delete(start, end)
            self._changed(low, leaf)
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
        self._leaves = None

    # --- leaves ---

    def _grow(self) -> None:
        """There are too many intervals for one leaf."""
        leaf: IntervalMap[V] = IntervalMap()
        leaf._starts, leaf._ends, leaf._values = self._starts, self._ends, self._values
        self._leaves, self._starts, self._ends, self._values = [leaf], [0], [0], []
        self._count = 0
        self._changed(0, leaf)

    def _joined(self, low: int, high: int) -> IntervalMap[V]:
        """The leaves from *low* to *high* as one, which is as large as need be, in the place of the first. What
        is joined is about to be replaced, but for what a leaf at either end keeps."""
        assert self._leaves is not None
        leaf = self._leaves[low]
        for other in self._leaves[low + 1 : high]:
            leaf._starts += other._starts
            leaf._ends += other._ends
            leaf._values += other._values
        del self._leaves[low + 1 : high], self._starts[low + 1 : high], self._ends[low + 1 : high]
        return leaf

    def _changed(self, index: int, leaf: IntervalMap[V]) -> None:
        """*leaf*, whose intervals are not counted, has changed: put it, or its pieces, in its place."""
        assert self._leaves is not None
        size = len(leaf._starts)
        self._count += size
        leaves = [leaf] if size else []
        if size > LEAF_MAX:
            leaves = [leaf._slice(at, at + LEAF_MAX // 2) for at in range(0, size, LEAF_MAX // 2)]
        self._leaves[index : index + 1] = leaves
        self._starts[index : index + 1] = [each._starts[0] for each in leaves]
        self._ends[index : index + 1] = [each._ends[-1] for each in leaves]
        if len(self._leaves) == 1:
            (only,) = self._leaves
            self._starts, self._ends, self._values = only._starts, only._ends, only._values
            self._leaves = None
        elif not self._leaves:
            self._leaves = None

    def _slice(self, low: int, high: int) -> IntervalMap[V]:
        part: IntervalMap[V] = IntervalMap()
        part._starts, part._ends = self._starts[low:high], self._ends[low:high]
        part._values = self._values[low:high]
        return part

    def check(self) -> None:
        """Assert what makes the map canonical."""
        previous: tuple[int, int, V] | None = None
        for start, end, value in self:
            assert start < end, self
            if previous is not None:
                assert previous[1] <= start, self
                assert previous[1] < start or previous[2] != value, self
            previous = (start, end, value)
        if self._leaves is not None:
            assert len(self._leaves) > 1, "one leaf is none"
            assert self._count == sum(map(len, self._leaves))
            assert all(leaf._leaves is None and 0 < len(leaf) <= LEAF_MAX for leaf in self._leaves)
            assert self._starts == [leaf._starts[0] for leaf in self._leaves]
            assert self._ends == [leaf._ends[-1] for leaf in self._leaves]


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
        if self._leaves is not None:
            return self.first(start, end) is not None
        index = bisect_right(self._ends, start)
        return index < len(starts) and starts[index] < end
