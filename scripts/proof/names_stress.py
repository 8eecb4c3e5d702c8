"""Several mounts, one small set of names, as much at once as there is: judged by `names_model`.

    python -m scripts.proof.names_stress [--seconds N] [--mounts N] [--programs N] [--seed N] [--journal FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scripts.proof.names_model import DIRECTORY, EMPTY, PATHS, Call, Done, State, Unexplained, check
from scripts.rig.rig import ROOT, Rig

SLACK_SECONDS: Final = 60.0
"""Beyond the time that programs are to run; who takes longer has hung."""


class Stuck(AssertionError):
    """A program did not come back from a call."""


@dataclass(frozen=True, slots=True)
class Result:
    """What was done, in numbers: calls by kind and answer, and the seconds that judging them took."""

    calls: Counter[str]
    judged_seconds: float

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(self.calls.items()))
        return f"{sum(self.calls.values())} calls judged in {self.judged_seconds:.1f} s: {kinds}"


def parse(line: str) -> Done:
    """One line of a worker's journal."""
    begin, end, mount, call, paths, error, inode, links = json.loads(line)
    return Done(begin, end, mount, Call(call), tuple(paths), error, inode, links)


def tree(directory: Path) -> State:
    """What the names stand for, as this view has it."""
    found: list[int | None] = []
    for path in PATHS:
        try:
            status = (directory / path).stat()
        except FileNotFoundError:
            found.append(None)
        else:
            found.append(DIRECTORY if (directory / path).is_dir() else status.st_ino)
    for name in "ab":
        listed = {f"{name}/{entry}" for entry in os.listdir(directory / name)}
        there = {p for p, v in zip(PATHS, found, strict=True) if v is not None and p.startswith(name)}
        assert listed == there, f"{directory / name}: listed {listed}, found {there}"
    return tuple(found)


def stress(
    rig: Rig, mounts: Sequence[Path], export: Path, *, seconds: float, programs: int, seed: int,
    journal: Path | None = None,
) -> Result:  # fmt: skip
    """Run *programs* on each of *mounts* (*export* is what the server has), and judge what they were told;
    *journal* is where to keep that. Raises Stuck, Unexplained, or AssertionError if the mounts differ in the
    end."""
    for directory in "ab":
        (mounts[0] / directory).mkdir()
    history = _run(rig, mounts, seconds, programs, seed)
    if journal is not None:
        journal.write_text("".join(f"{done}\n" for done in sorted(history, key=lambda done: done.begin)))
    trees = [tree(view) for view in (*mounts, export)]
    assert len(set(trees)) == 1, f"the views differ at the end: {trees}"
    begin = time.perf_counter()
    states = check(history, EMPTY)
    if trees[0] not in states:
        raise Unexplained(f"at the end the names are {trees[0]}, which only {states} would explain")
    kinds = Counter(
        f"{done.call.value}{'!' if done.error else ''}" for done in history
    )
    return Result(kinds, time.perf_counter() - begin)


def _run(rig: Rig, mounts: Sequence[Path], seconds: float, programs: int, seed: int) -> list[Done]:
    journals: list[Path] = []
    workers: list[subprocess.Popen[bytes]] = []
    rig.deadline(seconds + SLACK_SECONDS)
    for index in range(len(mounts) * programs):
        number = index % len(mounts)
        journal = rig.directory / f"journal-{rig.count()}"
        arguments = [str(mounts[number]), f"mount {number + 1}", str(seed + index), str(seconds)]
        command = [sys.executable, "-m", "scripts.proof.names_worker", *arguments]
        with journal.open("wb") as output:
            workers.append(subprocess.Popen(command, cwd=ROOT, env=rig.environment, stdout=output))
        journals.append(journal)
    try:
        statuses = [worker.wait(seconds + SLACK_SECONDS / 2) for worker in workers]
    except subprocess.TimeoutExpired:
        # Said before the janitor lets them go: where they are is what is to be found out.
        places = [f"{w.args!r}: {_where(w.pid)}" for w in workers if w.poll() is None]
        for worker in workers:
            worker.kill()
        raise Stuck("\n".join(places)) from None
    finally:
        rig.deadline(SLACK_SECONDS)
    assert not any(statuses), f"programs ended with {statuses}"
    return [parse(line) for journal in journals for line in journal.read_text().splitlines()]


def _where(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stack").read_text().strip().replace("\n", " < ")
    except OSError as exc:
        return str(exc)


def main() -> None:
    """Run it as told on the command line; exit status 1 if something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--mounts", type=int, default=3)
    parser.add_argument("--programs", type=int, default=2, help="on each mount (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--journal", type=Path, help="a file for all that is told (default: only on failure)")
    arguments = parser.parse_args()
    kept = arguments.journal or Path(tempfile.gettempdir()) / f"names-stress-{arguments.seed}.journal"
    with Rig() as rig:
        server = rig.server()
        mounts = [rig.mount(server) for _ in range(arguments.mounts)]
        print(f"seed {arguments.seed}", flush=True)
        try:
            result = stress(
                rig, mounts, server.export,
                seconds=arguments.seconds, programs=arguments.programs, seed=arguments.seed,
                journal=kept,
            )  # fmt: skip
        except AssertionError as exc:
            sys.exit(f"FAILED: {exc}" + (f"\nall calls and answers: {kept}" if kept.exists() else ""))
        if arguments.journal is None:  # nobody wants it then
            kept.unlink()
        print(result)


if __name__ == "__main__":
    main()
