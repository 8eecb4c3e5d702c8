"""The journal's log: what every one keeps to, and what the file does about records that were torn."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nfsfuse_server.state.interface import OVERHEAD, Log
from nfsfuse_server.state.log_file import LogFile
from tests.helpers.memory_state import MemoryLog

SIZE = 4096

Reopen = Callable[[], Log]


@pytest.fixture(params=["file", "memory"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Reopen]:
    """Opens the log, as a new process would: as often as wanted."""
    memory = MemoryLog(SIZE)
    opened: list[LogFile] = []

    def file() -> Log:
        opened.append(LogFile(tmp_path / "journal", SIZE))
        return opened[-1]

    yield file if request.param == "file" else lambda: memory
    for log in opened:
        log.close()


def test_a_new_log_is_empty_and_has_no_room_before_it_is_begun(reopen: Reopen) -> None:
    log = reopen()
    assert log.read() == []
    assert log.room() == 0
    with pytest.raises(OSError, match="space") as caught:
        log.append(b"x")
    assert caught.value.errno == errno.ENOSPC
    log.replace([], 0)
    assert log.room() == SIZE


def test_records_are_read_in_the_order_written(reopen: Reopen) -> None:
    log = reopen()
    log.replace([b"first"], 0)
    log.append(b"second")
    log.append(b"third")
    assert reopen().read() == [b"first", b"second", b"third"]


def test_replaced_records_are_gone_and_reserve_is_room(reopen: Reopen) -> None:
    log = reopen()
    log.replace([b"a", b"b"], 0)
    log.append(b"c")
    log.replace([b"b"], 100)
    assert log.room() == SIZE + 100
    log.append(b"d")
    assert log.room() == SIZE + 100 - 1 - OVERHEAD
    assert reopen().read() == [b"b", b"d"]


def test_what_has_no_room_is_not_written(reopen: Reopen) -> None:
    log = reopen()
    log.replace([], 0)
    log.append(b"x" * (SIZE - OVERHEAD - 10))
    with pytest.raises(OSError, match="space"):
        log.append(b"yyy")
    assert [len(record) for record in reopen().read()] == [SIZE - OVERHEAD - 10]
    log.append(b"yy")
    assert log.room() == 0


def test_a_log_cut_anywhere_has_the_records_before_the_cut(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "journal"
    log = LogFile(path, 64)
    log.replace([], 0)
    records = [b"one", b"twenty-two", b"3"]
    ends = [0]
    for record in records:
        log.append(record)
        ends.append(ends[-1] + OVERHEAD + len(record))
    log.close()
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        for rest in (b"", bytes(len(whole) - cut)):  # the file ends there, or the disk has zeros from there on
            caplog.clear()
            path.write_bytes(whole[:cut] + rest)
            log = LogFile(path, 64)
            count = sum(end <= cut for end in ends) - 1
            assert log.read() == records[:count], cut
            torn = any(whole[ends[count] : cut])
            assert ("cut off" in caplog.text) == torn, cut
            log.replace(records[:count], 0)
            log.append(b"more")
            assert log.read() == [*records[:count], b"more"]
            log.close()


def test_a_damaged_record_ends_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "journal"
    log = LogFile(path, SIZE)
    log.replace([b"good", b"bad", b"lost"], 0)
    log.close()
    with path.open("r+b") as file:
        file.seek(OVERHEAD + len(b"good") + OVERHEAD)
        file.write(b"B")
    with caplog.at_level(logging.WARNING):
        log = LogFile(path, SIZE)
        assert log.read() == [b"good"]
    assert "cut off" in caplog.text
    log.close()


def test_a_replacement_that_fails_leaves_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = LogFile(tmp_path / "journal", SIZE)
    log.replace([b"old"], 0)

    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(OSError, match="space"):
            log.replace([b"new"], 0)
    log.append(b"more")
    assert log.read() == [b"old", b"more"]
    assert [path.name for path in tmp_path.iterdir()] == ["journal"]
    log.close()
