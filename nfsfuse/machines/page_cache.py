"""The client's own page cache: file data in anonymous mmap blocks, with a budget and a guard.

Blocks are aligned pieces of a file; which bytes of them mean something is kept as extents per file: *valid*
(as good as the server's, or newer), *dirty* (newer), *writing* (dirty and on the way to the server), *refused*
(dirty, and the server would not have it when it was last asked).

An extent under write-back is write-protected, by its state always, and in guard mode by a real mprotect(2):
then a store that slips past the page lock is a crash in a test and not a lost update in the field. That
protects the pages that lie wholly in the extent: beside it, in the page where it begins or ends, stores are
allowed. So is one that cannot wait for the server (`FilePages.write`, *over*): what it changes stays dirty when
the extent has arrived. A block that holds nothing valid is PROT_NONE in guard mode.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from typing import Final

from nfsfuse.machines.blocks import BLOCK_SIZE, READABLE, UNUSABLE, WRITABLE, Block
from nfsfuse.protocol.intervals import Interval, IntervalMap, IntervalSet
from nfsfuse.protocol.pages import page_start, pages_around, pages_within
from nfsfuse.protocol.record import record
from nfsfuse.protocol.tokens import RANGE_END

FREE_BLOCKS_MAX: Final = 256
"""Blocks kept for reuse: mapping and faulting in a new one costs ten times a copy into a warm one."""


class PageCache:
    """The blocks of all files of a mount. *budget* is in bytes; *guard* turns on memory protection.

    Clean blocks beyond the budget are dropped, least recently used first; dirty ones never are, so whoever
    makes data dirty has to heed `dirty_bytes` (back-pressure).
    """

    def __init__(self, budget: int, guard: bool) -> None:
        self._budget_blocks = max(1, budget // BLOCK_SIZE)
        self.guard = guard
        self._blocks: OrderedDict[tuple[int, int], tuple[FilePages, Block]] = OrderedDict()
        self._free: list[Block] = []
        self._next_file = 0
        self.dirty_bytes = 0
        self.refused_bytes = 0
        self.evicted_blocks = 0

    def file(self) -> FilePages:
        """The pages of one more file."""
        self._next_file += 1
        return FilePages(self, self._next_file)

    @property
    def used_bytes(self) -> int:
        """Memory in use, free blocks included."""
        return (len(self._blocks) + len(self._free)) * BLOCK_SIZE

    def block(self, file: FilePages, index: int) -> Block | None:
        """A file's block, now the most recently used."""
        found = self._blocks.get((file.number, index))
        if found is None:
            return None
        self._blocks.move_to_end((file.number, index))
        return found[1]

    def has_block(self, file: FilePages, index: int) -> bool:
        """Whether a file has this block; asking does not count as a use."""
        return (file.number, index) in self._blocks

    def block_for_writing(self, file: FilePages, index: int, *, whole: bool = False) -> Block:
        """A file's block, made if need be. *whole*: all of it is about to be written."""
        block = self.block(file, index)
        if block is None:
            block = self._free.pop() if self._free else Block(whole=whole)
            if self.guard:
                block.protect(0, BLOCK_SIZE, WRITABLE)
            self._blocks[file.number, index] = (file, block)
            if len(self._blocks) > self._budget_blocks:
                self._evict()
        return block

    def _evict(self) -> None:
        """Drop clean blocks, oldest first. One pass looks at no more than twice what it has to drop and a few
        dirty ones, so that a cache full of dirty blocks does not make every write slow."""
        excess = len(self._blocks) - self._budget_blocks
        newest = next(reversed(self._blocks))
        for key in list(itertools.islice(self._blocks, 2 * excess + 16)):
            file, _ = self._blocks[key]
            start = key[1] * BLOCK_SIZE
            if key == newest or file.dirty.overlaps(start, start + BLOCK_SIZE):
                continue
            file.drop(start, start + BLOCK_SIZE)
            self.evicted_blocks += 1
            excess -= 1
            if excess <= 0:
                return

    def release(self, file: FilePages, index: int) -> None:
        """A file has nothing valid left in this block."""
        found = self._blocks.pop((file.number, index), None)
        if found is not None and len(self._free) < FREE_BLOCKS_MAX:
            if self.guard:
                found[1].protect(0, BLOCK_SIZE, UNUSABLE)
            self._free.append(found[1])


@record(frozen=True, slots=True)
class Outgoing:
    """An extent on its way to the server, and what it contains."""

    number: int
    start: int
    end: int
    data: bytes


class FilePages:
    """The cached data of one file."""

    def __init__(self, cache: PageCache, number: int) -> None:
        self._cache = cache
        self.number = number
        self.valid = IntervalSet()
        self.dirty = IntervalSet()
        self.writing = IntervalSet()
        self.refused = IntervalSet()
        self.dirty_bytes = 0
        """Bytes that the server does not have."""
        self.refused_bytes = 0
        """Bytes that the server would not have."""
        self.writing_bytes = 0
        self._fresh = IntervalSet()  # dirty, and neither on its way nor refused
        self._again = IntervalSet()  # refused, and not on its way
        self.dirty_since: float | None = None
        self._outgoing: IntervalMap[int] = IntervalMap()  # writing, by number
        self._rewritten = IntervalSet()  # the part of it that has changed since
        self._numbers = itertools.count(1)

    # --- reading ---

    def read(self, start: int, end: int) -> bytes | memoryview | None:
        """The bytes of ``[start, end)``, None if not all are valid. The view is good until the next change."""
        if start >= end:
            return b""
        if not self.valid.covers(start, end):
            return None
        views = self._views(start, end)
        return views[0] if len(views) == 1 else b"".join(views)

    def _views(self, start: int, end: int) -> list[memoryview]:
        views = []
        for index, low, high in _pieces(start, end):
            block = self._cache.block(self, index)
            assert block is not None, "valid data without a block"
            views.append(block.view[low:high])
        return views

    # --- filling and writing ---

    def fill(self, offset: int, data: bytes | bytearray | memoryview, except_for: IntervalSet) -> None:
        """Data from the server, as of now; what is valid here already is as good or newer, and what changed
        since it was asked for (*except_for*) is newer."""
        view = memoryview(data)
        for start, end in self.valid.gaps(offset, offset + len(view)):
            for begin, stop in except_for.gaps(start, end):
                self._store(begin, view[begin - offset : stop - offset])

    def write(
        self, offset: int, data: bytes | bytearray | memoryview, now: float, *, over: bool = False
    ) -> None:
        """Data from a program: newer than the server's. *over*: perhaps newer than what is on its way there,
        too. That goes on as it was, and these are to be written back after it."""
        end = offset + len(data)
        assert over or not self.writing.overlaps(offset, end), "a store into an extent under write-back"
        for begin, stop in self.writing.intervals(offset, end):
            self._rewritten.add(begin, stop)
            self._protect(*pages_around(begin, stop), WRITABLE)
        more = len(data) - self.dirty.size(offset, end)
        # Dirty first: making room for one block must not take the one before it for clean.
        self.dirty.add(offset, end)
        self.dirty_bytes += more
        self._cache.dirty_bytes += more
        self._ready(offset, end)
        self._store(offset, memoryview(data))
        if self.dirty_since is None:
            self.dirty_since = now

    def _store(self, offset: int, view: memoryview) -> None:
        end = offset + len(view)
        at = 0
        for index, low, high in _pieces(offset, end):
            block = self._cache.block_for_writing(self, index, whole=high - low == BLOCK_SIZE)
            block.view[low:high] = view[at : at + high - low]
            at += high - low
            # Valid at once, piece by piece: making room for the next block must not take this one for empty.
            start = index * BLOCK_SIZE
            self.valid.add(start + low, start + high)

    # --- write-back ---

    def _ready(self, start: int, end: int) -> None:
        """All of ``[start, end)`` is dirty: what of it is not on its way is to be."""
        if not (self.writing or self.refused):  # so it mostly is
            self._fresh.add(start, end)
            return
        for begin, stop in self.writing.gaps(start, end):
            for low, high in self.refused.gaps(begin, stop):
                self._fresh.add(low, high)
            for low, high in self.refused.intervals(begin, stop):
                self._again.add(low, high)

    def begin_write_back(self, start: int, end: int) -> Outgoing:
        """Dirty ``[start, end)`` is on its way until `end_write_back`: the bytes, as of now."""
        assert self.dirty.covers(start, end), "only dirty data are written back"
        assert not self.writing.overlaps(start, end), "an extent is written back once at a time"
        number = next(self._numbers)
        self.writing.add(start, end)
        self.writing_bytes += end - start
        self._fresh.delete(start, end)
        self._again.delete(start, end)
        self._outgoing.set(start, end, number)
        self._protect(start, end, READABLE)
        data = self.read(start, end)
        assert data is not None
        return Outgoing(number, start, end, bytes(data))

    def end_write_back(self, outgoing: Outgoing, *, clean: bool) -> bool:
        """The server has it (*clean*), or refused it. What was `cut` off it meanwhile, and perhaps written
        anew, is not concerned; whether anything else is left of it."""
        concerned = False
        for start, end, number in self._outgoing.overlapping(outgoing.start, outgoing.end):
            if number == outgoing.number:
                concerned = True
                self._not_writing(start, end)
                self._protect(start, end, WRITABLE)
                if clean:
                    for low, high in self._rewritten.gaps(start, end):
                        self._clean(low, high)
                    for low, high in self._rewritten.intervals(start, end):
                        self._ready(low, high)
                else:
                    more = end - start - self.refused.size(start, end)
                    self.refused.add(start, end)
                    self.refused_bytes += more
                    self._cache.refused_bytes += more
                    self._ready(start, end)
                self._rewritten.delete(start, end)
        return concerned

    def _not_writing(self, start: int, end: int) -> None:
        self.writing.delete(start, end)
        self.writing_bytes -= end - start
        self._outgoing.delete(start, end)

    def _clean(self, start: int, end: int) -> None:
        less = self.dirty.size(start, end)
        self.dirty.delete(start, end)
        self.dirty_bytes -= less
        self._cache.dirty_bytes -= less
        less = self.refused.size(start, end)
        self.refused.delete(start, end)
        self.refused_bytes -= less
        self._cache.refused_bytes -= less
        self._fresh.delete(start, end)
        self._again.delete(start, end)
        if not self.dirty:
            self.dirty_since = None

    def to_write_back(self, start: int, end: int, size_max: int, *, again: bool = True) -> Interval | None:
        """The first dirty extent of ``[start, end)`` that is not on its way, at most *size_max* bytes of it.
        *again*: also of what was refused."""
        fresh = self._fresh.first(start, end)
        refused = self._again.first(start, end) if again else None
        if fresh is None or (refused is not None and refused < fresh):
            fresh, refused = refused, fresh
        if fresh is None:
            return None
        low, high = fresh
        if refused is not None and refused[0] == high:
            high = refused[1]
        return low, min(high, low + size_max)

    def gather(
        self, start: int, end: int, size_max: int, count_max: int, *, again: bool = True
    ) -> list[Interval]:
        """What may go in one message: extents as by `to_write_back`, in order, at most *count_max* of them and
        *size_max* bytes. One at a time while something is refused: it would take the others with it."""
        found: list[Interval] = []
        if self.refused:
            count_max = 1
        while len(found) < count_max and size_max > 0:
            extent = self.to_write_back(start, end, size_max, again=again)
            if extent is None:
                break
            found.append(extent)
            start = extent[1]
            size_max -= extent[1] - extent[0]
        return found

    def fresh_extent(self, offset: int) -> Interval | None:
        """The extent around *offset* that is dirty, not on its way, and was not refused."""
        return self._fresh.around(offset)

    @property
    def fresh_extents(self) -> int:
        """How many of these there are."""
        return len(self._fresh)

    @property
    def fresh_bytes(self) -> int:
        """How large they are; less, while what was refused is tried again."""
        return self.dirty_bytes - self.writing_bytes - self.refused_bytes

    # --- dropping ---

    def drop(self, start: int, end: int) -> None:
        """Nothing in ``[start, end)`` is valid any more, dirty data included."""
        assert not self.writing.overlaps(start, end), "an extent under write-back is not dropped"
        touched = {
            index
            for begin, stop in self.valid.intervals(start, end)
            for index in range(begin // BLOCK_SIZE, -(-stop // BLOCK_SIZE))
        }
        self._clean(start, end)
        self.valid.delete(start, end)
        for index in touched:
            if not self.valid.overlaps(index * BLOCK_SIZE, (index + 1) * BLOCK_SIZE):
                self._cache.release(self, index)

    def drop_clean(self) -> None:
        """Nothing is valid any more but what the server does not have."""
        for start, end in self.valid.intervals():
            for low, high in self.dirty.gaps(start, end):
                for begin, stop in self.writing.gaps(low, high):
                    self.drop(begin, stop)

    def cut(self, size: int) -> None:
        """The server has truncated the file: nothing from *size* on is valid, also of what is on its way."""
        for start, end in self.writing.intervals(size):
            self._not_writing(start, end)
            self._rewritten.delete(start, end)
            # From the page of the new end on, although the extent goes on below it.
            self._protect(page_start(start), end, WRITABLE)
        self.drop(size, RANGE_END)

    def _protect(self, start: int, end: int, protection: int) -> None:
        """mprotect(2) the pages that lie wholly in ``[start, end)``, in guard mode."""
        if not self._cache.guard:
            return
        start, end = pages_within(start, end)
        for index, low, high in _pieces(start, end):
            block = self._cache.block(self, index)
            assert block is not None
            block.protect(low, high, protection)

    def check(self) -> None:
        """Assert the invariants."""
        for start, end in self.writing.intervals():
            assert self.dirty.covers(start, end), "writing is part of dirty"
        for start, end in self.refused.intervals():
            assert self.dirty.covers(start, end), "refused is part of dirty"
        for start, end in self.dirty.intervals():
            assert self.valid.covers(start, end), "dirty is part of valid"
        for start, end in self.valid.intervals():
            for index, _, _ in _pieces(start, end):
                assert self._cache.has_block(self, index), "valid data have a block"
        outgoing = IntervalSet()
        for start, end, _ in self._outgoing:
            outgoing.add(start, end)
        assert outgoing == self.writing, "what is on its way has a number"
        ready = IntervalSet()
        for extents in (self._fresh, self._again):
            for start, end in extents.intervals():
                assert not ready.overlaps(start, end)
                ready.add(start, end)
        for start, end in self.writing.intervals():
            assert not ready.overlaps(start, end)
            ready.add(start, end)
        assert ready == self.dirty, "what is dirty is on its way, or to be"
        for start, end in self._again.intervals():
            assert self.refused.covers(start, end)
        for start, end in self._fresh.intervals():
            assert not self.refused.overlaps(start, end)
        assert self.dirty_bytes == self.dirty.size()
        assert self.refused_bytes == self.refused.size()
        assert self.writing_bytes == self.writing.size()
        for start, end in self._rewritten.intervals():
            assert self.writing.covers(start, end), "what has changed is still on its way"


def _pieces(start: int, end: int) -> list[tuple[int, int, int]]:
    """``[start, end)`` as (index of the block, start in it, end in it)."""
    pieces = []
    while start < end:
        index, low = divmod(start, BLOCK_SIZE)
        high = min(BLOCK_SIZE, low + end - start)
        pieces.append((index, low, high))
        start += high - low
    return pieces
