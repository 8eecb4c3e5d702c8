"""Leaving for the background, and telling the one who waits how it went."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Final

_READY: Final = b"\0"


class Launch:
    """The daemon's end of the line to the command that started it.

    The command waits until `ready` or `failed` was called, or the daemon died: it returns to its caller only
    when the mount can be used.
    """

    def __init__(self, pipe: int | None) -> None:
        self._pipe = pipe

    def ready(self) -> None:
        """The mount is usable; the command may end with success."""
        self._tell(_READY)

    def failed(self, why: str) -> None:
        """It went wrong: *why*, for the user."""
        if self._pipe is None:
            print(f"nfsfuse: {why}", file=sys.stderr)
        self._tell(why.encode() or b"failed")

    def _tell(self, message: bytes) -> None:
        if self._pipe is not None:
            os.write(self._pipe, message)
            os.close(self._pipe)
            self._pipe = None


def in_background(run: Callable[[Launch], int]) -> int:
    """Run *run* in a daemon of its own session; the exit status of the command that waits for it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.setsid()
        if os.fork() != 0:  # never to acquire a terminal again
            os._exit(0)
        _detach()
        status = 1
        try:
            status = run(Launch(writing))
        finally:
            os._exit(status)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    if told == _READY:
        return 0
    why = told.decode() or "the mount's daemon died before the mount was usable; its log may say why"
    print(f"nfsfuse: {why}", file=sys.stderr)
    return 1


def _detach() -> None:
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)
