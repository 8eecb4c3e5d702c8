"""Programs whose client may be cut off for longer than its lease: what they may read then, and what is kept.

Every word is a register, as in `tests.sim.programs`. A write here is one together with the fsync(2) that
follows it: if that fails, the write has had its effect before the session that it was made in was over, or it
has none, ever (promise 6: what is written later is refused). What a client's own programs read of a write
before its fsync may be lost with the session, and is left out.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

import trio

from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.types import PAGE_SIZE, SessionId
from tests.helpers.history import Violation
from tests.helpers.kernel_model import WORD_SIZE, Descriptor, Mapping
from tests.sim.world import Client, World

PAGES: Final = 2
FIRST_PAGE: Final = (0, WORD_SIZE)
SECOND_PAGE: Final = (PAGE_SIZE,)
OFFSETS: Final = (*FIRST_PAGE, *SECOND_PAGE)

ROLES: Final = {
    "writer": (OFFSETS, True),
    "first reader": (FIRST_PAGE, False),
    "second reader": (SECOND_PAGE, False),
}
"""The processes of a client: which words they use, and whether they write."""

RELEASE_SECONDS: Final = 0.001
"""Between two looks whether the server has ended a session."""


@dataclass(slots=True)
class _Own:
    """Writes of the programs of one client, by offset: begun so far, and those whose fsync has not returned."""

    begun: Counter[int] = field(default_factory=Counter)
    under_way: Counter[int] = field(default_factory=Counter)


@dataclass(slots=True)
class _Process:
    """It reads and writes words at *offsets*; or it only reads, and if that is one page, it goes on for as long
    as that is cached."""

    world: World
    client: Client
    name: str
    steps: int
    own: _Own
    offsets: tuple[int, ...]
    writing: bool

    async def run(self) -> None:
        opened = await self.client.kernel.open(b"words", os.O_RDWR if self.writing else os.O_RDONLY)
        mapping = await self.client.kernel.map(opened)
        for _ in range(self.steps):
            offset = self.world.rng.choice(self.offsets)
            if self.writing and self.world.rng.random() < 0.4:
                await self._write(opened, mapping, offset)
            else:
                await self._read(opened, mapping, offset)
            await trio.sleep(self.world.rng.random() * self.world.options.step_seconds_max)
        await self.client.kernel.unmap(mapping)
        try:
            await self.client.kernel.close(opened)
        except FsError as exc:
            self._note(opened, f"close: {exc}")  # of what another process has written

    async def _read(self, opened: Descriptor, mapping: Mapping, offset: int) -> None:
        history, kernel = self.world.history, self.client.kernel
        begin, begun, alone = history.now(), self.own.begun[offset], not self.own.under_way[offset]
        if self.world.rng.random() < 0.5:
            word = await kernel.load(mapping, offset)
        else:
            word = await kernel.read(opened, offset, WORD_SIZE)
        self._note(opened, f"read {offset:#x}: {int.from_bytes(word):#x}")
        if alone and begun == self.own.begun[offset]:
            history.read(self.client.name, ("words", offset), int.from_bytes(word), begin)

    async def _write(self, opened: Descriptor, mapping: Mapping, offset: int) -> None:
        history, kernel = self.world.history, self.client.kernel
        session, value = self.client.session.session_id, history.new_value()
        self.own.begun[offset] += 1
        self.own.under_way[offset] += 1
        operation = history.begin_write(self.client.name, ("words", offset), value)
        self._note(opened, f"write {offset:#x}: {value:#x}")
        try:
            if self.world.rng.random() < 0.5:
                await kernel.store(mapping, offset, value.to_bytes(WORD_SIZE))
            else:
                await kernel.write(opened, offset, value.to_bytes(WORD_SIZE))
            await kernel.fsync(opened)
        except FsError as exc:
            self._note(opened, f"write {offset:#x}: {exc}")
            await self._until_released(session)
            history.fail(operation)
        else:
            history.end(operation)
        self.own.under_way[offset] -= 1

    async def _until_released(self, session: SessionId) -> None:
        """Until nothing of *session* is under way at the server, unless it goes on."""
        while self.client.session.session_id != session and session in self.world.service.sessions:  # noqa: ASYNC110
            await trio.sleep(RELEASE_SECONDS)

    def _note(self, opened: Descriptor, text: str) -> None:
        self.world.note(self.name, opened.inode.node_id, text)


@dataclass(slots=True)
class Partitioned:
    """On every client one process reads and writes, and one for each page reads, *steps* times each; then all
    clients see what the server has."""

    steps: int = 40

    async def __call__(self, world: World) -> None:
        handle = world.make_file(b"words", bytes(PAGES * PAGE_SIZE))
        async with trio.open_nursery() as nursery:
            for client in world.clients:
                own = _Own()
                for role, (offsets, writing) in ROLES.items():
                    name = f"{client.name} {role}"
                    nursery.start_soon(_Process(world, client, name, self.steps, own, offsets, writing).run)
        for client in world.clients:
            await client.fs.write_back.everything()
        truth = world.storage.read(handle, 0, PAGES * PAGE_SIZE)
        for client in world.clients:
            opened = await client.kernel.open(b"words", os.O_RDONLY)
            begin = world.history.now()
            seen = await client.kernel.read(opened, 0, PAGES * PAGE_SIZE)
            await client.kernel.close(opened)
            if seen != truth:
                raise Violation(f"{client.name} does not see what the server has")
            for offset in OFFSETS:
                word = int.from_bytes(seen[offset : offset + WORD_SIZE])
                world.history.read(client.name, ("words", offset), word, begin)
