"""Requests that are answered without a task, on a pipe in place of the FUSE device."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from nfsfuse.fuse.binding import abi
from nfsfuse.fuse.upcalls.interrupt import Interrupts
from nfsfuse.fuse.upcalls.later import Replies, Waiter
from nfsfuse.protocol.errors import FsError

ME = threading.get_native_id()


@dataclass(frozen=True)
class Asked:
    """The facts of a request that count here; its program cannot be looked at: it may be dying."""

    unique: int = 8
    pid: int = 0


@dataclass
class Device:
    """What is written to it comes out of a pipe."""

    replies: Replies
    reader: int

    def told(self) -> tuple[int, int, bytes]:
        """The next answer: to which request, its error and its payload."""
        length, error, unique = abi.OUT_HEADER.unpack(os.read(self.reader, abi.OUT_HEADER.size))
        payload = os.read(self.reader, length - abi.OUT_HEADER.size) if length > abi.OUT_HEADER.size else b""
        return unique, -error, payload

    def is_silent(self) -> bool:
        os.set_blocking(self.reader, False)
        try:
            os.read(self.reader, 1)
        except BlockingIOError:
            return True
        finally:
            os.set_blocking(self.reader, True)
        return False


@pytest.fixture
def device() -> Iterator[Device]:
    reader, writer = os.pipe()
    replies = Replies()
    replies.device = writer
    yield Device(replies, reader)
    os.close(reader)
    os.close(writer)


def test_what_arrives_is_the_answer(device: Device) -> None:
    interrupts = Interrupts()
    for result, told in (
        (b"data", (0, b"data")),
        (memoryview(bytearray(b"a view")), (0, b"a view")),
        (b"", (0, b"")),
        (FsError(errno.ESTALE), (errno.ESTALE, b"")),
    ):
        waiter = Waiter(Asked(), device.replies, interrupts)  # type: ignore[arg-type]
        waiter.waits(lambda: pytest.fail("nobody gives it up"))
        waiter.answered(result)
        assert device.told() == (8, *told)
        interrupts.interrupt(8)
        assert device.is_silent(), "it was answered already"
        interrupts = Interrupts()


def test_a_bug_is_an_eio_and_a_traceback(device: Device, caplog: pytest.LogCaptureFixture) -> None:
    Waiter(Asked(), device.replies, Interrupts()).answered(ZeroDivisionError())  # type: ignore[arg-type]
    assert device.told() == (8, errno.EIO, b"")
    assert "ZeroDivisionError" in caplog.text


def test_an_interrupt_gives_it_up(device: Device) -> None:
    interrupts, given_up = Interrupts(), list[int]()
    waiter = Waiter(Asked(), device.replies, interrupts)  # type: ignore[arg-type]
    waiter.waits(lambda: given_up.append(1))
    interrupts.interrupt(8)
    assert given_up == [1]
    assert device.told() == (8, errno.EINTR, b"")


def test_what_is_answered_where_it_is_asked_cannot_be_interrupted(device: Device) -> None:
    interrupts = Interrupts()
    waiter = Waiter(Asked(), device.replies, interrupts)  # type: ignore[arg-type]
    waiter.answered(FsError(errno.EIO))  # the session is over
    waiter.waits(lambda: pytest.fail("it does not wait"))
    assert device.told() == (8, errno.EIO, b"")
    interrupts.interrupt(8)
    assert device.is_silent()


def test_an_interrupt_that_came_before_counts(device: Device) -> None:
    interrupts = Interrupts()
    interrupts.interrupt(8)
    waiter = Waiter(Asked(), device.replies, interrupts)  # type: ignore[arg-type]
    waiter.waits(lambda: None)
    assert device.told() == (8, errno.EINTR, b"")


def test_a_signal_that_is_not_fatal_leaves_it_waiting(device: Device) -> None:
    interrupts = Interrupts()
    waiter = Waiter(Asked(pid=ME), device.replies, interrupts)  # type: ignore[arg-type]
    waiter.waits(lambda: pytest.fail("nobody is killed"))
    interrupts.interrupt(8)
    assert device.is_silent()
    waiter.answered(b"data")
    assert device.told() == (8, 0, b"data")


def test_whoever_waits_when_a_soft_mount_fails_is_told_eio(device: Device) -> None:
    interrupts = Interrupts()
    for unique in (8, 10):
        waiter = Waiter(Asked(unique), device.replies, interrupts)  # type: ignore[arg-type]
        waiter.waits(lambda: None)
    interrupts.fail(True)
    assert {device.told(), device.told()} == {(8, errno.EIO, b""), (10, errno.EIO, b"")}
    Waiter(Asked(12), device.replies, interrupts).waits(lambda: None)  # type: ignore[arg-type]
    assert device.told() == (12, errno.EIO, b"")


def test_nobody_is_told_when_the_mount_is_gone(device: Device, caplog: pytest.LogCaptureFixture) -> None:
    class Gone(Replies):
        def _write(self, unique: int, answer: object) -> int:
            return errno.ENODEV

    Gone().send(Asked(), b"data")  # type: ignore[arg-type]
    assert not caplog.text


def test_an_answer_that_the_kernel_refuses_is_logged_and_an_eio(
    device: Device, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "writev", refuse)
    device.replies.send(Asked(), b"too long")  # type: ignore[arg-type]
    assert device.told() == (8, errno.EIO, b"")
    assert "was refused: Invalid argument" in caplog.text
