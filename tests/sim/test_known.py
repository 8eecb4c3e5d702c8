"""What the simulation has found and nobody has cured yet. Once a test here passes, it moves to the others."""

from __future__ import annotations

import os

import pytest
import trio

from tests.helpers.history import Violation
from tests.sim.world import Options, World, simulate


async def _truncate_while_another_client_loads(world: World) -> None:
    world.make_file(b"page", bytes(4096))
    here, there = (client.kernel for client in world.clients)
    opened = await here.open(b"page", os.O_RDWR)
    mapping = await here.map(opened)
    other = await there.open(b"page", os.O_RDONLY)
    for size in range(8, 8 + 8 * 20, 8):
        await here.store(mapping, 0, size.to_bytes(8))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.truncate, opened, size)
            nursery.start_soon(there.read, other, 0, 8)
    await here.unmap(mapping)
    await here.close(opened)
    await there.close(other)


@pytest.mark.xfail(strict=True, raises=Violation)
def test_a_truncation_does_not_deadlock_with_a_recall_of_a_page_that_is_mapped_and_dirty() -> None:
    """From before FUSE_SETATTR with a size until its answer the kernel writes no page of the inode back
    (fuse_set_nowrite). A recall that the server sent for another client's earlier request launders a dirty
    page, which waits for that; the SetAttr waits at the server behind the request."""
    for seed in range(5):
        simulate(Options(seed, 2), _truncate_while_another_client_loads)
