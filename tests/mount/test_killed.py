"""Whatever a program waits for on a mount, it dies when it is killed, also while the server does not answer."""

from __future__ import annotations

import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mount.conftest import Mounts, Pair

OPERATIONS = (
    "open", "create", "stat", "read", "write", "load", "store", "fsync", "close", "truncate", "chmod",
    "readdir", "fcntl", "flock", "getlk", "rename", "unlink", "mkdir", "rmdir", "link", "symlink", "statfs",
    "getxattr", "fallocate", "lseek",
)  # fmt: skip

DATA = ("read", "write", "load", "store")

OWN_CHANGES = ("fsync", "close")
"""Operations that are to find this client's own changes not written back."""

DEATH_SECONDS_MAX = 1.0

CHANGE_SECONDS_MAX = 5.0

BLOCKS_SECONDS = 0.3
"""A system call that has not returned by then waits for the server."""


@contextmanager
def started(stuck: Path, operation: str, place: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The program *stuck*, ready to carry out *operation* in *place* when it is told to."""
    with subprocess.Popen(
        [stuck, operation, place], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as victim:
        assert victim.stdout is not None
        assert victim.stdout.read(6) == b"ready\n"
        yield victim


def seconds_to_die(victim: subprocess.Popen[bytes], server: subprocess.Popen[bytes]) -> float:
    """Have it killed while it carries that out, and *server* is stopped: how long its death took."""
    assert victim.stdin is not None
    assert victim.stdout is not None
    server.send_signal(signal.SIGSTOP)
    try:
        victim.stdin.write(b"\n")
        assert not select.select([victim.stdout], [], [], BLOCKS_SECONDS)[0], victim.stdout.read(100)
        began = time.monotonic()
        victim.kill()
        victim.wait(10)
        return time.monotonic() - began
    finally:
        server.send_signal(signal.SIGCONT)
        victim.kill()


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_killed_program_dies_while_the_server_is_stopped(
    mounts: Mounts, pair: Pair, program: Callable[[str], Path], operation: str
) -> None:
    (pair.export / "file").write_bytes(b"x" * 65536)
    (pair.export / "other").touch()
    (pair.export / "sub").mkdir()
    with started(program("stuck"), operation, pair.one) as victim:
        if operation not in OWN_CHANGES:
            with (pair.two / "file").open("r+b") as file:  # takes every token from the first client
                file.write(b"y" * 65537)
        assert seconds_to_die(victim, mounts.server.process) < DEATH_SECONDS_MAX
    assert (pair.one / "file").stat().st_size == (pair.two / "file").stat().st_size, "the mount goes on"
    if operation in DATA:
        for here, there in ((pair.two, pair.one), (pair.one, pair.two)):
            with (here / "file").open("r+b") as file:
                file.write(b"z" * 8192)
            assert (there / "file").read_bytes()[:8192] == b"z" * 8192, "no page waits for the dead"


def test_what_a_killed_program_has_written_is_not_lost(
    mounts: Mounts, pair: Pair, program: Callable[[str], Path]
) -> None:
    """write(2) has returned; the death does not wait for the write-back, which takes place all the same."""
    (pair.export / "file").write_bytes(bytes(65536))
    with started(program("stuck"), "fsync", pair.one) as victim:
        victim.kill()
    assert (pair.two / "file").read_bytes()[:2] == b"x\0"


CHANGES = ("create", "rename", "unlink", "mkdir", "rmdir", "link", "symlink", "chmod")
"""What the server mostly does at once, before it is told that nobody waits."""

ATTEMPTS_MAX = 5

NAMES = ("", "file", "other", "second", "sub", "new", "renamed", "linked", "made", "symbolic")


def facts(directory: Path) -> dict[str, object]:
    """What lstat(2) tells of each of `NAMES`; of a name that is not there, None."""
    found: dict[str, object] = {}
    for name in NAMES:
        try:
            known = (directory / name).lstat()
        except FileNotFoundError:
            found[name] = None
        else:
            found[name] = (known.st_mode, known.st_nlink, known.st_size, known.st_mtime_ns, known.st_ctime_ns)
    return found


@pytest.mark.parametrize("operation", CHANGES)
def test_what_a_killed_program_has_changed_is_seen_by_everybody(
    mounts: Mounts, pair: Pair, program: Callable[[str], Path], operation: str
) -> None:
    """The server makes the change when nobody waits for it any more. Its kernel went on to believe that there
    was nothing where something had been made, as it had looked there before."""
    for attempt in range(ATTEMPTS_MAX):
        (pair.export / str(attempt)).mkdir()
        here = Pair(*(place / str(attempt) for place in (pair.one, pair.two, pair.export)))
        before = kill_in(program("stuck"), operation, here, mounts.server.process)
        # Answered behind what it was asked before: that is done by now, or was given up.
        (pair.one / f"barrier {attempt}").touch()
        deadline = time.monotonic() + CHANGE_SECONDS_MAX
        while facts(here.one) != facts(here.two):
            assert time.monotonic() < deadline, (facts(here.one), facts(here.two))
        if facts(here.export) != before:
            return
    pytest.fail("the server has never made the change")


def kill_in(stuck: Path, operation: str, here: Pair, server: subprocess.Popen[bytes]) -> dict[str, object]:
    """Have a program killed that waits for *operation*, while the server is stopped; what there was before."""
    (here.export / "file").write_bytes(b"x" * 65536)
    (here.export / "other").touch()
    (here.export / "second").hardlink_to(here.export / "other")
    (here.export / "sub").mkdir()
    with started(stuck, operation, here.one) as victim:
        before = facts(here.one)
        seconds_to_die(victim, server)
    return before
