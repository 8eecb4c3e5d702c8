"""Programs that go by the size which their kernel believes in, and ask nobody, while others make a file longer.

A read fault, splice(2) and copy_file_range(2) must find every byte of a growth that was done before they began.
Files only grow here, by write(2), append and truncate(2) upwards, so a size is right if it is no less than what
was done before, and no more than what was begun.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass

import trio

from nfsfuse.protocol.types import PAGE_SIZE
from tests.helpers.history import Violation
from tests.helpers.kernel_model import Descriptor, Killed, Mapping, Sigbus
from tests.sim.programs import Growth
from tests.sim.world import Client, World

FILE = b"longer"
MUCH = 1 << 20
"""Bytes: more than a file here ever has."""

LOOKS = 10
LOOK_SECONDS_MAX = 0.0006

AWAY_SECONDS_MAX = 0.02
"""How long a program does not have the file open: some growths."""

LONGER_BY = (1, 8, 8, 100, 100, 1000, PAGE_SIZE, PAGE_SIZE + 1)
"""Bytes by which a file becomes longer: within a page, to the first byte of one, and over several."""


@dataclass(slots=True)
class _Grower:
    """Makes the file longer. Of several none truncates, as it would cut off what another has just written; and
    either all of them append or none, so that it is known how long it can be by now."""

    world: World
    client: Client
    growth: Growth
    steps: int
    alone: bool
    appends: bool

    async def run(self) -> None:
        while self.steps > 0:
            append = self.world.rng.random() < 0.4 if self.alone else self.appends
            flags = os.O_RDWR | (os.O_APPEND if append else 0)
            with suppress(Killed):
                opened = await self.client.kernel.open(FILE, flags)
                with suppress(Killed):
                    for _ in range(self.world.rng.randint(1, 4)):
                        await self._grow(opened, append=append)
                        await _idle(self.world)
                await self.client.kernel.close(opened)
            self.steps -= 1

    async def _grow(self, opened: Descriptor, *, append: bool) -> None:
        kernel, rng = self.client.kernel, self.world.rng
        more = rng.choice(LONGER_BY)
        if append:
            self.growth.begun += more
            low = self.growth.done
            await kernel.write(opened, 0, b"a" * more)
            self.growth.done = max(self.growth.done, low + more)
            return
        end = self.growth.begun + more
        self.growth.begun = end
        if self.alone and rng.random() < 0.4:
            await kernel.truncate(opened, end)
        else:
            # May leave a hole, and so pages that nobody was asked to give up.
            size = rng.randint(1, more)
            await kernel.write(opened, end - size, b"w" * size)
        self.growth.done = max(self.growth.done, end)


@dataclass(slots=True)
class _Watcher:
    """Has the file open, mapped beyond its end perhaps, and looks how long it is without asking."""

    world: World
    client: Client
    name: str
    growth: Growth
    steps: int
    busy: bool

    async def run(self) -> None:
        while self.steps > 0:
            flags = os.O_RDWR if self.world.rng.random() < 0.3 else os.O_RDONLY
            low = self.growth.done
            with suppress(Killed):
                opened = await self.client.kernel.open(FILE, flags)
                self.growth.check(low, opened.inode.size, f"{self.name}, which has just opened it,")
                mapping = await self.client.kernel.map(opened) if self.world.rng.random() < 0.6 else None
                for _ in range(self.world.rng.randint(1, 10)):
                    with suppress(Killed):
                        await self._look(opened, mapping)
                    await _idle(self.world)
                if mapping is not None:
                    await self.client.kernel.unmap(mapping)
                await self.client.kernel.close(opened)
            if self.busy:
                await _idle(self.world)
            elif self.world.rng.random() < 0.5:
                await trio.sleep(self.world.rng.random() * AWAY_SECONDS_MAX)
            self.steps -= 1

    async def _look(self, opened: Descriptor, mapping: Mapping | None) -> None:
        kernel, rng, low = self.client.kernel, self.world.rng, self.growth.done
        match rng.choice(["load", "splice", "splice", "copy", "copy", "stat", "read"]):
            case "load" if mapping is not None and low:
                # The last page that there surely is.
                offset = (low - 1) // PAGE_SIZE * PAGE_SIZE
                try:
                    await kernel.load(mapping, offset)
                except Sigbus as exc:
                    raise Violation(f"{self.name} got SIGBUS, of {low} bytes: {exc}") from exc
                low, seen, how = 0, offset, "load"
            case "splice":
                seen, how = len(await kernel.splice(opened, 0, MUCH)), "splice"
            case "copy" if not self.busy:
                for _ in range(LOOKS):  # which cost nothing: so whoever is told too late is seen
                    low = self.growth.done
                    self.growth.check(low, kernel.copied_at_most(opened, 0, MUCH), f"{self.name}'s copy")
                    await trio.sleep(rng.random() * LOOK_SECONDS_MAX)
                return
            case "copy":
                seen, how = kernel.copied_at_most(opened, 0, MUCH), "copy"
            case "stat":
                seen, how = await kernel.stat_size(opened), "stat"
            case _:
                seen, how = len(await kernel.read(opened, 0, MUCH)), "read"
        self.world.note(self.name, opened.inode.node_id, f"{how}: {seen} bytes")
        self.growth.check(low, seen, f"{self.name}'s {how}")


async def _idle(world: World) -> None:
    if world.rng.random() < 0.6:
        await trio.sleep(world.rng.random() * 0.003)


@dataclass(slots=True)
class Sizes:
    """On every client some watch, and on one of them, or on all, some make the file longer, *steps* times.
    *busy*: who watches hardly ever waits, and so is more often in the way of others."""

    steps: int = 4
    busy: bool = False

    async def __call__(self, world: World) -> None:
        growth = Growth("longer")
        if world.rng.random() < 0.5:
            growth.begun = growth.done = 100
        world.make_file(FILE, b"o" * growth.done)
        appends = world.rng.random() < 0.5
        growers = [world.clients[0]] if world.rng.random() < 0.5 else world.clients
        async with trio.open_nursery() as nursery:
            for client in growers:
                grower = _Grower(world, client, growth, self.steps, len(growers) == 1, appends)
                nursery.start_soon(grower.run)
            for client in world.clients:
                for number in range(2 if self.busy else world.rng.randint(1, 2)):
                    name = f"{client.name} watcher {number + 1}"
                    nursery.start_soon(_Watcher(world, client, name, growth, 2 * self.steps, self.busy).run)
