"""Random programs that know that things go wrong: what they wrote may be lost before an fsync or close has
returned 0, and then they are told (`tests.helpers.losses`).

Every word of a few pages of two files is a register. No call may fail but write, fsync and close, and those
only with what went wrong.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Final

import pytest
import trio

from nfsfuse.engine.cached_file import CachedFile
from nfsfuse.engine.writing import Writer
from nfsfuse.machines.data_tokens import DataTokens, Revocation
from nfsfuse.machines.page_cache import FilePages
from nfsfuse.machines.write_errors import WriteErrors
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.intervals import Interval, IntervalSet
from nfsfuse.protocol.types import PAGE_SIZE, InodeHandle
from tests.helpers.history import Operation, Violation
from tests.helpers.kernel_model import WORD_SIZE, Descriptor, Mapping
from tests.helpers.losses import Account, Losses, Syncing
from tests.sim.faults import Faults, Kind, Machine
from tests.sim.world import Client, World

FILES: Final = (b"one", b"other")
PAGES: Final = 3
SIZE: Final = PAGES * PAGE_SIZE
WORDS: Final = (0, 8, PAGE_SIZE - WORD_SIZE)
"""Offsets in a page of the words that programs use: few, so that they meet."""

IDLE_SECONDS_MAX: Final = 0.05
"""Between calls: faults last seconds, and a run has to go on meanwhile with a bounded number of steps."""


@dataclass(slots=True, eq=False)
class _Opened:
    """An open file of a program."""

    descriptor: Descriptor
    account: Account
    name: str


@dataclass(slots=True)
class LongestWait:
    """Of a program for the return of one call, in simulated seconds. Who is killed while waiting waits no
    more."""

    seconds: float = 0.0


@dataclass(slots=True)
class _Program:
    """One process. It goes on until it has made *steps* bursts of calls and nothing goes wrong any more."""

    world: World
    machine: Machine
    name: str
    steps: int
    faults: Faults
    losses: Losses
    refusals: Counter[tuple[str, str]]
    longest_wait: LongestWait

    @property
    def _rng(self) -> Random:
        return self.world.rng

    @property
    def _client(self) -> Client:
        return self.machine.client

    async def run(self) -> None:
        while self.steps > 0 or not self.faults.over:
            self.steps -= 1
            await self._use(self._rng.choice(FILES))
            await self._idle()

    async def _idle(self) -> None:
        if self._rng.random() < 0.6:
            await trio.sleep(self._rng.random() * IDLE_SECONDS_MAX)

    async def _use(self, name: bytes) -> None:
        flags = os.O_RDWR if self._rng.random() < 0.8 else os.O_RDONLY
        account = self.losses.opening(self._client.name, name.decode())
        with self._timed():
            opened = _Opened(await self._client.kernel.open(name, flags), account, name.decode())
        account.opened = True
        mapping = await self._client.kernel.map(opened.descriptor) if self._rng.random() < 0.5 else None
        for _ in range(self._rng.randint(1, 6)):
            with self._timed():
                if mapping is not None and self._rng.random() < 0.6:
                    await self._touch(opened, mapping)
                else:
                    await self._call(opened)
            await self._idle()
        with self._timed():
            await self._close(opened)
        if mapping is not None:
            await self._client.kernel.unmap(mapping)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        begin = trio.current_time()
        yield
        self.longest_wait.seconds = max(self.longest_wait.seconds, trio.current_time() - begin)

    def _refusals(self, opened: _Opened) -> int:
        return self.refusals[self._client.name, opened.name]

    def _note(self, opened: _Opened, text: str) -> None:
        self.world.note(self.name, opened.descriptor.inode.node_id, text)

    # --- loads and stores ---

    async def _touch(self, opened: _Opened, mapping: Mapping) -> None:
        offset = self._rng.randrange(PAGES) * PAGE_SIZE + self._rng.choice(WORDS)
        kernel = self._client.kernel
        if opened.descriptor.writing and self._rng.random() < 0.6:
            operation = self._begin(opened, offset)
            await kernel.store(mapping, offset, operation.value.to_bytes(WORD_SIZE))
            self.world.history.end(operation)
            self._note(opened, f"store {offset:#x}: {operation.value:#x}")
            return
        begin, stale = self.world.history.now(), self.machine.stale
        word = int.from_bytes(await kernel.load(mapping, offset))
        self._read(opened, offset, word, begin, stale=stale)
        self._note(opened, f"load {offset:#x}: {word:#x}")

    def _begin(self, opened: _Opened, offset: int) -> Operation:
        history = self.world.history
        location = opened.name, offset
        operation = history.begin_write(self._client.name, location, history.new_value())
        self.losses.write_begins(self._client.name, location, operation)
        return operation

    def _read(self, opened: _Opened, offset: int, value: int, begin: int, *, stale: bool) -> None:
        if not (stale or self.machine.stale):
            self.world.history.read(self._client.name, (opened.name, offset), value, begin)

    # --- system calls ---

    async def _call(self, opened: _Opened) -> None:
        draw = self._rng.random()
        if draw < 0.2:
            sync = self.losses.sync_begins(opened.account)
            with self._told(opened, "fsync", sync, on_disk=True):
                await self._client.kernel.fsync(opened.descriptor)
        elif draw < 0.5 or not opened.descriptor.writing:
            await self._pread(opened)
        else:
            await self._pwrite(opened)

    def _extent(self) -> tuple[int, int]:
        """A word, or whole pages."""
        page = self._rng.randrange(PAGES)
        if self._rng.random() < 0.6:
            return page * PAGE_SIZE + self._rng.choice(WORDS), WORD_SIZE
        return page * PAGE_SIZE, PAGE_SIZE * self._rng.randint(1, PAGES - page)

    async def _pread(self, opened: _Opened) -> None:
        offset, size = self._extent()
        begin, stale = self.world.history.now(), self.machine.stale
        content = await self._client.kernel.read(opened.descriptor, offset, size)
        if len(content) != size:
            raise Violation(f"{self.name} read {len(content)} bytes at {offset} of {opened.name}, not {size}")
        for at in _words(offset, size):
            word = int.from_bytes(content[at - offset : at - offset + WORD_SIZE])
            self._read(opened, at, word, begin, stale=stale)
        self._note(opened, f"pread {offset:#x}+{size:#x}: {_told(offset, content)}")

    async def _pwrite(self, opened: _Opened) -> None:
        offset, size = self._extent()
        content = bytearray(size)
        operations = []
        for at in _words(offset, size):
            operation = self._begin(opened, at)
            content[at - offset : at - offset + WORD_SIZE] = operation.value.to_bytes(WORD_SIZE)
            operations.append(operation)
        self._note(opened, f"pwrite {offset:#x}+{size:#x} begins: {_told(offset, content)}")
        refused = sum(self.refusals.values())
        was_refused = any(file.refusal() for file in self._client.fs.holdings.files())
        try:
            await self._client.kernel.write(opened.descriptor, offset, bytes(content))
        except FsError as exc:
            # It may be for want of room: data of another file, which the server refuses, fill all there is.
            if sum(self.refusals.values()) == refused and not was_refused:
                raise Violation(f"{self.name}: write failed, and nothing was refused: {exc}") from exc
            self.losses.told += 1
            self._note(opened, f"pwrite {offset:#x}+{size:#x}: {exc}")
            return
        for operation in operations:
            self.world.history.end(operation)
        self._note(opened, f"pwrite {offset:#x}+{size:#x} is done")

    async def _close(self, opened: _Opened) -> None:
        if opened.descriptor.writing:
            sync = self.losses.sync_begins(opened.account)
            with self._told(opened, "close", sync, on_disk=False):
                await self._client.kernel.close(opened.descriptor)
        else:
            await self._client.kernel.close(opened.descriptor)
        self.losses.closed(opened.account)

    @contextmanager
    def _told(self, opened: _Opened, call: str, sync: Syncing, *, on_disk: bool) -> Iterator[None]:
        refused = self._refusals(opened)
        self._note(opened, f"{call} begins")
        try:
            yield
        except FsError as exc:
            self._note(opened, f"{call}: {exc}")
            self.losses.failed(sync, is_refused=self._refusals(opened) != refused)
        else:
            self._note(opened, f"{call} is done")
            self.losses.synced(sync, on_disk=on_disk)


def _words(offset: int, size: int) -> list[int]:
    """The offsets of the words that count in an extent."""
    pages = range(offset // PAGE_SIZE, -(-(offset + size) // PAGE_SIZE))
    everything = [page * PAGE_SIZE + word for page in pages for word in WORDS]
    return [at for at in everything if offset <= at < offset + size]


def _told(offset: int, content: bytes | bytearray) -> str:
    return " ".join(
        f"{at:#x}={int.from_bytes(content[at - offset : at - offset + WORD_SIZE]):#x}"
        for at in _words(offset, len(content))
    )


def _found(world: World, is_it: Callable[[CachedFile], bool]) -> tuple[Client, CachedFile]:
    """The client and the file that it is."""
    (found,) = [
        (client, file) for client in world.clients for file in client.fs.holdings.files() if is_it(file)
    ]
    return found


@dataclass(slots=True)
class FaultPrograms:
    """*processes* on every client make *steps* bursts of calls at least, while *counts* goes wrong. Then all is
    well again, all clients must see what the server has, and the server's disk must have what was fsynced."""

    counts: Counter[Kind]
    steps: int = 6
    processes: int = 2
    faults: Faults = field(init=False)
    losses: Losses = field(init=False)
    handles: dict[bytes, InodeHandle] = field(default_factory=dict)
    refusals: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How often a client was told that data of a file are refused."""
    longest_wait: LongestWait = field(default_factory=LongestWait)

    async def __call__(self, world: World) -> None:
        for name in FILES:
            self.handles[name] = world.make_file(name, bytes(SIZE))
            world.storage.fsync(self.handles[name], False)
        self.losses = Losses(world.history)
        with pytest.MonkeyPatch.context() as patch:
            self._listen(world, patch)
            async with trio.open_nursery() as nursery:

                def begin(machine: Machine) -> None:
                    nursery.start_soon(self._run_programs, world, machine)

                self.faults = Faults(world, self.losses, self.counts, begin)
                machines = [self.faults.adopt(client) for client in world.clients]
                nursery.start_soon(self.faults.run)
                for machine in machines:
                    begin(machine)
            await self._read_everything(world)
        self._lose_power(world)
        self.losses.settle()

    async def _run_programs(self, world: World, machine: Machine) -> None:
        with machine.programs:
            async with trio.open_nursery() as nursery:
                for number in range(self.processes):
                    name = f"{machine.client.name} process {number + 1}"
                    program = _Program(
                        world, machine, name, self.steps, self.faults, self.losses, self.refusals,
                        self.longest_wait,
                    )  # fmt: skip
                    nursery.start_soon(program.run)

    def _listen(self, world: World, patch: pytest.MonkeyPatch) -> None:
        """Be told of what programs may be told of, and of the dirty data that are dropped: those in the daemon,
        and those of the kernel that the daemon does not take."""
        report, refused = WriteErrors._report, WriteErrors.refused
        drop, write, invalidate = FilePages.drop, Writer.write, DataTokens.invalidate

        def on_report(errors: WriteErrors, error: FsError) -> None:
            report(errors, error)
            self.losses.reported(*self._whose(world, lambda file: file.errors is errors))

        def on_refused(errors: WriteErrors, error: FsError, now: float) -> bool:
            self.refusals[self._whose(world, lambda file: file.errors is errors)] += 1
            return refused(errors, error, now)

        def on_drop(pages: FilePages, start: int, end: int) -> None:
            dropped = pages.dirty.intervals(start, end)
            drop(pages, start, end)
            self._lost(world, dropped, lambda file: file.pages is pages)

        async def on_write(
            writer: Writer, file: CachedFile, offset: int, data: bytes, *, page: bool, **how: bool
        ) -> int:
            try:
                return await write(writer, file, offset, data, page=page, **how)
            except FsError:
                if page:  # the kernel has the page clean from now on, until it is told to drop it
                    self._lost(world, [(offset, offset + len(data))], lambda each: each is file, stays=True)
                raise

        def on_invalidate(tokens: DataTokens, revocation: Revocation) -> list[Interval]:
            untaken = tokens.untaken.overlaps(revocation.start, revocation.end)
            left = invalidate(tokens, revocation)
            if untaken and not left:
                self._dropped(world, tokens, revocation)
            return left

        patch.setattr(DataTokens, "invalidate", on_invalidate)
        patch.setattr(WriteErrors, "_report", on_report)
        patch.setattr(WriteErrors, "refused", on_refused)
        patch.setattr(FilePages, "drop", on_drop)
        patch.setattr(Writer, "write", on_write)

    def _lost(
        self, world: World, dropped: list[Interval], is_it: Callable[[CachedFile], bool], *, stays: bool = False
    ) -> None:
        for start, end in dropped:
            client, name = self._whose(world, is_it)
            world.note(client, None, f"has lost [{start:#x}, {end:#x}) of {name}")
            self.losses.lost(client, name, start, end, stays=stays)

    def _dropped(self, world: World, tokens: DataTokens, revocation: Revocation) -> None:
        """The kernel has dropped these pages. What the daemon has dirty of them may be lost later, or never."""
        client, file = _found(world, lambda file: file.tokens is tokens)
        gone = IntervalSet()
        gone.add(revocation.start, revocation.end)
        for start, end in file.pages.dirty.intervals(revocation.start, revocation.end):
            gone.delete(start, end)
        for start, end in gone.intervals():
            self.losses.dropped(client.name, self._name(file), start, end)

    def _whose(self, world: World, is_it: Callable[[CachedFile], bool]) -> tuple[str, str]:
        """The client and the file that it is, by name."""
        client, file = _found(world, is_it)
        return client.name, self._name(file)

    def _name(self, file: CachedFile) -> str:
        return next(name for name, handle in self.handles.items() if handle == file.inode.handle).decode()

    async def _read_everything(self, world: World) -> None:
        """Everybody sees the same once all is at the server, and goes on without a remount."""
        for client in world.clients:
            await client.fs.write_back.everything()
        for name, handle in self.handles.items():
            truth = world.storage.read(handle, 0, SIZE)
            for client in world.clients:
                begin = world.history.now()
                opened = await client.kernel.open(name, os.O_RDONLY)
                seen = await client.kernel.read(opened, 0, SIZE)
                await client.kernel.close(opened)
                if seen != truth:
                    raise Violation(f"{client.name} sees of {name!r} {_told(0, seen)}, not {_told(0, truth)}")
                for at in _words(0, SIZE):
                    word = int.from_bytes(seen[at : at + WORD_SIZE])
                    world.history.read(client.name, (name.decode(), at), word, begin)

    def _lose_power(self, world: World) -> None:
        world.server.kill()
        world.storage.crash()
        on_disk = {
            (name.decode(), at): int.from_bytes(content[at : at + WORD_SIZE])
            for name, handle in self.handles.items()
            for content in (world.storage.read(handle, 0, SIZE),)
            for at in _words(0, SIZE)
        }
        self.losses.check_disk(on_disk)
