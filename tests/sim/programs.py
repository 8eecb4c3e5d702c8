"""Random programs: what processes on all clients do to a few files at the same time.

* ``words``: a few pages of fixed size; loads and stores through mappings, pread and pwrite of words, pages and
  several pages. Every word is a register.
* ``grow``: the same without mappings, and writes go beyond the end. Its size only grows.
* ``log``: appended to by everybody. Every record is there once, the size only grows.
* ``cut``: truncated to ever new sizes. Its size is a register, for stat(2) and for read(2).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from random import Random
from typing import Final

import trio

from nfsfuse.protocol.types import PAGE_SIZE, InodeHandle
from tests.helpers.history import Operation, Violation
from tests.helpers.kernel_model import WORD_SIZE, Descriptor, Killed, Mapping
from tests.sim.world import Client, World

PAGES: Final = 3
HOT_WORDS: Final = 4
"""Words of a page that programs use: few, so that they meet."""

WORDS_SIZE: Final = PAGES * PAGE_SIZE
SIZE: Final = -1
"""The "offset" at which a file's size is recorded as a register."""


@dataclass(slots=True)
class Growth:
    """Sizes that a file must have had at least, and may have had at most."""

    file: str
    begun: int = 0
    done: int = 0

    def check(self, low: int, size: int, who: str) -> None:
        if not low <= size <= self.begun:
            raise Violation(f"{who} saw {self.file} with {size} bytes, not {low} to {self.begun}")


@dataclass(slots=True)
class Program:
    """One process. *steps* is how many system calls it makes (loads and stores are bursts)."""

    world: World
    client: Client
    name: str
    steps: int
    grow: Growth
    log: Growth
    cached_writes: bool
    _sizes_left: list[int]
    _closed: int = 0

    @property
    def _rng(self) -> Random:
        return self.world.rng

    async def run(self) -> None:
        while self.steps > 0:
            work = self._rng.choices(
                [self._map_words, self._call_words, self._grow, self._append, self._cut], [6, 4, 2, 1, 1]
            )[0]
            with suppress(Killed):  # another one of its kind goes on
                await work()
            await self._idle()

    async def _idle(self) -> None:
        if self._rng.random() < 0.5:
            await trio.sleep(self._rng.random() * 0.003)

    def _burst(self, steps_max: int) -> int:
        count = min(self.steps, self._rng.randint(1, steps_max))
        self.steps -= count
        return count

    def _offset(self, pages: int = PAGES) -> int:
        words = (0, 1, HOT_WORDS // 2, PAGE_SIZE // WORD_SIZE - 1)
        return self._rng.randrange(pages) * PAGE_SIZE + self._rng.choice(words) * WORD_SIZE

    # --- words ---

    async def _close(self, opened: Descriptor) -> None:
        """By close(2) and execve(2) in turn."""
        self._closed += 1
        await (self.client.kernel.exec(opened) if self._closed % 2 else self.client.kernel.close(opened))

    async def _map_words(self) -> None:
        writing = self._rng.random() < 0.7
        opened = await self.client.kernel.open(b"words", os.O_RDWR if writing else os.O_RDONLY)
        mapping = await self.client.kernel.map(opened)
        closes_early = self._rng.random() < 0.5
        if closes_early:
            await self._close(opened)
        with suppress(Killed):  # its end closes and unmaps as well
            for _ in range(self._burst(12)):
                if writing and self._rng.random() < 0.5:
                    await self._store(mapping, self._offset())
                else:
                    await self._load(mapping, self._offset())
                if self._rng.random() < 0.3:
                    await self._idle()
        if not closes_early:
            await self._close(opened)
        await self.client.kernel.unmap(mapping)

    async def _load(self, mapping: Mapping, offset: int) -> None:
        history = self.world.history
        begin = history.now()
        word = await self.client.kernel.load(mapping, offset)
        history.read(self.client.name, ("words", offset), int.from_bytes(word), begin)
        self._note(mapping.opened, f"load {offset:#x}: {int.from_bytes(word):#x}")

    async def _store(self, mapping: Mapping, offset: int) -> None:
        history = self.world.history
        value = history.new_value()
        operation = history.begin_write(self.client.name, ("words", offset), value)
        with self._may_be_killed([operation]):
            await self.client.kernel.store(mapping, offset, value.to_bytes(WORD_SIZE))
        history.end(operation)
        self._note(mapping.opened, f"store {offset:#x}: {value:#x}")

    @contextmanager
    def _may_be_killed(self, writes: list[Operation]) -> Iterator[None]:
        try:
            yield
        except Killed:
            for write in writes:
                self.world.history.fail(write)
            raise

    async def _call_words(self) -> None:
        through_cache = os.O_RDWR if self.cached_writes else os.O_RDONLY
        flags = self._rng.choice([through_cache, through_cache, os.O_RDONLY, os.O_RDWR | os.O_DIRECT])
        opened = await self.client.kernel.open(b"words", flags)
        with suppress(Killed):
            for _ in range(self._burst(6)):
                await self._one_call(opened, "words", WORDS_SIZE)
        await self._close(opened)

    async def _one_call(self, opened: Descriptor, file: str, limit: int) -> None:
        draw = self._rng.random()
        if draw < 0.05:
            await self.client.kernel.fsync(opened)
        elif draw < 0.5 or not opened.writing:
            offset, size = self._extent(limit)
            await self._pread(opened, file, offset, size)
        else:
            offset, size = self._extent(limit)
            await self._pwrite(opened, file, offset, size)

    def _extent(self, limit: int) -> tuple[int, int]:
        """Whole words: one or two, or whole pages, or any."""
        pages = limit // PAGE_SIZE
        match self._rng.randrange(3):
            case 0:
                offset, size = self._offset(pages), WORD_SIZE * self._rng.randint(1, 2)
            case 1:
                offset = self._rng.randrange(pages) * PAGE_SIZE
                size = PAGE_SIZE * self._rng.randint(1, 2)
            case _:
                offset, size = self._offset(pages), PAGE_SIZE + WORD_SIZE
        return offset, min(size, limit - offset)

    async def _pread(self, opened: Descriptor, file: str, offset: int, size: int) -> None:
        history = self.world.history
        begin = history.now()
        found = await self.client.kernel.read(opened, offset, size)
        self._note(opened, f"pread {offset:#x}+{size:#x}: {len(found)} bytes, {_hot(offset, found)}")
        content = found.ljust(size, b"\0")
        if not self.world.options.write_directly:
            # Through its cache a kernel reads no further than the size it believes in, and beside a write of
            # its own that extends the file it believes no other (FUSE_I_SIZE_UNSTABLE).
            size = len(found)
        for at in range(0, size, WORD_SIZE):
            if _is_hot(offset + at):
                value = int.from_bytes(content[at : at + WORD_SIZE])
                history.read(self.client.name, (file, offset + at), value, begin)

    async def _pwrite(self, opened: Descriptor, file: str, offset: int, size: int) -> None:
        history = self.world.history
        operations: list[Operation] = []
        content = bytearray(size)
        for at in range(0, size, WORD_SIZE):
            if _is_hot(offset + at):
                value = history.new_value()
                content[at : at + WORD_SIZE] = value.to_bytes(WORD_SIZE)
                operations.append(
                    history.begin_write(
                        self.client.name, (file, offset + at), value, through_cache=not opened.direct
                    )
                )
        self._note(opened, f"pwrite {offset:#x}+{size:#x} begins: {_hot(offset, content)}")
        with self._may_be_killed(operations):
            written = await self.client.kernel.write(opened, offset, bytes(content))
        assert written == size
        for operation in operations:
            history.end(operation)
        self._note(opened, f"pwrite {offset:#x}+{size:#x} is done")

    # --- files that grow ---

    async def _grow(self) -> None:
        opened = await self.client.kernel.open(b"grow", os.O_RDWR)
        with suppress(Killed):
            for _ in range(self._burst(4)):
                low = self.grow.done
                if self._rng.random() < 0.4:
                    size = await self.client.kernel.stat_size(opened)
                    self._note(opened, f"stat: {size}")
                    self.grow.check(low, size, self.name)
                    continue
                # Close to the end, so that some writes extend and some do not.
                offset = max(0, self.grow.begun - self._rng.randrange(1024)) // WORD_SIZE * WORD_SIZE
                size = WORD_SIZE * self._rng.choice([1, 2, 40, 512])
                if self._rng.random() < 0.4:
                    await self._pread(opened, "grow", offset, size)
                    continue
                self.grow.begun = max(self.grow.begun, offset + size)
                await self._pwrite(opened, "grow", offset, size)
                self.grow.done = max(self.grow.done, offset + size)
        await self._close(opened)

    async def _append(self) -> None:
        opened = await self.client.kernel.open(b"log", os.O_RDWR | os.O_APPEND)
        with suppress(Killed):
            for _ in range(self._burst(4)):
                low = self.log.done
                if self._rng.random() < 0.3:
                    size = await self.client.kernel.stat_size(opened)
                    self._note(opened, f"stat: {size}")
                    self.log.check(low, size, self.name)
                    continue
                value = self.world.history.new_value()
                self.log.begun += WORD_SIZE
                self._note(opened, f"append {value:#x} begins")
                await self.client.kernel.write(opened, 0, value.to_bytes(WORD_SIZE))
                self.log.done += WORD_SIZE
                self._note(opened, f"append {value:#x} is done")
        await self._close(opened)

    # --- a file that is cut ---

    async def _cut(self) -> None:
        opened = await self.client.kernel.open(b"cut", os.O_RDWR)
        history = self.world.history
        where = ("cut", SIZE)
        with suppress(Killed):
            for _ in range(self._burst(4)):
                draw = self._rng.random()
                if draw < 0.4 and self._sizes_left:
                    size = self._sizes_left.pop()
                    operation = history.begin_write(self.client.name, where, size)
                    await self.client.kernel.truncate(opened, size)
                    history.end(operation)
                    self._note(opened, f"truncated to {size}")
                    continue
                begin = history.now()
                truncations = opened.inode.truncations
                if draw < 0.7:
                    size = await self.client.kernel.stat_size(opened)
                else:
                    size = len(await self.client.kernel.read(opened, 0, PAGE_SIZE))
                self._note(opened, f"{'stat' if draw < 0.7 else 'read'}: {size} bytes")
                if truncations % 2 == 0 and opened.inode.truncations == truncations:
                    # Beside a truncation of its own a kernel believes no size that it is told
                    # (FUSE_I_SIZE_UNSTABLE), so a read(2) sees the one from before: nothing a daemon can help.
                    history.read(self.client.name, where, size, begin)
        await self._close(opened)

    def _note(self, opened: Descriptor, text: str) -> None:
        self.world.note(self.name, opened.inode.node_id, text)


def _is_hot(offset: int) -> bool:
    return offset % PAGE_SIZE // WORD_SIZE in (0, 1, HOT_WORDS // 2, PAGE_SIZE // WORD_SIZE - 1)


def _hot(offset: int, content: bytes | bytearray) -> str:
    return " ".join(
        f"{offset + at:#x}={int.from_bytes(content[at : at + WORD_SIZE]):#x}"
        for at in range(0, len(content), WORD_SIZE)
        if _is_hot(offset + at)
    )


async def _disturb(world: World, client: Client) -> None:
    """Memory pressure and the flusher thread."""
    while True:
        await trio.sleep(world.rng.random() * 0.01)
        for inode in list(client.kernel.inodes.values()):
            if world.rng.random() < 0.5:
                client.kernel.evict_some(inode, world.rng.randint(1, 2))
            elif inode.open_for_writing:
                await client.kernel.write_back_some(inode, 2)


@dataclass(slots=True)
class RandomPrograms:
    """*processes* on every client make *steps* calls each; then all clients must see what the server has.
    *cached_writes*: ``words`` is also written by write(2) through the page cache, where that is not bypassed
    by all that may write (`Options.write_directly`)."""

    steps: int = 60
    processes: int = 2
    cached_writes: bool = False
    handles: dict[bytes, InodeHandle] = field(default_factory=dict)

    async def __call__(self, world: World) -> None:
        for name in (b"words", b"grow", b"log", b"cut"):
            self.handles[name] = world.make_file(name, bytes(WORDS_SIZE if name == b"words" else 0))
        grow, log = Growth("grow"), Growth("log")
        sizes = list(range(1, PAGE_SIZE))
        world.rng.shuffle(sizes)
        async with trio.open_nursery() as disturbers:
            for client in world.clients:
                disturbers.start_soon(_disturb, world, client)
            async with trio.open_nursery() as nursery:
                for client in world.clients:
                    for number in range(self.processes):
                        process = f"{client.name} process {number + 1}"
                        program = Program(
                            world, client, process, self.steps, grow, log, self.cached_writes, sizes
                        )
                        nursery.start_soon(program.run)
            disturbers.cancel_scope.cancel()
        await self._read_everything(world)
        _check_log(world.storage.read(self.handles[b"log"], 0, 1 << 20), log)

    async def _read_everything(self, world: World) -> None:
        """Once all is at the server, everybody sees the same."""
        for client in world.clients:
            client.kernel.delays.killed = 0.0
            await client.fs.write_back.everything()
        for name, handle in self.handles.items():
            truth = world.storage.read(handle, 0, 1 << 20)
            for client in world.clients:
                assert not client.kernel.failed_write_backs, client.kernel.failed_write_backs
                opened = await client.kernel.open(name, os.O_RDONLY)
                seen = await client.kernel.read(opened, 0, 1 << 20)
                await client.kernel.close(opened)
                if seen != truth:
                    raise Violation(
                        f"{client.name} sees {len(seen)} bytes of {name!r}, the server has {len(truth)}; "
                        f"they differ at {_difference(seen, truth):#x}"
                    )


def _difference(one: bytes, other: bytes) -> int:
    end = min(len(one), len(other))
    return next((at for at in range(end) if one[at] != other[at]), end)


def _check_log(content: bytes, log: Growth) -> None:
    records = [int.from_bytes(content[at : at + WORD_SIZE]) for at in range(0, len(content), WORD_SIZE)]
    if len(content) != log.done or len(set(records)) != len(records) or 0 in records:
        raise Violation(f"{log.done // WORD_SIZE} records were appended, there are {records}")
