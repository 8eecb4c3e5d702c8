"""Every session that had data in a file is told once that they may not be on the disk."""

from __future__ import annotations

import errno

from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.types import InodeHandle, SessionId
from nfsfuse_server.machines import sync_errors
from nfsfuse_server.machines.sync_errors import SyncErrors

ONE, TWO, THREE = (SessionId(b"%d" % number) for number in range(3))
FILE, OTHER = InodeHandle(b"file"), InodeHandle(b"other")
ERROR = FsError(errno.EIO)


def told(error: FsError | None) -> bool:
    """Whether a session is told, by an error of its own: one that is raised twice has both tracebacks."""
    return error is not None and error is not ERROR and error.errno == ERROR.errno


def test_who_has_written_is_told_once_and_nobody_else() -> None:
    errors = SyncErrors()
    for session in (ONE, TWO):
        errors.wrote(session, FILE)
    errors.wrote(TWO, OTHER)
    errors.failed(ONE, FILE, ERROR)
    assert errors.synced(TWO, OTHER) is None
    assert told(errors.synced(TWO, FILE))
    assert errors.synced(TWO, FILE) is None
    assert errors.synced(ONE, FILE) is None, "it was told by the failure itself"
    assert errors.synced(THREE, FILE) is None


def test_what_was_synchronised_before_is_safe() -> None:
    errors = SyncErrors()
    errors.wrote(TWO, FILE)
    assert errors.synced(TWO, FILE) is None
    errors.failed(ONE, FILE, ERROR)
    assert errors.synced(TWO, FILE) is None


def test_more_writes_do_not_make_it_forget() -> None:
    errors = SyncErrors()
    errors.wrote(TWO, FILE)
    errors.failed(ONE, FILE, ERROR)
    errors.wrote(TWO, FILE)
    assert told(errors.synced(TWO, FILE))


def test_a_session_that_is_over_is_forgotten() -> None:
    errors = SyncErrors()
    errors.wrote(TWO, FILE)
    errors.ended(TWO)
    errors.ended(ONE)
    errors.failed(ONE, FILE, ERROR)
    assert errors.synced(TWO, FILE) is None


def test_memory_is_bounded(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(sync_errors, "UNSYNCED_MAX", 3)
    errors = SyncErrors()
    for number in range(5):
        errors.wrote(TWO, InodeHandle(b"%d" % number))
    for number in range(5):
        errors.failed(ONE, InodeHandle(b"%d" % number), ERROR)
    ends = [told(errors.synced(TWO, InodeHandle(b"%d" % number))) for number in range(5)]
    assert ends == [False, False, True, True, True]
