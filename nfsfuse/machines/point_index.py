"""Which of many names are on one point of DIR (`nfsfuse.protocol.tokens.name_point`): a pure machine.

A recall tells the point. A dictionary of points would take a tenth of all that is remembered of a name; buckets
of some dozens of points, one after the other, take 4 bytes each and little besides. They grow as in linear
hashing (Litwin, 1980): whoever adds a name splits one bucket at most, however many there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from nfsfuse.protocol.tokens import name_point

_POINT_SIZE: Final = 4

_LOAD: Final = 32
"""Names in a bucket, on average, when one is split."""


class _Bucket:
    __slots__ = ("names", "points")

    def __init__(self) -> None:
        self.names: list[bytes] = []
        self.points = bytearray()  # those of the names, in their order

    def find(self, point: int) -> Iterator[int]:
        """Where *point* is."""
        wanted = point.to_bytes(_POINT_SIZE, "little")
        found = self.points.find(wanted)
        while found >= 0:
            index, off = divmod(found, _POINT_SIZE)
            if off == 0:
                yield index
            found = self.points.find(wanted, found + 1)

    def add(self, name: bytes, point: int) -> None:
        self.names.append(name)
        self.points += point.to_bytes(_POINT_SIZE, "little")


class PointIndex:
    """A set of names."""

    __slots__ = ("_buckets", "_count")

    def __init__(self) -> None:
        self._buckets: list[_Bucket] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def _bucket(self, point: int) -> _Bucket:
        # With 2**n buckets and some more, the lowest n bits choose, and one bit more where that has been split.
        buckets = len(self._buckets)
        mask = (1 << buckets.bit_length()) - 1
        index = point & mask
        return self._buckets[index if index < buckets else index & (mask >> 1)]

    def add(self, name: bytes) -> None:
        """Put *name* in, which is not."""
        if self._count >= _LOAD * len(self._buckets):
            self._split()
        point = name_point(name)
        self._bucket(point).add(name, point)
        self._count += 1

    def discard(self, name: bytes) -> None:
        """Take *name* out, if it is in."""
        if not self._buckets:
            return
        point = name_point(name)
        bucket = self._bucket(point)
        for index in bucket.find(point):
            if bucket.names[index] == name:
                del bucket.names[index], bucket.points[index * _POINT_SIZE : (index + 1) * _POINT_SIZE]
                self._count -= 1
                return

    def at(self, point: int) -> list[bytes]:
        """The names on *point*."""
        if not self._buckets:
            return []
        bucket = self._bucket(point)
        return [bucket.names[index] for index in bucket.find(point)]

    def _split(self) -> None:
        """One more bucket, with what of another belongs there from now on."""
        new = len(self._buckets)
        self._buckets.append(_Bucket())
        if new:
            old = new - (1 << (new.bit_length() - 1))
            divided, self._buckets[old] = self._buckets[old], _Bucket()
            for name in divided.names:
                point = name_point(name)
                self._bucket(point).add(name, point)

    def replace(self, names: Iterable[bytes]) -> None:
        """Hold *names* and no others."""
        self._buckets.clear()
        self._count = 0
        for name in names:
            self.add(name)
