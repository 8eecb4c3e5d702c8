"""Truncations beside recalls of pages that are mapped and dirty."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from dataclasses import dataclass

import pytest
import trio

from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.types import PAGE_SIZE
from tests.helpers.kernel_model import KernelModel, Sigbus
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


@pytest.mark.parametrize("seed", range(8))
def test_a_truncation_does_not_deadlock_with_a_recall_of_a_page_that_is_mapped_and_dirty(seed: int) -> None:
    """From before FUSE_SETATTR with a size until its answer the kernel writes no page of the inode back
    (fuse_set_nowrite). A recall that the server sent for another client's earlier request launders a dirty
    page, which waits for that; the SetAttr waited at the server behind the request."""
    simulate(Options(seed, 2, check_every=5), _truncate_while_another_client_loads)


@dataclass
class _CutWhatTheOtherHasDirty:
    """Two clients: each stores into a page of its own, then cuts the file to nothing. *refused*: EINTRs."""

    refused: int = 0

    async def __call__(self, world: World) -> None:
        world.make_file(b"pages", bytes(2 * PAGE_SIZE))
        async with trio.open_nursery() as nursery:
            for page, client in enumerate(world.clients):
                nursery.start_soon(self._work, client.kernel, page * PAGE_SIZE)

    async def _work(self, kernel: KernelModel, offset: int) -> None:
        opened = await kernel.open(b"pages", os.O_RDWR)
        mapping = await kernel.map(opened)
        for number in range(1, 20):
            with suppress(Sigbus):  # the other has cut the page off
                await kernel.store(mapping, offset, number.to_bytes(8))
            for size in (0, 2 * PAGE_SIZE):
                try:
                    await kernel.truncate(opened, size)
                except FsError as exc:
                    if exc.errno != errno.EINTR:
                        raise
                    self.refused += 1
        await kernel.unmap(mapping)
        await kernel.close(opened)


def test_two_truncations_that_wait_for_each_others_dirty_pages_do_not_deadlock() -> None:
    """Neither kernel gives up its dirty page before its own truncation is answered: one of them is refused."""
    play = _CutWhatTheOtherHasDirty()
    for seed in range(8):
        simulate(Options(seed, 2, check_every=5), play)
    assert play.refused, "it never came to the point"
