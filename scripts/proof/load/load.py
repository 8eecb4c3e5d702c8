"""Workers on mounts: started, stopped, declared dead, and judged."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.proof.load.check import Histories, violations
from scripts.proof.load.journal import read_all
from scripts.proof.load.worker import KINDS, prepare
from scripts.rig.rig import ROOT, Rig

END_SECONDS_MAX = 60.0
"""From the end of the input to the end of a worker, which may wait for a lease and the others' locks."""


@dataclass(eq=False)
class Running:
    """A worker on *mount*."""

    name: str
    mount: Path
    process: subprocess.Popen[bytes]


class Load:
    """A mixed load on some mounts of one export, which must be new; see `worker.KINDS`."""

    def __init__(self, rig: Rig, export: Path, seed: int, kinds: Sequence[str] = tuple(KINDS)) -> None:
        self._rig = rig
        self._export = export
        self._seed = seed
        self._kinds = kinds
        self._numbers = itertools.count()
        self.control = rig.directory / f"control-{rig.count()}"
        (self.control / "dead").mkdir(parents=True)
        self.errors = self.control / "errors.txt"
        self.dead: set[str] = set()
        self.workers: list[Running] = []
        prepare(export)

    def start(self, mount: Path) -> list[Running]:
        """One worker of each kind, on *mount*."""
        started = []
        for kind in self._kinds:
            name = f"{kind}-{next(self._numbers)}"
            with self.errors.open("ab") as errors:
                process = subprocess.Popen(
                    [
                        sys.executable, "-m", "scripts.proof.load.worker",
                        kind, name, mount, self.control, str(self._seed),
                    ],
                    stdin=subprocess.PIPE,
                    stderr=errors,
                    cwd=ROOT,
                    env=self._rig.environment,
                    start_new_session=True,
                )  # fmt: skip
            started.append(Running(name, mount, process))
        self.workers += started
        return started

    def failed(self) -> list[str]:
        """Workers that have ended although nobody told them to."""
        return [worker.name for worker in self.workers if worker.process.poll() is not None]

    def bury(self, mount: Path) -> None:
        """The client of *mount* was killed: its workers end, by an error or a signal, and are dead."""
        for worker in [worker for worker in self.workers if worker.mount == mount]:
            self._stop(worker)
            self.workers.remove(worker)
            self.dead.add(worker.name)
            (self.control / "dead" / worker.name).touch()

    def stop(self) -> dict[str, int]:
        """All come to their end in order; their exit statuses."""
        for worker in self.workers:
            assert worker.process.stdin is not None
            worker.process.stdin.close()
        return {worker.name: self._stop(worker) for worker in self.workers}

    def _stop(self, worker: Running) -> int:
        assert worker.process.stdin is not None
        worker.process.stdin.close()
        try:
            return worker.process.wait(END_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            worker.process.kill()  # it is not waited for: it may hang beyond that
            return -1

    def histories(self) -> Histories:
        """What all workers were told, so far."""
        return read_all(self.control)

    def judge(self) -> list[str]:
        """What is wrong, after `stop`; nothing, it is hoped."""
        found = violations(self.histories(), self._export, self.dead)
        said = self.errors.read_text() if self.errors.exists() else ""
        living = [line for line in said.splitlines() if not any(f" {name}: " in line for name in self.dead)]
        return found + [line for line in living if "Traceback" in line or "Error" in line]

    def operations(self) -> int:
        """How much was done: journals' lines, two for each operation."""
        return sum(path.read_bytes().count(b"\n") for path in self.control.glob("*.journal")) // 2

    def clean_up(self) -> None:
        """Kill what still runs."""
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.process.kill()
            if worker.process.stdin is not None:
                worker.process.stdin.close()


