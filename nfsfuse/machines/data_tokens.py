"""What a client holds of one file's data, and what its kernel may have cached under that: a pure machine.

The page protocol (`nfsfuse.engine.page_protocol`) drives it. The rules it decides are those of the invariants:

* K1: a page that may be up to date in the kernel (`in_kernel`, never less than the truth) is held.
* K2: while the file is open for writing, nothing is held SHARED.
* An operation runs if its range is held and is not *revoked*: a recall in progress lets operations in until
  its first invalidation has returned, and during every further invalidation (an operation that arrives then
  may hold the very folio lock that the invalidation waits for); at all other times they are parked.
* Recalls of one page are carried out one after the other (`may_begin`): an invalidation takes pages off the
  books before the kernel has dropped them, so that a second recall would take them for gone. Only the end of
  the lease waits for no recall (`suspend`): one that it overtakes between two passes follows it (`follow`).
* An operation whose token was just granted is *entitled*: recalls of that range wait for it, so that whoever
  asked for a page gets to use it once. An entitled operation never waits for the server to grant something.
* An entitled operation may itself have to take pages from the kernel (`flush`): before the recalls that wait
  for it, after those that do not.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from nfsfuse.protocol.intervals import Interval, IntervalMap, IntervalSet
from nfsfuse.protocol.range_index import RangeIndex
from nfsfuse.protocol.tokens import RANGE_END, TokenMode
from nfsfuse.protocol.types import PAGE_SIZE

LITTLE_BYTES_MAX: Final = 16 * PAGE_SIZE
"""Recalled at once: so little need not be gathered before it is written back."""


class Phase(Enum):
    """Where a recall is."""

    PENDING = "it waits for the operations that were granted what it takes, and for earlier recalls of it"
    INVALIDATING = "an invalidation is under way in the kernel"
    FOLLOWING = "another recall's invalidation of its pages is under way in the kernel"
    CLOSED = "operations are parked"


@dataclass(slots=True, eq=False)
class Revocation:
    """A recall of ``[start, end)`` down to *keep*, in progress. It belongs to the event loop, but for
    *returned*: the byte becomes 1 at any instant, even between two looks at `phase`, when the invalidation
    under way has returned."""

    start: int
    end: int
    keep: TokenMode
    waits_for: set[int] = field(default_factory=set)  # entitled operations
    part_of: int | None = None  # the entitled operation that does this for itself
    rank: int = 0  # its place among those under way
    returned: bytearray = field(default_factory=lambda: bytearray(1))
    _phase: Phase = Phase.PENDING

    @property
    def phase(self) -> Phase:
        """Where it is now. It goes from INVALIDATING to CLOSED by itself: whoever asks for both asks for that
        one first."""
        return Phase.CLOSED if self._phase is Phase.INVALIDATING and self.returned[0] else self._phase

    @phase.setter
    def phase(self, phase: Phase) -> None:
        self._phase = phase


class Revocations:
    """The recalls of one file that are under way, in order, and found by their pages."""

    __slots__ = ("_pages", "_ranks", "by_rank")

    def __init__(self) -> None:
        self.by_rank: dict[int, Revocation] = {}
        """All of them: asked for whether there are any, which there mostly are not."""
        self._pages: RangeIndex[int, Revocation] = RangeIndex()
        self._ranks = 0

    def __bool__(self) -> bool:
        return bool(self.by_rank)

    def __iter__(self) -> Iterator[Revocation]:
        return iter([self.by_rank[rank] for rank in sorted(self.by_rank)])

    def __contains__(self, revocation: Revocation) -> bool:
        return self.by_rank.get(revocation.rank) is revocation

    def add(self, revocation: Revocation, *, first: bool = False) -> None:
        """One more, behind all others, or before them."""
        self._ranks += 1
        revocation.rank = -self._ranks if first else self._ranks
        self.by_rank[revocation.rank] = revocation
        self._pages.add(revocation.start, revocation.end, revocation.rank, revocation)

    def remove(self, revocation: Revocation) -> None:
        """It has ended."""
        del self.by_rank[revocation.rank]
        self._pages.remove(revocation.start, revocation.end, revocation.rank)
        if not self.by_rank:
            self._ranks = 0

    def of(self, start: int, end: int) -> list[Revocation]:
        """Those that have any of ``[start, end)``."""
        if not self.by_rank:
            return []
        return [revocation for line in self._pages.lines(start, end) for revocation in line.values()]

    def check(self) -> None:
        """Assert that each is where it is looked for."""
        self._pages.check()
        found = sorted((start, end, rank) for start, end, rank, _ in self._pages.meeting(0, RANGE_END))
        assert found == sorted((r.start, r.end, rank) for rank, r in self.by_rank.items())
        assert all(rank == revocation.rank for rank, revocation in self.by_rank.items())


class DataTokens:
    """The tokens of one file."""

    def __init__(self) -> None:
        self.held: IntervalMap[TokenMode] = IntervalMap()
        self.in_kernel = IntervalSet()
        self.untaken = IntervalSet()
        """What programs stored and nobody took (`refuse`): the kernel may have it, and others never will. Until
        the kernel has dropped it, which is soon (`PageProtocol.drop_untaken`)."""
        self.revocations = Revocations()
        self.writers = 0
        self._entitled: dict[int, Interval] = {}
        self._passed: list[IntervalSet] = []
        self._reads: list[Interval] = []  # of the kernel's, not answered yet
        self._numbers = itertools.count(1)

    # --- may an operation run? ---

    def holds(self, start: int, end: int, mode: TokenMode) -> bool:
        """Whether all of ``[start, end)`` is held at *mode* or stronger."""
        return self.held.is_at_least(start, end, mode)

    def parked(self, start: int, end: int) -> bool:
        """Whether operations on ``[start, end)`` have to wait for a recall to end."""
        if not self.revocations.by_rank:
            return False
        return any(revocation.phase is Phase.CLOSED for revocation in self.revocations.of(start, end))

    def invalidating(self, start: int, end: int) -> bool:
        """Whether an invalidation of some of ``[start, end)`` is under way in the kernel."""
        for revocation in self.revocations.of(start, end):
            if revocation.phase in (Phase.INVALIDATING, Phase.FOLLOWING):
                return True
        return False

    def takes_little(self, start: int, end: int) -> bool:
        """Whether a recall of few pages is invalidating ``[start, end)``: a page of it that is written back now
        is the invalidation's doing, and the recall will wait for it to reach the server."""
        for revocation in self.revocations.of(start, end):
            if (
                revocation.start <= start
                and end <= revocation.end <= revocation.start + LITTLE_BYTES_MAX
                and revocation.phase is Phase.INVALIDATING
            ):
                return True
        return False

    def may_be_dirty(self, start: int, end: int) -> bool:
        """Whether the kernel may have dirty pages in ``[start, end)`` (K3)."""
        return bool(self.writers) and any(
            mode is TokenMode.EXCLUSIVE for _, _, mode in self.held.overlapping(start, end)
        )

    def may_have_dirty_pages(self) -> bool:
        """Whether the kernel may have a dirty page anywhere in the file, or be dropping one."""
        cached = self.in_kernel.intervals()
        cached += [(r.start, r.end) for r in self.revocations if r.phase is Phase.INVALIDATING]
        return any(self.may_be_dirty(start, end) for start, end in cached)

    def reading_mode(self) -> TokenMode:
        """The mode that a read has to ask for (K2)."""
        return TokenMode.EXCLUSIVE if self.writers else TokenMode.SHARED

    # --- grants ---

    def granted(self, start: int, end: int, mode: TokenMode) -> bool:
        """A grant has arrived; whether it counts: SHARED is ignored while open for writing."""
        if mode is TokenMode.SHARED and self.writers:
            return False
        self.held.raise_to(start, end, mode)
        return True

    def entitle(self, start: int, end: int) -> int:
        """The operation that asked for ``[start, end)`` may use it once before it is recalled; its number."""
        number = next(self._numbers)
        self._entitled[number] = (start, end)
        return number

    def used(self, number: int) -> None:
        """An entitled operation has run, or has given up."""
        used = self._entitled.pop(number, None)
        if used is not None and self.revocations.by_rank:
            for revocation in self.revocations.of(*used):
                revocation.waits_for.discard(number)

    # --- recalls ---

    def revoke(self, start: int, end: int, keep: TokenMode) -> Revocation:
        """A recall has arrived. It waits for those entitled before it, and for nobody after."""
        revocation = Revocation(start, end, keep)
        revocation.waits_for = {
            number for number, (begin, stop) in self._entitled.items() if begin < end and start < stop
        }
        self.revocations.add(revocation)
        return revocation

    def suspend(self) -> Revocation:
        """The lease is about to run out: everything cached is to be dropped, and what is held kept. A recall
        that takes nothing, goes before those that have not begun, and waits for nobody who may be waiting for
        the server: only for invalidations under way (`may_suspend`). It ends when the lease runs again."""
        revocation = Revocation(0, RANGE_END, TokenMode.EXCLUSIVE)
        self.revocations.add(revocation, first=True)
        return revocation

    def may_suspend(self, revocation: Revocation) -> bool:
        """Whether nothing is being invalidated for another recall."""
        others = (other for other in self.revocations if other is not revocation)
        return all(other.phase is not Phase.INVALIDATING for other in others)

    def flush(self, start: int, end: int, number: int) -> Revocation:
        """The operation entitled as *number* takes ``[start, end)`` from the kernel, and gives up nothing.
        Other entitled operations are not waited for: one that runs beside it is invalidated once more, like
        in any recall, or parked, and then it gives its entitlement up."""
        assert number in self._entitled
        revocation = Revocation(start, end, TokenMode.EXCLUSIVE, part_of=number)
        self.revocations.add(revocation)
        return revocation

    def may_begin(self, revocation: Revocation) -> bool:
        """Whether *revocation* need not wait: all it waits for have run, and no earlier one of any of its
        range is in progress or about to be. Those that wait for the operation it is part of come after it."""
        overlapping = any(
            r.rank < revocation.rank and revocation.part_of not in r.waits_for
            for r in self.revocations.of(revocation.start, revocation.end)
        )
        return not revocation.waits_for and not overlapping

    def follow(self, revocation: Revocation) -> bool:
        """Whether the kernel is dropping some of its pages for another recall, which *revocation* has to wait
        for: they are off the books already. Operations may run meanwhile, as in an invalidation of its own."""
        for other in self.revocations.of(revocation.start, revocation.end):
            if other is not revocation and other.phase is Phase.INVALIDATING:
                revocation.phase = Phase.FOLLOWING
                return True
        return False

    def invalidate(self, revocation: Revocation) -> list[Interval]:
        """What has to be invalidated in the kernel now; nothing, and the revocation closed, if nothing is
        cached. What is cached by operations that run meanwhile comes out at the next call."""
        ranges = self.in_kernel.intervals(revocation.start, revocation.end)
        if ranges:
            revocation.returned = bytearray(1)
            revocation.phase = Phase.INVALIDATING
            self.in_kernel.delete(revocation.start, revocation.end)
        else:
            revocation.phase = Phase.CLOSED
            self.untaken.delete(revocation.start, revocation.end)
        return ranges

    def may_keep_pages(self, revocation: Revocation) -> bool:
        """Whether the pages of a recall to SHARED may stay where they are: they are clean, and as others see
        them. Decided once, when it begins; an open for writing waits for its end."""
        may_differ = self.writers or self.untaken.overlaps(revocation.start, revocation.end)
        return revocation.keep is TokenMode.SHARED and not may_differ

    def refuse(self, start: int, end: int) -> None:
        """The write-back of these pages is refused for good. The kernel takes them for clean all the same."""
        self.untaken.add(start, end)

    def reduce(self, start: int, end: int, keep: TokenMode) -> None:
        """Hold no more than *keep* of ``[start, end)``."""
        if keep is TokenMode.NONE:
            assert not self.in_kernel.overlaps(start, end), "K1: pages are left in the kernel"
            self.untaken.delete(start, end)
            self.held.delete(start, end)
            return
        for begin, stop, held in self.held.overlapping(start, end):
            if held > keep:
                self.held.set(begin, stop, keep)

    def revoked(self, revocation: Revocation) -> None:
        """The recall has ended; its acknowledgement is on its way."""
        self.revocations.remove(revocation)

    # --- what the kernel caches ---

    def read_arrived(self, start: int, end: int) -> None:
        """The kernel asks for these pages: they are not up to date there, and locked until it is answered, at
        `read_ended`. So no invalidation may wait for them, and none needs to."""
        self.in_kernel.delete(start, end)
        self._reads.append((start, end))

    def read_ended(self, start: int, end: int) -> None:
        """A read that arrived is answered, or has failed."""
        self._reads.remove((start, end))

    def answered(self, start: int, end: int) -> None:
        """The kernel is about to have these pages up to date."""
        assert self.holds(start, end, TokenMode.SHARED), "K1: pages given to the kernel without a token"
        self.in_kernel.add(start, end)
        for passed in self._passed:
            passed.add(start, end)

    def watch(self) -> IntervalSet:
        """For a write(2) that has to wait: the pages that the kernel is given from now on, until `unwatch`.

        The kernel has put the written bytes into its pages before it asks, and lets go of those that were up
        to date. If such a page is dropped and read again before the write is taken in, it lacks the bytes.
        """
        passed = IntervalSet()
        self._passed.append(passed)
        return passed

    def unwatch(self, passed: IntervalSet) -> None:
        """The write has been taken in, or given up."""
        # By identity: sets that say the same are equal.
        self._passed = [other for other in self._passed if other is not passed]

    def written(self, start: int, end: int) -> None:
        """The kernel had these whole pages up to date when it sent a write of them. If it has lost them since,
        it may be asking for them right now."""
        pages = IntervalSet()
        pages.add(start, end)
        for low, high in self._reads:
            pages.delete(low, high)
        for low, high in pages.intervals():
            self.answered(low, high)

    # --- open for writing ---

    def shared(self) -> list[Interval]:
        """What is held SHARED."""
        return self.shared_in(0, RANGE_END)

    def shared_in(self, start: int, end: int) -> list[Interval]:
        """What of ``[start, end)`` is held SHARED."""
        return [
            (begin, stop)
            for begin, stop, mode in self.held.overlapping(start, end)
            if mode is TokenMode.SHARED
        ]

    def everything(self) -> list[tuple[int, int, TokenMode]]:
        """All that is held."""
        return list(self.held)

    def lost(self) -> None:
        """The session is over: nothing is held any more. Recalls under way end as they can."""
        self.held.clear()
        self.in_kernel.clear()
        self.untaken.clear()
        self._entitled.clear()
        for revocation in self.revocations:
            revocation.waits_for.clear()

    def check(self) -> None:
        """Assert the invariants."""
        self.held.check()
        self.in_kernel.check()
        self.revocations.check()
        for start, end in self.in_kernel.intervals():
            assert self.holds(start, end, TokenMode.SHARED), f"K1: [{start}, {end})"
        if self.writers and not self.revocations:
            assert not self.shared(), f"K2: {self.shared()}"
        for revocation in self.revocations:
            assert revocation.waits_for <= set(self._entitled), revocation
        assert all(0 <= start < end <= RANGE_END for start, end, _ in self.held)
