"""What is told of an inode while another name of it is in doubt."""

from __future__ import annotations

import pytest

from nfsfuse.machines.doubts import REPEAT_SECONDS_MAX, THREADS_MAX, Doubts, Verdict
from nfsfuse.protocol.types import InodeHandle

HERE, THERE = InodeHandle(b"here"), InodeHandle(b"there")
INODE, OTHER = InodeHandle(b"inode"), InodeHandle(b"other")
JOB, CLAIMED, PREFIX = (HERE, b"job"), (HERE, b"claimed"), (InodeHandle(b"root"), b"here")
FOUND, AGAIN, WAIT = Verdict.FOUND, Verdict.AGAIN, Verdict.WAIT


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
    assert doubts.looks(1, CLAIMED, OTHER, 0.0, 0.0) is FOUND
    assert doubts.looks(1, CLAIMED, None, 0.0, 0.0) is FOUND
    assert doubts.looks(1, JOB, INODE, 0.0, 0.0) is FOUND


def test_a_call_is_told_by_the_look_at_what_it_believed_and_by_the_next(doubts: Doubts) -> None:
    """A rename asks for its new name twice, if it has been there. Then it asks the server."""
    assert doubts.looks(1, CLAIMED, INODE, 0.0, 0.0) is AGAIN
    assert doubts.looks(1, CLAIMED, INODE, 0.1, 0.1) is AGAIN
    doubts.acts(1)
    assert doubts.looks(1, CLAIMED, INODE, 0.2, 0.2) is AGAIN, "it is another call"


def test_a_call_that_is_made_once_more_is_told_what_there_is(doubts: Doubts) -> None:
    assert doubts.looks(1, CLAIMED, INODE, 0.0, 0.0) is AGAIN
    assert doubts.looks(1, PREFIX, HERE, 0.1, 0.1) is FOUND
    assert doubts.was_told(1)
    assert doubts.looks(1, CLAIMED, INODE, 0.2, 0.2) is FOUND
    assert doubts.looks(1, CLAIMED, INODE, 0.3, 0.3) is FOUND
    assert not doubts.was_told(1)
    assert doubts.looks(1, CLAIMED, INODE, 0.4, 0.4) is AGAIN, "it is another call"


def test_another_name_after_that_belongs_to_another_call(doubts: Doubts) -> None:
    assert doubts.looks(1, CLAIMED, INODE, 0.0, 0.0) is AGAIN
    assert doubts.looks(1, PREFIX, HERE, 0.1, 0.1) is FOUND
    assert doubts.looks(1, CLAIMED, INODE, 0.2, 0.2) is FOUND
    assert doubts.looks(1, (HERE, b"second"), INODE, 0.3, 0.3) is AGAIN


def test_a_call_that_is_not_made_once_more_is_forgotten(doubts: Doubts) -> None:
    assert doubts.looks(1, CLAIMED, INODE, 0.0, 0.0) is AGAIN
    assert doubts.looks(1, PREFIX, HERE, 0.0, 0.0) is FOUND
    late = REPEAT_SECONDS_MAX + 0.1
    assert doubts.looks(1, CLAIMED, INODE, late, late) is AGAIN


def test_a_call_that_finds_nothing_is_over(doubts: Doubts) -> None:
    assert doubts.looks(1, CLAIMED, INODE, 0.0, 0.0) is AGAIN
    assert doubts.looks(1, JOB, None, 0.1, 0.1) is FOUND
    assert doubts.looks(1, CLAIMED, INODE, 0.2, 0.2) is AGAIN


def test_in_another_directory_who_asks_twice_waits(doubts: Doubts) -> None:
    """It need not be the call that has the lock."""
    done = (THERE, b"job")
    assert doubts.looks(1, done, INODE, 0.0, 0.0) is AGAIN
    assert doubts.looks(1, done, INODE, 0.1, 0.1) is WAIT
    assert doubts.is_in_doubt(done, INODE)
    assert doubts.looks(1, done, INODE, 0.1, 0.3, waited=True) is AGAIN
    assert doubts.looks(1, done, INODE, 0.4, 0.4) is FOUND


def test_threads_are_told_apart_and_not_remembered_without_end(doubts: Doubts) -> None:
    for thread in range(THREADS_MAX + 1):
        assert doubts.looks(thread, CLAIMED, INODE, 0.0, 0.0) is AGAIN
    assert not doubts.was_told(0)
    assert doubts.was_told(1)
