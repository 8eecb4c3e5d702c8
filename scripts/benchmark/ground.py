"""Where work runs: one system in one round, with the programs and the sizes of the run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from scripts.benchmark.figures import Cost, Figure, Measured, Value
from scripts.benchmark.systems import System
from scripts.proof.programs import Programs, fields
from scripts.rig.processes import Finished

MIB = 1 << 20

WORK_SECONDS_MAX = 600.0
"""For one program on the slowest system."""


class NotMeasured(Exception):
    """This work was not done; the text says why."""


class Cannot(NotMeasured):
    """This system cannot do it: it is not tried again in later rounds."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much work there is. Sizes of data in bytes, multiples of 1 MiB."""

    bulk_bytes: int = 512 * MIB
    mapped_bytes: int = 64 * MIB
    load_bytes: int = 256 * MIB
    random_reads: int = 4000
    syncs: int = 300
    appends: int = 5000
    files: int = 2000
    stats: int = 50_000
    renames: int = 1000
    turns: int = 2000
    locks: int = 1000
    looks: int = 50
    sources: int = 60

    def memory_bytes(self, systems: int) -> int:
        """What a run with so many systems uses at once: of each the large files in the export's page cache, in
        its clients' and in the daemons' own, and as much again for everything else."""
        return systems * 4 * (self.bulk_bytes + self.mapped_bytes + self.load_bytes)


QUICK = Sizes(8 * MIB, 4 * MIB, 8 * MIB, 100, 10, 200, 100, 1000, 20, 100, 50, 5, 4)
"""To see whether everything runs; the figures mean nothing."""


@dataclass(slots=True, eq=False)
class Ground:
    """One system in one round. *writer* is the client that makes the data; *scratch* is outside of the export.

    What several works need is made when the first of them needs it."""

    system: System
    programs: Programs
    sizes: Sizes
    scratch: Path
    writer: Path = field(init=False)
    _second: Path | None = None
    _made: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.writer = self.system.mount()

    def second(self) -> Path:
        """A second client that stays."""
        if self._second is None:
            self._second = self.system.mount()
        return self._second

    @contextmanager
    def fresh(self) -> Iterator[Path]:
        """A client that has cached nothing of what the writer made."""
        with self.system.fresh() as client:
            yield client

    def made_once(self, name: str, make: Callable[[Path], object]) -> str:
        """*name*, which *make* has put at the path it was given, now or before, through the writer."""
        if name not in self._made:
            make(self.writer / name)
            self._made.add(name)
        return name

    def has(self, name: str) -> bool:
        """Whether `made_once` has made *name*, and it is there still."""
        return name in self._made

    def removed(self, name: str) -> None:
        """*name* is not there any more."""
        self._made.discard(name)

    def program(self, name: str, *arguments: str | Path | int) -> Measured:
        """Run one of tests/programs; what it prints and costs. Raises NotMeasured if it fails."""
        cost = self.system.cost()
        output = self.run(name, *arguments).output
        cost = self.system.cost() - cost
        return Measured({key: float(value) for key, value in fields(output).items()}, cost)

    def run(self, name: str, *arguments: str | Path | int) -> Finished:
        """Run one of tests/programs. Raises NotMeasured if it fails."""
        words = [str(argument) for argument in arguments]
        done = self.system.run(self.programs.compiled(name), *words, seconds=WORK_SECONDS_MAX)
        if done.status != 0:
            why = (done.errors or done.output).strip().splitlines()
            raise NotMeasured(f"{name} {arguments[0]}: {why[-1] if why else f'exit status {done.status}'}")
        return done

    def timed(self, cwd: Path, *argv: str | Path) -> tuple[float, Cost]:
        """Seconds that a program of the system takes, and what it costs. Raises NotMeasured if it fails."""
        cost = self.system.cost()
        began = time.perf_counter()
        done = self.system.run(*argv, seconds=WORK_SECONDS_MAX, cwd=cwd)
        seconds = time.perf_counter() - began
        cost = self.system.cost() - cost
        if done.status != 0:
            why = (done.errors or done.output).strip().splitlines()
            raise NotMeasured(f"{argv[0]} {os.fspath(argv[1])}: {why[-1] if why else f'status {done.status}'}")
        return seconds, cost


@dataclass(frozen=True, slots=True)
class Work:
    """Something to do on a ground. *measure* returns a value for each of *figures*, or raises NotMeasured."""

    name: str
    figures: tuple[Figure, ...]
    measure: Callable[[Ground], tuple[Value, ...]]
