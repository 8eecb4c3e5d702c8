"""Large directories, and listings while they change."""

from __future__ import annotations

import os
from pathlib import Path

from tests.mount.conftest import Pair

ENTRIES = 100_000


def fill(directory: Path, count: int) -> set[str]:
    """Make *count* empty files, on the server: through a mount it would take a minute."""
    names = {f"entry-{number:06}" for number in range(count)}
    for name in names:
        os.mknod(directory / name)
    return names


def test_a_directory_of_100_000_entries_while_it_changes(pair: Pair) -> None:
    """What is there all the time is listed exactly once, whatever else comes and goes (readdir(3))."""
    names = fill(pair.export, ENTRIES)
    removed: set[str] = set()
    added: set[str] = set()
    seen: list[str] = []
    with os.scandir(pair.one) as entries:
        for number, entry in enumerate(entries):
            seen.append(entry.name)
            if number % 500 == 0:  # changes ahead of the listing, behind it, and through the other mount
                victim = f"entry-{number * 7919 % ENTRIES:06}"
                if victim not in removed:
                    (pair.two if number % 1000 else pair.one).joinpath(victim).unlink()
                    removed.add(victim)
                (pair.two / f"new-{number}").touch()
                added.add(f"new-{number}")
    assert len(seen) == len(set(seen)), "listed twice"
    assert names - removed <= set(seen) <= names | added
    assert set(os.listdir(pair.two)) == (names - removed) | added


def test_seeking_back_in_a_listing(pair: Pair) -> None:
    """An offset once told stays good: telldir(3) and seekdir(3), by way of a descriptor's position."""
    names = fill(pair.export, 3000)
    descriptor = os.open(pair.one, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for _ in range(2):
            assert set(os.listdir(descriptor)) == names  # listdir rewinds
        (pair.two / "entry-000000").unlink()
        assert set(os.listdir(descriptor)) == names - {"entry-000000"}
    finally:
        os.close(descriptor)


def test_removing_while_listing_removes_all(pair: Pair) -> None:
    """As rm -r does."""
    fill(pair.export, 2000)
    with os.scandir(pair.one) as entries:
        for entry in entries:
            os.unlink(entry.path)
    assert os.listdir(pair.two) == []


def test_types_in_a_listing(pair: Pair) -> None:
    (pair.one / "directory").mkdir()
    (pair.one / "file").touch()
    (pair.one / "link").symlink_to("file")
    with os.scandir(pair.two) as entries:
        found = {
            entry.name: (entry.is_dir(follow_symlinks=False), entry.is_symlink(), entry.inode())
            for entry in entries
        }
    for name, (is_directory, is_link, inode) in found.items():
        status = (pair.export / name).lstat()
        assert inode == status.st_ino
        assert (is_directory, is_link) == (name == "directory", name == "link")
    assert len(found) == 3


def test_dot_dot_leads_out_of_a_moved_directory(pair: Pair) -> None:
    (pair.one / "a/inner").mkdir(parents=True)
    (pair.one / "b").mkdir()
    descriptor = os.open(pair.one / "a/inner", os.O_RDONLY)
    try:
        (pair.one / "a/inner").rename(pair.one / "b/inner")
        (pair.one / "b/mark").touch()
        assert os.stat("../mark", dir_fd=descriptor).st_ino == (pair.export / "b/mark").stat().st_ino
    finally:
        os.close(descriptor)
