"""A program whose answer is there, and that does not get a processor to take it in: what its kernel is told
meanwhile must not be undone by that answer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scripts.proof.programs import SOURCES
from scripts.rig.processes import poll_until, stat_fields
from tests.mount.conftest import Mounts, Pair

SECONDS_MAX = 10.0
HOG_SECONDS_MAX = 0.9
ATTEMPTS_MAX = 10
"""On a machine that is busy with something else the processor is not kept for long enough each time."""

STAT = """import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
print(os.stat(sys.argv[2]).st_nlink)"""


@contextmanager
def processor_of_its_own(mounts: Mounts) -> Iterator[int]:
    """A processor that this program, the server and the mounts' daemons do not use."""
    processes = [os.getpid(), mounts.server.process.pid, *map(mounts.rig.daemon_of, (mounts.one, mounts.two))]
    before = os.sched_getaffinity(0)

    def move(to: set[int]) -> None:
        for process in processes:
            for thread in os.listdir(f"/proc/{process}/task"):
                os.sched_setaffinity(int(thread), to)

    kept = min(before)
    move(before - {kept})
    try:
        yield kept
    finally:
        move(before)


@contextmanager
def hog(processor: int) -> Iterator[None]:
    """No program of a usual policy has *processor*, for `HOG_SECONDS_MAX` at most."""
    with subprocess.Popen(
        [sys.executable, SOURCES / "hog.py", str(processor), str(HOG_SECONDS_MAX)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"on\n"
        try:
            yield
        finally:
            process.kill()


def waits_in(process: subprocess.Popen[bytes], function: str) -> bool:
    """Whether a program waits in a function of the kernel."""
    return function in Path(f"/proc/{process.pid}/stack").read_text()


def is_asleep(process: subprocess.Popen[bytes]) -> bool:
    """Whether a program would not run, also if it had a processor."""
    return stat_fields(process.pid)[0] in "SD"


def removed_before_it_is_taken_in(mounts: Mounts, pair: Pair, processor: int, name: str) -> tuple[bool, int]:
    """A file has got a second name on another mount. A program on *processor* is told of two links, and its
    mount removes the one that it knew. Whether the program has not run in between, and what it saw."""
    first, second = pair.one / "b" / name, pair.one / "a" / name
    (pair.two / "b" / name).touch()
    assert first.stat().st_nlink == 1
    os.link(pair.two / "b" / name, pair.two / "a" / name)
    (pair.one / "a" / "none").exists()  # so that the way there is known
    server = mounts.server.process
    server.send_signal(signal.SIGSTOP)
    with subprocess.Popen(
        [sys.executable, "-c", STAT, str(processor), second], stdout=subprocess.PIPE
    ) as program:
        try:
            poll_until(lambda: waits_in(program, "fuse_lookup_name"), SECONDS_MAX, "it looks the name up")
            with hog(processor):
                server.send_signal(signal.SIGCONT)
                poll_until(lambda: not is_asleep(program), SECONDS_MAX, "it is answered")
                first.unlink()
                was_starved = not is_asleep(program) and program.poll() is None
        finally:
            server.send_signal(signal.SIGCONT)
        return was_starved, int(program.communicate(timeout=SECONDS_MAX)[0])


def until_it_has_one_link(file: Path) -> None:
    poll_until(lambda: file.stat().st_nlink == 1, SECONDS_MAX, "the kernel asks again")


def may_be_real_time() -> bool:
    """Whether a program of ours may have a real-time policy: not in every container root may give one."""
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:
        return False
    os.sched_setscheduler(0, *before)
    return True


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor is starved on, another is needed")
@pytest.mark.skipif(not may_be_real_time(), reason="no real-time policy is allowed here")
def test_links_that_a_starved_program_takes_in_late_are_not_believed(mounts: Mounts, pair: Pair) -> None:
    """Found by the stress of names, once in half a million calls. The removal made the kernel count no links:
    it dropped the inode, and made it anew of the answer to the look-up."""
    (pair.one / "a").mkdir()
    (pair.one / "b").mkdir()
    with processor_of_its_own(mounts) as processor:
        for attempt in range(ATTEMPTS_MAX):
            was_starved, links = removed_before_it_is_taken_in(mounts, pair, processor, str(attempt))
            until_it_has_one_link(pair.one / "a" / str(attempt))
            if was_starved and links == 2:
                return
    pytest.fail(f"not once in {ATTEMPTS_MAX} attempts a program was starved of its answer")
