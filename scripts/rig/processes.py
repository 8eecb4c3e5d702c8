"""Child processes with a time limit, which is also kept when the child hangs in a mount."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.rig.kernel import abort_below


class TimedOut(Exception):
    """A program took longer than it may; the text says which, and what it had said."""


@dataclass(frozen=True, slots=True)
class Finished:
    """How a program ended; *output* is stdout, with stderr in *errors*."""

    status: int
    output: str
    errors: str

    def succeeded(self) -> Finished:
        """Itself; raises AssertionError with everything it said unless its status is 0."""
        assert self.status == 0, f"exit status {self.status}\n{self.output}{self.errors}"
        return self


def run(
    argv: Sequence[str | Path],
    seconds: float,
    environment: Mapping[str, str],
    mounts_below: Path,
    cwd: Path | None = None,
) -> Finished:
    """Run *argv*, for *seconds* at most. A program beyond that is killed; if it hangs in a mount below
    *mounts_below*, that mount is aborted, for nothing else frees it. Raises TimedOut."""
    with subprocess.Popen(
        [os.fspath(word) for word in argv],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(environment),
        cwd=cwd,
        text=True,
        errors="backslashreplace",
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired as exc:
            output, errors = _stop(process, mounts_below)
            raise TimedOut(f"{argv} took more than {seconds:g} s\n{output}{errors}") from exc
        except BaseException:
            _stop(process, mounts_below)
            raise
    return Finished(process.returncode, output, errors)


def _stop(process: subprocess.Popen[str], mounts_below: Path) -> tuple[str, str]:
    """Kill a child and all its own; what it had said."""
    with contextlib.suppress(ProcessLookupError):  # an interrupt has Popen itself wait for it, and reap it
        os.killpg(process.pid, signal.SIGKILL)
    try:
        return process.communicate(timeout=3)
    except subprocess.TimeoutExpired:
        abort_below(mounts_below)
        return process.communicate(timeout=10)


def poll_until(condition: Callable[[], bool], seconds: float, what: str, pause: float = 0.01) -> None:
    """Wait for a condition in another process, which offers nothing to wait for. Raises TimedOut."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimedOut(f"after {seconds:g} s still not: {what}")
        time.sleep(pause)


def parent_of(pid: int) -> int | None:
    """The parent of a process, which may be anybody's; None if it has ended. (`stat`, which tells that too,
    waits on some kernels for a process in execve(2), and that for a mount which hangs.)"""
    try:
        status = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(status.partition("\nPPid:")[2].split(maxsplit=1)[0])


def stat_fields(pid: int) -> list[str]:
    """/proc/PID/stat from the third field on, the state (proc_pid_stat(5)); empty if the process has ended. Of
    a process that hangs in no mount."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
