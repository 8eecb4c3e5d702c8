"""All locks of one kind on one inode: who holds what, and who waits for it.

POSIX locks and flocks of an inode are two spaces that know nothing of each other, as on Linux. A space
answers questions and keeps its books; what a request is answered is decided in `nfsfuse_server.machines.locks`.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple

from nfsfuse.protocol.locks import CONFLICTS, LockKind, LockMode
from nfsfuse.protocol.range_index import RangeIndex
from nfsfuse.protocol.types import OFFSET_MAX, InodeHandle, LockOwner, SessionId
from nfsfuse_server.machines.lock_ranges import OwnerRanges, Segment, Splice

_arrival = attrgetter("arrival")


class Party(NamedTuple):
    """An owner of locks, told apart across clients: owner numbers are unique within one session only."""

    session: SessionId
    owner: LockOwner


@dataclass(slots=True, eq=False)
class Waiter:
    """A request that is not granted (yet). *arrival* counts requests up over the whole server: it is the
    waiter's place in every queue. *blocker* is one reason why it waits, of perhaps several: a holder, or an
    earlier waiter. It is looked at again only when that reason goes away."""

    arrival: int
    ticket: int
    space: LockSpace
    party: Party
    segment: Segment
    deadlock_checked: bool
    blocker: Party | Waiter | None = field(default=None, repr=False)

    def conflicts(self, other: Waiter) -> bool:
        """Whether both cannot hold what they ask for at the same time."""
        mine, theirs = self.segment, other.segment
        return (
            self.party != other.party
            and (mine.mode, theirs.mode) in CONFLICTS
            and mine.start <= theirs.end
            and theirs.start <= mine.end
        )


class HeldLocks:
    """The held locks of one space.

    Beside each party's own list there is one list of all WRITE segments, in order: no two of them overlap,
    whoever owns them, so that a binary search finds the one in the way. READ segments of many parties may
    overlap; a WRITE request asks each party that reads (a binary search each).
    """

    def __init__(self) -> None:
        self._parties: dict[Party, OwnerRanges] = {}
        self._reads: dict[Party, int] = {}  # how many READ segments; no entry for none
        self._write_starts: list[int] = []
        self._writes: list[tuple[int, Party]] = []  # (end, owner), parallel to _write_starts

    def __len__(self) -> int:
        return sum(map(len, self._parties.values()))

    def parties(self) -> list[Party]:
        """Who holds anything here, in the order of their first lock."""
        return list(self._parties)

    def of(self, party: Party) -> OwnerRanges:
        """What *party* holds; empty (and not kept) if nothing."""
        return self._parties.get(party) or OwnerRanges()

    def in_the_way(self, party: Party, mode: LockMode, start: int, end: int) -> Iterator[Party]:
        """The other parties whose locks conflict with *mode* on these bytes; one may be named repeatedly."""
        index = bisect_right(self._write_starts, start)
        if index and self._writes[index - 1][0] >= start:
            index -= 1
        for _, writer in self._writes[index : bisect_right(self._write_starts, end)]:
            if writer != party:
                yield writer
        if mode is LockMode.WRITE:
            for reader in self._reads:
                if reader != party and self._parties[reader].in_the_way(mode, start, end):
                    yield reader

    def first_in_the_way(self, party: Party, mode: LockMode, start: int, end: int) -> Segment | None:
        """The conflicting lock of another party that begins first, as the whole run of bytes that its owner
        holds in that mode (F_GETLK). With UNLOCK: the first lock that *party* itself holds there, which is
        what Linux >= 6.6 answers to F_OFD_GETLK with F_UNLCK."""
        own = mode is LockMode.UNLOCK
        runs = [
            self.of(other).run_around(seg)
            for other in ([party] if own else dict.fromkeys(self.in_the_way(party, mode, start, end)))
            for seg in self.of(other).overlapping(start, end)
            if own or (seg.mode, mode) in CONFLICTS
        ]
        return min(runs, key=lambda run: run.start, default=None)

    def apply(self, party: Party, splice: Splice) -> None:
        """Make a change planned on `of(party)`."""
        ranges = self._parties.setdefault(party, OwnerRanges())
        for seg in ranges.window(splice):
            self._unindex(party, seg)
        ranges.apply(splice)
        for seg in splice.segments:
            self._index(party, seg)
        if not ranges:
            del self._parties[party]

    def _index(self, party: Party, seg: Segment) -> None:
        if seg.mode is LockMode.READ:
            self._reads[party] = self._reads.get(party, 0) + 1
            return
        index = bisect_left(self._write_starts, seg.start)
        self._write_starts.insert(index, seg.start)
        self._writes.insert(index, (seg.end, party))

    def _unindex(self, party: Party, seg: Segment) -> None:
        if seg.mode is LockMode.READ:
            self._reads[party] -= 1
            if not self._reads[party]:
                del self._reads[party]
            return
        index = bisect_left(self._write_starts, seg.start)
        assert self._writes[index] == (seg.end, party), f"not indexed: {party} {seg}"
        del self._write_starts[index], self._writes[index]

    def check(self) -> None:
        """Every party's list is sound, no two parties conflict, and the indexes say the same as the lists."""
        held: list[tuple[Segment, Party]] = []
        for party, ranges in self._parties.items():
            assert len(ranges), f"{party} is kept though it holds nothing"
            ranges.check()
            held += ((seg, party) for seg in ranges)
        held.sort(key=lambda item: item[0].start)
        last_end = {LockMode.READ: -1, LockMode.WRITE: -1}
        for seg, party in held:
            # One party's segments are disjoint, so whatever reaches into this one is another party's.
            for mode, end in last_end.items():
                conflict = end >= seg.start and (mode, seg.mode) in CONFLICTS
                assert not conflict, f"held in conflict with another owner: {party} {seg}"
            last_end[seg.mode] = max(last_end[seg.mode], seg.end)
        writes = [(seg.start, seg.end, party) for seg, party in held if seg.mode is LockMode.WRITE]
        indexed = [(start, *rest) for start, rest in zip(self._write_starts, self._writes, strict=True)]
        assert indexed == writes, "the index of WRITE segments is stale"
        reads = {p: sum(s.mode is LockMode.READ for s in ranges) for p, ranges in self._parties.items()}
        assert self._reads == {p: n for p, n in reads.items() if n}, "the count of READ segments is stale"


class LockSpace:
    """The locks and the queue of one kind on one inode."""

    def __init__(self, inode: InodeHandle, kind: LockKind) -> None:
        self.inode = inode
        self.kind = kind
        self.held = HeldLocks()
        self.queue: dict[int, Waiter] = {}  # by arrival; a dict keeps its order and forgets in O(1)
        self._wanted: RangeIndex[int, Waiter] = RangeIndex()  # the queue, by its bytes and arrival
        self._behind_party: dict[Party, dict[int, Waiter]] = {}
        self._behind_waiter: dict[Waiter, dict[int, Waiter]] = {}

    def __bool__(self) -> bool:
        return bool(self.queue) or bool(self.held.parties())

    def holders_in_the_way(self, waiter: Waiter) -> Iterator[Party]:
        """Who must release something before *waiter* can have what it asks for."""
        seg = waiter.segment
        return self.held.in_the_way(waiter.party, seg.mode, seg.start, seg.end)

    def waiters_in_the_way(self, waiter: Waiter) -> Iterator[Waiter]:
        """Who asked before *waiter* for something that conflicts with it, and still waits."""
        for earlier in heapq.merge(*map(dict.values, self._lines(waiter.segment)), key=_arrival):
            if earlier.arrival >= waiter.arrival:
                return
            if earlier.conflicts(waiter):
                yield earlier

    def waiters_behind(self, waiter: Waiter) -> Iterator[Waiter]:
        """Who asked after *waiter* for something that conflicts with it, and waits too."""
        for line in self._lines(waiter.segment):
            for later in reversed(line.values()):
                if later.arrival <= waiter.arrival:
                    break
                if later.conflicts(waiter):
                    yield later

    def waiters_for_locks_of(self, party: Party) -> Iterator[Waiter]:
        """Who waits for something that *party* holds; one may be named repeatedly."""
        ranges = self.held.of(party)
        near: Iterable[Waiter] = self.queue.values()
        if len(ranges) < len(self.queue):
            near = (waiter for seg in ranges for line in self._lines(seg) for waiter in line.values())
        for waiter in near:
            seg = waiter.segment
            if waiter.party != party and ranges.in_the_way(seg.mode, seg.start, seg.end):
                yield waiter

    def _lines(self, seg: Segment) -> list[dict[int, Waiter]]:
        return list(self._wanted.lines(seg.start, seg.end + 1)) if self.queue else []

    def put_behind(self, waiter: Waiter, blocker: Party | Waiter) -> None:
        """Queue *waiter* (if it is new), to be looked at again when *blocker* is out of its way."""
        self._unlink(waiter)
        if waiter.arrival not in self.queue:
            self.queue[waiter.arrival] = waiter
            self._wanted.add(waiter.segment.start, waiter.segment.end + 1, waiter.arrival, waiter)
        waiter.blocker = blocker
        self._followers_of(blocker)[waiter.arrival] = waiter

    def remove(self, waiter: Waiter) -> list[Waiter]:
        """Take *waiter* out of the queue; returns those that waited behind it, to be looked at again."""
        self._unlink(waiter)
        del self.queue[waiter.arrival]
        self._wanted.remove(waiter.segment.start, waiter.segment.end + 1, waiter.arrival)
        return list(self._behind_waiter.get(waiter, {}).values())

    def behind(self, party: Party, start: int, end: int) -> list[Waiter]:
        """Those that wait for *party* to free a byte of *start* to *end*."""
        followers = self._behind_party.get(party, {}).values()
        return [w for w in followers if w.segment.start <= end and start <= w.segment.end]

    def _followers_of(self, blocker: Party | Waiter) -> dict[int, Waiter]:
        if isinstance(blocker, Waiter):
            return self._behind_waiter.setdefault(blocker, {})
        return self._behind_party.setdefault(blocker, {})

    def _unlink(self, waiter: Waiter) -> None:
        blocker, waiter.blocker = waiter.blocker, None
        if blocker is None:
            return
        followers = self._followers_of(blocker)
        del followers[waiter.arrival]
        if followers:
            return
        if isinstance(blocker, Waiter):
            del self._behind_waiter[blocker]
        else:
            del self._behind_party[blocker]

    def check(self) -> None:
        """The books of this space agree; who waits really has somebody in its way."""
        self.held.check()
        assert list(self.queue) == sorted(self.queue), "the queue is out of order"
        self._wanted.check()
        wanted = sorted(w.arrival for line in self._wanted.lines(0, OFFSET_MAX + 1) for w in line.values())
        assert wanted == list(self.queue), "the index of those that wait is stale"
        groups = (*self._behind_party.values(), *self._behind_waiter.values())
        followers = [waiter for group in groups for waiter in group.values()]
        assert sorted(w.arrival for w in followers) == list(self.queue), "a waiter is lost or listed twice"
        for waiter in self.queue.values():
            blocker = waiter.blocker
            assert blocker is not None, f"waits for nobody: {waiter}"
            assert waiter.arrival in self._followers_of(blocker), f"listed elsewhere: {waiter}"
            if isinstance(blocker, Waiter):
                assert blocker in self.waiters_in_the_way(waiter), f"{waiter} is behind {blocker} for nothing"
            else:
                assert blocker in self.holders_in_the_way(waiter), f"{waiter} waits for {blocker} for nothing"
