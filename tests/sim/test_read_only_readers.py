"""read(2) through the page cache, of a file that is growing on other clients: it ends at the true end."""

from __future__ import annotations

import os

import pytest
import trio

from tests.helpers.history import Violation
from tests.helpers.kernel_model import KernelModel
from tests.sim.world import Options, World, simulate

RECORD = 100
RECORDS = 40
PAUSE_SECONDS = 0.0002


class Growing:
    """One client appends; the others read it from the start, again and again."""

    def __init__(self) -> None:
        self.begun = self.done = 0

    async def __call__(self, world: World) -> None:
        self.begun = self.done = 0
        world.make_file(b"growing", b"")
        appender, *readers = (client.kernel for client in world.clients)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._append, appender)
            for reader in readers:
                nursery.start_soon(self._read, reader)

    async def _append(self, kernel: KernelModel) -> None:
        opened = await kernel.open(b"growing", os.O_RDWR | os.O_APPEND)
        for _ in range(RECORDS):
            self.begun += RECORD
            await kernel.write(opened, 0, b"x" * RECORD)
            self.done += RECORD
        await kernel.close(opened)

    async def _read(self, kernel: KernelModel) -> None:
        opened = await kernel.open(b"growing", os.O_RDONLY)
        found = 0
        while found < RECORD * RECORDS:
            low = max(found, self.done)
            found = len(await kernel.read(opened, 0, 2 * RECORD * RECORDS))
            if not low <= found <= self.begun:
                raise Violation(f"a read found {found} bytes, {low} were written and {self.begun} begun")
            await trio.sleep(PAUSE_SECONDS)  # simulated: a read that asks nobody takes no time at all
        await kernel.close(opened)


@pytest.mark.parametrize("seed", range(12))
def test_a_read_that_starts_after_an_append_sees_it(seed: int) -> None:
    simulate(Options(seed, 3, check_every=5), Growing())


def test_without_making_sure_that_the_kernel_knows_the_size_it_ends_too_early(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is told twice: by who makes the file longer, and before it is answered."""

    async def cannot(self: KernelModel, node_id: int, generation: int) -> None:
        return None

    async def does_nothing(self: KernelModel, node_id: int, generation: int, size: int) -> bool:
        return True

    monkeypatch.setattr(KernelModel, "learn_size", cannot)
    monkeypatch.setattr(KernelModel, "grow", does_nothing)
    with pytest.raises(Violation, match="a read found"):
        _simulate_seeds()


def _simulate_seeds() -> None:
    for seed in range(12):
        simulate(Options(seed, 3, check_every=5), Growing())
