"""Works with many small files."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

from scripts.benchmark.figures import Measured, Value, duration, microseconds_each, per_second, rate
from scripts.benchmark.ground import Ground, Work

FILES = "files"


def _files(ground: Ground, work: str, path: Path, count: int | None = None) -> Measured:
    return ground.program("bench_files", work, path, ground.sizes.files if count is None else count)


def _tree(ground: Ground) -> str:
    return ground.made_once(FILES, partial(_files, ground, "create"))


def create(ground: Ground) -> tuple[Value, ...]:
    """The files that other works need, in new directories."""
    if ground.has(FILES):
        remove(ground)
    measured: list[Measured] = []
    ground.made_once(FILES, lambda path: measured.append(_files(ground, "create", path)))
    return (per_second(measured[0]),)


def walk(ground: Ground) -> tuple[Value, ...]:
    """By a client that did not make them; then once more."""
    name = _tree(ground)
    with ground.fresh() as client:
        return tuple(per_second(_files(ground, "walk", client / name)) for _ in range(2))


def read(ground: Ground) -> tuple[Value, ...]:
    """By a client that did not make them; then once more."""
    name = _tree(ground)
    with ground.fresh() as client:
        return tuple(per_second(_files(ground, "read", client / name)) for _ in range(2))


def stat(ground: Ground) -> tuple[Value, ...]:
    """One file, again and again."""
    measured = _files(ground, "stat", ground.writer / _tree(ground), ground.sizes.stats)
    return (microseconds_each(measured),)


def rename(ground: Ground) -> tuple[Value, ...]:
    """One file, again and again, by the client that made it."""
    measured = _files(ground, "rename", ground.writer / _tree(ground), ground.sizes.renames)
    return (microseconds_each(measured),)


def remove(ground: Ground) -> tuple[Value, ...]:
    """All of it, by the client that made it."""
    name = _tree(ground)
    measured = _files(ground, "remove", ground.writer / name)
    ground.removed(name)
    return (per_second(measured),)


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
    Work("rename", (duration("rename", "rename", "us"),), rename),
    Work("remove", (rate("remove", "unlink", "files/s"),), remove),
)
