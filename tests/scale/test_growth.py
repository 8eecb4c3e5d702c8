"""A step costs about the same however much is held, dirty, listed, open or waits: at most its logarithm."""

from __future__ import annotations

from typing import Final

import pytest

from tests.scale.client_worlds import CLIENT, Step
from tests.scale.counting import cost
from tests.scale.server_worlds import SERVER

GROWTH_MAX: Final = 2.0
"""What tenfold may make of the cost. The logarithm of a hundred grows by a half."""

LINEAR_MAX: Final = 13.0
"""What tenfold may make of the cost where a step looks at all of them: not the square of it."""

FEW_CLIENT, FEW_SERVER, FEW_SLOW = 1200, 120, 24
"""Of how many there are ten times as many afterwards. Maps of intervals have leaves by then."""

LINEAR: Final = {
    # world: why a step may look at all of them
    "waiters for a lock: their turn": "all that wait for one holder are looked at when it unlocks, and all but "
    "one wait for the next; they are at most WAITERS_PER_INODE_MAX",
}
"""Each is bounded by the constant that it names. To be shortened: whatever is not in it must not grow."""


def growth(world: str) -> tuple[int, int, int]:
    """What a step costs, and with ten times as much; and how much that is."""
    n = FEW_SLOW if world in LINEAR else FEW_CLIENT if world in CLIENT else FEW_SERVER
    make = {**CLIENT, **SERVER}[world]
    return cost(make(n)), cost(make(10 * n)), n


@pytest.mark.parametrize("world", [world for world in (*CLIENT, *SERVER) if world not in LINEAR])
def test_a_step_with_ten_times_as_much_costs_less_than_twice_as_much(world: str) -> None:
    few, many, n = growth(world)
    assert many < GROWTH_MAX * few, f"{few} with {n}, {many} with {10 * n}"


@pytest.mark.parametrize("world", LINEAR)
def test_what_looks_at_all_looks_at_each_once(world: str) -> None:
    few, many, n = growth(world)
    assert GROWTH_MAX * few < many, f"it need not be in the list any more: {few} with {n}, {many} with {10 * n}"
    assert many < LINEAR_MAX * few, f"{few} with {n}, {many} with {10 * n}"


def _looks_at_all(n: int) -> Step:
    things = list(range(n))
    return lambda: [thing for thing in things if thing < 0]


def _copies_all(n: int) -> Step:
    things = set(range(n))
    return lambda: things.copy()


def _searches_all(n: int) -> Step:
    things = list(range(n))
    return lambda: things.index(n - 1)


@pytest.mark.parametrize("make", [_looks_at_all, _copies_all, _searches_all])
def test_what_grows_is_found(make: object) -> None:
    assert callable(make)
    assert cost(make(10_000)) > 5 * cost(make(1000))
