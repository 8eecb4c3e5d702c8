"""Programs that are killed while they wait for the daemon: all others go on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.sim.swarm import drawn
from tests.sim.world import simulate

KILLED = 0.2
"""Of the requests that take long enough."""


@pytest.mark.parametrize("seed", range(12))
def test_others_go_on(seed: int) -> None:
    options, programs = drawn(seed)
    simulate(replace(options, killed=KILLED), programs)
