"""What client 2 sees, and when, after it has returned on client 1: the table that the README promises.

`rows` measures each row on two mounts; the demo prints them, a test checks them, and
``python -m scripts.proof.table PATH1 PATH2`` measures any two directories that should be one.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from scripts.proof.programs import Programs, Status, fields
from scripts.rig.processes import Finished
from scripts.rig.rig import Rig

TIMES: Final = 50
"""Looks for each row, each way."""

RECORDS: Final = 1000
TURNS: Final = 100
LOCKS: Final = ("fcntl", "flock", "ofd")
LOCK_ROUNDS: Final = 50
SECONDS_MAX: Final = 60.0


@dataclass(frozen=True, slots=True)
class Row:
    """A row: what it is called, whether it is as promised, what was seen, and the slowest first look."""

    title: str
    held: bool
    seen: str


VISIBLE: Final = (
    ("write(2) -> read(2), file open on both", "write-read"),
    ("mmap store -> mmap load", "store-load"),
    ("write(2) -> mmap load", "write-load"),
    ("mmap store -> read(2)", "store-read"),
    ("file grew -> stat", "grew-stat"),
    ("file cut -> read(2)", "cut-read"),
    ("chmod -> stat", "chmod-stat"),
    ("unlink, create -> stat", "unlink-stat"),
)


def rows(programs: Programs, one: Path, two: Path) -> Iterator[Row]:
    """All rows, for two directories that are one, as they are measured."""
    measures: list[tuple[str, Callable[[], tuple[bool, str]]]] = [
        (title, partial(_visible, programs, row, one, two)) for title, row in VISIBLE
    ]
    measures += [(f"{kind} excludes", partial(_excludes, programs, kind, one, two)) for kind in LOCKS]
    measures.append((f"two O_APPEND writers, {RECORDS} records", partial(_appends, programs, one, two)))
    measures.append((f"mmap ping-pong, {TURNS} turns", partial(_ping_pong, programs, one, two)))
    for title, measure in measures:
        yield Row(title, *measure())


def _why(ran: Finished) -> str:
    return ran.errors.strip().splitlines()[-1] if ran.errors.strip() else Status(ran.status).name


def _visible(programs: Programs, row: str, one: Path, two: Path) -> tuple[bool, str]:
    late, longest = 0, 0
    for here, there in ((one, two), (two, one)):
        name = f"visible-{row}-{here.parent.name}-{here.name}"
        ran = programs.run("visible", row, TIMES, here / name, there / name, seconds=SECONDS_MAX)
        if not ran.output:
            return False, _why(ran)
        found = fields(ran.output.split(maxsplit=1)[1])
        if found["max_us"] == "never":
            return False, "never"
        late += int(found["late"])
        longest = max(longest, int(found["max_us"]))
    if late:
        return False, f"late {late} of {2 * TIMES} times, up to {longest / 1000:.1f} ms"
    return True, f"at once ({2 * TIMES} looks, the slowest took {longest / 1000:.1f} ms)"


def _excludes(programs: Programs, kind: str, one: Path, two: Path) -> tuple[bool, str]:
    ran = programs.run("locked", kind, LOCK_ROUNDS, one / kind, two / kind, seconds=SECONDS_MAX)
    match ran.status:
        case Status.HELD:
            return True, f"yes ({2 * LOCK_ROUNDS} increments under it, none lost)"
        case Status.NOT_EXCLUSIVE:
            return False, "no"
        case _:
            return False, _why(ran)


def _appends(programs: Programs, one: Path, two: Path) -> tuple[bool, str]:
    ran = programs.run("appends", RECORDS // 2, one / "appended", two / "appended", seconds=SECONDS_MAX)
    return ran.status == Status.HELD, ran.output.strip() or _why(ran)


def _ping_pong(programs: Programs, one: Path, two: Path) -> tuple[bool, str]:
    ran = programs.run("pingpong", TURNS, one / "ping-pong", two / "ping-pong", seconds=SECONDS_MAX)
    if ran.status != Status.HELD:
        return False, _why(ran)
    found = fields(ran.output.splitlines()[0].split(maxsplit=1)[1])
    return True, f"runs, {float(found['median_us']) / 1000:.2f} ms a turn"


def main() -> int:
    """Measure two directories; 0 if every row is as promised."""
    one, two = map(Path, sys.argv[1:3])
    held = True
    with Rig() as rig, tempfile.TemporaryDirectory(dir=one) as directory:
        for row in rows(Programs(rig), Path(directory), two / Path(directory).name):
            print(f"{row.title:40} {'held' if row.held else 'NOT ':5} {row.seen}", flush=True)
            held &= row.held
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
