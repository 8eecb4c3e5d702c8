"""The server killed at random moments and started again, under random programs: nobody may notice."""

from __future__ import annotations

import random

import pytest

from tests.sim.names import NamesAndLocks
from tests.sim.programs import RandomPrograms
from tests.sim.world import Options, simulate


@pytest.mark.parametrize("seed", range(5000, 5004))
def test_data_over_restarts(seed: int) -> None:
    world = simulate(Options(seed, 3, restarts=4, check_every=5), RandomPrograms(25))
    assert world.restarts > 0


@pytest.mark.parametrize("seed", range(5100, 5108))
def test_names_and_locks_over_restarts(seed: int) -> None:
    world = simulate(Options(seed, 3, restarts=6, check_every=5), NamesAndLocks(25))
    assert world.restarts > 2


@pytest.mark.parametrize("seed", range(5200, 5203))
def test_restarts_and_connections_that_are_cut(seed: int) -> None:
    options = Options(seed, 3, restarts=4, cuts_per_second=30.0, check_every=5)
    simulate(options, NamesAndLocks(25))


@pytest.mark.parametrize("seed", [1, 4, 29, 47])
def test_what_waited_for_a_dying_server_does_not_go_on(seed: int) -> None:
    """What the end of another request granted it something for went on in the server that was being killed."""
    simulate(Options(seed, 2 + seed % 2, restarts=5, check_every=5), NamesAndLocks(25))


def test_fresh_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    first = random.SystemRandom().randrange(1 << 32)
    with capsys.disabled():
        print(f" seeds {first} to {first + 2}", end="")
    for seed in range(first, first + 3):
        simulate(Options(seed, 2 + seed % 2, restarts=5, check_every=5), NamesAndLocks(25))
