"""What programs were told, kept where no fault of the filesystem under test can reach it.

A worker writes a line before each operation and one after it, to a file of its own outside of the mount, and
synchronises each line: whatever dies afterwards, what it was told is known. Times are CLOCK_MONOTONIC, which
all processes of a machine share.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Facts = dict[str, Any]


@dataclass(slots=True)
class Operation:
    """One operation of one worker. *ended* is None if the worker was never told how it went; *error* is the
    errno it was told, 0 for success."""

    worker: str
    number: int
    what: str
    facts: Facts
    began: int
    ended: int | None = None
    error: int | None = None

    @property
    def done(self) -> bool:
        """It was told that it succeeded."""
        return self.error == 0

    def __getitem__(self, name: str) -> Any:
        return self.facts[name]

    def __str__(self) -> str:
        facts = " ".join(f"{name}={value}" for name, value in self.facts.items())
        return f"{self.worker}:{self.number} {self.what} {facts}"


@dataclass(slots=True)
class History:
    """All operations of one worker. *complete*: it came to its end in order."""

    worker: str
    operations: list[Operation] = field(default_factory=list)
    complete: bool = False


class Journal:
    """A worker's journal, to be written."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        self._numbers = 0

    def _write(self, line: Facts) -> None:
        os.write(self._descriptor, json.dumps(line).encode() + b"\n")
        os.fdatasync(self._descriptor)

    @contextmanager
    def operation(self, what: str, *expected: int, **facts: Any) -> Iterator[Facts]:
        """Do *what* in this block. What is put into the yielded dictionary is learned by it. An OSError with
        an *expected* errno is an answer: it is journaled, and found there as ``error``; any other goes on."""
        self._numbers += 1
        number = self._numbers
        self._write({"begin": number, "what": what, "at": time.monotonic_ns(), "facts": facts})
        learned: Facts = {}
        error = 0
        try:
            yield learned
        except OSError as exc:
            error = exc.errno or -1
            if error not in expected:
                raise
        finally:
            at = time.monotonic_ns()
            self._write({"end": number, "at": at, "error": error, "facts": learned})
            learned["error"] = error

    def end(self) -> None:
        """The worker has come to its end."""
        self._write({"complete": True})
        os.close(self._descriptor)


def read(path: Path) -> History:
    """A worker's journal, as far as it came; the worker is named as the file."""
    history = History(path.stem)
    by_number: dict[int, Operation] = {}
    for line in path.read_bytes().split(b"\n")[:-1]:  # the last one is empty, or was not finished
        record = json.loads(line)
        if "begin" in record:
            number = record["begin"]
            operation = Operation(history.worker, number, record["what"], record["facts"], record["at"])
            by_number[number] = operation
            history.operations.append(operation)
        elif "end" in record:
            operation = by_number[record["end"]]
            operation.ended, operation.error = record["at"], record["error"]
            operation.facts |= record["facts"]
        else:
            history.complete = True
    return history


def read_all(directory: Path) -> list[History]:
    """All journals in *directory*."""
    return [read(path) for path in sorted(directory.glob("*.journal"))]
