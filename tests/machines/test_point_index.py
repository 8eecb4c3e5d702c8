"""Names by their points: against a list of them, also where bytes of two points together look like a third."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nfsfuse.machines import point_index
from nfsfuse.machines.point_index import PointIndex
from nfsfuse.protocol.tokens import name_point


@given(st.lists(st.binary(min_size=1, max_size=2)), st.lists(st.binary(min_size=1, max_size=2)))
def test_as_a_list(added: list[bytes], replaced: list[bytes]) -> None:
    index = PointIndex()
    for name in added:
        index.add(name)
    for name in {*added, *replaced}:
        assert list(index.at(name_point(name))) == [other for other in added if other == name]
    index.replace(replaced)
    assert len(index) == len(replaced)
    for name in {*added, *replaced}:
        assert list(index.at(name_point(name))) == [other for other in replaced if other == name]


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
