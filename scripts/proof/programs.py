"""The C programs of tests/programs: compiled when they are first needed, and run with a time limit."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path

from scripts.rig.processes import Finished, TimedOut, run
from scripts.rig.rig import ROOT, Rig

SOURCES = ROOT / "tests" / "programs"

FLAGS = ("-O2", "-std=gnu17", "-Wall", "-Wextra", "-Werror")


class Status(IntEnum):
    """How a program ends (tests/programs/views.h)."""

    HELD = 0
    BROKEN = 1
    USAGE = 2
    STUCK = 3
    NOT_EXCLUSIVE = 4


class Programs:
    """The programs, compiled into a directory of the rig's, and run beside its mounts."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._directory = rig.directory / "programs"
        self._directory.mkdir(exist_ok=True)

    def compiled(self, name: str) -> Path:
        """The program *name*; raises AssertionError with the compiler's words if it cannot be made."""
        program = self._directory / name
        if not program.exists():
            compiler = os.environ.get("CC", "gcc")
            command = [compiler, *FLAGS, "-o", os.fspath(program), os.fspath(SOURCES / f"{name}.c")]
            made = subprocess.run(command, capture_output=True, text=True, timeout=60)
            assert made.returncode == 0, made.stderr
        return program

    def run(self, name: str, *arguments: str | Path | float, seconds: float) -> Finished:
        """Run a program; one that takes more than *seconds* has hung: its status is STUCK then."""
        words = [str(argument) for argument in arguments]
        try:
            return run([self.compiled(name), *words], seconds, self._rig.environment, self._rig.directory)
        except TimedOut as exc:
            return Finished(Status.STUCK, "", str(exc))


def fields(line: str) -> dict[str, str]:
    """``name value name value ...`` as a dictionary."""
    words = line.split()
    return dict(zip(words[::2], words[1::2], strict=True))


def views(mounts: Sequence[Path], name: str) -> list[Path]:
    """The paths of one file on each of *mounts*."""
    return [mount / name for mount in mounts]
