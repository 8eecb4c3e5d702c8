"""Works with many small files."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

from scripts.benchmark.figures import duration, microseconds_each, rate
from scripts.benchmark.ground import Ground, Work

FILES = "files"


def _files(ground: Ground, work: str, path: Path, count: int | None = None) -> dict[str, float]:
    return ground.program("bench_files", work, path, ground.sizes.files if count is None else count)


def _tree(ground: Ground) -> str:
    return ground.made_once(FILES, partial(_files, ground, "create"))


def _rate(measured: dict[str, float]) -> float:
    return measured["count"] / measured["seconds"]


def create(ground: Ground) -> tuple[float, ...]:
    """The files that other works need, in new directories."""
    if ground.has(FILES):
        remove(ground)
    measured: dict[str, float] = {}
    ground.made_once(FILES, lambda path: measured.update(_files(ground, "create", path)))
    return (_rate(measured),)


def walk(ground: Ground) -> tuple[float, ...]:
    """By a client that did not make them; then once more."""
    name = _tree(ground)
    with ground.fresh() as client:
        return tuple(_rate(_files(ground, "walk", client / name)) for _ in range(2))


def read(ground: Ground) -> tuple[float, ...]:
    """By a client that did not make them; then once more."""
    name = _tree(ground)
    with ground.fresh() as client:
        return tuple(_rate(_files(ground, "read", client / name)) for _ in range(2))


def stat(ground: Ground) -> tuple[float, ...]:
    """One file, again and again."""
    measured = _files(ground, "stat", ground.writer / _tree(ground), ground.sizes.stats)
    return (microseconds_each(measured),)


def remove(ground: Ground) -> tuple[float, ...]:
    """All of it, by the client that made it."""
    name = _tree(ground)
    measured = _files(ground, "remove", ground.writer / name)
    ground.removed(name)
    return (_rate(measured),)


FILE_WORKS: Final = (
    Work("create", (rate("create", "create 4 KiB files", "files/s"),), create),
    Work(
        "walk",
        (
            rate("walk-cold", "walk + stat, cold", "files/s"),
            rate("walk-warm", "walk + stat, warm", "files/s"),
        ),
        walk,
    ),
    Work(
        "read-files",
        (
            rate("read-files-cold", "read small files, cold", "files/s"),
            rate("read-files-warm", "read small files, warm", "files/s"),
        ),
        read,
    ),
    Work("stat", (duration("stat", "stat, hot", "us"),), stat),
    Work("remove", (rate("remove", "unlink", "files/s"),), remove),
)
