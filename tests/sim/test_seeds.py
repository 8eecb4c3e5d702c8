"""Random programs: seeds that have found bugs, a fixed range, and fresh ones whose number is printed."""

from __future__ import annotations

import random

import pytest

from tests.sim.programs import RandomPrograms
from tests.sim.world import CUTS_PER_SECOND, LONG_CUTS, Options, simulate

FOUND = (
    # seed, clients: what it found when it was first run
    (9, 2),  # K0: a return of tokens crossed with a grant
    (23, 2),  # K5: a second recall was acknowledged while the invalidation of the first was under way
    (107, 2),  # deadlock: read-ahead across the edge of what was being invalidated
    (112, 2),  # a write past the page cache was undone by the write-back of a page stored into meanwhile
    (113, 2),  # a recall to SHARED while an open for writing began
    (1050, 2),  # deadlock: a late write of a whole page counted as cached while a read of the page waited
)

FIXED = range(2000, 2010)
FRESH = 5


FOUND_WITHOUT_CACHED_WRITES = (
    # seed, clients, steps
    (6130, 3, 30),  # deadlock: a write asked for a held page with the attributes
    (1392413081, 4, 20),  # a direct write was taken in while the kernel had pages that lacked it
)


@pytest.mark.parametrize(("seed", "clients", "steps"), FOUND_WITHOUT_CACHED_WRITES)
def test_seeds_that_have_found_something_without_cached_writes(seed: int, clients: int, steps: int) -> None:
    simulate(Options(seed, clients, check_every=5, write_directly=False), RandomPrograms(steps))


@pytest.mark.parametrize(("seed", "clients"), FOUND)
def test_seeds_that_have_found_something(seed: int, clients: int) -> None:
    options = Options(seed, clients, check_every=3, write_directly=False)
    simulate(options, RandomPrograms(30, cached_writes=True))


FOUND_WITH_DIRECT_WRITES = (
    # seed, clients, steps
    (2009, 3, 30),  # the attributes in the answer to a truncation were believed although they were recalled
    (32, 4, 30),  # livelock: writes lost the data while they waited for the attributes, and the other way round
)


@pytest.mark.parametrize(("seed", "clients", "steps"), FOUND_WITH_DIRECT_WRITES)
def test_seeds_that_have_found_something_with_direct_writes(seed: int, clients: int, steps: int) -> None:
    simulate(Options(seed, clients, check_every=3), RandomPrograms(steps))


@pytest.mark.parametrize("seed", FIXED)
def test_random_programs_on_three_clients(seed: int) -> None:
    simulate(Options(seed, 3, check_every=3, later=0.5), RandomPrograms(30))


def test_random_programs_with_fresh_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    first = random.SystemRandom().randrange(1 << 32)
    with capsys.disabled():
        print(f" seeds {first} to {first + FRESH - 1}", end="")
    for seed in range(first, first + FRESH):
        simulate(Options(seed, 2 + seed % 3, check_every=3, later=0.5), RandomPrograms(20))


CUT = (3000, 3001, 4000, 4001, 4002)  # 3000: a page read in beside one dropped for a write was left behind


@pytest.mark.parametrize("seed", CUT)
def test_random_programs_do_not_notice_that_connections_are_cut(seed: int) -> None:
    simulate(Options(seed, 3, check_every=5, cuts_per_second=CUTS_PER_SECOND), RandomPrograms(20))


@pytest.mark.parametrize("seed", [3000, 3002, 3003])
def test_random_programs_do_not_notice_that_caches_are_dropped_with_the_lease(
    seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    often, seconds, finish, lease = LONG_CUTS
    options = Options(
        seed,
        3,
        check_every=5,
        cuts_per_second=often,
        cut_seconds=seconds,
        finish_seconds=finish,
        lease_seconds=lease,
    )
    simulate(options, RandomPrograms(15))
    assert "the lease runs again, nothing was lost" in caplog.text


def test_the_same_seed_gives_the_same_run() -> None:
    one, other = (simulate(Options(7, 3, check_every=10), RandomPrograms(15)) for _ in range(2))
    assert (one.digest(), one.steps) == (other.digest(), other.steps)
