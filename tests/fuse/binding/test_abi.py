"""Sizes of the kernel's structures, from <linux/fuse.h>, and those that come in two sizes."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from nfsfuse.fuse.binding import abi
from nfsfuse.fuse.upcalls.dispatcher import Dispatcher, ExtraOperations
from nfsfuse.fuse.upcalls.interrupt import Interrupts

SIZES = {
    "OUT_HEADER": 16,
    "INIT_IN": 64,
    "INIT_OUT": 64,
    "INTERRUPT_IN": 8,
    "LK_IN": 48,
    "LK_OUT": 24,
    "FALLOCATE_IN": 32,
    "LSEEK_IN": 24,
    "COPY_FILE_RANGE_IN": 56,
    "WRITE_OUT": 8,
    "READ_IN": 40,
    "CREATE_IN": 16,
    "SETXATTR_IN": 16,
    "SETXATTR_IN_SHORT": 8,
    "STATX_IN": 24,
    "STATX_OUT": 32,
    "STATX": 256,
    "ATTR": 88,
    "ENTRY_OUT": 40,
    "OPEN_OUT": 16,
    "DIRENT": 24,
    "NOTIFY_INVAL_INODE_OUT": 24,
    "NOTIFY_INVAL_ENTRY_OUT": 16,
    "NOTIFY_DELETE_OUT": 24,
    "NOTIFY_STORE_OUT": 24,
}


@pytest.mark.parametrize(("name", "size"), SIZES.items())
def test_size(name: str, size: int) -> None:
    assert getattr(abi, name).size == size


def test_split_seconds() -> None:
    assert abi.split_seconds(2.5) == (2, 500_000_000)


class _Answers:
    """Replies that are kept, errnos or payloads."""

    def __init__(self) -> None:
        self.sent: list[object] = []

    def send(self, request: object, answer: object) -> None:
        self.sent.append(answer)


@pytest.mark.parametrize("short", [False, True])
async def test_setxattr_of_a_kernel_with_and_without_its_flags(short: bool) -> None:
    """FUSE_SETXATTR_EXT lengthens the header, by what tells of S_ISGID."""
    asked: list[tuple[object, ...]] = []

    class Operations(ExtraOperations):
        async def setxattr(
            self, request: Any, nodeid: int, name: bytes, value: bytes, flags: int, *, kill_sgid: bool
        ) -> None:
            asked.append((nodeid, name, value, flags, kill_sgid))

    head = struct.pack("=II", 5, 2) if short else struct.pack("=IIII", 5, 2, 1, 0)
    request = SimpleNamespace(opcode=abi.Opcode.SETXATTR, unique=7, pid=0, nodeid=3)
    answers = _Answers()
    dispatcher = Dispatcher(Operations(), Interrupts(), cast(Any, answers))
    dispatcher.short_setxattr = short
    async with trio.open_nursery() as dispatcher.nursery:
        dispatcher.on_message(cast(Any, request), head + b"user.name\0value")
    assert asked == [(3, b"user.name", b"value", 2, not short)]
    assert answers.sent == [b""]
