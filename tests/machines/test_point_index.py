"""Names by their points: against a set of them, also where bytes of two points together look like a third."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfsfuse.machines import point_index
from nfsfuse.machines.point_index import PointIndex
from nfsfuse.protocol.tokens import name_point

NAMES = st.binary(min_size=1, max_size=2)


@given(st.lists(st.tuples(st.booleans(), NAMES), max_size=200), st.sets(NAMES))
def test_as_a_set(changes: list[tuple[bool, bytes]], replaced: set[bytes]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(point_index, "_LOAD", 2)
        index, names = PointIndex(), set[bytes]()
        for there, name in changes:
            if not there:
                index.discard(name)
                names.discard(name)
            elif name not in names:
                index.add(name)
                names.add(name)
        agree(index, names, {name for _, name in changes})
        index.replace(replaced)
        agree(index, replaced, names | replaced)


def agree(index: PointIndex, names: set[bytes], asked: set[bytes]) -> None:
    assert len(index) == len(names)
    for name in asked:
        on_it = [other for other in names if name_point(other) == name_point(name)]
        assert sorted(index.at(name_point(name))) == sorted(on_it)


def test_a_point_across_two_others_is_none(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    points = {b"a": 0x01000000, b"b": 0x00000001, b"c": 0x00010100}
    monkeypatch.setattr(point_index, "name_point", points.__getitem__)
    index = PointIndex()
    index.add(b"a")
    index.add(b"b")
    assert list(index.at(points[b"a"])) == [b"a"]
    assert list(index.at(points[b"b"])) == [b"b"]
    assert list(index.at(points[b"c"])) == []
    assert points[b"c"].to_bytes(4, "little") in b"\0\0\0\1\1\0\0\0", "it does lie across the two"
