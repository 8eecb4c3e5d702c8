"""Every interleaving of small worlds of the shipping engines: no invariant is broken, nobody waits for ever."""

from __future__ import annotations

import pytest

from tests.explore.explorer import explore
from tests.explore.worlds import SMALL


@pytest.mark.parametrize("name", SMALL)
def test_every_state_of_a_small_world_is_good(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = explore(SMALL[name])
    with capsys.disabled():
        print(f" [{name}: {found.states} states, {found.steps} steps]", end="")
    assert found.ends > 0
    assert found.states > 100
