"""Clients that are away, for less and for more than their lease, and those that die, in the simulator: what was
synced stays, what was not may be lost and is told, nobody reads what is not true any more, all go on."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from nfsfuse_server.machines.leases import MARGIN
from tests.sim.fault_programs import FaultPrograms
from tests.sim.fault_swarm import drawn_with_faults, options, strikes
from tests.sim.faults import LEASE_SECONDS, Kind
from tests.sim.world import simulate

PATIENCE_SECONDS = LEASE_SECONDS * (1 + MARGIN) * 1.05 + 0.1
"""The most that others wait for one client: its lease, the server's margin, the pause between its looks, and
what the calls take anyway."""


def played(seed: int, *kinds: Kind, times: int = 2) -> FaultPrograms:
    """The run of *seed* with these faults."""
    programs = FaultPrograms(strikes(*kinds, times=times))
    simulate(options(seed), programs)
    return programs


@pytest.mark.parametrize("seed", range(1, 4))
@pytest.mark.parametrize("kind", [Kind.CUT, Kind.FREEZE])
def test_who_is_away_for_less_than_the_lease_loses_nothing(kind: Kind, seed: int) -> None:
    programs = played(seed, kind)
    assert (programs.faults.fences, programs.losses.losses, programs.losses.told) == (0, 0, 0)


@pytest.mark.parametrize("kind", [Kind.CUT_OFF, Kind.FREEZE_LONG])
def test_who_is_away_for_longer_and_waited_for_is_fenced_and_told_what_it_has_lost(kind: Kind) -> None:
    runs = [played(seed, kind) for seed in range(2, 6)]
    assert all(programs.faults.fences + programs.faults.spared == 2 for programs in runs)
    assert any(programs.faults.fences for programs in runs)
    assert any(programs.losses.losses for programs in runs), "else the seeds show nothing"
    assert any(programs.losses.told for programs in runs)


@pytest.mark.parametrize("seed", range(1, 5))
def test_others_wait_for_a_client_that_is_killed_as_long_as_its_lease(seed: int) -> None:
    programs = played(seed, Kind.KILL, times=1)
    assert programs.faults.struck[Kind.KILL] == 1
    assert programs.longest_wait.seconds < PATIENCE_SECONDS


FOUND_IN_THE_MODEL = (
    # seed: what was wrong with what plays the kernel when it was first run
    2646583624,  # a file was closed while a page was written back through it
    3547457638,  # a page of a killed daemon's mount waited for its write-back for ever
)


@pytest.mark.parametrize("seed", FOUND_IN_THE_MODEL)
def test_drawn_seeds_that_the_model_could_not_play(seed: int) -> None:
    simulate(*drawn_with_faults(seed))


@pytest.mark.parametrize("seed", range(1, 4))
def test_a_server_that_is_killed_loses_nothing(seed: int) -> None:
    programs = played(seed, Kind.RESTART)
    assert programs.faults.struck[Kind.RESTART] == 2
    assert (programs.faults.fences, programs.losses.losses, programs.losses.told) == (0, 0, 0)


@pytest.mark.parametrize("kind", [Kind.CUT_OFF, Kind.FREEZE_LONG])
def test_of_whom_nobody_wants_anything_loses_nothing_however_long_it_is_away(kind: Kind) -> None:
    """As a daemon whose event loop is in a step that takes longer than the lease."""
    for seed in range(2, 4):
        programs = FaultPrograms(strikes(kind, times=2))
        simulate(replace(options(seed), clients=1), programs)
        assert (programs.faults.spared, programs.faults.fences) == (2, 0)
        assert (programs.losses.losses, programs.losses.told) == (0, 0)


def test_everything_at_once() -> None:
    programs = played(1, *Kind, times=1)
    assert programs.faults.struck.total() == len(Kind)


def test_the_same_seed_gives_the_same_run() -> None:
    one, other = (simulate(options(3), FaultPrograms(strikes(Kind.FREEZE_LONG, Kind.KILL))) for _ in range(2))
    assert (one.digest(), one.steps) == (other.digest(), other.steps)


def test_fresh_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    first = random.SystemRandom().randrange(1 << 32)
    with capsys.disabled():
        print(f" seeds {first} to {first + 3}", end="")
    for seed in range(first, first + 4):
        simulate(*drawn_with_faults(seed))
