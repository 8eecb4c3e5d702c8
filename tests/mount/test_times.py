"""The times of files: what stat(2) tells it goes on telling, on both mounts and on the server; what is set
stays set, as far as the server's filesystem can keep it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nfsfuse.engine.closes import RELEASE_SECONDS
from nfsfuse_server.storage.largest_file import file_size_max
from scripts.rig.processes import poll_until
from tests.mount.conftest import Pair

SECOND = 10**9

SET_NS = 1_000_000_007 * SECOND + 123

WRITTEN_BACK_SECONDS = 2.5
"""By then the daemon has written back whatever is dirty: nothing tells when it has nothing to do."""

STORE = """
import mmap, os, sys
path, setter, again = sys.argv[1:4]
descriptor = os.open(path, os.O_RDWR)
mapping = mmap.mmap(descriptor, 4096)
mapping[0] = 1
if setter:
    print("stored", flush=True)
    sys.stdin.readline()
else:
    os.utime(descriptor, ns=(5, int(sys.argv[4])))
if again:
    mapping[0] = 2
mapping.flush()
mapping.close()
os.close(descriptor)
"""
"""Stores through a mapping, sets the mtime (or, with a *setter*, lets somebody else), perhaps stores *again*,
and unmaps."""


def times(path: Path | int) -> tuple[int, int]:
    """mtime and ctime."""
    found = os.stat(path)
    return found.st_mtime_ns, found.st_ctime_ns


def store(path: Path, *, setter: Path | None = None, again: bool = False) -> None:
    """See STORE. With *setter*, through which path the time is set instead."""
    how = "setter" if setter else "", "again" if again else "", str(SET_NS)
    arguments = [sys.executable, "-c", STORE, str(path), *how]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        if setter is not None:
            assert program.stdout is not None
            assert program.stdout.readline() == "stored\n"
            os.utime(setter, ns=(5, SET_NS))
        program.communicate("go on\n", timeout=60)
    assert program.returncode == 0


# --- what is set stays set ---


def test_a_time_that_is_set_after_a_store_through_a_mapping_stays(pair: Pair) -> None:
    (pair.one / "file").write_bytes(bytes(4096))
    store(pair.one / "file")
    assert (pair.one / "file").stat().st_mtime_ns == SET_NS
    assert (pair.two / "file").stat().st_mtime_ns == SET_NS
    assert (pair.two / "file").read_bytes()[0] == 1
    assert (pair.export / "file").stat().st_mtime_ns == SET_NS


def test_a_store_after_the_time_was_set_changes_it(pair: Pair) -> None:
    (pair.one / "file").write_bytes(bytes(4096))
    store(pair.one / "file", again=True)
    assert (pair.one / "file").stat().st_mtime_ns > SET_NS
    assert (pair.two / "file").stat().st_mtime_ns > SET_NS


def test_a_time_that_another_client_sets_after_a_store_stays(pair: Pair) -> None:
    (pair.one / "file").write_bytes(bytes(4096))
    store(pair.one / "file", setter=pair.two / "file")
    assert (pair.one / "file").stat().st_mtime_ns == SET_NS
    assert (pair.two / "file").stat().st_mtime_ns == SET_NS


def test_a_time_that_another_client_sets_after_a_write_stays(pair: Pair) -> None:
    (pair.one / "file").write_bytes(bytes(4096))
    other = os.open(pair.two / "file", os.O_RDWR)  # so that neither has the attributes to itself
    descriptor = os.open(pair.one / "file", os.O_RDWR)
    try:
        assert os.fstat(other).st_size == 4096
        os.pwrite(descriptor, b"x", 7)
        os.utime(other, ns=(5, SET_NS))
        time.sleep(WRITTEN_BACK_SECONDS)
        assert os.fstat(descriptor).st_mtime_ns == SET_NS
        os.close(os.dup(descriptor))  # a FLUSH
        assert os.fstat(other).st_mtime_ns == SET_NS
    finally:
        os.close(descriptor)
        os.close(other)


# --- what is told of a write is told ever after ---


@pytest.mark.parametrize("offset", [0, 1 << 20], ids=["within", "beyond the end"])
def test_what_is_told_of_a_write_is_told_ever_after(pair: Pair, offset: int) -> None:
    (pair.one / "file").write_bytes(bytes(4096))
    descriptor = os.open(pair.one / "file", os.O_RDWR)
    try:
        os.pwrite(descriptor, b"written", offset)
        told = times(descriptor)
        assert told == times(pair.two / "file") == times(pair.export / "file")
        time.sleep(WRITTEN_BACK_SECONDS)
        assert told == times(descriptor) == times(pair.two / "file")
    finally:
        os.close(descriptor)
    assert told == times(pair.one / "file") == times(pair.two / "file") == times(pair.export / "file")


def test_who_makes_a_file_and_asks_before_it_is_closed(pair: Pair) -> None:
    """As git does, which keeps what fstat(2) tells of what it has checked out, and reads all again if it is
    another time later."""
    told = {}
    for number in range(20):
        with (pair.one / f"{number}").open("wb", buffering=0) as file:
            file.write(b"content")
            told[number] = times(file.fileno())
    time.sleep(WRITTEN_BACK_SECONDS)
    for number, expected in told.items():
        assert times(pair.one / f"{number}") == expected
        assert times(pair.two / f"{number}") == expected


def test_git_finds_nothing_to_look_at_again(pair: Pair) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        done = subprocess.run(
            command, cwd=pair.one, check=True, capture_output=True, text=True, timeout=120
        )
        return done.stdout

    git("init", "-q")
    for number in range(10):
        (pair.one / f"{number}").write_text(f"{number}")
    git("add", ".")
    git("commit", "-qm", "all")
    for number in range(10):
        (pair.one / f"{number}").unlink()
    git("checkout", "-q", ".")
    time.sleep(WRITTEN_BACK_SECONDS)
    # diff-files compares what the index has with stat(2), and does not look into files.
    assert git("diff-files", "--name-only") == ""


def test_now_is_the_servers_now(pair: Pair) -> None:
    """utimensat(2) with UTIME_NOW, as touch(1): never before or after what is written around it."""
    (pair.one / "before").write_bytes(b"x")
    before = (pair.one / "before").stat().st_mtime_ns
    (pair.one / "touched").touch()
    os.utime(pair.one / "touched")
    touched = (pair.one / "touched").stat()
    (pair.one / "after").write_bytes(b"x")
    assert before <= touched.st_mtime_ns <= (pair.one / "after").stat().st_mtime_ns
    assert touched.st_mtime_ns <= touched.st_ctime_ns


# --- the last access ---


def accessed(path: Path) -> int:
    return path.stat().st_atime_ns


def await_access(path: Path, after_ns: int) -> None:
    """Nobody waits for the server to be told."""
    poll_until(lambda: accessed(path) > after_ns, 10, "the server's time of access")


def test_a_read_after_a_write_is_an_access_and_a_second_one_is_not(pair: Pair) -> None:
    """relatime of mount(8)."""
    (pair.one / "file").write_bytes(bytes(1 << 20))
    for mount in (pair.one, pair.two):
        os.utime(mount / "file", ns=(SET_NS, SET_NS + 1))
        assert accessed(mount / "file") == SET_NS
        before = times(mount / "file")
        (mount / "file").read_bytes()
        first = accessed(mount / "file")
        assert first > before[1]
        await_access(pair.export / "file", before[1])
        (mount / "file").read_bytes()
        assert accessed(mount / "file") == first
        assert times(mount / "file") == times(pair.export / "file") == before, "a read changes no other time"


def test_a_file_that_was_read_and_changed_since_is_accessed_by_who_finds_it_in_the_kernels_cache(
    pair: Pair,
) -> None:
    (pair.one / "file").write_bytes(b"x" * 5000)
    (pair.one / "file").read_bytes()
    (pair.one / "file").chmod(0o640)
    changed = (pair.one / "file").stat()
    assert changed.st_atime_ns <= changed.st_ctime_ns
    (pair.one / "file").read_bytes()
    poll_until(
        lambda: accessed(pair.one / "file") > changed.st_ctime_ns, 10, "the kernel's asking for the time"
    )
    await_access(pair.export / "file", changed.st_ctime_ns)


def test_a_file_that_is_only_opened_or_read_with_o_noatime_is_not_accessed(pair: Pair) -> None:
    """Although the server may have read it ahead."""
    (pair.one / "file").write_bytes(b"x" * 5000)
    os.utime(pair.one / "file", ns=(SET_NS, SET_NS + 1))
    for mount in (pair.one, pair.two):
        descriptor = os.open(mount / "file", os.O_RDONLY | os.O_NOATIME)
        try:
            assert os.read(descriptor, 10) == b"x" * 10
        finally:
            os.close(descriptor)
        os.close(os.open(mount / "file", os.O_RDWR))
    time.sleep(2 * RELEASE_SECONDS)
    for directory in (pair.one, pair.two, pair.export):
        assert accessed(directory / "file") == SET_NS


# --- large files ---


def test_who_writes_beyond_the_largest_file_is_told_at_once(pair: Pair) -> None:
    largest = file_size_max(os.open(pair.export, os.O_RDONLY | os.O_DIRECTORY))
    assert 0 < largest < 2**63 - 1
    for directory in (pair.export, pair.one):  # the local filesystem is the model
        descriptor = os.open(directory / "large", os.O_RDWR | os.O_CREAT)
        appending = os.open(directory / "large", os.O_WRONLY | os.O_APPEND)
        try:
            for offset in (largest, largest + 1, 2**63 - 4097):
                with pytest.raises(OSError, match="too large"):
                    os.pwrite(descriptor, b"x", offset)
            assert os.pwrite(descriptor, b"abcdef", largest - 2) == 2
            assert os.fstat(descriptor).st_size == largest
            with pytest.raises(OSError, match="too large"):
                os.write(appending, b"x")
            os.ftruncate(descriptor, largest - 3)
            assert os.write(appending, b"abcdef") == 3
            assert os.pread(descriptor, 10, largest - 3) == b"abc"
            for size in (largest + 1, 2**63 - 1):
                with pytest.raises(OSError, match="too large"):
                    os.ftruncate(descriptor, size)
            with pytest.raises(OSError, match="too large"):
                os.posix_fallocate(descriptor, largest - 1, 2)
            os.fsync(descriptor)
        finally:
            os.close(appending)
            os.close(descriptor)  # nothing was taken in that the server then refuses
        assert (directory / "large").stat().st_size == largest
        (directory / "large").unlink()


# --- far times ---

FAR = [-(2**31), -1, 0, 2**31, 9223372037, 2**34 - 2**31 - 1, 18446744074, 2**40, -(2**33), -(2**40)]
"""Seconds: 1901, 1969, 1970, 2038, 2262 (a signed number of nanoseconds ends), 2446 (ext4 does), 2554 (an
unsigned one), and what no ext4 has."""


@pytest.mark.parametrize("seconds", FAR)
def test_a_far_time_is_kept_as_the_servers_filesystem_keeps_it(pair: Pair, seconds: int) -> None:
    there, here, local = pair.two / "far", pair.one / "far", pair.export / "local"
    here.write_bytes(b"x")
    local.write_bytes(b"x")
    wanted = seconds * SECOND + (999_999_999 if seconds < 2**33 else 0)
    os.utime(local, ns=(wanted, wanted))
    os.utime(here, ns=(wanted, wanted))
    expected = local.stat()
    for path in (here, there, pair.export / "far"):
        found = path.stat()
        assert (found.st_atime_ns, found.st_mtime_ns) == (expected.st_atime_ns, expected.st_mtime_ns)
    assert here.read_bytes() == b"x"
    os.utime(local, ns=(wanted, SET_NS))
    assert local.stat().st_atime_ns == (pair.one / "local").stat().st_atime_ns
