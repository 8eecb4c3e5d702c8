"""The server's disk refuses data for a while, in the simulator: programs are told, what was synced stays, and
work goes on once it takes them again."""

from __future__ import annotations

import pytest

from tests.sim.fault_programs import FaultPrograms
from tests.sim.fault_swarm import drawn_with_faults, options, strikes
from tests.sim.faults import Kind
from tests.sim.world import simulate

FOUND = (
    # seed: what it found when it was first run
    1,  # a loss made the client the holder of the size while that was recalled
    16,  # refused data were given up to a recall while an fsync was trying them once more
)


@pytest.mark.parametrize("seed", FOUND)
def test_seeds_that_have_found_something(seed: int) -> None:
    programs = FaultPrograms(strikes(Kind.REFUSE))
    simulate(options(seed), programs)
    assert programs.faults.disk.refused > 0
    assert programs.losses.told > 0
    assert programs.losses.losses > 0


FOUND_WITH_LITTLE_ROOM = (
    # seed: what it found when it was first run
    1821156730,  # a page that was refused for want of room stayed in its kernel, seen by nobody else
    4290175559,  # likewise, when the server had taken everything else of the file
    413134140,  # likewise
)


@pytest.mark.parametrize("seed", FOUND_WITH_LITTLE_ROOM)
def test_drawn_seeds_that_have_found_something(seed: int) -> None:
    simulate(*drawn_with_faults(seed))


@pytest.mark.parametrize("kind", [Kind.CUT_OFF, Kind.FREEZE, Kind.KILL, Kind.RESTART])
def test_refused_beside_something_else(kind: Kind) -> None:
    refused = 0
    for seed in range(300, 302):
        programs = FaultPrograms(strikes(Kind.REFUSE, kind))
        simulate(options(seed), programs)
        refused += programs.faults.disk.refused
    assert refused > 0, "else the seeds show nothing"


def test_with_little_room_for_what_is_refused() -> None:
    """Stores through mappings cannot wait: what does not fit is lost, and told."""
    programs = FaultPrograms(strikes(Kind.REFUSE, times=1), processes=3)
    made = options(11)
    made.dirty_bytes_max = 8 << 10
    simulate(made, programs)
    assert programs.losses.told > 0
