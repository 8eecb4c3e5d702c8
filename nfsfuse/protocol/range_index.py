"""Ranges that may overlap, and what is said of each: which of them meet another one, and which are next to it.

What `IntervalMap` is for what excludes each other, this is for what does not: requests that wait for the same
pages, recalls, readers. It is the interval tree of Edelsbrunner (1980), over the numbers themselves, as
Kriegel, Pötke and Seidl keep it in tables (VLDB 2000). Each range belongs to a *fork*, the number at which the
ways to its two ends part; a question looks at the forks above its ends, one a level, and at those inside.

Most have a range or two: those are looked through, and there is no tree before there are more than `FEW`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from typing import Final, Generic, TypeVar

from nfsfuse.protocol.intervals import Interval

K = TypeVar("K")
V = TypeVar("V")

FEW: Final = 8
"""Different ranges that are looked through one by one."""


class _Forks:
    """The tree. A number is doubled, and a range ends at the odd one before its end: so its ends do differ."""

    __slots__ = ("by_end", "by_start", "forks", "levels", "nodes")

    def __init__(self) -> None:
        self.by_start: list[Interval] = []
        self.by_end: list[Interval] = []  # the end first
        self.nodes: dict[int, tuple[list[Interval], list[Interval]]] = {}  # likewise, those of each fork
        self.forks: list[int] = []
        self.levels: dict[int, int] = {}  # those of the forks: how many

    def add(self, start: int, end: int) -> None:
        insort(self.by_start, (start, end))
        insort(self.by_end, (end, start))
        level, fork = _fork(start, end)
        node = self.nodes.get(fork)
        if node is None:
            node = self.nodes[fork] = ([], [])
            insort(self.forks, fork)
            self.levels[level] = self.levels.get(level, 0) + 1
        insort(node[0], (start, end))
        insort(node[1], (end, start))

    def remove(self, start: int, end: int) -> None:
        _remove(self.by_start, (start, end))
        _remove(self.by_end, (end, start))
        level, fork = _fork(start, end)
        node = self.nodes[fork]
        _remove(node[0], (start, end))
        _remove(node[1], (end, start))
        if not node[0]:
            del self.nodes[fork]
            _remove(self.forks, fork)
            self.levels[level] -= 1
            if not self.levels[level]:
                del self.levels[level]

    def meeting(self, start: int, end: int) -> Iterator[Interval]:
        low, high = 2 * start, 2 * end - 1
        for level in tuple(self.levels):
            bit = 1 << level
            fork = low & -bit | bit
            if fork <= low and fork in self.nodes:  # its ranges begin before the question
                by_end = self.nodes[fork][1]
                for stop, begin in by_end[bisect_left(by_end, (start + 1, 0)) :]:
                    yield begin, stop
            fork = high & -(bit << 1) | bit
            if fork > high and fork in self.nodes:  # its ranges end after the question
                by_start = self.nodes[fork][0]
                yield from by_start[: bisect_left(by_start, (end, 0))]
        for fork in self.forks[bisect_right(self.forks, low) : bisect_right(self.forks, high)]:
            yield from self.nodes[fork][0]


def _fork(start: int, end: int) -> tuple[int, int]:
    last = 2 * end - 1
    level = (2 * start ^ last).bit_length() - 1
    return level, last & -(1 << level)


N = TypeVar("N", int, Interval)


def _remove(numbers: list[N], number: N) -> None:
    del numbers[bisect_left(numbers, number)]


class RangeIndex(Generic[K, V]):
    """Entries ``[start, end)``, each with a key of its own in that range, and a value.

    An operation costs O(log n), and what it is asked for; a question for what meets a range at most 64 times
    that. Entries of the same range come together, as a *line*, in the order in which they were added. Nothing
    may be added or removed while an iterator of lines is in use."""

    __slots__ = ("_forks", "_lines")

    def __init__(self) -> None:
        self._lines: dict[Interval, dict[K, V]] = {}
        self._forks: _Forks | None = None

    def __bool__(self) -> bool:
        return bool(self._lines)

    def __len__(self) -> int:
        """How many different ranges there are."""
        return len(self._lines)

    def add(self, start: int, end: int, key: K, value: V) -> None:
        """One more. *key* is not there yet with this range."""
        line = self._lines.get((start, end))
        if line is not None:
            assert key not in line, (start, end, key)
            line[key] = value
            return
        assert start < end
        self._lines[start, end] = {key: value}
        if self._forks is not None:
            self._forks.add(start, end)
        elif len(self._lines) > FEW:
            self._forks = _Forks()
            for interval in self._lines:
                self._forks.add(*interval)

    def remove(self, start: int, end: int, key: K) -> None:
        """Take away what was added so."""
        line = self._lines[start, end]
        del line[key]
        if line:
            return
        del self._lines[start, end]
        if self._forks is not None:
            self._forks.remove(start, end)
            if len(self._lines) <= FEW // 2:
                self._forks = None

    def lines(self, start: int, end: int) -> Iterator[dict[K, V]]:
        """The lines that meet ``[start, end)``, in no particular order, but always the same."""
        lines = self._lines
        if self._forks is None:
            for (begin, stop), line in lines.items():
                if begin < end and start < stop:
                    yield line
            return
        for interval in self._forks.meeting(start, end):
            yield lines[interval]

    def meeting(self, start: int, end: int) -> Iterator[tuple[int, int, K, V]]:
        """All entries that meet ``[start, end)``, with their own ranges."""
        lines = self._lines
        if self._forks is None:
            found: Iterator[Interval] = (i for i in lines if i[0] < end and start < i[1])
        else:
            found = self._forks.meeting(start, end)
        for begin, stop in found:
            for key, value in lines[begin, stop].items():
                yield begin, stop, key, value

    def before(self, point: int) -> Iterator[tuple[int, dict[K, V]]]:
        """The lines that end at or before *point*, with their ends, the nearest first."""
        if self._forks is None:
            near = sorted(((stop, begin) for begin, stop in self._lines if stop <= point), reverse=True)
            yield from ((stop, self._lines[begin, stop]) for stop, begin in near)
            return
        by_end = self._forks.by_end
        for index in range(bisect_left(by_end, (point + 1, 0)) - 1, -1, -1):
            stop, begin = by_end[index]
            yield stop, self._lines[begin, stop]

    def behind(self, point: int) -> Iterator[tuple[int, dict[K, V]]]:
        """The lines that begin at or behind *point*, with their beginnings, the nearest first."""
        if self._forks is None:
            for begin, stop in sorted(interval for interval in self._lines if interval[0] >= point):
                yield begin, self._lines[begin, stop]
            return
        by_start = self._forks.by_start
        for index in range(bisect_left(by_start, (point, 0)), len(by_start)):
            yield by_start[index][0], self._lines[by_start[index]]

    def check(self) -> None:
        """Assert that the tree has the ranges that there are."""
        assert all(self._lines.values()), "an empty line is kept"
        if self._forks is None:
            assert len(self._lines) <= FEW
            return
        forks = self._forks
        assert forks.by_start == sorted(self._lines)
        assert forks.by_end == sorted((end, start) for start, end in self._lines)
        assert forks.forks == sorted(forks.nodes)
        assert sorted(i for by_start, _ in forks.nodes.values() for i in by_start) == forks.by_start
        assert all(node[0] and len(node[0]) == len(node[1]) for node in forks.nodes.values())
