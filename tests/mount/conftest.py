"""Real servers and real mounts for the end-to-end tests.

A test touches mounts in this process: a janitor process lets it go when it takes too long (the mounts are
aborted, and whatever waits in them fails), and sweeps everything away should this process be killed. Never
map a file of a mount here: a page fault holds the interpreter's lock. Programs that do run as children.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from scripts.rig.rig import ROOT, Rig, Server

TEST_SECONDS_MAX = 120.0
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
            source = ROOT / "tests/programs" / f"{name}.c"
            subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", made, source], check=True)
        return made

    return compiled


@pytest.fixture
def pair(mounts: Mounts, request: pytest.FixtureRequest) -> Iterator[Pair]:
    """A new directory in the export for this test."""
    name = f"{mounts.rig.count()}-{request.node.originalname}"
    mounts.rig.deadline(TEST_SECONDS_MAX)
    (mounts.server.export / name).mkdir()
    yield Pair(mounts.one / name, mounts.two / name, mounts.server.export / name)
    mounts.rig.deadline(None)
