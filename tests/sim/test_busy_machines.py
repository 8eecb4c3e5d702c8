"""Programs that get the processor late, while everything goes wrong that can."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.sim.fault_swarm import drawn_with_faults
from tests.sim.swarm import drawn
from tests.sim.world import simulate

LATE = (0.0005, 0.002, 0.004, 0.008)
"""Seconds, client by client: a page is held for 10 ms (`nfsfuse.machines.turns`)."""

FOUND_WITH_FAULTS = (
    # seed, seconds: what it found when it was first run
    (789634775, (0.002, 0.004, 0.012, 0.0005)),  # each pass of a recall waited for those who came in before it
)


@pytest.mark.parametrize(("seed", "late"), FOUND_WITH_FAULTS)
def test_seeds_that_have_found_something(seed: int, late: tuple[float, ...]) -> None:
    options, programs = drawn_with_faults(seed)
    simulate(replace(options, processor_seconds=late, later=0.0), programs)


@pytest.mark.parametrize("seed", range(5))
def test_with_faults(seed: int) -> None:
    options, programs = drawn_with_faults(seed)
    simulate(replace(options, processor_seconds=LATE), programs)


@pytest.mark.parametrize("seed", range(10))
def test_without(seed: int) -> None:
    options, programs = drawn(seed)
    simulate(replace(options, processor_seconds=LATE), programs)
