"""Promise 3 for who claims a name by renaming it, on two clients at once: one succeeds, the other is told that
the name is not there."""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.mount.conftest import Pair

ROUNDS = 60
ROUNDS_SOAK = 5000

RENAME_NOREPLACE = 1

libc = ctypes.CDLL(None, use_errno=True)


def noreplace(old: str, new: str) -> None:
    if libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), RENAME_NOREPLACE) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


Claim = Callable[[str, str], None]


def file(path: Path) -> None:
    path.touch()


def directory(path: Path) -> None:
    path.mkdir()


def nothing(path: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("make", "there", "claim", "claimed"),
    [
        (file, nothing, os.rename, "queue/claimed"),
        (directory, nothing, os.rename, "queue/claimed"),
        (file, file, os.rename, "queue/claimed"),
        (directory, directory, os.rename, "queue/claimed"),
        (file, nothing, os.rename, "done/job"),
        (directory, nothing, os.rename, "done/job"),
        (file, file, os.rename, "done/job"),
        (file, nothing, noreplace, "queue/claimed"),
        (file, nothing, noreplace, "done/job"),
    ],
    ids=[
        "file", "directory", "file over a file", "directory over a directory", "to another directory",
        "directory to another directory", "over a file in another directory", "noreplace",
        "noreplace to another directory",
    ],
)  # fmt: skip
def test_one_of_two_gets_it(
    pair: Pair,
    request: pytest.FixtureRequest,
    make: Callable[[Path], None],
    there: Callable[[Path], None],
    claim: Claim,
    claimed: str,
) -> None:
    rounds = ROUNDS_SOAK if request.config.getoption("--soak") else ROUNDS
    for name in ("queue", "done"):
        (pair.export / name).mkdir()
    gate = threading.Barrier(2)

    def once(root: Path) -> int:
        gate.wait()
        try:
            claim(f"{root}/queue/job", f"{root}/{claimed}")
        except OSError as exc:
            return exc.errno or -1
        return 0

    answers: Counter[tuple[int, ...]] = Counter()
    with ThreadPoolExecutor(2) as clients:
        for number in range(rounds):
            maker = (pair.one, pair.two)[number % 2]
            make(maker / "queue/job")
            there(maker / claimed)
            answers[tuple(sorted(clients.map(once, (pair.one, pair.two))))] += 1
            assert os.listdir(pair.two / "queue") == (["claimed"] if claimed == "queue/claimed" else [])
            (os.rmdir if make is directory else os.unlink)(pair.two / claimed)
    # Which error a rename that fails gets may be of two moments (docs/coherence.md): here it is that the new
    # name is there already, as the other client has just made it.
    failures = (errno.ENOENT, errno.EEXIST) if claim is noreplace else (errno.ENOENT,)
    assert sum(answers[0, failure] for failure in failures) == rounds, answers


def test_one_of_two_makes_it(pair: Pair, request: pytest.FixtureRequest) -> None:
    """A lock file, by open(2) with O_EXCL on one client and by link(2) on the other."""
    rounds = ROUNDS_SOAK if request.config.getoption("--soak") else ROUNDS
    (pair.export / "unique").touch()
    gate = threading.Barrier(2)

    def create() -> int:
        gate.wait()
        try:
            os.close(os.open(pair.one / "lock", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except OSError as exc:
            return exc.errno or -1
        return 0

    def link() -> int:
        gate.wait()
        try:
            os.link(pair.two / "unique", pair.two / "lock")
        except OSError as exc:
            return exc.errno or -1
        return 0

    answers: Counter[tuple[int, ...]] = Counter()
    with ThreadPoolExecutor(2) as clients:
        for number in range(rounds):
            made = [clients.submit(create), clients.submit(link)]
            answers[tuple(sorted(each.result() for each in made))] += 1
            os.unlink((pair.one, pair.two)[number % 2] / "lock")
    assert answers == {(0, errno.EEXIST): rounds}
