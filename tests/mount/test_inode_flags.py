"""chattr(1) and lsattr(1) on two mounts: flags that the server's filesystem has, obeyed by all clients."""

from __future__ import annotations

import errno
import os
import subprocess
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mount.conftest import Pair


def chattr(change: str, path: Path) -> None:
    subprocess.run(["chattr", change, path], check=True, capture_output=True)


def flags(path: Path) -> str:
    shown = subprocess.run(["lsattr", "-d", path], check=True, capture_output=True, text=True).stdout
    return shown.split()[0].replace("-", "").replace("e", "")


@pytest.fixture
def flagged(pair: Pair) -> Iterator[Pair]:
    """A directory with a file, of which no flag stays that would keep it from being removed."""
    (pair.one / "file").write_bytes(b"content")
    yield pair
    subprocess.run(["chattr", "-R", "-ia", pair.export], check=True, capture_output=True)


CHANGES: dict[str, Callable[[Path], object]] = {
    "open for writing": lambda path: os.open(path, os.O_RDWR),
    "open to add": lambda path: os.open(path, os.O_WRONLY | os.O_APPEND),
    "open to cut": lambda path: os.open(path, os.O_WRONLY | os.O_TRUNC),
    "truncate": lambda path: os.truncate(path, 0),
    "unlink": lambda path: path.unlink(),
    "rename": lambda path: path.rename(path.parent / "other"),
    "link": lambda path: os.link(path, path.parent / "other"),
    "chmod": lambda path: path.chmod(0o600),
    "utime": lambda path: os.utime(path, (1, 1)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_immutable_file_is_changed_by_nobody(flagged: Pair, change: str) -> None:
    for mount in (flagged.two, flagged.one):
        with (mount / "file").open("r+b") as file:  # so that both could, without asking
            assert file.read() == b"content"
    chattr("+i", flagged.one / "file")
    for mount in (flagged.one, flagged.two):
        assert flags(mount / "file") == "i"
        assert (mount / "file").read_bytes() == b"content"
        with pytest.raises(PermissionError):
            CHANGES[change](mount / "file")
    assert flags(flagged.export / "file") == "i"
    chattr("-i", flagged.two / "file")
    (flagged.one / "file").write_bytes(b"changed")
    assert (flagged.two / "file").read_bytes() == b"changed"


def test_what_was_written_before_is_kept_when_a_file_becomes_immutable(flagged: Pair) -> None:
    descriptor = os.open(flagged.two / "file", os.O_RDWR)
    os.write(descriptor, b"CONTENT")
    chattr("+i", flagged.one / "file")
    assert (flagged.export / "file").read_bytes() == b"CONTENT"
    os.write(descriptor, b" and more")  # it was opened before
    with pytest.raises(PermissionError):
        os.close(descriptor)
    assert (flagged.one / "file").read_bytes() == b"CONTENT"


def test_an_append_only_file_can_be_added_to(flagged: Pair) -> None:
    chattr("+a", flagged.one / "file")
    for mount in (flagged.one, flagged.two):
        with pytest.raises(PermissionError):
            os.open(mount / "file", os.O_WRONLY)
        with (mount / "file").open("ab") as file:
            file.write(b" and more")
    expected = b"content and more and more"
    assert (flagged.export / "file").read_bytes() == (flagged.one / "file").read_bytes() == expected


def test_an_immutable_directory_and_a_flag_of_the_filesystem(flagged: Pair) -> None:
    (flagged.one / "directory").mkdir()
    chattr("+i", flagged.one / "directory")
    with pytest.raises(PermissionError):
        (flagged.two / "directory/file").touch()
    chattr("-i", flagged.two / "directory")
    chattr("+d", flagged.two / "directory")
    assert flags(flagged.one / "directory") == flags(flagged.export / "directory") == "d"
    with pytest.raises(subprocess.CalledProcessError):
        chattr("+F", flagged.one / "directory")  # names in which case does not matter


def test_no_other_ioctl_is_known(flagged: Pair) -> None:
    with (flagged.one / "file").open() as file, pytest.raises(termios.error) as caught:
        termios.tcgetattr(file)
    assert caught.value.args[0] == errno.ENOTTY
