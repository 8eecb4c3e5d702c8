"""IntervalMap against a dictionary of points."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfsfuse.protocol import intervals as under_test
from nfsfuse.protocol.intervals import IntervalMap, IntervalSet

POINTS = 24

V = TypeVar("V")


@pytest.fixture(autouse=True, params=[2, under_test.LEAF_MAX], ids=["leaves", "one leaf"], scope="module")
def leaf_max(request: pytest.FixtureRequest) -> Iterator[None]:
    """All of this is true however many intervals there are in a leaf."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(under_test, "LEAF_MAX", request.param)
        yield


Changes = list[tuple[int, int, V]]
"""Of a map: from where to where, and to which value."""

edits = st.lists(
    st.tuples(st.integers(0, POINTS), st.integers(0, POINTS), st.sampled_from([None, "a", "b", "c"])),
    max_size=30,
)


@given(edits, st.integers(0, POINTS), st.integers(0, POINTS))
def test_agrees_with_a_dictionary_of_points(changes: Changes[str | None], start: int, end: int) -> None:
    intervals: IntervalMap[str] = IntervalMap()
    points: dict[int, str] = {}
    for low, high, value in changes:
        if value is None:
            intervals.delete(low, high)
            for point in range(low, high):
                points.pop(point, None)
        else:
            intervals.set(low, high, value)
            points.update(dict.fromkeys(range(low, high), value))
        intervals.check()
    assert {p: v for low, high, v in intervals for p in range(low, high)} == points
    assert [intervals.at(point) for point in range(POINTS)] == [points.get(point) for point in range(POINTS)]
    inside = {p: v for low, high, v in intervals.overlapping(start, end) for p in range(low, high)}
    assert inside == {p: v for p, v in points.items() if start <= p < end}
    missing = {p for low, high in intervals.gaps(start, end) for p in range(low, high)}
    assert missing == set(range(start, end)) - set(points)
    assert intervals.covers(start, end) == (not missing)
    found = intervals.overlapping(start, end) if start < end else []
    assert intervals.first(start, end) == (found[0][:2] if found else None)
    assert len(intervals) == len(list(intervals))
    for point in range(POINTS):
        around = [(low, high) for low, high, _ in intervals if low <= point < high]
        assert intervals.around(point) == (around[0] if around else None)


def test_equal_neighbours_merge_into_one_extent() -> None:
    extents = IntervalSet()
    extents.add(0, 4096)
    extents.add(8192, 12288)
    extents.add(4096, 8192)
    assert extents.intervals() == [(0, 12288)]
    assert len(extents) == 1


def test_a_terabyte_under_one_value_is_one_entry() -> None:
    extents: IntervalMap[str] = IntervalMap()
    extents.set(0, 2**63, "held")
    extents.set(4096, 8192, "recalled")
    assert list(extents) == [(0, 4096, "held"), (4096, 8192, "recalled"), (8192, 2**63, "held")]
    assert extents.covers(0, 2**40)


def test_overlap_is_told_at_the_edges() -> None:
    extents = IntervalSet()
    extents.add(10, 20)
    assert extents.overlaps(19, 25)
    assert extents.overlaps(5, 11)
    assert not extents.overlaps(20, 25)
    assert not extents.overlaps(5, 10)


levels = st.lists(st.tuples(st.integers(0, POINTS), st.integers(0, POINTS), st.integers(1, 3)), max_size=20)


@given(levels, st.integers(0, POINTS), st.integers(0, POINTS), st.integers(1, 3))
def test_raising_never_lowers_and_what_is_at_least_so_high_is_told(
    changes: Changes[int], start: int, end: int, least: int
) -> None:
    intervals: IntervalMap[int] = IntervalMap()
    points: dict[int, int] = {}
    for low, high, value in changes:
        intervals.raise_to(low, high, value)
        intervals.check()
        points.update((point, max(value, points.get(point, 0))) for point in range(low, high))
    assert {p: v for low, high, v in intervals for p in range(low, high)} == points
    reached = all(points.get(point, 0) >= least for point in range(start, end))
    assert intervals.is_at_least(start, end, least) == reached


@given(edits, st.integers(0, POINTS), st.integers(0, POINTS))
def test_the_size_of_a_set_counts_its_points(changes: Changes[str | None], start: int, end: int) -> None:
    extents = IntervalSet()
    points: set[int] = set()
    for low, high, value in changes:
        if value is None:
            extents.delete(low, high)
            points.difference_update(range(low, high))
        else:
            extents.add(low, high)
            points.update(range(low, high))
    assert extents.size() == len(points)
    if start < end:
        assert extents.size(start, end) == len(points & set(range(start, end)))
