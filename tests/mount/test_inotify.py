"""What inotify(7) on one mount tells of what is done on another: as much as the kernel lets a daemon say."""

from __future__ import annotations

import ctypes
import os
import select
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.conftest import Mounts, Pair, new_directory

IN_DELETE_SELF = 0x400
IN_IGNORED = 0x8000
IN_ALL_EVENTS = 0xFFF

_EVENT = struct.Struct("iIII")  # watch, mask, cookie, length of the name that follows

SECONDS_MAX = 20.0

libc = ctypes.CDLL(None, use_errno=True)


class Watcher:
    """An inotify instance."""

    def __init__(self) -> None:
        self.descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self.descriptor >= 0, os.strerror(ctypes.get_errno())

    def watch(self, path: Path) -> int:
        watch: int = libc.inotify_add_watch(self.descriptor, bytes(path), IN_ALL_EVENTS)
        assert watch >= 0, os.strerror(ctypes.get_errno())
        return watch

    def events(self, seconds: float) -> list[tuple[int, int]]:
        """(watch, mask) of what has happened; waits for the first of them."""
        if not select.select([self.descriptor], [], [], seconds)[0]:
            return []
        data, found = os.read(self.descriptor, 65536), []
        while data:
            watch, mask, _, length = _EVENT.unpack_from(data)
            found.append((watch, mask))
            data = data[_EVENT.size + length :]
        return found


@pytest.fixture
def watcher() -> Iterator[Watcher]:
    made = Watcher()
    yield made
    os.close(made.descriptor)


@pytest.fixture
def pair(mounts: Mounts, request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Made through a mount: that one is made in the export is noticed when a test is at work in it. Its name is
    then recalled, and with it the kernel forgets the names that lead to whom to tell."""
    with new_directory(mounts, request, mounts.one) as made:
        yield made


@pytest.mark.parametrize("how", ["unlink", "rename over it"])
def test_who_watches_a_file_hears_of_its_removal_elsewhere(pair: Pair, watcher: Watcher, how: str) -> None:
    (pair.one / "file").write_text("watched")
    (pair.one / "new").write_text("new")
    watch = watcher.watch(pair.two / "file")
    assert watcher.events(0) == []
    if how == "unlink":
        (pair.one / "file").unlink()
    else:
        (pair.one / "new").rename(pair.one / "file")
    assert watcher.events(SECONDS_MAX) == [(watch, IN_DELETE_SELF), (watch, IN_IGNORED)]
    assert (pair.two / "file").exists() is (how != "unlink")


def test_a_file_that_has_other_names_is_not_said_to_be_gone(pair: Pair, watcher: Watcher) -> None:
    (pair.one / "file").write_text("watched")
    os.link(pair.one / "file", pair.one / "other")
    watcher.watch(pair.two / "file")
    (pair.one / "file").unlink()
    (pair.one / "other").rename(pair.one / "third")
    assert watcher.events(0) == []
    assert (pair.two / "third").stat().st_nlink == 1
    assert (pair.two / "third").read_text() == "watched"


def test_a_file_that_is_open_here_lives_on(pair: Pair, watcher: Watcher) -> None:
    """Promise 9, and the kernel has been told that it has no links."""
    (pair.one / "file").write_text("content")
    with (pair.two / "file").open("r+") as file:
        watcher.watch(pair.two / "file")
        (pair.one / "file").unlink()
        assert os.fstat(file.fileno()).st_nlink == 0
        file.write("CONTENT")
        file.flush()
        file.seek(0)
        assert file.read() == "CONTENT"


def test_who_watches_a_directory_hears_nothing_of_changes_elsewhere(pair: Pair, watcher: Watcher) -> None:
    """A limit of the kernel's, and stated as such: should this fail, docs/coherence.md can promise more."""
    (pair.one / "file").write_text("watched")
    watch = watcher.watch(pair.two)
    assert (pair.two / "file").exists()
    watcher.events(0)
    (pair.one / "file").unlink()
    (pair.one / "made").touch()
    assert (pair.two / "made").exists()
    assert not (pair.two / "file").exists()
    assert [event for event in watcher.events(0) if event[0] == watch and event[1] & 0x3C0] == []
