"""What is told of an inode while another name of it is in doubt."""

from __future__ import annotations

import pytest

from nfsfuse.machines.doubts import LOOKS_MAX, REPEAT_SECONDS_MAX, THREADS_MAX, Doubts, Place, Verdict
from nfsfuse.protocol.types import InodeHandle

HERE = InodeHandle(b"here")
INODE, OTHER = InodeHandle(b"inode"), InodeHandle(b"other")
JOB, CLAIMED, PREFIX = (HERE, b"job"), (HERE, b"claimed"), (InodeHandle(b"root"), b"here")
FOUND, AGAIN = Verdict.FOUND, Verdict.AGAIN
NUMBER = 1 << 62


@pytest.fixture
def doubts() -> Doubts:
    made = Doubts()
    made.begin(JOB, INODE)
    return made


def test_without_doubts_there_is_nothing_to_be_asked() -> None:
    made = Doubts()
    assert not made
    doubt = made.begin(JOB, INODE)
    assert made
    made.over(doubt)
    assert not made


def test_what_leads_elsewhere_or_is_that_very_name_is_found(doubts: Doubts) -> None:
    assert doubts.looks(1, CLAIMED, OTHER, 0.0) is FOUND
    assert doubts.looks(1, CLAIMED, None, 0.0) is FOUND
    assert doubts.looks(1, JOB, INODE, 0.0) is FOUND


def stopped(doubts: Doubts, thread: int = 1, place: Place = CLAIMED) -> None:
    """*thread* is told of a stand-in at *place*, and wants something of it."""
    assert doubts.looks(thread, place, INODE, 0.0) is AGAIN
    doubts.told(NUMBER + thread, thread, place)
    doubts.wanted(NUMBER + thread, 0.0)


def test_who_asks_nothing_of_it_is_told_as_often_as_it_looks(doubts: Doubts) -> None:
    """A rename asks for its new name twice, if it has been there. Then it asks the server."""
    for _ in range(3):
        assert doubts.looks(1, CLAIMED, INODE, 0.0) is AGAIN
        doubts.told(NUMBER, 1, CLAIMED)
    assert not doubts.is_again(1)


def test_a_call_that_is_made_once_more_is_told_what_there_is(doubts: Doubts) -> None:
    stopped(doubts)
    assert doubts.looks(1, PREFIX, HERE, 0.1) is FOUND
    assert doubts.is_again(1)
    for _ in range(LOOKS_MAX):
        assert doubts.looks(1, CLAIMED, INODE, 0.2) is FOUND
    assert not doubts.is_again(1)
    assert doubts.looks(1, CLAIMED, INODE, 0.4) is AGAIN, "it is another call"


def test_who_has_looked_at_the_name_in_doubt_is_not_told_that_it_is_elsewhere(doubts: Doubts) -> None:
    stopped(doubts)
    assert doubts.looks(1, JOB, INODE, 0.1) is FOUND
    assert doubts.looks(1, CLAIMED, INODE, 0.2) is AGAIN


def test_another_name_after_that_belongs_to_another_call(doubts: Doubts) -> None:
    stopped(doubts)
    assert doubts.looks(1, CLAIMED, INODE, 0.2) is FOUND
    assert doubts.looks(1, (HERE, b"second"), INODE, 0.3) is AGAIN


@pytest.mark.parametrize("end", ["late", "acts", "finds nothing"])
def test_a_call_is_over(doubts: Doubts, end: str) -> None:
    stopped(doubts)
    now = REPEAT_SECONDS_MAX + 0.1 if end == "late" else 0.1
    if end == "acts":
        doubts.acts(1)
    if end == "finds nothing":
        assert doubts.looks(1, (HERE, b"nothing"), None, now) is FOUND
    assert doubts.looks(1, CLAIMED, INODE, now) is AGAIN


def test_threads_are_told_apart_and_not_remembered_without_end(doubts: Doubts) -> None:
    for thread in range(THREADS_MAX + 1):
        stopped(doubts, thread)
    assert not doubts.is_again(0)
    assert doubts.is_again(1)
