"""A program that uses a few names of one mount without a pause, and writes down what it did and was told.

    python -m scripts.proof.names_worker MOUNT NAME SEED SECONDS

prints one line of JSON for each call. Ends at the first call that is answered in a way no file system may.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import random
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from scripts.proof.names_model import DIRECTORY, PATHS, Call, told_by_listing

RENAME_FLAGS: Final = {Call.RENAME: 0, Call.NOREPLACE: 1, Call.EXCHANGE: 2}

OFTEN: Final = {
    # call: how often, out of the sum; enough looking to catch what was done wrong
    Call.CREATE: 6, Call.OPEN: 6, Call.MKDIR: 3, Call.UNLINK: 8, Call.RMDIR: 3, Call.LINK: 7, Call.RENAME: 10,
    Call.NOREPLACE: 3, Call.EXCHANGE: 4, Call.STAT: 20, Call.LINKS: 6, Call.LISTED: 4,
}  # fmt: skip

KEPT_MAX: Final = 2
"""Files kept open, to look at their links when their names are gone."""

_libc = ctypes.CDLL(None, use_errno=True)


class Worker:
    """One program at work."""

    def __init__(self, mount: Path, name: str, seed: int) -> None:
        self._mount = mount
        self._name = name
        self._random = random.Random(seed)
        self._kept: list[int] = []

    def run(self, seconds: float) -> None:
        """Do things until the time is over."""
        end = time.monotonic() + seconds
        calls, weights = zip(*OFTEN.items(), strict=True)
        while time.monotonic() < end:
            self._one(self._random.choices(calls, weights)[0])
        for descriptor in self._kept:
            os.close(descriptor)

    def _one(self, call: Call) -> None:
        two = call in (Call.LINK, *RENAME_FLAGS)
        paths = self._random.sample(range(len(PATHS)), 2 if two else 1)
        names = [self._mount / PATHS[path] for path in paths]
        match call:
            case Call.CREATE | Call.OPEN:
                flags = os.O_CREAT | os.O_RDWR | (os.O_EXCL if call is Call.CREATE else 0)
                self._tell(call, paths, lambda: self._opened(os.open(names[0], flags)))
            case Call.MKDIR:
                self._tell(call, paths, lambda: os.mkdir(names[0]))
            case Call.UNLINK:
                self._tell(call, paths, lambda: os.unlink(names[0]))
            case Call.RMDIR:
                self._tell(call, paths, lambda: os.rmdir(names[0]))
            case Call.LINK:
                self._tell(call, paths, lambda: os.link(names[0], names[1]))
            case Call.RENAME | Call.NOREPLACE | Call.EXCHANGE:
                self._tell(call, paths, lambda: _rename(names[0], names[1], RENAME_FLAGS[call]))
            case Call.STAT:
                self._tell(call, paths, lambda: _facts(os.stat(names[0])))
            case Call.LINKS:
                if self._kept:
                    descriptor = self._random.choice(self._kept)
                    self._tell(call, (), lambda: _facts(os.fstat(descriptor)))
            case Call.LISTED:
                self._list(self._random.choice("ab"))
            case Call.UNLISTED:
                raise AssertionError("comes of LISTED")

    def _opened(self, descriptor: int) -> tuple[int, int]:
        inode = os.fstat(descriptor).st_ino
        self._kept.append(descriptor)
        return inode, 0

    def _tell(self, call: Call, paths: object, do: Callable[[], tuple[int, int] | None]) -> None:
        begin = time.monotonic_ns()
        error, told = 0, None
        try:
            told = do()
        except OSError as exc:
            error = exc.errno or errno.EIO
        end = time.monotonic_ns()
        print(json.dumps([begin, end, self._name, call.value, paths, error, *(told or (0, 0))]))
        while len(self._kept) > KEPT_MAX:
            os.close(self._kept.pop(0))

    def _list(self, directory: str) -> None:
        begin = time.monotonic_ns()
        listed = os.listdir(self._mount / directory)
        end = time.monotonic_ns()
        assert len(set(listed)) == len(listed), f"a name twice: {listed}"
        for call, path in told_by_listing(directory, listed):
            print(json.dumps([begin, end, self._name, call.value, [path], 0, 0, 0]))


def _facts(status: os.stat_result) -> tuple[int, int]:
    return (DIRECTORY, 0) if stat.S_ISDIR(status.st_mode) else (status.st_ino, status.st_nlink)


def _rename(old: Path, new: Path, flags: int) -> None:
    if _libc.renameat2(-100, bytes(old), -100, bytes(new), flags) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


if __name__ == "__main__":
    Worker(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])).run(float(sys.argv[4]))
