"""The client's page cache against bytearrays with a flag for every byte, under a small budget, guarded."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nfsfuse.machines.blocks import BLOCK_SIZE
from nfsfuse.machines.page_cache import FilePages, Outgoing, PageCache
from nfsfuse.protocol.intervals import IntervalSet
from nfsfuse.protocol.tokens import RANGE_END

BLOCKS = 3
SIZE = BLOCKS * BLOCK_SIZE
BUDGET_BLOCKS = 2
FILES = 2

# Around the borders of pages and blocks, where extents meet; and far from them.
POINTS = sorted({
    border + step
    for border in (0, 4096, 8192, *range(BLOCK_SIZE, SIZE + 1, BLOCK_SIZE))
    for step in (-4096, -100, -1, 0, 1, 100)
    if 0 <= border + step <= SIZE
})  # fmt: skip
ranges = (
    st.tuples(st.sampled_from(POINTS), st.sampled_from(POINTS))
    .filter(lambda pair: pair[0] != pair[1])
    .map(lambda pair: (min(pair), max(pair)))
)
files = st.integers(0, FILES - 1)


@dataclass
class Model:
    """One file: its bytes here and at the server, and per byte what is known of it."""

    pages: FilePages
    here: bytearray = field(default_factory=lambda: bytearray(SIZE))
    valid: bytearray = field(default_factory=lambda: bytearray(SIZE))  # 1 where it is certain
    dirty: bytearray = field(default_factory=lambda: bytearray(SIZE))
    writing: bytearray = field(default_factory=lambda: bytearray(SIZE))
    rewritten: bytearray = field(default_factory=lambda: bytearray(SIZE))  # while it was on its way
    refused: bytearray = field(default_factory=lambda: bytearray(SIZE))
    outgoing: list[Outgoing] = field(default_factory=list)


class PageCacheModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.cache = PageCache(BUDGET_BLOCKS * BLOCK_SIZE, guard=True)
        self.files = [Model(self.cache.file()) for _ in range(FILES)]
        self.contents = itertools.cycle(range(1, 251))
        self.now = itertools.count(1)
        self.dirty_most = 0

    def content(self, size: int) -> bytes:
        return bytes([next(self.contents)]) * size

    @rule(number=files, where=ranges, changed=st.none() | ranges)
    def fill(self, number: int, where: tuple[int, int], changed: tuple[int, int] | None) -> None:
        model, (start, end) = self.files[number], where
        except_for = IntervalSet()
        if changed is not None:
            except_for.add(*changed)
        data = self.content(end - start)
        was_valid = model.valid[:]
        model.pages.fill(start, data, except_for)
        for low, high in IntervalSet.gaps(except_for, start, end):
            for at in _runs(was_valid, low, high, 0):
                model.here[slice(*at)] = data[: at[1] - at[0]]
                model.valid[slice(*at)] = b"\1" * (at[1] - at[0])

    @rule(number=files, where=ranges)
    def write(self, number: int, where: tuple[int, int]) -> None:
        model, (start, end) = self.files[number], where
        # A program waits until its bytes are not on their way any more; it may write right beside them.
        for low, high in _runs(model.writing, start, end, 0):
            data = self.content(high - low)
            model.pages.write(low, data, float(next(self.now)))
            for flags in (model.valid, model.dirty):
                flags[low:high] = b"\1" * (high - low)
            model.here[low:high] = data

    @rule(number=files, where=ranges)
    def write_over(self, number: int, where: tuple[int, int]) -> None:
        """It cannot wait until its bytes have arrived."""
        model, (start, end) = self.files[number], where
        data = self.content(end - start)
        model.pages.write(start, data, float(next(self.now)), over=True)
        for low, high in _runs(model.writing, start, end, 1):
            model.rewritten[low:high] = b"\1" * (high - low)
        for flags in (model.valid, model.dirty):
            flags[start:end] = b"\1" * (end - start)
        model.here[start:end] = data

    @rule(
        number=files, where=ranges, size_max=st.sampled_from((1, 4096, BLOCK_SIZE, SIZE)), again=st.booleans()
    )
    def begin_write_back(self, number: int, where: tuple[int, int], size_max: int, again: bool) -> None:
        model, (start, end) = self.files[number], where
        extent = model.pages.to_write_back(start, end, size_max, again=again)
        no_matter = bytearray(SIZE)
        wanted = next(
            (
                (low, high)
                for dirty in _runs(model.dirty, start, end, 1)
                for waiting in _runs(model.writing, *dirty, 0)
                for low, high in _runs(no_matter if again else model.refused, *waiting, 0)
            ),
            None,
        )
        assert extent == (wanted and (wanted[0], min(wanted[1], wanted[0] + size_max)))
        if extent is not None:
            outgoing = model.pages.begin_write_back(*extent)
            assert outgoing.data == model.here[slice(*extent)]
            model.writing[slice(*extent)] = b"\1" * (extent[1] - extent[0])
            model.outgoing.append(outgoing)

    @precondition(lambda self: any(model.outgoing for model in self.files))
    @rule(data=st.data(), clean=st.booleans())
    def end_write_back(self, data: st.DataObject, clean: bool) -> None:
        model = data.draw(st.sampled_from([model for model in self.files if model.outgoing]))
        outgoing = model.outgoing.pop(data.draw(st.integers(0, len(model.outgoing) - 1)))
        model.pages.end_write_back(outgoing, clean=clean)
        where = slice(outgoing.start, outgoing.end)
        none = bytes(outgoing.end - outgoing.start)
        model.writing[where] = none
        if clean:
            for low, high in _runs(model.rewritten, outgoing.start, outgoing.end, 0):
                model.dirty[low:high] = model.refused[low:high] = bytes(high - low)
        else:
            model.refused[where] = b"\1" * len(none)
        model.rewritten[where] = none

    @rule(number=files, where=ranges)
    def drop(self, number: int, where: tuple[int, int]) -> None:
        model = self.files[number]
        for low, high in _runs(model.writing, *where, 0):
            model.pages.drop(low, high)
            for flags in (model.valid, model.dirty, model.refused):
                flags[low:high] = bytes(high - low)

    @rule(number=files, size=st.sampled_from(POINTS))
    def cut(self, number: int, size: int) -> None:
        """The file is truncated, whatever is on its way. What is left of that is the same extent still."""
        model = self.files[number]
        model.pages.cut(size)
        for flags in (model.valid, model.dirty, model.writing, model.rewritten, model.refused):
            flags[size:] = bytes(SIZE - size)
        kept = [outgoing for outgoing in model.outgoing if outgoing.start < size]
        gone = [outgoing for outgoing in model.outgoing if outgoing.start >= size]
        model.outgoing = [
            Outgoing(o.number, o.start, min(o.end, size), o.data[: size - o.start]) for o in kept
        ]
        for outgoing in gone:
            model.pages.end_write_back(outgoing, clean=True)  # its answer comes all the same

    @rule(number=files, where=ranges)
    def read(self, number: int, where: tuple[int, int]) -> None:
        model, (start, end) = self.files[number], where
        found = model.pages.read(start, end)
        if found is None:
            assert 0 in model.valid[start:end] or self.cache.evicted_blocks > 0
        else:
            assert 0 not in model.valid[start:end]
            assert bytes(found) == model.here[start:end]

    @invariant()
    def agrees(self) -> None:
        for model in self.files:
            model.pages.check()
            # Eviction takes what is clean whenever it likes, and only that (dirty is part of valid: check).
            left = bytearray(SIZE)
            for start, end in model.pages.valid.intervals():
                assert 0 not in model.valid[start:end]
                left[start:end] = b"\1" * (end - start)
            assert left == model.valid or self.cache.evicted_blocks > 0
            model.valid = left
            assert model.pages.dirty.intervals() == _runs(model.dirty, 0, SIZE, 1)
            assert model.pages.writing.intervals() == _runs(model.writing, 0, SIZE, 1)
            assert model.pages.refused.intervals() == _runs(model.refused, 0, SIZE, 1)
            assert (model.pages.dirty_since is None) == (1 not in model.dirty)
            for start, end in _runs(model.valid, 0, SIZE, 1):
                found = model.pages.read(start, end)
                assert found is not None
                assert bytes(found) == model.here[start:end]

    @invariant()
    def dirty_bytes_are_exact(self) -> None:
        assert self.cache.dirty_bytes == sum(model.dirty.count(1) for model in self.files)
        assert self.cache.refused_bytes == sum(model.refused.count(1) for model in self.files)
        for model in self.files:
            assert model.pages.dirty_bytes == model.dirty.count(1)
            assert model.pages.refused_bytes == model.refused.count(1)

    @invariant()
    def memory_is_within_the_budget(self) -> None:
        """But for what is dirty, and the one block that is being filled."""
        blocks = [
            1 in model.dirty[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE]
            for model in self.files
            for index in range(BLOCKS)
            if model.pages.valid.overlaps(index * BLOCK_SIZE, (index + 1) * BLOCK_SIZE)
        ]
        assert len(self.cache._blocks) == len(blocks), "a block that holds nothing is free"
        # Making room happens when a block is needed: what was written back since then may still be there.
        self.dirty_most = max(self.dirty_most, sum(blocks)) if any(blocks) else self.dirty_most
        assert len(blocks) <= BUDGET_BLOCKS + self.dirty_most
        # Free blocks were in use once: no more memory than that and the block being made.
        assert self.cache.used_bytes <= (BUDGET_BLOCKS + self.dirty_most + 1) * BLOCK_SIZE

    def teardown(self) -> None:
        for model in self.files:
            for outgoing in model.outgoing:
                model.pages.end_write_back(outgoing, clean=True)
            model.pages.drop(0, RANGE_END)
            assert model.pages.valid.intervals() == []
        assert self.cache.dirty_bytes == self.cache.refused_bytes == 0
        assert not self.cache._blocks


def _runs(flags: bytearray, start: int, end: int, wanted: int) -> list[tuple[int, int]]:
    """The runs of *wanted* in ``flags[start:end]``."""
    runs = []
    at = flags.find(wanted, start, end)
    while at >= 0:
        stop = flags.find(1 - wanted, at, end)
        stop = end if stop < 0 else stop
        runs.append((at, stop))
        at = flags.find(wanted, stop, end)
    return runs


TestPageCacheModel = PageCacheModel.TestCase
TestPageCacheModel.settings = settings(max_examples=40, stateful_step_count=30)
