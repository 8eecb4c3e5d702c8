"""Real servers and real mounts for the end-to-end tests.

A test touches mounts in this process: a janitor process lets it go when it takes too long (the mounts are
aborted, and whatever waits in them fails), and sweeps everything away should this process be killed. Never
map a file of a mount here: a page fault holds the interpreter's lock. Programs that do run as children.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from scripts.proof.programs import FLAGS, SOURCES, Programs
from scripts.rig.rig import Rig, Server

TEST_SECONDS_MAX = 240.0
"""For one test, on a machine that is busy with something else."""


@pytest.fixture
def rig() -> Iterator[Rig]:
    """An empty rig of this test's own."""
    with Rig() as made:
        made.deadline(TEST_SECONDS_MAX)
        yield made


@dataclass(frozen=True)
class Mounts:
    """One export, mounted twice."""

    rig: Rig
    server: Server
    one: Path
    two: Path


@dataclass(frozen=True)
class Pair:
    """One directory, seen through both mounts and on the server itself."""

    one: Path
    two: Path
    export: Path


@pytest.fixture(scope="module")
def mounts() -> Iterator[Mounts]:
    """A server and two mounts, for all tests of a module."""
    with Rig() as made:
        server = made.server()
        yield Mounts(made, server, made.mount(server), made.mount(server))
        assert server.process.poll() is None, server.log.read_text()
        assert "Traceback" not in server.log.read_text(), server.log.read_text()
        for log in made.directory.glob("mount-*.log"):
            assert "Traceback" not in log.read_text(), log.read_text()


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Compiles a program of tests/programs, once; where it is."""
    directory = tmp_path_factory.mktemp("programs")

    def compiled(name: str) -> Path:
        made = directory / name
        if not made.exists():
            subprocess.run(["cc", *FLAGS, "-o", made, SOURCES / f"{name}.c"], check=True)
        return made

    return compiled


@contextmanager
def new_directory(mounts: Mounts, request: pytest.FixtureRequest, through: Path) -> Iterator[Pair]:
    """A new directory for one test, made *through* a mount or in the export."""
    name = f"{mounts.rig.count()}-{request.node.originalname}"
    mounts.rig.deadline(TEST_SECONDS_MAX)
    (through / name).mkdir()
    yield Pair(mounts.one / name, mounts.two / name, mounts.server.export / name)
    mounts.rig.deadline(None)


@pytest.fixture
def pair(mounts: Mounts, request: pytest.FixtureRequest) -> Iterator[Pair]:
    """A new directory in the export for this test. (One made through a mount is held by that mount: what is
    done in it on the server is seen there only when the server notices.)"""
    with new_directory(mounts, request, mounts.server.export) as made:
        yield made


@dataclass(frozen=True)
class Proof:
    """One export, mounted three times with guarded page caches, and the C programs to be run in it."""

    rig: Rig
    mounts: list[Path]
    programs: Programs


@pytest.fixture(scope="module")
def proof() -> Iterator[Proof]:
    """Three mounts and the programs, for all tests of a module. The daemons must survive them."""
    with Rig() as rig:
        rig.environment["NFSFUSE_GUARD"] = "1"
        server = rig.server()
        mounts = [rig.mount(server) for _ in range(3)]
        yield Proof(rig, mounts, Programs(rig))
        for log in (server.log, *map(rig.log_of, mounts)):
            said = log.read_text()
            assert "Traceback" not in said, said
            assert "Fatal Python error" not in said, said
