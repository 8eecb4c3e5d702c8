"""What a client believes of a directory's names: scenarios, and random sequences."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfsfuse.machines.directory_cache import UNKNOWN, DirectoryCache, Listed
from nfsfuse.protocol.tokens import RANGE_END, name_point
from nfsfuse.protocol.types import InodeHandle

A, B = InodeHandle(b"a"), InodeHandle(b"b")


def names_of_one_point() -> tuple[bytes, bytes]:
    """Two names on one point, found as shared birthdays are: among some 2^16 there is a pair."""
    seen: dict[int, bytes] = {}
    for number in itertools.count():
        name = b"%d" % (number * 2654435761 % 2**40)
        point = name_point(name)
        if point in seen and seen[point] != name:
            return seen[point], name
        seen[point] = name
    raise AssertionError


def holding_all() -> DirectoryCache:
    cache = DirectoryCache()
    cache.granted(0, RANGE_END)
    return cache


def recall(cache: DirectoryCache, name: bytes) -> list[bytes]:
    point = name_point(name)
    names = cache.revoke(point, point + 1)
    cache.revoked(point, point + 1, names)
    return names


def test_without_a_token_nothing_is_believed() -> None:
    cache = DirectoryCache()
    assert not cache.learned(b"x", A)
    assert cache.find(b"x") is UNKNOWN
    cache.changed(b"x", A)
    assert cache.find(b"x") is UNKNOWN


@pytest.mark.parametrize("entry", [A, None])
def test_a_name_and_its_absence_are_believed_until_recalled(entry: InodeHandle | None) -> None:
    cache = holding_all()
    assert cache.learned(b"x", entry)
    cache.learned(b"y", B)
    assert cache.find(b"x") == entry
    assert recall(cache, b"x") == [b"x"]
    assert cache.find(b"x") is UNKNOWN
    assert cache.find(b"y") == B
    cache.check()


def test_nothing_new_is_believed_while_a_recall_is_in_progress() -> None:
    cache = holding_all()
    point = name_point(b"x")
    names = cache.revoke(point, point + 1)
    assert names == []
    assert not cache.learned(b"x", A)
    assert cache.learned(b"y", B)
    cache.changed(b"x", A)
    cache.revoked(point, point + 1, names)
    assert cache.find(b"x") is UNKNOWN


def test_of_two_recalls_of_one_name_the_first_to_end_does_not_end_the_other() -> None:
    cache = holding_all()
    point = name_point(b"x")
    one, all_names = cache.revoke(point, point + 1), cache.revoke(0, RANGE_END)
    cache.revoked(point, point + 1, one)
    assert not cache.holds(b"x")
    cache.revoked(0, RANGE_END, all_names)
    cache.granted(point, point + 1)
    assert cache.holds(b"x")


def test_names_on_one_point_go_together() -> None:
    cache = holding_all()
    one, other = names_of_one_point()
    cache.learned(one, A)
    cache.learned(other, None)
    assert set(recall(cache, one)) == {one, other}
    assert cache.find(other) is UNKNOWN


def test_what_the_kernel_may_believe_is_dropped_even_if_the_daemon_does_not_remember_what() -> None:
    cache = holding_all()
    cache.changed(b"x", UNKNOWN)
    assert cache.find(b"x") is UNKNOWN
    assert recall(cache, b"x") == [b"x"]


def test_a_range_of_names_is_recalled_with_all_in_it() -> None:
    cache = holding_all()
    names = [b"%d" % number for number in range(50)]
    for name in names:
        cache.learned(name, A)
    half = 2**31
    assert set(cache.revoke(0, half)) == {name for name in names if name_point(name) < half}


LISTED = ((b"x", 1, A),)


def test_a_listing_is_known_while_all_names_are_held() -> None:
    cache = holding_all()
    cache.listed(0, LISTED, True, cache.changes)
    assert cache.listing(0, 10) == (LISTED, True)
    assert cache.listing(9, 10) is None


@pytest.mark.parametrize("what", ["changed here", "another name changed", "recalled"])
def test_any_change_drops_the_listing_and_those_under_way(what: str) -> None:
    cache = holding_all()
    asked = cache.changes
    cache.listed(0, LISTED, True, asked)
    if what == "changed here":
        cache.changed(b"x", None)
    elif what == "another name changed":
        cache.changed(b"other", B)
    else:
        recall(cache, b"other")
        assert cache.listing(0, 10) is None
        cache.granted(0, RANGE_END)
    assert cache.listing(0, 10) is None
    cache.listed(0, LISTED, True, asked)
    assert cache.listing(0, 10) is None, "it was asked for before the change"


def test_a_listing_without_all_names_is_not_kept() -> None:
    cache = DirectoryCache()
    cache.granted(0, 2**31)
    cache.listed(0, LISTED, True, cache.changes)
    cache.granted(2**31, RANGE_END)
    assert cache.listing(0, 10) is None


NAMES = st.sampled_from([b"x", b"y", b"z"])
steps = st.lists(st.tuples(st.sampled_from(["grant", "learn", "change", "begin", "end"]), NAMES), max_size=40)


@given(steps)
@settings(max_examples=200)
def test_in_any_order(sequence: list[tuple[str, bytes]]) -> None:
    """What is found is what was told last, under a token held ever since."""
    cache = DirectoryCache()
    handles = (InodeHandle(b"%d" % number) for number in itertools.count())
    held: set[bytes] = set()
    truth: dict[bytes, InodeHandle | None] = {}
    recalls: dict[bytes, list[bytes]] = {}
    for what, name in sequence:
        point = name_point(name)
        if what == "grant" and name not in recalls:
            cache.granted(point, point + 1)
            held.add(name)
        elif what in ("learn", "change"):
            handle = next(handles)
            believed = name in held and name not in recalls
            if what == "change":
                cache.changed(name, handle)
            else:
                assert cache.learned(name, handle) is believed
            if believed:
                truth[name] = handle
        elif what == "begin" and name not in recalls:
            recalls[name] = cache.revoke(point, point + 1)
            assert name not in truth or name in recalls[name]
        elif what == "end" and name in recalls:
            cache.revoked(point, point + 1, recalls.pop(name))
            held.discard(name)
            truth.pop(name, None)
        cache.check()
        for each in (b"x", b"y", b"z"):
            assert cache.find(each) == (UNKNOWN if each in recalls else truth.get(each, UNKNOWN))


def test_a_complete_directory_knows_what_is_not_there() -> None:
    cache = holding_all()
    cache.learned(b"x", A)
    assert cache.find(b"y") is UNKNOWN
    cache.knows_all()
    assert cache.find(b"x") == A
    assert cache.find(b"y") is None
    cache.changed(b"y", B)
    assert cache.find(b"y") == B
    cache.changed(b"y", None)
    assert cache.find(b"y") is None
    cache.changed(b"x", UNKNOWN)
    assert cache.find(b"x") is UNKNOWN, "a rename has changed it"
    assert cache.find(b"z" * 256) is UNKNOWN, "the server is to say that it is too long"
    cache.check()


def test_the_recall_of_a_name_that_was_taken_for_absent_drops_it_in_the_kernel() -> None:
    """K4: the kernel was told that it is not there."""
    cache = holding_all()
    cache.knows_all()
    assert cache.find(b"x") is None
    point = name_point(b"x")
    assert cache.revoke(point, point + 1) == [b"x"]
    assert cache.find(b"x") is UNKNOWN
    cache.revoked(point, point + 1, [b"x"])
    assert cache.find(b"x") is UNKNOWN
    assert cache.find(b"y") is None
    cache.check()


def test_a_point_that_was_recalled_is_not_complete_when_it_is_held_again() -> None:
    """What another client has made there may be another name of the same point."""
    one, other = names_of_one_point()
    cache = holding_all()
    cache.knows_all()
    recall(cache, one)
    point = name_point(one)
    cache.granted(point, point + 1)
    cache.learned(one, None)
    assert cache.find(one) is None
    assert cache.find(other) is UNKNOWN
    cache.check()


def test_nothing_is_complete_that_is_being_recalled_or_may_be_out_of_date() -> None:
    cache = holding_all()
    names = cache.revoke(5, 6)
    cache.knows_all()
    cache.revoked(5, 6, names)
    assert cache.find(b"x") is UNKNOWN
    cache.granted(5, 6)
    cache.knows_all()
    assert cache.find(b"x") is None
    cache.forget()
    assert cache.find(b"x") is UNKNOWN
    cache.knows_all()
    cache.lost()
    cache.granted(0, RANGE_END)
    assert cache.find(b"x") is UNKNOWN
    cache.check()


def pieces_of(count: int, size: int, *, descending: bool) -> tuple[list[Listed], list[int]]:
    """Names with their cookies, and the cookies at which pieces of *size* begin."""
    numbers = range(10 * count, 0, -10) if descending else range(10, 10 * count + 10, 10)
    entries = [(b"%d" % number, number, A) for number in numbers]
    return entries, [0, *(entries[at - 1][1] for at in range(size, count, size))]


@pytest.mark.parametrize("descending", [False, True])
def test_a_listing_goes_on_from_any_of_its_names(descending: bool) -> None:
    cache = holding_all()
    entries, beginnings = pieces_of(20, 6, descending=descending)
    for at, cookie in zip(range(0, 20, 6), beginnings, strict=True):
        cache.listed(cookie, tuple(entries[at : at + 6]), at + 6 >= 20, cache.changes)
    for index in range(20):
        cookie = entries[index - 1][1] if index else 0
        known = cache.listing(cookie, 3)
        assert known is not None, index
        assert list(known[0]) == entries[index : index + len(known[0])]
        assert len(known[0]) == min(3, 6 - index % 6, 20 - index)
        assert known[1] == (index >= 18)
    assert cache.listing(entries[-1][1], 3) == ((), True)
    assert cache.listing(15, 3) is None, "where no listing has led"


@pytest.mark.parametrize("descending", [False, True])
def test_no_name_is_remembered_in_two_pieces(descending: bool) -> None:
    cache = holding_all()
    entries, _ = pieces_of(20, 20, descending=descending)
    cache.listed(entries[9][1], tuple(entries[10:]), True, cache.changes)
    cache.listed(0, tuple(entries), True, cache.changes)
    assert cache.listing(0, 20) == (tuple(entries[:10]), False)
    between = entries[4][1] + 5
    cache.listed(between, tuple(entries[5:] if not descending else entries[4:]), True, cache.changes)
    assert cache.listing(between, 20) is None
    assert sum(len(piece.names) for piece in cache._listing.values()) == 20
