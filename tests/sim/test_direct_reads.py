"""read(2) past the kernel's page cache beside stores through mappings of the same page: each such read has the
kernel write the page back first, at any moment of a recall (`Files.write_directly`)."""

from __future__ import annotations

import os

import pytest
import trio

from tests.helpers.kernel_model import WORD_SIZE
from tests.sim.world import Client, Options, World, simulate

TURNS = 60


async def _store(world: World, client: Client, number: int) -> None:
    opened = await client.kernel.open(b"page", os.O_RDWR)
    mapping = await client.kernel.map(opened)
    for turn in range(TURNS):
        await client.kernel.store(mapping, number * WORD_SIZE, (turn + 1).to_bytes(WORD_SIZE))
        if world.rng.random() < 0.3:
            await trio.sleep(world.rng.random() * 0.001)
    await client.kernel.unmap(mapping)
    await client.kernel.close(opened)


async def _read(world: World, client: Client) -> None:
    """No counter may ever go back."""
    opened = await client.kernel.open(b"page", os.O_RDWR)
    seen = [0] * len(world.clients)
    for _ in range(TURNS):
        found = await client.kernel.read(opened, 0, len(seen) * WORD_SIZE)
        words = [int.from_bytes(found[at : at + WORD_SIZE]) for at in range(0, len(found), WORD_SIZE)]
        assert all(now >= before for now, before in zip(words, seen, strict=True)), (words, seen)
        seen = words
        if world.rng.random() < 0.3:
            await trio.sleep(world.rng.random() * 0.001)
    await client.kernel.close(opened)


async def _play(world: World) -> None:
    handle = world.make_file(b"page", bytes(4096))
    async with trio.open_nursery() as nursery:
        for number, client in enumerate(world.clients):
            nursery.start_soon(_store, world, client, number)
            nursery.start_soon(_read, world, client)
    found = world.storage.read(handle, 0, len(world.clients) * WORD_SIZE)
    assert found == TURNS.to_bytes(WORD_SIZE) * len(world.clients)


@pytest.mark.parametrize("seed", range(6))
def test_direct_reads_beside_stores_through_mappings_of_the_same_page(seed: int) -> None:
    simulate(Options(seed, 3, check_every=3, write_directly=True), _play)
