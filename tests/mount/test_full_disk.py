"""The server's disk is full: programs are told, nothing that was synchronised is lost, and work goes on."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from scripts.proof.programs import SOURCES
from scripts.rig.processes import poll_until
from scripts.rig.rig import Rig
from scripts.rig.small_disk import SmallDisk
from tests.mount.conftest import TEST_SECONDS_MAX

MIB = 1 << 20
DISK_SIZE = 8 * MIB
ROOM = 2 * MIB
RECORD = 64 * 1024
PAGE = 4096


@dataclass(frozen=True)
class Full:
    """A server with little room left, and a mount of it."""

    disk: SmallDisk
    mount: Path
    log: Path
    server: int  # its process id


@pytest.fixture
def full(rig: Rig, request: pytest.FixtureRequest) -> Iterator[Full]:
    """Its parameter, if any: options of the mount."""
    disk = SmallDisk(rig, DISK_SIZE)
    disk.fill(leave=ROOM)
    server = rig.server(export=disk.export)
    rig.environment["NFSFUSE_GUARD"] = "1"
    mount = rig.mount(server, getattr(request, "param", ""))
    rig.deadline(TEST_SECONDS_MAX)
    yield Full(disk, mount, rig.log_of(mount), server.process.pid)
    for log in (server.log, rig.log_of(mount)):
        assert "Traceback" not in log.read_text(), log.read_text()


def errno_of(call: Callable[[int], object], descriptor: int) -> int:
    """What *call* says: 0 if it succeeds."""
    try:
        call(descriptor)
    except OSError as exc:
        return exc.errno or -1
    return 0


def write_until_full(descriptor: int, *, fsync: bool = False) -> int:
    """Write records, the first all zeros, the next all ones..., until that fails; how many did not fail."""
    for number in range(1 << 20):
        try:
            os.write(descriptor, bytes([number & 0xFF]) * RECORD)
            if fsync:
                os.fsync(descriptor)
        except OSError as exc:
            if exc.errno != errno.ENOSPC:
                raise
            return number
    raise AssertionError("nobody says that the disk is full")


def records(count: int) -> bytes:
    """What `write_until_full` writes."""
    return b"".join(bytes([number & 0xFF]) * RECORD for number in range(count))


def test_what_was_synchronised_is_there_and_the_rest_follows_when_there_is_room(full: Full) -> None:
    descriptor = os.open(full.mount / "journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    there = full.disk.export / "journal"
    synced = write_until_full(descriptor, fsync=True)
    assert ROOM // RECORD // 2 <= synced <= ROOM // RECORD
    assert there.read_bytes()[: synced * RECORD] == records(synced)
    assert errno_of(lambda number: os.write(number, b"no room"), descriptor) == errno.ENOSPC
    full.disk.free()
    os.fsync(descriptor)
    assert there.read_bytes() == records(synced + 1), "what was written before the failure was kept"
    os.write(descriptor, b"room")
    assert errno_of(os.close, descriptor) == 0, "all of it was told already"
    assert there.read_bytes() == records(synced + 1) + b"room"
    poll_until(lambda: "the server refused before is written" in full.log.read_text(), 10, "it is said")
    said = full.log.read_text()
    assert said.count("journal: the server refuses") == 1, said
    assert "journal: what the server refused before is written" in said


def test_a_program_that_only_writes_is_told_by_write_and_by_close(full: Full) -> None:
    descriptor = os.open(full.mount / "output", os.O_WRONLY | os.O_CREAT)
    written = write_until_full(descriptor)
    assert written >= ROOM // RECORD // 2
    assert errno_of(os.close, descriptor) == errno.ENOSPC
    poll_until(lambda: "are lost" in full.log.read_text(), 10, "it is said")
    assert "output: " in full.log.read_text()
    left = (full.disk.export / "output").read_bytes()
    assert left == records(written)[: len(left)]
    assert (full.mount / "output").read_bytes() == left, "no client has more than the server"
    # Programs make room by removing and truncating.
    os.truncate(full.mount / "output", 0)
    (full.mount / "output").write_bytes(b"y" * RECORD)
    (full.mount / "output").unlink()
    (full.mount / "other").write_bytes(b"z" * RECORD)
    assert (full.disk.export / "other").read_bytes() == b"z" * RECORD


def open_in(process: int) -> int:
    """How many descriptors *process* has open."""
    return len(os.listdir(f"/proc/{process}/fd"))


def test_a_file_that_did_not_fit_gives_its_room_back_when_it_is_removed(full: Full) -> None:
    """Its descriptor was kept by the failure, in a cycle of exception and traceback, and the file with it."""
    (full.mount / "small").write_bytes(b"s")  # what a server opens once is open
    (full.mount / "small").unlink()
    room, before = full.disk.free_bytes(), open_in(full.server)
    for number in range(3):
        path = full.mount / f"too large {number}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
        write_until_full(descriptor)
        assert errno_of(os.close, descriptor) == errno.ENOSPC
        path.unlink()
        poll_until(lambda: full.disk.free_bytes() >= room, 5, "there is room again")
        poll_until(lambda: open_in(full.server) <= before, 5, "nothing is left open")


def test_a_file_is_truncated_while_what_is_dirty_cannot_be_written(full: Full) -> None:
    descriptor = os.open(full.mount / "file", os.O_WRONLY | os.O_CREAT)
    write_until_full(descriptor)
    os.ftruncate(descriptor, 100)
    assert errno_of(os.fsync, descriptor) == errno.ENOSPC, "not told before"
    assert errno_of(os.fsync, descriptor) == 0
    assert os.fstat(descriptor).st_size == 100
    assert errno_of(os.close, descriptor) == 0
    assert (full.disk.export / "file").read_bytes() == bytes(100)


class Mapped:
    """A program that has a new file of *pages* mapped (tests/programs/mapped_stores.py)."""

    def __init__(self, full: Full, pages: int) -> None:
        path = full.mount / "mapped"
        with path.open("wb") as file:
            file.truncate(pages * PAGE)
        self._there = full.disk.export / "mapped"
        self._child = subprocess.Popen(
            [sys.executable, SOURCES / "mapped_stores.py", path, str(pages)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )

    def __enter__(self) -> Mapped:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._child as child:
            assert child.stdin is not None
            child.stdin.close()
            if kind is None:
                assert child.wait(30) == 0

    def _ask(self, what: bytes) -> bytes:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(what + b"\n")
        return self._child.stdout.readline().strip()

    def store(self, letter: bytes) -> int:
        """Into each page; the errno of the msync that follows."""
        assert self._ask(b"store " + letter) == b"stored"
        return self.sync()

    def sync(self) -> int:
        return int(self._ask(b"sync"))

    def load(self) -> bytes:
        """The first byte of each page."""
        return bytes.fromhex(self._ask(b"load").decode())

    def at_the_server(self) -> bytes:
        """What is there in place of that."""
        return self._there.read_bytes()[::PAGE]


def test_stores_through_a_mapping_are_told_by_msync_and_kept(full: Full) -> None:
    pages = 2 * ROOM // PAGE
    with Mapped(full, pages) as mapped:
        assert mapped.store(b"a") == errno.ENOSPC
        assert mapped.store(b"b") == errno.ENOSPC
        full.disk.free()
        assert mapped.store(b"c") == 0
        assert mapped.at_the_server() == b"c" * pages
    assert "are lost" not in full.log.read_text()


@pytest.mark.parametrize("full", ["dirty_mib=1"], indirect=True)
def test_stores_that_there_is_no_memory_for_are_told_and_seen_by_nobody(full: Full) -> None:
    pages = 3 * ROOM // PAGE
    with Mapped(full, pages) as mapped:
        assert mapped.store(b"a") == errno.ENOSPC
        assert mapped.store(b"b") == errno.ENOSPC
        poll_until(lambda: "stores through mappings are lost" in full.log.read_text(), 10, "the log says so")
        full.disk.free()
        poll_until(lambda: mapped.sync() == 0, 10, "what was kept is written, and all is told")
        poll_until(lambda: mapped.load() == mapped.at_the_server(), 10, "the kernel has what the server has")
        assert mapped.load() != b"b" * pages, "some stores were lost"
        assert mapped.store(b"c") == 0
        assert mapped.at_the_server() == b"c" * pages


def test_another_program_on_the_server_makes_room_and_nobody_need_ask(full: Full) -> None:
    """The background tries again by itself."""
    descriptor = os.open(full.mount / "file", os.O_WRONLY | os.O_CREAT)
    write_until_full(descriptor)
    size = min(os.fstat(descriptor).st_size, 2 * ROOM)
    os.ftruncate(descriptor, size)
    full.disk.free()
    there = full.disk.export / "file"
    poll_until(lambda: there.read_bytes() == records(size // RECORD), 30, "it is written back")
    assert errno_of(os.close, descriptor) == errno.ENOSPC, "it was not told before, and is told once"
