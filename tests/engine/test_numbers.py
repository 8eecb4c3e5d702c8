"""Inodes by number: file handles that outlive the kernel's inodes, and what is above a directory."""

from __future__ import annotations

import errno
from typing import cast

import pytest

from nfsfuse.engine.names import Found
from nfsfuse.machines.inodes import ROOT
from nfsfuse.protocol.errors import FsError
from tests.helpers.fake_kernel import ME, Client, rig

pytestmark = pytest.mark.usefixtures("autojump_clock")


async def looked_up(client: Client, parent: int, name: bytes) -> Found:
    return cast(Found, await client.fs.names.lookup(parent, name))


async def test_a_forgotten_inode_is_found_by_its_number_alone() -> None:
    async with rig(2) as world:
        world.make_file(b"file", b"content")
        one, two = world.clients
        found = (await looked_up(one, ROOT, b"file")).inode
        one.fs.names.forget(found.node_id, 1)
        with one.asks("GetAttr"):
            again = await one.fs.numbers.lookup(found.node_id)
        assert again.inode is not found
        assert (again.inode.handle, again.inode.generation) == (found.handle, found.generation)
        assert again.inode.lookups == 1
        with two.asks("LookupNumber"):
            elsewhere = await two.fs.numbers.lookup(found.node_id)
        assert (elsewhere.inode.handle, elsewhere.inode.generation) == (found.handle, found.generation)
        with two.asks():
            await two.fs.numbers.lookup(found.node_id)  # just being forgotten: it counts once more
        assert elsewhere.inode.lookups == 2


async def test_a_number_without_an_inode_is_stale() -> None:
    async with rig() as world:
        client = world.clients[0]
        world.make_file(b"file")
        found = (await looked_up(client, ROOT, b"file")).inode
        client.fs.names.forget(found.node_id, 1)
        world.storage.unlink(world.storage.root().handle, b"file")
        with pytest.raises(FsError) as caught:
            await client.fs.numbers.lookup(found.node_id)
        assert caught.value.errno == errno.ESTALE
        with pytest.raises(FsError) as caught:
            await client.fs.numbers.lookup(12345)
        assert caught.value.errno == errno.ENOENT


async def test_the_directory_above_is_found() -> None:
    async with rig() as world:
        client = world.clients[0]
        first = (await client.fs.names.mkdir(ROOT, b"first", 0o755, ME)).inode
        second = (await client.fs.names.mkdir(first.node_id, b"second", 0o755, ME)).inode
        assert (await client.fs.numbers.parent(second.node_id)).inode is first
        assert (await client.fs.numbers.parent(first.node_id)).inode.node_id == ROOT


async def dots(client: Client, node_id: int) -> dict[bytes, int]:
    opened = client.fs.directories.opendir(node_id).number
    items = await client.fs.directories.read(opened, 0)
    client.fs.directories.releasedir(opened)
    return {item.name: item.number for item in items if item.inode is None}


async def test_a_listing_tells_the_number_of_the_directory_above_without_a_further_round_trip() -> None:
    async with rig(2) as world:
        one, two = world.clients
        first = (await one.fs.names.mkdir(ROOT, b"first", 0o755, ME)).inode.node_id
        second = (await one.fs.names.mkdir(first, b"second", 0o755, ME)).inode.node_id
        for client in (one, two):
            parent = (await looked_up(client, ROOT, b"first")).inode.node_id
            await looked_up(client, parent, b"second")
            with client.asks("ReadDir"):
                assert await dots(client, second) == {b".": second, b"..": first}
            assert await dots(client, first) == {b".": first, b"..": ROOT}
            assert await dots(client, ROOT) == {b".": ROOT, b"..": ROOT}
        await one.fs.names.rename(first, b"second", ROOT, b"moved", 0)
        for client in (one, two):
            assert await dots(client, second) == {b".": second, b"..": ROOT}


async def test_a_removed_directory_is_in_none() -> None:
    async with rig() as world:
        client = world.clients[0]
        directory = (await client.fs.names.mkdir(ROOT, b"directory", 0o755, ME)).inode
        cached = client.fs.names.directory(directory.node_id)
        await client.fs.names.rmdir(ROOT, b"directory")
        assert await client.fs.numbers.above(cached) == directory.node_id
