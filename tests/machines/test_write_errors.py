"""What programs are told of failed write-backs, and when the background tries again."""

from __future__ import annotations

import errno

from nfsfuse.machines.inodes import Inode, InodeTable, NodeId
from nfsfuse.machines.write_errors import RETRY_SECONDS_MAX, RETRY_SECONDS_MIN, WriteErrors
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.types import Attributes, InodeHandle, Node

FULL, QUOTA = FsError(errno.ENOSPC), FsError(errno.EDQUOT)


def test_a_refusal_is_one_report_and_news_once_however_often_it_is_tried() -> None:
    errors = WriteErrors()
    assert [errors.refused(FULL, now) for now in (0.0, 0.0, 1.0, 5.0)] == [True, False, False, False]
    assert errors.reports == 1
    assert errors.attempts_failed == 4
    assert errors.settled()
    assert not errors.settled()
    assert errors.refused(FULL, 9.0), "a new refusal"
    assert errors.reports == 2


def test_another_error_is_news() -> None:
    errors = WriteErrors()
    assert errors.refused(FULL, 0.0)
    assert errors.refused(QUOTA, 0.0)
    assert errors.newest is not None
    assert errors.refusal is not None
    assert errors.newest.errno == errors.refusal.errno == QUOTA.errno
    assert QUOTA not in (errors.newest, errors.refusal), "it would keep what was in use where it was raised"
    assert errors.reports == 2


def test_lost_data_are_a_report_of_their_own() -> None:
    errors = WriteErrors()
    errors.refused(FULL, 0.0)
    errors.lost(FULL)
    assert errors.reports == 2


def test_the_background_tries_less_and_less_often() -> None:
    errors = WriteErrors()
    now, tried = 0.0, []
    errors.refused(FULL, now)
    while now < 60:
        now += 0.5
        if errors.retry_due(now):
            errors.refused(FULL, now)
            errors.refused(FULL, now)  # a second request of the same attempt
            tried.append(now)
    pauses = [later - earlier for earlier, later in zip([0.0, *tried], tried, strict=False)]
    assert pauses[0] == RETRY_SECONDS_MIN
    assert pauses == sorted(pauses)
    assert pauses[-1] == RETRY_SECONDS_MAX
    assert len(tried) < 12


def test_as_soon_as_the_server_takes_something_the_rest_follows() -> None:
    errors = WriteErrors()
    for now in range(0, 100, 10):
        errors.refused(FULL, float(now))
    assert not errors.retry_due(92.0)
    errors.accepted(92.0)
    assert not errors.retry_due(92.0 + RETRY_SECONDS_MIN / 2)
    assert errors.retry_due(92.0 + RETRY_SECONDS_MIN)


def test_nothing_is_due_where_nothing_was_refused() -> None:
    errors = WriteErrors()
    assert not errors.retry_due(1e9)
    errors.refused(FULL, 0.0)
    errors.settled()
    assert not errors.retry_due(1e9)


def test_an_inode_is_called_by_its_path() -> None:
    attributes = Attributes(77, 0o40755, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    table = InodeTable(Node(InodeHandle(b"root"), attributes))
    root = table[1]
    directory, file = (Inode(NodeId(number), 0, InodeHandle(b"%d" % number)) for number in (2, 3))
    assert str(file) == "inode 3"
    file.found_as = (directory, b"na\xffme")
    assert str(file) == "inode 3", "the directory is nowhere"
    directory.found_as = (root, b"dir")
    assert str(file) == "dir/na\\xffme"
    directory.found_as = (directory, b"dir")
    assert str(file) == "inode 3", "moved into one another, as far as this client knows"
