"""A tree that nobody else changes is as cheap as a local one, counted: requests to the server, and upcalls.

2,000 files and a directory of 5,000; with ``--soak`` 20,000 and 5,000.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nfsfuse.engine.directories import ITEMS_MAX
from scripts.proof.counts import Counts, counts
from scripts.rig.rig import Rig
from tests.mount.conftest import TEST_SECONDS_MAX

DIRECTORIES = 20

FILES = 100
"""In each directory."""

FILES_SOAK = 1000

LARGE = 5000
"""Files in one more directory: more than fit into two pieces of a listing (2048 each)."""

TREE = 2 + DIRECTORIES
"""All directories, with the root and the large one."""

ATTEMPTS = 4
"""At a run that costs nothing (`Trees.run_unless_reclaimed`)."""


@dataclass(frozen=True)
class Trees:
    """One export with a tree in it, and mounts that have not looked at it."""

    rig: Rig
    files: int
    """In each small directory."""
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

    def run_unless_reclaimed(self, holds: Callable[[Counts], bool], mount: Path, *argv: str | Path) -> None:
        """Run a program, of which *holds* must be true. The kernel may take back pages and dentries whenever it
        wants the memory, and then has to ask again; it does not do so every time in `ATTEMPTS`."""
        tried: list[Counts] = []
        while not tried or not holds(tried[-1]):
            assert len(tried) < ATTEMPTS, tried
            tried.append(self.run(mount, *argv))


@pytest.fixture(scope="module")
def trees(request: pytest.FixtureRequest) -> Iterator[Trees]:
    files = FILES_SOAK if request.config.getoption("--soak") else FILES
    with Rig() as rig:
        rig.deadline(5 * TEST_SECONDS_MAX)
        server = rig.server()
        for directory in range(DIRECTORIES):
            (server.export / f"d{directory}").mkdir()
            for number in range(files):
                (server.export / f"d{directory}" / f"f{number}").write_bytes(bytes(number))
        (server.export / "large").mkdir()
        for number in range(LARGE):
            os.mknod(server.export / "large" / f"f{number}")
        yield Trees(rig, files, server.export, *(rig.mount(server) for _ in range(3)))


def test_listing_a_tree_for_the_first_time_costs_a_request_for_each_piece(trees: Trees) -> None:
    done = trees.run(trees.cold, "ls", "-lR", ".")
    assert done.requests["ReadDir"] == TREE - 1 + -(-LARGE // 2048), done
    # Of the root no listing tells: its attributes, and those that ls asks for.
    assert done.requests.total() - done.requests["ReadDir"] <= 5, done
    assert done.upcalls["lookup"] == 0, done


def test_who_owns_nothing_of_it_makes_no_more_requests(trees: Trees) -> None:
    """The kernel asks for a directory's ACL before it lets anybody else in; that there is none is known."""
    trees.rig.directory.chmod(0o755)
    mount = trees.rig.mount(trees.rig.servers[0])
    done = trees.run(mount, "setpriv", "--reuid=1", "--regid=1", "--clear-groups", "ls", "-lR", ".")
    assert done.upcalls["getxattr"] >= TREE - 1, done
    assert done.requests["ReadDir"] == TREE - 1 + -(-LARGE // 2048), done
    # But for names that the kernel has taken back meanwhile.
    assert done.requests.total() - done.requests["ReadDir"] - done.requests["Lookup"] <= 5, done
    assert done.requests["GetXattr"] == 0, done


@pytest.mark.parametrize(
    "argv",
    [["find", "."], ["find", ".", "-printf", "%s %T@\n"], ["ls", "-lR", "."], ["du", "-s", "."]],
    ids=" ".join,
)
def test_the_second_time_costs_no_request_and_the_files_no_upcall(trees: Trees, argv: list[str]) -> None:
    trees.run(trees.one, *argv)

    def second(done: Counts) -> bool:
        getattrs = done.upcalls["getattr"]  # the kernel doubts the atime of what it has listed
        return not done.requests and not done.upcalls["lookup"] + done.upcalls["readdir"] and getattrs <= TREE

    def third(done: Counts) -> bool:
        return second(done) and not done.upcalls["getattr"]

    trees.run_unless_reclaimed(second, trees.one, *argv)
    trees.run_unless_reclaimed(third, trees.one, *argv)


def test_one_change_elsewhere_costs_that_directory(trees: Trees) -> None:
    for _ in range(2):
        trees.run(trees.one, "find", ".", "-printf", "%s\n")
    (trees.two / "d3" / "new").write_text("new")
    done = trees.run(trees.one, "find", ".", "-printf", "%s\n")
    assert done.requests["ReadDir"] == 1, done
    assert done.requests.total() <= 3, done
    assert done.upcalls["readdir"] <= 2 + trees.files // ITEMS_MAX, done
    assert done.upcalls["lookup"] == 0, done
    (trees.two / "d3" / "new").unlink()


def test_git_status_costs_no_request(trees: Trees) -> None:
    """Without its lock file, that is, which it makes each time unless it is told not to."""
    repository = trees.one if trees.files == FILES_SOAK else trees.one / "d5"  # half a minute is too long
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
