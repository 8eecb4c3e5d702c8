"""Litmus tests of sequential consistency over mounts: every test, by every kind of access, in both layouts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scripts.proof.programs import Programs, Status, fields, views

TESTS: Final = ("MP", "SB", "LB", "CoRR", "CoWW", "CoWR", "WRC", "IRIW")
"""Message passing, store and load buffering, coherence of one location (three), write-to-read causality,
independent reads of independent writes."""

ACCESSES: Final = (("map", "map"), ("map", "call"), ("call", "map"), ("call", "call"), ("any", "any"))
"""How is stored and how is loaded."""

LAYOUTS: Final = ("one", "two")
"""Pages for the two locations."""

SECONDS_EXTRA: Final = 45.0
"""A run that takes that much longer than it should has hung. The program finds so itself after 20 s."""


@dataclass(frozen=True, slots=True)
class Case:
    """One litmus test."""

    test: str
    stores: str
    loads: str
    layout: str

    def __str__(self) -> str:
        return f"{self.test:4} {self.stores:>4} -> {self.loads:4} {self.layout}"

    @property
    def name(self) -> str:
        """A file name."""
        return "-".join((self.test, self.stores, self.loads, self.layout))


@dataclass(frozen=True, slots=True)
class Result:
    """What it came to. *outcomes* counts what was loaded; *forbidden* are those no interleaving explains;
    *stale* counts loads of what an earlier round had replaced."""

    case: Case
    rounds: int
    outcomes: dict[str, int]
    forbidden: dict[str, int]
    stale: int
    status: int
    said: str

    @property
    def held(self) -> bool:
        """Whether all was allowed."""
        return self.status == Status.HELD

    def __str__(self) -> str:
        possible = len(self.outcomes) + len(self.forbidden)
        seen = sum(count > 0 for count in self.outcomes.values())
        text = f"{self.case}  {self.rounds:7} rounds, {seen:2} of {possible:2} outcomes"
        if self.held:
            return text
        broken = ", ".join(f"{outcome} {count} times" for outcome, count in self.forbidden.items())
        return f"{text}  BROKEN: {broken or Status(self.status).name}, {self.stale} stale\n{self.said.strip()}"


def cases(tests: Sequence[str] = TESTS) -> Iterator[Case]:
    """All of them."""
    for layout, (stores, loads), test in itertools.product(LAYOUTS, ACCESSES, tests):
        yield Case(test, stores, loads, layout)


def judge(programs: Programs, mounts: Sequence[Path], case: Case, seconds: float, seed: int) -> Result:
    """Run *case* for *seconds* on a new file, seen through all of *mounts*."""
    paths = views(mounts, f"{case.name}-{seed}")
    return judge_paths(programs, paths, case, seconds, seed)


def judge_paths(programs: Programs, paths: Sequence[Path], case: Case, seconds: float, seed: int) -> Result:
    """The same on these *paths*, which should be of one file."""
    words = [case.test, case.stores, case.loads, case.layout, str(seconds), str(seed)]
    ran = programs.run("litmus", *words, *paths, seconds=seconds + SECONDS_EXTRA)
    found: dict[str, dict[str, int]] = {"allowed": {}, "FORBIDDEN": {}}
    summary = {"rounds": "0", "stale": "0"}
    for line in ran.output.splitlines():
        if line.startswith("rounds"):
            summary = fields(line)
        else:
            outcome, count, verdict = line.split()
            found[verdict][outcome] = int(count)
    return Result(
        case,
        int(summary["rounds"]),
        found["allowed"],
        found["FORBIDDEN"],
        int(summary["stale"]),
        ran.status,
        ran.errors,
    )
