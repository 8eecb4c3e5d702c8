"""A tree that nobody else changes is as cheap as a local one, counted: requests to the server, and upcalls."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from scripts.proof.counts import Counts, counts
from scripts.rig.rig import Rig
from tests.mount.conftest import TEST_SECONDS_MAX

DIRECTORIES = 20

FILES = 100
"""In each directory. What is promised of 20,000 files in all does not depend on how many there are."""

LARGE = 5000
"""Files in one more directory: more than fit into two pieces of a listing (2048 each)."""

TREE = 2 + DIRECTORIES
"""All directories, with the root and the large one."""


@dataclass(frozen=True)
class Trees:
    """One export with a tree in it, and mounts that have not looked at it."""

    rig: Rig
    export: Path
    cold: Path
    one: Path
    two: Path

    def run(self, mount: Path, *argv: str | Path, **environment: str) -> Counts:
        """Run a program in *mount*; what it made the daemon do."""
        before = counts(self.rig, mount)
        subprocess.run(
            argv, cwd=mount, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, check=True
        )
        done = counts(self.rig, mount) - before
        del done.requests["Heartbeat"]  # the lease's
        del done.requests["StatFs"]  # told again for a few seconds only; tests/engine/test_listings.py
        return done


@pytest.fixture(scope="module")
def trees() -> Iterator[Trees]:
    with Rig() as rig:
        rig.deadline(5 * TEST_SECONDS_MAX)
        server = rig.server()
        for directory in range(DIRECTORIES):
            (server.export / f"d{directory}").mkdir()
            for number in range(FILES):
                (server.export / f"d{directory}" / f"f{number}").write_bytes(bytes(number))
        (server.export / "large").mkdir()
        for number in range(LARGE):
            os.mknod(server.export / "large" / f"f{number}")
        yield Trees(rig, server.export, *(rig.mount(server) for _ in range(3)))


def test_listing_a_tree_for_the_first_time_costs_a_request_for_each_piece(trees: Trees) -> None:
    done = trees.run(trees.cold, "ls", "-lR", ".")
    assert done.requests["ReadDir"] == TREE - 1 + -(-LARGE // 2048), done
    # Of the root no listing tells: its attributes, and those that ls asks for.
    assert done.requests.total() - done.requests["ReadDir"] <= 5, done
    assert done.upcalls["lookup"] == 0, done


@pytest.mark.parametrize(
    "argv",
    [["find", "."], ["find", ".", "-printf", "%s %T@\n"], ["ls", "-lR", "."], ["du", "-s", "."]],
    ids=" ".join,
)
def test_the_second_time_costs_no_request_and_the_files_no_upcall(trees: Trees, argv: list[str]) -> None:
    trees.run(trees.one, *argv)
    second = trees.run(trees.one, *argv)
    assert not second.requests, second
    assert second.upcalls["lookup"] == second.upcalls["readdir"] == 0, second
    assert second.upcalls["getattr"] <= TREE, second  # it doubts the atime of what it has listed
    third = trees.run(trees.one, *argv)
    assert not third.requests, third
    assert third.upcalls["lookup"] == third.upcalls["readdir"] == third.upcalls["getattr"] == 0, third


def test_one_change_elsewhere_costs_that_directory(trees: Trees) -> None:
    for _ in range(2):
        trees.run(trees.one, "find", ".", "-printf", "%s\n")
    (trees.two / "d3" / "new").write_text("new")
    done = trees.run(trees.one, "find", ".", "-printf", "%s\n")
    assert done.requests["ReadDir"] == 1, done
    assert done.requests.total() <= 3, done
    assert done.upcalls["readdir"] <= 2, done
    assert done.upcalls["lookup"] == 0, done
    (trees.two / "d3" / "new").unlink()


def test_git_status_costs_no_request(trees: Trees) -> None:
    """Without its lock file, that is, which it makes each time unless it is told not to."""
    repository = trees.one / "d5"
    settings = ["-c", "user.name=n", "-c", "user.email=e"]
    for arguments in (["init", "-q"], ["add", "."], [*settings, "commit", "-qm", "all"], ["status"]):
        trees.run(trees.one, "git", "-C", repository, *arguments, HOME=str(trees.rig.directory))
    environment = {"HOME": str(trees.rig.directory), "GIT_OPTIONAL_LOCKS": "0"}
    trees.run(trees.one, "git", "-C", repository, "status", **environment)
    done = trees.run(trees.one, "git", "-C", repository, "status", **environment)
    assert not done.requests, done
    assert done.upcalls["lookup"] == 0, done


def test_an_absent_name_is_asked_for_once_and_there_as_soon_as_it_is_made_elsewhere(trees: Trees) -> None:
    absent = trees.one / "d7" / "absent"
    assert absent.parent.is_dir()
    before = counts(trees.rig, trees.one)
    assert not absent.exists()
    first = counts(trees.rig, trees.one)
    for _ in range(10):
        assert not absent.exists()
    again = counts(trees.rig, trees.one) - first
    assert (first - before).requests["Lookup"] <= 1
    assert again.requests["Lookup"] == 0
    assert again.upcalls["lookup"] == 0, again
    for _ in range(20):
        (trees.two / "d7" / "absent").touch()
        assert absent.exists()
        (trees.two / "d7" / "absent").unlink()
        assert not absent.exists()


def test_a_program_that_rewinds_its_listing_sees_what_was_made_elsewhere(trees: Trees) -> None:
    """The kernel's cache of the listing is used without asking: it must have been dropped."""
    descriptor = os.open(trees.one / "d9", os.O_RDONLY | os.O_DIRECTORY)
    try:
        for number in range(20):
            listed = len(os.listdir(descriptor))  # rewinds
            assert len(os.listdir(descriptor)) == listed
            (trees.two / "d9" / f"new-{number}").touch()
            assert f"new-{number}" in os.listdir(descriptor)
            assert f"new-{number}" in os.listdir(trees.one / "d9")
    finally:
        os.close(descriptor)
