"""Works in a mount until it is told to stop (a line on standard input), then prints how much it did. Whatever
fails ends it with a traceback: a server that restarts is a pause, nothing else."""

from __future__ import annotations

import fcntl
import os
import select
import sys
import time
from pathlib import Path


def create(directory: Path, who: str, number: int) -> None:
    """A new file with a record in it, synced, and renamed."""
    made = directory / f"{who}-{number}"
    descriptor = os.open(made, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o640)
    os.write(descriptor, f"{who} {number}\n".encode())
    os.fsync(descriptor)
    os.close(descriptor)
    made.rename(made.with_suffix(".done"))
    (directory / f"{who}-link").symlink_to(made.with_suffix(".done").name)
    (directory / f"{who}-link").unlink()


def append(directory: Path, who: str, number: int) -> None:
    """A record at the end of a file of everybody's."""
    descriptor = os.open(directory / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o640)
    os.write(descriptor, f"{who} {number}\n".encode())
    os.close(descriptor)


def count(directory: Path) -> tuple[float, float]:
    """A counter of everybody's, under a lock; from when to when that was held."""
    descriptor = os.open(directory / "counter", os.O_CREAT | os.O_RDWR, 0o640)
    fcntl.lockf(descriptor, fcntl.LOCK_EX)
    begin = time.monotonic()
    value = int(os.pread(descriptor, 20, 0) or b"0")
    os.pwrite(descriptor, b"%d" % (value + 1), 0)
    end = time.monotonic()
    fcntl.lockf(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)
    return begin, end


def main(directory: Path, who: str) -> None:
    """Rounds of all of it."""
    number = 0
    longest = 0.0
    held = []
    while not select.select([sys.stdin], [], [], 0)[0]:
        began = time.monotonic()
        create(directory, who, number)
        append(directory, who, number)
        held.append(count(directory))
        number += 1
        longest = max(longest, time.monotonic() - began)
    print(number, longest)
    for begin, end in held:
        print(begin, end)


main(Path(sys.argv[1]), sys.argv[2])
