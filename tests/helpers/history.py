"""What programs wrote and saw, word by word, and whether one copy of every word explains it.

Every write of a word has a value of its own, so linearizability of a register can be decided in one pass
(Gibbons and Korach, Testing Shared Memories, SIAM J. Comput. 26(4), 1997, section 4.2): the operations on one
value form a *zone* from the first end to the last start among them. If that runs forward, the value was the
word's during all of it; two such zones must not overlap, and no zone that runs backward (all its operations
overlap, it can be put at any point of it) may lie within one that runs forward.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass, field

NEVER = 1 << 62
"""The end of an operation that was not answered."""

Location = tuple[str, int]
"""A file and the offset of a word in it."""


class Violation(AssertionError):
    """The clients did not see one file. *location* is where."""

    def __init__(self, text: str, location: Location | None = None) -> None:
        super().__init__(text)
        self.location = location


@dataclass(slots=True, eq=False)
class Operation:
    """A read or write of one word. *begin* and *end* count the history's events."""

    client: str
    is_write: bool
    through_cache: bool  # write(2): the client's own programs see it before the daemon does
    value: int
    begin: int
    end: int = NEVER
    may_be_lost: bool = False  # a write that failed: it has had its effect by *end*, or will not have any

    def __str__(self) -> str:
        what = "wrote" if self.is_write else "read"
        end = "" if self.end == NEVER else self.end
        return f"{self.client} {what} {self.value:#x} in [{self.begin}, {end}]"


@dataclass(slots=True)
class _Zone:
    value: int
    first_end: int
    last_begin: int
    operations: list[Operation]

    @property
    def forward(self) -> bool:
        return self.first_end < self.last_begin


@dataclass(slots=True)
class History:
    """Operations by location. *early_reads* counts reads that are left out: those of a client's own write(2)
    that was not answered yet. FUSE copies into the page before it asks the daemon, so such a read sees data
    that have no token yet; nothing in a daemon can prevent it."""

    operations: dict[Location, list[Operation]] = field(default_factory=lambda: defaultdict(list))
    early_reads: int = 0
    _values: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _events: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def new_value(self) -> int:
        """A value that nobody has written."""
        return next(self._values)

    def now(self) -> int:
        return next(self._events)

    def begin_write(
        self, client: str, location: Location, value: int, *, through_cache: bool = False
    ) -> Operation:
        operation = Operation(client, True, through_cache, value, self.now())
        self.operations[location].append(operation)
        return operation

    def end(self, operation: Operation) -> None:
        operation.end = self.now()

    def fail(self, operation: Operation) -> None:
        """A write that may have had its effect, and if it has not, will not have it any more."""
        operation.may_be_lost = True
        operation.end = self.now()

    def read(self, client: str, location: Location, value: int, begin: int) -> None:
        self.operations[location].append(Operation(client, False, False, value, begin, self.now()))

    def check(self) -> None:
        """Raise Violation if any word was not one register."""
        for location, operations in self.operations.items():
            self._check_word(location, operations)

    def _check_word(self, location: Location, operations: list[Operation]) -> None:
        writes = {operation.value: operation for operation in operations if operation.is_write}
        writes[0] = Operation("nobody", True, False, 0, -1, 0)  # files begin as zeros
        zones: dict[int, _Zone] = {}
        seen = {operation.value for operation in operations if not operation.is_write}
        for operation in operations:
            if operation.may_be_lost and operation.value not in seen:
                continue
            write = writes.get(operation.value)
            if write is None:
                raise Violation(f"{location}: {operation}, which nobody wrote", location)
            if operation.end < write.begin:
                raise Violation(f"{location}: {operation}, before {write}", location)
            if not operation.is_write and self._is_early(operation, write):
                self.early_reads += 1
                continue
            zone = zones.get(operation.value)
            if zone is None:
                zone = zones[operation.value] = _Zone(operation.value, write.end, write.begin, [write])
            zone.first_end = min(zone.first_end, operation.end)
            zone.last_begin = max(zone.last_begin, operation.begin)
            if operation is not write:
                zone.operations.append(operation)
        self._check_zones(location, sorted(zones.values(), key=lambda z: min(z.first_end, z.last_begin)))

    @staticmethod
    def _is_early(read: Operation, write: Operation) -> bool:
        return write.through_cache and write.client == read.client and read.begin < write.end

    @staticmethod
    def _check_zones(location: Location, zones: list[_Zone]) -> None:
        forward = [zone for zone in zones if zone.forward]
        for one, other in itertools.pairwise(forward):
            if other.first_end < one.last_begin:
                raise _two_at_once(location, one, other)
        for zone in zones:
            if zone.forward:
                continue
            for around in forward:
                if around.first_end < zone.last_begin and zone.first_end < around.last_begin:
                    raise _two_at_once(location, around, zone)


def _two_at_once(location: Location, one: _Zone, other: _Zone) -> Violation:
    told = sorted({*_ends(one), *_ends(other)}, key=lambda operation: operation.begin)
    lines = "\n  ".join(map(str, told))
    return Violation(f"{location}: {one.value:#x} and {other.value:#x} at once:\n  {lines}", location)


def _ends(zone: _Zone) -> list[Operation]:
    return [
        zone.operations[0],
        min(zone.operations, key=lambda operation: operation.end),
        max(zone.operations, key=lambda operation: operation.begin),
    ]
