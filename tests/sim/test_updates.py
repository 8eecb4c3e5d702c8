"""Lost updates and progress: clients that fight over one page."""

from __future__ import annotations

import os

import pytest
import trio

from tests.helpers.kernel_model import WORD_SIZE
from tests.sim.world import Client, Options, World, simulate

INCREMENTS = 25
RECORDS = 12


async def _increment(world: World, client: Client, offset: int) -> None:
    opened = await client.kernel.open(b"counters", os.O_RDWR)
    mapping = await client.kernel.map(opened)
    for _ in range(INCREMENTS):
        count = int.from_bytes(await client.kernel.load(mapping, offset))
        await client.kernel.store(mapping, offset, (count + 1).to_bytes(WORD_SIZE))
        await trio.sleep(world.rng.random() * 0.002)
    await client.kernel.unmap(mapping)
    await client.kernel.close(opened)


async def _watch(world: World, client: Client, counters: int) -> None:
    """Every counter only ever grows, through a mapping and by read(2)."""
    opened = await client.kernel.open(b"counters", os.O_RDONLY)
    mapping = await client.kernel.map(opened)
    seen = [0] * counters
    for turn in range(INCREMENTS):
        for number in range(counters):
            if turn % 2:
                word = await client.kernel.load(mapping, number * WORD_SIZE)
            else:
                word = await client.kernel.read(opened, number * WORD_SIZE, WORD_SIZE)
            assert int.from_bytes(word) >= seen[number]
            seen[number] = int.from_bytes(word)
        await trio.sleep(world.rng.random() * 0.003)
    await client.kernel.unmap(mapping)
    await client.kernel.close(opened)


async def _count(world: World) -> None:
    handle = world.make_file(b"counters", bytes(4096))
    *counting, watching = world.clients
    async with trio.open_nursery() as nursery:
        for number, client in enumerate(counting):
            nursery.start_soon(_increment, world, client, number * WORD_SIZE)
        nursery.start_soon(_watch, world, watching, len(counting))
    found = world.storage.read(handle, 0, len(counting) * WORD_SIZE)
    assert found == INCREMENTS.to_bytes(WORD_SIZE) * len(counting)


@pytest.mark.parametrize("seed", range(4))
def test_counters_of_several_clients_on_one_mapped_page_lose_nothing(seed: int) -> None:
    simulate(Options(seed, 4), _count)


async def _append(world: World, client: Client, number: int) -> None:
    opened = await client.kernel.open(b"log", os.O_WRONLY | os.O_APPEND)
    for record in range(RECORDS):
        word = (number * RECORDS + record + 1).to_bytes(WORD_SIZE)
        await client.kernel.write(opened, 0, word)
    await client.kernel.close(opened)


async def _log(world: World) -> None:
    handle = world.make_file(b"log", b"")
    async with trio.open_nursery() as nursery:
        for number, client in enumerate(world.clients):
            nursery.start_soon(_append, world, client, number)
    content = world.storage.read(handle, 0, 1 << 16)
    records = [int.from_bytes(content[at : at + WORD_SIZE]) for at in range(0, len(content), WORD_SIZE)]
    assert sorted(records) == list(range(1, len(world.clients) * RECORDS + 1))
    for number in range(len(world.clients)):  # and of each client in its order
        own = [record for record in records if (record - 1) // RECORDS == number]
        assert own == sorted(own)


@pytest.mark.parametrize("seed", range(4))
def test_contended_appends_are_all_there_and_all_get_their_turn(seed: int) -> None:
    simulate(Options(seed, 4), _log)
