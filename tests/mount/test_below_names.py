"""What is below a name - mounts, and the directories that programs work in - stays there, whatever others do or
try to do with the name, and goes along with it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from scripts.proof.load.world import LEASE_SECONDS, MARGIN_SECONDS, SLACK_SECONDS
from scripts.rig.processes import poll_until
from scripts.rig.proxy import Proxy
from scripts.rig.rig import Rig
from tests.mount.conftest import Mounts, Pair, new_directory

BUSY_SECONDS = 3.0

WORKS_THERE = """
import os, sys
os.chdir(sys.argv[1])
for line in sys.stdin:
    try:
        print(os.getcwd(), flush=True)
    except OSError as exc:
        print(exc.strerror, flush=True)
"""

CHANGES_NAMES = """
import os, random, sys, time
directory, seed, end = sys.argv[1], int(sys.argv[2]), time.monotonic() + float(sys.argv[3])
draw = random.Random(seed)
while time.monotonic() < end:
    one, other = (f"{directory}/{draw.choice('xyz')}" for _ in range(2))
    try:
        match draw.randrange(5):
            case 0: os.close(os.open(one, os.O_CREAT | os.O_EXCL))
            case 1: os.rename(one, other)
            case 2: os.unlink(one)
            case 3: os.stat(one)
            case 4: os.listdir(directory)
    except (FileNotFoundError, FileExistsError):
        pass
"""


@pytest.fixture
def pair(mounts: Mounts, request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Made through a mount: what is done there is not taken for done on the server."""
    with new_directory(mounts, request, mounts.two) as made:
        yield made


@contextmanager
def mounted(source: Path, point: Path) -> Iterator[None]:
    """*source* can be seen at *point*; wherever that has gone to by the end."""
    subprocess.run(["mount", "--bind", source, point], check=True)
    try:
        yield
    finally:
        below = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for place in below:
            if place.startswith(f"{point.parents[1]}/"):
                subprocess.run(["umount", "-l", place], check=True)


@contextmanager
def program_in(directory: Path) -> Iterator[Callable[[], str]]:
    """A program works in *directory*; where it is, as it says."""
    program = subprocess.Popen(
        [sys.executable, "-c", WORKS_THERE, directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert program.stdin is not None
    assert program.stdout is not None

    def where() -> str:
        assert program.stdin is not None
        assert program.stdout is not None
        program.stdin.write("\n")
        program.stdin.flush()
        return program.stdout.readline().rstrip("\n")

    try:
        assert where() == str(directory)
        yield where
    finally:
        program.stdin.close()
        program.wait(30)
        program.stdout.close()


def fails(call: Callable[..., object], *arguments: object) -> None:
    with pytest.raises(OSError):  # noqa: PT011 - which error it is is another test's
        call(*arguments)


def test_what_fails_elsewhere_does_no_harm(pair: Pair) -> None:
    there = pair.two / "parent/point"
    (there / "within").mkdir(parents=True)
    (pair.two / "source").mkdir()
    (pair.two / "source/above").touch()
    (pair.two / "file").touch()
    (pair.two / "other").mkdir()
    here = pair.one / "parent/point"
    attempts: list[tuple[Callable[..., object], tuple[object, ...]]] = [
        (os.rmdir, (there,)),
        (os.rmdir, (there.parent,)),
        (os.unlink, (there,)),
        (os.mkdir, (there,)),
        (os.mkdir, (there.parent,)),
        (os.rename, (pair.two / "other", there)),
        (os.rename, (pair.two / "file", there)),
        (os.rename, (there.parent, there / "within")),
        (os.rename, (there, pair.two / "file")),
        (os.link, (pair.two / "file", there)),
        (os.symlink, ("x", there)),
        (os.open, (there, os.O_CREAT | os.O_WRONLY)),
    ]
    with program_in(here / "within") as where, mounted(pair.one / "source", here):
        for call, arguments in attempts:
            fails(call, *arguments)
            assert os.listdir(here) == ["above"], (call.__name__, arguments)
            assert where() == str(here / "within"), (call.__name__, arguments)


def test_what_is_below_goes_along(pair: Pair) -> None:
    (pair.two / "a/b/point").mkdir(parents=True)
    (pair.two / "a/b/c").mkdir()
    (pair.two / "other").mkdir()
    (pair.two / "source").mkdir()
    (pair.two / "source/above").touch()
    with program_in(pair.one / "a/b/c") as where, mounted(pair.one / "source", pair.one / "a/b/point"):
        (pair.two / "a/b/c").rename(pair.two / "a/b/c2")
        assert where() == str(pair.one / "a/b/c2")
        (pair.two / "a").rename(pair.two / "a2")
        assert where() == str(pair.one / "a2/b/c2")
        assert (pair.one / "other").is_dir(), "what is not known at all here, nothing is found in"
        (pair.two / "a2/b").rename(pair.two / "other/b")
        assert where() == str(pair.one / "other/b/c2")
        assert os.listdir(pair.one / "other/b/point") == ["above"]
        (pair.two / "other/b/c2").rename(pair.two / "other/b/c3")
        assert where() == str(pair.one / "other/b/c3")
        assert (pair.one / "other/b/c3").is_dir()
        (pair.two / "other/b/c3").rmdir()
        poll_until(lambda: where() == os.strerror(2), 20, "the directory is gone")


def test_a_busy_directory_keeps_what_is_below_it(pair: Pair) -> None:
    """Names in it are recalled all the time while it is locked."""
    (pair.two / "point").mkdir()
    (pair.two / "here").mkdir()
    (pair.two / "source").mkdir()
    (pair.two / "source/above").touch()
    with ExitStack() as stack:
        where = stack.enter_context(program_in(pair.one / "here"))
        stack.enter_context(mounted(pair.one / "source", pair.one / "point"))
        programs = [
            subprocess.Popen([sys.executable, "-c", CHANGES_NAMES, directory, str(seed), str(BUSY_SECONDS)])
            for seed, directory in enumerate((pair.one, pair.two, pair.one, pair.two))
        ]
        while any(program.poll() is None for program in programs):
            assert os.listdir(pair.one / "point") == ["above"]
            assert where() == str(pair.one / "here")
            time.sleep(0.02)
        assert [program.returncode for program in programs] == [0] * 4


def test_an_outage_longer_than_the_lease_does_no_harm(rig: Rig) -> None:
    server = rig.server(listen="127.0.0.1:0", arguments=["--lease", str(LEASE_SECONDS)])
    with Proxy(rig, server.address) as proxy:
        cut, other = rig.mount(server, address=proxy.address), rig.mount(server)
        (other / "parent/point").mkdir(parents=True)
        (other / "parent/here").mkdir()
        (other / "source").mkdir()
        (other / "source/above").touch()
        (other / "parent/moves").touch()
        with program_in(cut / "parent/here") as where, mounted(cut / "source", cut / "parent/point"):
            assert (cut / "parent/moves").exists()
            assert not (cut / "parent/comes").exists()
            proxy.refuse()
            proxy.cut()
            time.sleep(LEASE_SECONDS + MARGIN_SECONDS + SLACK_SECONDS)
            (other / "parent/moves").rename(other / "parent/comes")
            proxy.accept()
            assert (cut / "parent/comes").exists()
            assert not (cut / "parent/moves").exists()
            assert os.listdir(cut / "parent/point") == ["above"]
            assert where() == str(cut / "parent/here")
            with suppress(FileNotFoundError):
                (cut / "parent/nothing").stat()
    for log in (server.log, *rig.directory.glob("mount-*.log")):
        assert "Traceback" not in log.read_text(), log.read_text()
