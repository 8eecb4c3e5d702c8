"""Ranges that overlap: against a list of them that is looked through."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfsfuse.protocol import range_index
from nfsfuse.protocol.range_index import FEW, RangeIndex

END = 40
RANGES = st.tuples(st.integers(0, END), st.integers(1, END)).map(lambda pair: (pair[0], sum(pair)))
FAR = st.sampled_from([(0, 2**63), (5, 2**63), (2**62 - 1, 2**62 + 1), (7, 2**40)])

Entry = tuple[int, int, int]


def agree(index: RangeIndex[int, str], plain: dict[Entry, str], start: int, end: int) -> None:
    index.check()
    assert bool(index) == bool(plain)
    assert len(index) == len({entry[:2] for entry in plain})
    meeting = [(*entry, value) for entry, value in plain.items() if entry[0] < end and start < entry[1]]
    assert sorted(index.meeting(start, end)) == sorted(meeting)
    values = [value for line in index.lines(start, end) for value in line.values()]
    assert sorted(values) == sorted(value for *_, value in meeting)
    before = [(stop, set(line.values())) for stop, line in index.before(start)]
    behind = [(begin, set(line.values())) for begin, line in index.behind(end)]
    ranges = sorted({entry[:2] for entry in plain}, key=lambda interval: interval[::-1])
    lines = {i: {value for entry, value in plain.items() if entry[:2] == i} for i in ranges}
    assert before == [(i[1], lines[i]) for i in reversed(ranges) if i[1] <= start]
    assert behind == [(i[0], lines[i]) for i in sorted(ranges) if i[0] >= end]


@given(st.lists(st.tuples(RANGES | FAR, st.integers(0, 2)), max_size=60), RANGES | FAR)
def test_as_a_list_of_them(changes: list[tuple[tuple[int, int], int]], asked: tuple[int, int]) -> None:
    """What is there already goes, and everything goes in the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(range_index, "FEW", 2)
        go_through(changes, asked)


def go_through(changes: list[tuple[tuple[int, int], int]], asked: tuple[int, int]) -> None:
    index, plain = RangeIndex[int, str](), dict[Entry, str]()
    for (start, end), key in changes:
        entry = (start, end, key)
        if entry in plain:
            index.remove(*entry)
            del plain[entry]
        else:
            index.add(*entry, str(entry))
            plain[entry] = str(entry)
        agree(index, plain, *asked)
    for entry in list(plain):
        index.remove(*entry)
        del plain[entry]
        agree(index, plain, *asked)


def test_a_line_is_in_the_order_of_its_entries() -> None:
    index = RangeIndex[int, str]()
    for number in range(FEW + 3):
        index.add(number, number + 2, 1, "first")
        index.add(number, number + 2, 0, "second")
    assert [list(line.values()) for line in index.lines(4, 5)] == [["first", "second"]] * 2
