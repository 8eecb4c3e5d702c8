"""Flags of inodes: what one client makes immutable no other opens for writing under what it holds."""

from __future__ import annotations

import errno
import os

import pytest

from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.types import PAGE_SIZE
from tests.helpers.fake_kernel import Client, rig
from tests.helpers.memory_flags import FS_APPEND_FL, FS_IMMUTABLE_FL

pytestmark = pytest.mark.usefixtures("autojump_clock")

P = PAGE_SIZE


async def is_refused(client: Client, name: bytes, flags: int) -> bool:
    try:
        number = await client.open(name, flags)
    except FsError as exc:
        return exc.errno == errno.EPERM
    await client.close(number)
    return False


async def test_what_is_immutable_is_opened_for_writing_by_nobody() -> None:
    async with rig(2) as world:
        world.make_file(b"file", b"content")
        one, two = world.clients
        for client in (two, one):  # each of them could open it without asking, afterwards
            number = await client.open(b"file", os.O_RDWR)
            await client.write(number, 0, b"CONTENT")
            await client.close(number)
        node = await one.node(b"file")
        await one.fs.inode_flags.set(node, (FS_IMMUTABLE_FL,), extended=False)
        assert world.content(b"file") == b"CONTENT"
        assert await two.fs.inode_flags.get(await two.node(b"file"), extended=False) == (FS_IMMUTABLE_FL,)
        for client in (one, two):
            reading = await client.open(b"file")
            assert await client.read(reading, 0, P) == b"CONTENT"
            assert await is_refused(client, b"file", os.O_RDWR)
            assert await is_refused(client, b"file", os.O_WRONLY | os.O_APPEND)
            await client.close(reading)
        await two.fs.inode_flags.set(await two.node(b"file"), (FS_APPEND_FL,), extended=False)
        for client in (one, two):
            assert await is_refused(client, b"file", os.O_RDWR)
            assert not await is_refused(client, b"file", os.O_WRONLY | os.O_APPEND)
        await one.fs.inode_flags.set(node, (0,), extended=False)
        for client in (one, two):
            assert not await is_refused(client, b"file", os.O_RDWR)


async def test_what_was_written_before_is_at_the_server_before() -> None:
    async with rig() as world:
        world.make_file(b"file", b"content")
        client = world.clients[0]
        number = await client.open(b"file", os.O_RDWR)
        await client.write(number, 0, b"CONTENT")
        node = await client.node(b"file")
        with client.asks("Write", "SetInodeFlags"):
            await client.fs.inode_flags.set(node, (FS_IMMUTABLE_FL,), extended=False)
        assert world.content(b"file") == b"CONTENT"
        assert client.file(number).tokens.everything() == []
        await client.close(number)
