"""Neighbours in one page, each incrementing its own bytes through a mapping: nothing lost, nobody starves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.proof.programs import Programs, Status, fields, views

SECONDS_EXTRA = 60.0


@dataclass(frozen=True, slots=True)
class Writer:
    """What a writer did. A turn: it stored after another one had; *gap_ms*: its longest wait."""

    stores: int
    turns: int
    gap_ms: float


@dataclass(frozen=True, slots=True)
class Reader:
    """What a reader did; *changes* is how often it saw something new."""

    loads: int
    changes: int


@dataclass(frozen=True, slots=True)
class Increments:
    """What it came to."""

    writers: list[Writer]
    readers: list[Reader]
    seconds: float
    status: int
    said: str

    def __str__(self) -> str:
        verdict = "nothing lost" if self.status == Status.HELD else f"BROKEN: {self.said.strip()}"
        lines = [f"increments for {self.seconds:g} s: {verdict}"]
        lines += [
            f"  writer {number}: {it.stores:,} stores, {it.turns} turns, longest wait {it.gap_ms:.1f} ms"
            for number, it in enumerate(self.writers)
        ]
        lines += [
            f"  reader {number}: {it.loads:,} loads, {it.changes} changes seen"
            for number, it in enumerate(self.readers)
        ]
        return "\n".join(lines)


def count(
    programs: Programs, mounts: Sequence[Path], name: str, seconds: float, writers: int, readers: int
) -> Increments:
    """Run it for *seconds* on a new file: HELD if every count was exact and no reader saw an old one."""
    ran = programs.run(
        "increments", seconds, writers, readers, *views(mounts, name), seconds=seconds + SECONDS_EXTRA
    )
    lines = [fields(line) for line in ran.output.splitlines()]
    return Increments(
        [Writer(int(it["stores"]), int(it["turns"]), float(it["gap_ms"])) for it in lines if "writer" in it],
        [Reader(int(it["loads"]), int(it["changes"])) for it in lines if "reader" in it],
        seconds,
        ran.status,
        ran.errors,
    )
