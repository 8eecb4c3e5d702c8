"""What is told at once, without a round trip or waiting: by the same decisions as what waits, or not at all."""

from __future__ import annotations

import errno
import os

import pytest
import trio
import trio.testing

from nfsfuse.engine.names import Absent, Found
from nfsfuse.machines.data_tokens import Phase
from nfsfuse.machines.inodes import ROOT
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.tokens import RANGE_END, Resource, Token, TokenMode, name_point
from nfsfuse.protocol.types import PAGE_SIZE
from tests.helpers.fake_kernel import Client, rig

pytestmark = pytest.mark.usefixtures("autojump_clock")

P = PAGE_SIZE


async def test_a_file_that_is_held_is_opened_and_read_at_once() -> None:
    async with rig() as world:
        world.make_file(b"file", b"hello")
        client = world.clients[0]
        node = await client.node(b"file")
        assert client.fs.files.open_at_once(node, os.O_RDONLY) is None, "nothing is held of its data"
        await client.close(await client.fs.files.open(node, os.O_RDONLY))
        with client.asks():
            number = client.fs.files.open_at_once(node, os.O_RDONLY)
            assert number is not None
            data = client.fs.files.read_at_once(number, 0, P, cached=True)
            assert data is not None
            assert bytes(data) == b"hello"
            assert client.file(number).tokens.in_kernel.intervals() == [(0, P)], "K1"
            assert client.fs.files.open_at_once(node, os.O_RDWR | os.O_TRUNC) is None
            client.fs.files.release(number)


async def test_shared_data_are_not_opened_for_writing_at_once() -> None:
    """K2: they are to be given up, or upgraded, first."""
    async with rig(2) as world:
        world.make_file(b"file", b"x" * P)
        numbers = []
        for client in world.clients:
            numbers.append(await client.open(b"file", os.O_RDONLY))
            assert await client.read(numbers[-1], 0, P) == b"x" * P
        client = world.clients[0]
        node = await client.node(b"file")
        assert client.file(numbers[0]).tokens.shared()
        assert client.fs.files.open_at_once(node, os.O_RDWR) is None
        assert client.file(numbers[0]).tokens.writers == 0


async def test_nothing_that_is_being_recalled_is_read_at_once() -> None:
    async with rig() as world:
        world.make_file(b"file", b"x" * 2 * P)
        client = world.clients[0]
        number = await client.open(b"file", os.O_RDWR)
        assert await client.touch(number, 0, 2 * P) == b"x" * 2 * P
        read = client.fs.files.read_at_once
        tokens = client.file(number).tokens
        recall = tokens.revoke(0, P, TokenMode.NONE)
        assert read(number, 0, P, cached=True) is not None, "it has not begun"
        recall.phase = Phase.INVALIDATING
        assert read(number, 0, P, cached=True) is not None, "the invalidation may wait for it"
        recall.phase = Phase.CLOSED
        assert read(number, 0, P, cached=True) is None
        assert read(number, P, P, cached=True) is not None
        tokens.in_kernel.delete(0, P)
        tokens.revoked(recall)


async def test_attributes_and_names_are_told_at_once_until_they_are_recalled() -> None:
    async with rig() as world:
        world.make_file(b"file", b"hello")
        client = world.clients[0]
        names = client.fs.names
        assert names.lookup_at_once(ROOT, b"file") is None
        node = await client.node(b"file")
        assert isinstance(await names.lookup(ROOT, b"none"), Absent)
        with client.asks():
            assert isinstance(names.lookup_at_once(ROOT, b"file"), Found)
            assert names.lookup_at_once(ROOT, b"none") == Absent(lasting=True)
            attributes = names.getattr_at_once(node)
            assert attributes is not None
            assert attributes.size == 5
        go_on = trio.Event()

        async def held(*_: object) -> bool:
            await go_on.wait()
            return True

        client.kernel.invalidate_attributes = client.kernel.expire_entry = held  # type: ignore[assignment]
        inode = client.fs.inodes[node]
        inode.attributes.kernel_trusts = True
        point = name_point(b"file")
        root = client.fs.inodes[ROOT].handle
        recalled: list[m.Recalled] = []
        for token in (
            Token(inode.handle, Resource.ATTR, 0, RANGE_END, TokenMode.NONE),
            Token(root, Resource.DIR, point, point + 1, TokenMode.NONE),
        ):
            client.fs.recalls.arrived(m.Recall(token), recalled.append)
        assert names.getattr_at_once(node) is None
        assert names.lookup_at_once(ROOT, b"file") is None
        await trio.testing.wait_all_tasks_blocked()
        assert recalled == []
        go_on.set()
        await trio.testing.wait_all_tasks_blocked()
        assert len(recalled) == 2
        assert names.getattr_at_once(node) is None


async def test_extended_attributes_are_told_at_once_when_they_are_known() -> None:
    async with rig() as world:
        handle = world.make_file(b"file", b"hello")
        world.storage.setxattr(handle, b"user.other", b"1", 0)  # else all that there are come with the name
        client = world.clients[0]
        xattrs = client.fs.xattrs
        node = await client.node(b"file")
        assert xattrs.get_at_once(node, b"user.a") is None
        with pytest.raises(FsError):
            await xattrs.get(node, b"user.a")
        with client.asks(), pytest.raises(FsError) as told:
            xattrs.get_at_once(node, b"user.a")
        assert told.value.errno == errno.ENODATA
        await xattrs.set(node, b"user.a", b"1", 0)
        assert xattrs.get_at_once(node, b"user.a") is None, "it may have changed"
        assert await xattrs.get(node, b"user.a") == b"1"
        with client.asks():
            assert xattrs.get_at_once(node, b"user.a") == b"1"


async def test_dirty_data_and_untold_errors_make_flush_wait() -> None:
    async with rig() as world:
        world.make_file(b"file", b"")
        client = world.clients[0]
        number = await client.open(b"file", os.O_RDWR)
        files = client.fs.files
        assert files.is_flushed(number)
        await client.write(number, 0, b"x")
        assert not files.is_flushed(number)
        await files.flush(number)
        assert files.is_flushed(number)
        client.file(number).errors.lost(FsError(errno.EIO))
        assert not files.is_flushed(number)
        with pytest.raises(FsError):
            await files.flush(number)
        assert files.is_flushed(number), "it was told"


async def test_what_is_held_is_written_at_once() -> None:
    async with rig() as world:
        world.make_file(b"file", b"x" * P)
        client = world.clients[0]
        number = await client.open(b"file", os.O_RDWR)
        write = client.fs.files.write_at_once
        with client.asks():
            assert write(number, 0, memoryview(b"hello"), page=False) == 5
            assert write(number, P - 1, b"ab", page=False) == 2, "the attributes came with the open"
        file = client.file(number)
        assert await client.read(number, 0, 5) == b"hello"
        assert file.size() == P + 1
        with client.asks("WriteExtents"):
            await client.fs.files.flush(number)
        assert world.content(b"file") == b"hello" + b"x" * (P - 6) + b"ab"


async def test_a_write_that_has_to_wait_for_anything_is_not_begun() -> None:
    async with rig(2) as world:
        world.make_file(b"file", b"x" * 2 * P)
        client, other = world.clients
        number = await client.open(b"file", os.O_RDWR)
        file = client.file(number)
        write = client.fs.files.write_at_once
        assert await client.touch(number, 0, P) == b"x" * P
        assert write(number, 0, b"y", page=False) is None, "the kernel has a page that would lack it"
        assert write(number, 0, b"x", page=True) == 1, "as the write-back of that page it does not"
        recall = file.tokens.revoke(P, 2 * P, TokenMode.NONE)
        recall.phase = Phase.CLOSED
        assert write(number, P, b"y", page=False) is None
        assert write(number, P, b"y", page=True) is None
        file.tokens.revoked(recall)
        sent = file.pages.begin_write_back(0, 1)
        assert write(number, 0, b"y", page=True) is None, "it is on its way to the server"
        file.pages.end_write_back(sent, clean=False)
        assert file.refusal() is None
        assert write(number, P, b"y", page=False) is None, "the server has refused something"
        await client.fs.files.flush(number)
        theirs = await other.open(b"file", os.O_RDONLY)
        assert await other.read(theirs, 0, 2 * P) == b"x" * 2 * P
        assert write(number, 0, b"y", page=False) is None, "it is not held any more"
        assert not file.pages.dirty


async def told_at_once(client: Client, node: int, number: int) -> list[object]:
    names, files = client.fs.names, client.fs.files
    return [
        names.lookup_at_once(ROOT, b"file"),
        names.getattr_at_once(node),
        client.fs.xattrs.get_at_once(node, b"user.a"),
        files.open_at_once(node, os.O_RDONLY),
        files.read_at_once(number, 0, P, cached=False),
        files.write_at_once(number, 0, b"h", page=False),
    ]


async def test_nothing_is_told_at_once_past_the_lease() -> None:
    """Promise 8."""
    async with rig() as world:
        world.make_file(b"file", b"hello")
        client = world.clients[0]
        node = await client.node(b"file")
        number = await client.open(b"file", os.O_RDWR)
        await client.fs.xattrs.set(node, b"user.a", b"1", 0)
        await client.fs.xattrs.get(node, b"user.a")
        assert None not in await told_at_once(client, node, number)
        leased = client.remote.leased
        client.remote.leased = lambda *, finishing=False: False  # type: ignore[method-assign]
        assert await told_at_once(client, node, number) == [None] * 6
        client.remote.leased = leased  # type: ignore[method-assign]
