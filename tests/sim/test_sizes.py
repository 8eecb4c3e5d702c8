"""Sizes that kernels go by without asking: `tests.sim.sizes`."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.helpers.history import Violation
from tests.sim import mutations as the
from tests.sim.mutations import Mutation
from tests.sim.sizes import Sizes
from tests.sim.swarm import drawn_with_sizes
from tests.sim.world import CUTS_PER_SECOND, Options, simulate

SEEDS = (*range(12), 310)


def _options(seed: int) -> Options:
    return Options(seed, 2 + seed % 2, check_every=3, later=0.5)


@pytest.mark.parametrize("seed", range(5000, 5006))
def test_nobody_goes_by_a_size_that_is_past(seed: int) -> None:
    simulate(_options(seed), Sizes())


FOUND = (
    # seed: what it found when it was first run
    2,  # deadlock 9: a write waited for a page, its read for the attributes, and they for the write
    3,  # a file that became longer while it was closed, opened under tokens that came with a look
    8,  # deadlock 9 once more
)


@pytest.mark.parametrize("seed", FOUND)
def test_seeds_that_have_found_something(seed: int) -> None:
    simulate(_options(seed), Sizes(busy=True))


DRAWN = (
    # seed of a soak: what it found when it was first run
    2796003021,  # livelock: a read of more than the daemon's cache had room for
)


@pytest.mark.parametrize("seed", DRAWN)
def test_drawn_seeds_that_have_found_something(seed: int) -> None:
    simulate(*drawn_with_sizes(seed))


@pytest.mark.parametrize("seed", range(5000, 5002))
@pytest.mark.parametrize(
    "change", [{"killed": 0.2}, {"cuts_per_second": CUTS_PER_SECOND}, {"restarts": 6}], ids=str
)
def test_nobody_goes_by_a_size_that_is_past_whatever_happens(seed: int, change: dict[str, float]) -> None:
    simulate(replace(_options(seed), **change), Sizes())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mutation", "play", "told"),
    [
        (the.growths_are_not_told, Sizes(), "saw|SIGBUS"),
        (the.growths_by_writes_are_not_told, Sizes(), "saw|SIGBUS"),
        (the.growths_are_answered_before_others_know, Sizes(), "saw|SIGBUS"),
        (the.a_growth_waits_for_the_page_at_the_end, Sizes(), "have not ended"),
        (the.a_read_in_the_way_of_an_invalidation_asks_for_the_size, Sizes(busy=True), "have not ended"),
    ],
)
def test_a_deliberate_bug_is_found(
    mutation: Mutation,
    play: Sizes,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mutation(monkeypatch)
    with pytest.raises(Violation, match=told) as found:
        _simulate_seeds(play)
    with capsys.disabled():
        print(f" [{mutation.__name__}: {str(found.value).splitlines()[0][:100]}]", end="")


def _simulate_seeds(play: Sizes) -> None:
    for seed in SEEDS:
        simulate(_options(seed), play)
