"""The simulation itself: a run ends, and says why, whatever its tasks do."""

from __future__ import annotations

import pytest
import trio

from tests.helpers.history import Violation
from tests.sim.world import Options, World, simulate


async def _waits_shielded(world: World) -> None:
    with trio.CancelScope(shield=True):
        await trio.sleep_forever()


async def _dies_when_its_shield_ends(world: World) -> None:
    with trio.CancelScope(shield=True):
        try:
            await trio.sleep_forever()
        finally:
            raise AssertionError("what follows from the end")


@pytest.mark.parametrize("play", [_waits_shielded, _dies_when_its_shield_ends])
def test_a_program_that_waits_for_ever_where_it_cannot_be_cancelled_is_a_violation(play) -> None:
    with pytest.raises(Violation, match="programs have not ended after 2 simulated seconds"):
        simulate(Options(1, 1, finish_seconds=2.0), play)
