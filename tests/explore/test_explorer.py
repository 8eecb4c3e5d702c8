"""The explorer itself: what it calls the same, and that it sees what it should."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.explore.explorer import TooLarge, explore, led, shortest
from tests.explore.programs import Script, SmallWorld, load
from tests.explore.register import Register
from tests.explore.worlds import SMALL
from tests.helpers.history import Violation

TWO_LOADS = SmallWorld((Script(0, (load(),), writing=False), Script(1, (load(),), writing=False)))


def test_depth_first_and_breadth_first_see_the_same_states() -> None:
    deep, wide = explore(TWO_LOADS), shortest(TWO_LOADS)
    assert (deep.states, deep.steps, deep.ends) == (wide.states, wide.steps, wide.ends)
    assert deep.worlds < wide.worlds


def test_the_same_way_leads_to_the_same_state_and_the_order_of_independent_steps_does_not_matter() -> None:
    marks = []
    for way in ((0, 0), (0, 0), (0, 1), (1, 0)):
        with led(TWO_LOADS, way) as run:
            marks.append(run.mark())
    assert marks[0] == marks[1]
    assert marks[2] == marks[3]
    assert marks[0] != marks[2]


def test_a_world_that_is_too_large_is_not_called_a_violation() -> None:
    with pytest.raises(TooLarge):
        explore(SMALL["two stores"], states_max=20)


def test_a_violation_tells_the_way_to_it() -> None:
    async def lie(process: object) -> None:
        raise Violation("a lie")

    liar = replace(TWO_LOADS, scripts=(Script(0, (load(), lie), writing=False),), clients=1)
    with pytest.raises(Violation, match="a lie") as caught:
        shortest(liar)
    story = caught.value.__notes__[0].splitlines()
    assert "begins to load" in story[0]
    assert "begins to lie" in story[-1]


def test_a_register_explains_what_can_be_explained() -> None:
    word = Register()
    word.set(1, "one")
    first, second, read = word.begin(2), word.begin(3), word.begin(None)
    word.see(1, "nobody has written yet")
    word.see(3, "the second write has had its effect")
    word.end(second, 3, "second")
    word.see(2, "so has the first")
    word.end(read, 1, "the read was before both")
    word.end(first, 2, "first")
    with pytest.raises(Violation):
        word.see(3, "too late")
