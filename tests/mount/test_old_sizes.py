"""A file becomes longer; who has it open, and asks nothing, finds all of it at once.

The kernel goes by the size that it believes in for a read fault, splice, sendfile, copy_file_range and for the
place of an append (`nfsfuse.engine.growths`). What it does ask for, like lseek(2), is tried beside.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from scripts.proof.programs import SOURCES
from tests.mount.conftest import Pair

PAGE = 4096
OLD = 100
LONG = 5 * PAGE + 10
WITHIN = 200
"""On the page of the old end."""

SECONDS_MAX = 60.0


class User:
    """A program that has a file open (tests/programs/old_size.py)."""

    def __init__(self, path: Path, writes: str) -> None:
        command: list[str | Path] = [
            sys.executable, SOURCES / "old_size.py", path, path.with_name("copy"), writes
        ]  # fmt: skip
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._answer() == "open"

    def __call__(self, use: str, *arguments: int) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([use, *arguments]) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def end(self) -> None:
        """It closes what it has open."""
        self._process.communicate(timeout=SECONDS_MAX)
        assert self._process.returncode == 0


def truncated(path: Path, size: int) -> None:
    os.truncate(path, size)


def written(path: Path, size: int) -> None:
    """Past the old end: what is between may be a hole."""
    descriptor = os.open(path, os.O_RDWR)
    os.pwrite(descriptor, b"n" * 10, size - 10)
    os.close(descriptor)


def appended(path: Path, size: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(descriptor, b"n" * (size - os.fstat(descriptor).st_size))
    os.close(descriptor)


def allocated(path: Path, size: int) -> None:
    descriptor = os.open(path, os.O_RDWR)
    os.posix_fallocate(descriptor, 0, size)
    os.close(descriptor)


def copied(path: Path, size: int) -> None:
    """By copy_file_range(2) into it, which the server does."""
    source, target = os.open(path.with_name("source"), os.O_RDWR | os.O_CREAT), os.open(path, os.O_RDWR)
    os.write(source, b"n" * size)
    done = OLD
    while done < size:
        done += os.copy_file_range(source, target, size - done, done, done)
    os.close(source)
    os.close(target)


GROWTHS = (truncated, written, appended, allocated, copied)


@pytest.fixture(params=["two mounts", "one mount"])
def places(pair: Pair, request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """The directory, where the file becomes longer and where it is open."""
    return (pair.one, pair.two) if request.param == "two mounts" else (pair.two, pair.two)


@contextmanager
def opened(places: tuple[Path, Path], writes: str) -> Iterator[tuple[Path, User]]:
    """The file to be made longer, and a program that had it open before."""
    here, there = places
    (here / "f").write_bytes(b"o" * OLD)
    user = User(there / "f", writes)
    try:
        yield here / "f", user
    finally:
        user.end()


@pytest.mark.parametrize("writes", ["r", "rw"])
@pytest.mark.parametrize("grow", GROWTHS)
def test_a_mapping_reaches_what_was_not_there(
    places: tuple[Path, Path], grow: Callable[[Path, int], None], writes: str
) -> None:
    content = "\0" if grow in (truncated, allocated) else "n"
    with opened(places, writes) as (file, user):
        grow(file, PAGE + 1)  # its last byte is the first of a page
        assert user("load", PAGE) == content
        grow(file, LONG)
        assert user("load", LONG - 1) == content
        assert user("load", 0) == "o"
        grow(file, LONG + 10 * PAGE)
        user("pread", 0)
        assert user("load", LONG + 10 * PAGE - 1) == content


@pytest.mark.parametrize("writes", ["r", "rw"])
@pytest.mark.parametrize("grow", GROWTHS)
@pytest.mark.parametrize("use", ["copy_file_range", "sendfile", "splice"])
def test_a_copy_in_the_kernel_goes_to_the_end(
    places: tuple[Path, Path], grow: Callable[[Path, int], None], use: str, writes: str
) -> None:
    for size in (WITHIN, LONG):
        with opened(places, writes) as (file, user):
            grow(file, size)
            copied_bytes = user(use, OLD)
            assert copied_bytes == size - OLD
            assert user(use, size) == 0


@pytest.mark.parametrize("writes", ["r", "rw"])
@pytest.mark.parametrize("grow", GROWTHS)
def test_a_call_that_asks_sees_the_end(
    places: tuple[Path, Path], grow: Callable[[Path, int], None], writes: str
) -> None:
    with opened(places, writes) as (file, user):
        grow(file, LONG)
        assert user("end") == LONG
        assert user("pread", OLD) == LONG - OLD
        if grow in (appended, copied):
            assert user("data", 2 * PAGE) == 2 * PAGE
            assert user("hole") == LONG
        # No file of FUSE can be read so (FMODE_NOWAIT); if one could, to the end.
        assert user("preadv2", OLD) in (LONG - OLD, os.strerror(errno.EOPNOTSUPP), os.strerror(errno.EAGAIN))


@pytest.mark.parametrize("grow", GROWTHS)
def test_the_position_after_an_append_is_where_it_ended(
    places: tuple[Path, Path], grow: Callable[[Path, int], None]
) -> None:
    with opened(places, "append") as (file, user):
        for size in (WITHIN, LONG):
            grow(file, size)
            assert user("append") == size + 10
            assert file.stat().st_size == size + 10


def test_what_became_longer_before_it_was_opened_again_is_found(pair: Pair) -> None:
    """Nobody is told while nobody has it open; the kernel knows the file, and its old size, all the same."""
    (pair.one / "f").write_bytes(b"o" * OLD)
    User(pair.two / "f", "r").end()
    with (pair.one / "f").open("ab") as file:
        file.write(b"n" * LONG)
    user = User(pair.two / "f", "r")
    assert user("sendfile", OLD) == LONG
    user.end()
