"""Two clients, one page: each stores, in turn, when it has seen what the other stored."""

from __future__ import annotations

import os
from functools import partial

import pytest
import trio

from tests.helpers.history import Violation
from tests.sim.mutations import pages_go_before_they_are_used
from tests.sim.world import Client, Options, World, simulate

TURNS = 20
WORD = 8


async def _player(world: World, client: Client, number: int) -> None:
    opened = await client.kernel.open(b"page", os.O_RDWR)
    mapping = await client.kernel.map(opened)
    for turn in range(number, TURNS, world.options.clients):
        while int.from_bytes(await client.kernel.load(mapping, 0)) != turn:  # noqa: ASYNC110 - a program polls
            await trio.sleep(0.0001 + world.rng.random() * 0.0001)
        await client.kernel.store(mapping, 0, (turn + 1).to_bytes(WORD))
    await client.kernel.unmap(mapping)
    await client.kernel.close(opened)


async def _stores_in_turn(world: World, *, size: int) -> None:
    handle = world.make_file(b"page", bytes(size))
    async with trio.open_nursery() as nursery:
        for number, client in enumerate(world.clients):
            nursery.start_soon(_player, world, client, number)
    assert int.from_bytes(world.storage.read(handle, 0, WORD)) == TURNS


@pytest.mark.parametrize("size", [8, 4096, 10000])
@pytest.mark.parametrize("clients", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_stores_in_turn_by_clients_that_have_one_page_mapped(seed: int, clients: int, size: int) -> None:
    simulate(Options(seed, clients), partial(_stores_in_turn, size=size))


LATE = (0.004,)
"""Seconds: on busy machines a thread gets the processor long after the next recall has come."""


@pytest.mark.parametrize("clients", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_a_page_stays_until_the_program_that_it_was_granted_to_gets_the_processor(
    seed: int, clients: int
) -> None:
    options = Options(seed, clients, processor_seconds=LATE)
    simulate(options, partial(_stores_in_turn, size=4096))


def test_or_else_nobody_would_get_any_further(monkeypatch: pytest.MonkeyPatch) -> None:
    pages_go_before_they_are_used(monkeypatch)
    with pytest.raises(Violation, match="have not ended"):
        simulate(Options(0, 3, processor_seconds=LATE), partial(_stores_in_turn, size=4096))
