"""The notifier's threads and messages, on a pipe in place of the FUSE device."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from nfsfuse.fuse.binding import abi
from nfsfuse.fuse.binding.libraries import _notifications
from nfsfuse.fuse.notifications.notifier import THREADS_MAX, Notifier
from nfsfuse.machines.turns import Turn

PIPE_BYTES = 4096

WAIT_SECONDS_MAX = 20.0
"""For another thread; far longer than it takes, for a machine that is busy."""


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    yield reader, writer
    os.close(reader)
    os.close(writer)


async def test_the_message_is_the_kernels(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    notifier = Notifier(writer)
    assert (await notifier.inval_inode(7, 4096, 8192)).done
    body = abi.NOTIFY_INVAL_INODE_OUT.pack(7, 4096, 8192)
    assert os.read(reader, 100) == abi.OUT_HEADER.pack(40, 2, 0) + body
    await notifier.expire_entry(1, b"name")
    assert os.read(reader, 100) == abi.OUT_HEADER.pack(37, 3, 0) + bytes.fromhex(
        "0100000000000000 04000000 01000000" + b"name\0".hex()
    )
    await notifier.inc_epoch()
    assert os.read(reader, 100) == abi.OUT_HEADER.pack(16, 8, 0)


async def test_a_cancelled_caller_still_waits(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.write(writer, bytes(PIPE_BYTES))
    notifier = Notifier(writer)
    returned = bytearray(1)
    had_returned: list[int] = []  # when the caller went on

    async def caller() -> None:
        try:
            await notifier.inval_inode(1, 0, 0, returned)
        finally:
            had_returned.append(returned[0])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(caller)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await trio.testing.wait_all_tasks_blocked()
        assert not returned[0]
        assert had_returned == []
        os.read(reader, PIPE_BYTES)
    assert had_returned == [1]


def threads_that_wait_for_room_in_a_pipe() -> int:
    return sum("pipe_write" in (task / "wchan").read_text() for task in Path("/proc/self/task").iterdir())


def until(is_so: Callable[[], object]) -> None:
    end = time.monotonic() + WAIT_SECONDS_MAX
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.001)


async def test_a_notification_needs_no_lock_of_pythons(pipe: tuple[int, int]) -> None:
    """Neither to begin nor to say that it has returned: the event loop may keep it all the while."""
    reader, writer = pipe
    os.write(writer, bytes(PIPE_BYTES))
    returned = bytearray(1)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(WAIT_SECONDS_MAX)  # nobody else gets Python's lock while this has it
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Notifier(writer).inval_inode, 1, 0, 0, returned)
            await trio.testing.wait_all_tasks_blocked()
            os.read(reader, PIPE_BYTES)
            end = time.monotonic() + WAIT_SECONDS_MAX
            while not returned[0]:
                assert time.monotonic() < end
    finally:
        sys.setswitchinterval(interval)


async def drain(reader: int) -> None:
    while True:
        await trio.lowlevel.wait_readable(reader)
        os.read(reader, PIPE_BYTES)


async def test_default_threads_are_left_alone(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.write(writer, bytes(PIPE_BYTES))
    notifier = Notifier(writer)
    async with trio.open_nursery() as draining:
        async with trio.open_nursery() as notifying:
            for _ in range(50):
                notifying.start_soon(notifier.inc_epoch)
            await trio.testing.wait_all_tasks_blocked()
            assert trio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
            draining.start_soon(drain, reader)
        draining.cancel_scope.cancel()


async def test_no_more_block_at_once_than_there_may_be_threads(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.write(writer, bytes(PIPE_BYTES))
    notifier = Notifier(writer)
    told = 0

    async def tell() -> None:
        nonlocal told
        assert (await notifier.inc_epoch()).done
        told += 1

    async with trio.open_nursery() as draining:
        async with trio.open_nursery() as notifying:
            for _ in range(2 * THREADS_MAX):
                notifying.start_soon(tell)
            await trio.testing.wait_all_tasks_blocked()
            until(lambda: threads_that_wait_for_room_in_a_pipe() >= THREADS_MAX)
            assert threads_that_wait_for_room_in_a_pipe() == THREADS_MAX
            assert told == 0
            draining.start_soon(drain, reader)
        draining.cancel_scope.cancel()
    assert told == 2 * THREADS_MAX
    assert len(notifier._events) == THREADS_MAX, "they are used again"
    notifier.close()


async def test_refusals_are_raised() -> None:
    reader, writer = os.pipe()
    os.close(writer)
    try:
        with pytest.raises(OSError, match="INVAL_INODE") as caught:
            await Notifier(reader).inval_inode(1, 0, 0)
        assert caught.value.errno == errno.EBADF
    finally:
        os.close(reader)


async def test_limits(pipe: tuple[int, int]) -> None:
    notifier = Notifier(pipe[1])
    with pytest.raises(ValueError, match="a name has"):
        await notifier.inval_entry(1, bytes(256))


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A program that sleeps, and is woken by what is written to it."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        state = Path(f"/proc/{program.pid}/wchan")
        until(lambda: "pipe_read" in state.read_text())
        yield program
        assert program.stdin is not None
        program.stdin.close()


def wake(program: subprocess.Popen[bytes]) -> None:
    assert program.stdin is not None
    program.stdin.write(b"!")
    program.stdin.flush()


def turn_of(program: subprocess.Popen[bytes], seconds: float) -> Turn:
    had = _notifications.processor(program.pid)
    assert had is not None
    return Turn(0, 4096, program.pid, *had, trio.current_time() + seconds)


async def test_pages_are_not_taken_before_the_thread_that_has_read_them_has_had_the_processor(
    pipe: tuple[int, int], sleeper: subprocess.Popen[bytes]
) -> None:
    reader, writer = pipe
    turn = turn_of(sleeper, WAIT_SECONDS_MAX)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Notifier(writer).inval_inode, 1, 0, 4096, None, turn)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert not select.select([reader], [], [], 0)[0], "it sleeps"
        before = time.monotonic()
        wake(sleeper)
    assert len(os.read(reader, 100)) == 40
    assert time.monotonic() - before < WAIT_SECONDS_MAX / 2
    had = _notifications.processor(sleeper.pid)
    assert had is not None
    assert had[0] > turn.times
    assert had[1] > turn.nanoseconds


async def test_a_thread_that_gets_no_processor_is_waited_for_so_long_and_no_longer(
    pipe: tuple[int, int], sleeper: subprocess.Popen[bytes]
) -> None:
    reader, writer = pipe
    before = time.monotonic()
    await Notifier(writer).inval_inode(1, 0, 4096, None, turn_of(sleeper, 0.05))
    assert 0.049 < time.monotonic() - before < WAIT_SECONDS_MAX
    assert len(os.read(reader, 100)) == 40


async def test_a_thread_that_is_over_is_not_waited_for(
    pipe: tuple[int, int], sleeper: subprocess.Popen[bytes]
) -> None:
    reader, writer = pipe
    turn = turn_of(sleeper, WAIT_SECONDS_MAX)
    sleeper.communicate()
    assert _notifications.processor(sleeper.pid) is None
    before = time.monotonic()
    await Notifier(writer).inval_inode(1, 0, 4096, None, turn)
    assert time.monotonic() - before < WAIT_SECONDS_MAX / 2
    assert len(os.read(reader, 100)) == 40


def test_of_a_thread_in_another_namespace_nothing_is_known() -> None:
    assert _notifications.processor(0) is None
