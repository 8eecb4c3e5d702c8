"""Write with a sync: one request for a write and the fsync after it, with the errors of both."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.limits import EXTENTS_PER_WRITE_MAX
from nfsfuse.protocol.tokens import TokenMode
from nfsfuse.protocol.types import PAGE_SIZE, AttributeChanges, Credentials, Extent, InodeHandle, Sync
from nfsfuse_server.service.files import INLINE_EXTENTS_MAX, INLINE_WRITE_SIZE_MAX
from tests.helpers.memory_storage import MemoryStorage
from tests.helpers.service import Client, Serving, serving

pytestmark = pytest.mark.usefixtures("autojump_clock")

P = PAGE_SIZE


class Disk:
    """The storage's fault hook: what it was asked to do with data, in order. *failing* fails once each."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.failing: dict[str, int] = {}

    def __call__(self, operation: str, handle: InodeHandle | None) -> None:
        if operation not in ("write", "fsync"):
            return
        self.done.append(operation)
        error = self.failing.pop(operation, 0)
        if error:
            raise FsError(error)


class World:
    """One file; every client holds a page of it, the first the first, and so on."""

    def __init__(self, server: Serving) -> None:
        self.server, self.storage, self.disk = server, server.storage, Disk()
        root = self.storage.root().handle
        self.file = self.storage.create(root, b"file", 0o644, Credentials(0, 0)).handle
        self.storage.fsync_dir(root)
        self.storage._fault = self.disk
        self._clients = 0

    async def client(self) -> Client:
        """One more, which holds the next page exclusively."""
        client = await self.server.client()
        client.owner.on_recall = lambda recall, acknowledge: acknowledge(m.Recalled(()))
        start, self._clients = self._clients * P, self._clients + 1
        message = m.GetToken(self.file, TokenMode.EXCLUSIVE, start, start + P, TokenMode.NONE)
        await client.session.call(message)
        return client

    async def write(self, client: Client, data: bytes, offset: int = 0, sync: Sync = Sync.ALL) -> m.Written:
        reply, _ = await client.session.call(m.Write(self.file, offset, sync), data)
        return reply

    async def fsync_error(self, client: Client) -> int:
        try:
            await client.session.call(m.Fsync(self.file, False))
        except FsError as exc:
            return exc.errno
        return 0


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    async with serving() as server:
        yield World(server)


@pytest.mark.parametrize("size", [100, INLINE_WRITE_SIZE_MAX + 1])
async def test_the_data_are_on_the_disk_when_it_is_answered(size: int) -> None:
    async with world() as w:
        client = await w.client()
        await client.session.call(m.GetToken(w.file, TokenMode.EXCLUSIVE, 0, 1 << 20, TokenMode.NONE))
        reply = await w.write(client, b"d" * size)
        assert (reply.attributes.size, reply.sync_errno) == (size, 0)
        assert w.disk.done == ["write", "fsync"]
        w.storage.crash()
        assert w.storage.read(w.file, 0, size + 1) == b"d" * size


@pytest.mark.parametrize(("sync", "expected"), [(Sync.NONE, []), (Sync.DATA, [True]), (Sync.ALL, [False])])
async def test_what_is_synchronised_is_what_was_asked_for(
    sync: Sync, expected: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(MemoryStorage, "fsync", lambda self, handle, data_only: asked.append(data_only))
    async with world() as w:
        await w.write(await w.client(), b"data", sync=sync)
    assert asked == expected


async def test_a_sync_that_fails_is_told_although_the_data_are_taken() -> None:
    async with world() as w:
        client = await w.client()
        w.disk.failing["fsync"] = errno.EIO
        assert (await w.write(client, b"data")).sync_errno == errno.EIO
        assert w.storage.read(w.file, 0, 10) == b"data"
        assert w.disk.done == ["write", "fsync"]
        assert await w.fsync_error(client) == 0, "it was told"


async def test_a_sync_that_fails_is_told_to_the_others_that_had_written() -> None:
    async with world() as w:
        one, two, three = [await w.client() for _ in range(3)]
        await w.write(two, b"data", P, Sync.NONE)
        w.disk.failing["fsync"] = errno.EIO
        assert (await w.write(one, b"data")).sync_errno == errno.EIO
        assert (await w.write(two, b"data", P)).sync_errno == errno.EIO, "of what it had written before"
        assert (await w.write(two, b"data", P)).sync_errno == 0
        assert (await w.write(three, b"data", 2 * P)).sync_errno == 0


async def test_whose_data_another_clients_fsync_has_lost_is_told_even_while_its_own_is_under_way() -> None:
    """Whichever of the two the kernel tells, both had written."""
    async with world() as w:
        one, two = await w.client(), await w.client()
        await w.write(two, b"data", P, Sync.NONE)
        w.disk.failing["fsync"] = errno.EIO
        told: list[int] = []

        async def write() -> None:
            told.append((await w.write(one, b"data")).sync_errno)

        async def fsync() -> None:
            told.append(await w.fsync_error(two))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            nursery.start_soon(fsync)
        assert told == [errno.EIO, errno.EIO]
        assert [await w.fsync_error(client) for client in (one, two)] == [0, 0]


async def test_a_write_that_is_refused_is_not_synchronised() -> None:
    async with world() as w:
        client = await w.client()
        w.disk.failing["write"] = errno.ENOSPC
        with pytest.raises(FsError) as caught:
            await w.write(client, b"data")
        assert caught.value.errno == errno.ENOSPC
        assert w.disk.done == ["write"]


async def test_nothing_is_done_without_a_token() -> None:
    async with world() as w:
        client = await w.server.client()
        with pytest.raises(FsError) as caught:
            await w.write(client, b"data")
        assert caught.value.errno == errno.EAGAIN
        assert w.disk.done == []


async def test_the_attributes_are_those_of_when_it_is_answered() -> None:
    """An answer that came before it may have told newer ones than the write made."""
    async with world() as w:
        client = await w.client()

        def chmod_during_the_sync(operation: str, handle: InodeHandle | None) -> None:
            if operation == "fsync":
                w.storage.setattr(w.file, AttributeChanges(mode=0o600))

        w.storage._fault = chmod_during_the_sync
        reply = await w.write(client, b"data")
        assert reply.attributes.mode & 0o777 == 0o600
        assert reply.attributes == w.storage.getattr(w.file)


async def extents_written(
    client: Client, world: World, extents: tuple[tuple[int, int], ...], size: int, sync: Sync = Sync.NONE
) -> int:
    """The errno of a WriteExtents of *size* bytes."""
    message = m.WriteExtents(world.file, tuple(Extent(*extent) for extent in extents), sync)
    try:
        await client.session.call(message, bytes(i % 251 for i in range(size)))
    except FsError as exc:
        return exc.errno
    return 0


@pytest.mark.parametrize("count", [2, INLINE_EXTENTS_MAX + 1])
async def test_many_extents_are_written_and_synchronised_in_one_round_trip(count: int) -> None:
    async with world() as w:
        client = await w.client()
        extents = tuple((at * 8, 3) for at in range(count))
        assert await extents_written(client, w, extents, 3 * count, Sync.ALL) == 0
        assert w.disk.done == ["write"] * count + ["fsync"]
        w.storage.crash()
        expected = bytearray(8 * (count - 1) + 3)
        for at in range(count):
            expected[at * 8 : at * 8 + 3] = bytes(i % 251 for i in range(at * 3, at * 3 + 3))
        assert w.storage.read(w.file, 0, P) == expected


async def test_nothing_is_written_unless_the_pages_of_all_extents_are_held() -> None:
    async with world() as w:
        one, _ = await w.client(), await w.client()
        assert await extents_written(one, w, ((0, 5), (P + 10, 5)), 10) == errno.EAGAIN
        assert w.disk.done == []
        assert await extents_written(one, w, ((0, 5), (P - 5, 5)), 10) == 0


async def test_a_failure_among_many_extents_is_that_of_the_request() -> None:
    async with world() as w:
        client = await w.client()
        w.disk.failing["write"] = errno.ENOSPC
        assert await extents_written(client, w, ((0, 5), (10, 5)), 10, Sync.ALL) == errno.ENOSPC
        assert w.disk.done == ["write"], "no sync of what is not written"


@pytest.mark.parametrize(
    ("extents", "size"),
    [
        ((), 0),
        (((0, 5),), 4),
        (((0, 5),), 6),
        (((0, 5), (4, 5)), 10),
        (((8, 5), (0, 5)), 10),
        (((0, 5), (8, 0)), 5),
        (((-8, 5), (8, 5)), 10),
        (tuple((at * 2, 1) for at in range(EXTENTS_PER_WRITE_MAX + 1)), EXTENTS_PER_WRITE_MAX + 1),
    ],
)
async def test_what_are_no_extents_is_refused(extents: tuple[tuple[int, int], ...], size: int) -> None:
    async with world() as w:
        assert await extents_written(await w.client(), w, extents, size) == errno.EINVAL
        assert w.disk.done == []
