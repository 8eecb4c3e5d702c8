"""A client whose writes, reads and connections fail keeps nothing of them, without any help of the collector of
garbage: a failure's traceback has the data of the write, a megabyte and more each."""

from __future__ import annotations

import errno
import os
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress

import pytest
import trio

from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.types import InodeHandle
from tests.helpers.fake_kernel import rig
from tests.helpers.garbage import nothing_for_the_collector

MIB = 1 << 20
ROUNDS = 5


@pytest.fixture
def uncollected() -> Iterator[None]:
    with nothing_for_the_collector():
        yield


pytestmark = pytest.mark.usefixtures("autojump_clock", "uncollected")


class Failing:
    """A fault hook: while *error* is set, what is one of *operations* fails with it."""

    def __init__(self, *operations: str) -> None:
        self.error = 0
        self.operations = operations

    def __call__(self, operation: str, handle: InodeHandle | None) -> None:
        if self.error and operation in self.operations:
            raise FsError(self.error)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
async def test_refused_writes(error: int) -> None:
    disk = Failing("write")
    async with rig(fault=disk) as world:
        world.make_file(b"file")
        client = world.clients[0]
        number = await client.open(b"file", os.O_RDWR)
        tracemalloc.start()
        try:
            kept = []
            for _ in range(ROUNDS):
                disk.error = error
                with suppress(FsError):
                    await client.write(number, 0, b"x" * 4 * MIB)
                    await client.fs.files.fsync(number, False)
                for _ in range(3):
                    with suppress(FsError):
                        await client.fs.files.flush(number)
                disk.error = 0
                await trio.sleep(30)
                kept.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
        assert max(kept) < kept[0] + 2 * MIB, kept
        await client.close_ignoring_errors(number)


@pytest.mark.parametrize("error", [errno.EIO, errno.ESTALE])
async def test_failed_reads(error: int) -> None:
    disk = Failing("read", "read_nowait")
    async with rig(fault=disk) as world:
        world.make_file(b"file", b"x" * MIB)
        client = world.clients[0]
        number = await client.open(b"file", os.O_RDONLY)
        disk.error = error
        for _ in range(ROUNDS):
            with pytest.raises(FsError):
                await client.read(number, 0, MIB)
        disk.error = 0
        assert await client.read(number, 0, MIB) == b"x" * MIB
        await client.close_ignoring_errors(number)


async def test_lost_connections() -> None:
    async with rig() as world:
        world.make_file(b"file")
        client = world.clients[0]
        number = await client.open(b"file", os.O_RDWR)
        for _ in range(ROUNDS):
            await client.write(number, 0, b"x" * 4 * MIB)
            client.connector.cut()
            await client.fs.files.fsync(number, False)
        await client.close_ignoring_errors(number)
