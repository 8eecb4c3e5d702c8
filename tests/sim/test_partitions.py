"""Clients that are cut off for longer than their lease: they read nothing that is out of date, what they write
later is refused, and what they had asked for was done once or not at all."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tests.sim.names import NamesAndLocks
from tests.sim.partitions import Partitioned
from tests.sim.world import partitioned, simulate


@pytest.mark.parametrize("seed", range(6000, 6004))
def test_nothing_is_read_past_the_lease_nor_written(seed: int) -> None:
    world = simulate(partitioned(seed), Partitioned())
    assert world.fences > 0


@pytest.mark.parametrize("seed", [6100, 6101, 6103, 6104])
def test_names_and_records_are_changed_once_or_not_at_all(seed: int) -> None:
    world = simulate(partitioned(seed), NamesAndLocks(25))
    assert world.fences > 0


def test_partitions_and_servers_that_are_killed() -> None:
    world = simulate(replace(partitioned(6200), restarts=2), Partitioned(20))
    assert world.restarts == 2


def test_fresh_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    first = random.SystemRandom().randrange(1 << 32)
    with capsys.disabled():
        print(f" seeds {first} to {first + 1}", end="")
    for seed in range(first, first + 2):
        simulate(partitioned(seed), Partitioned())
