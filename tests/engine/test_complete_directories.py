"""Directories of which a client knows all names: what is not there it knows without asking."""

from __future__ import annotations

import errno
import os
from random import Random

import pytest

from nfsfuse.engine.names import Absent, Found
from nfsfuse.machines.inodes import ROOT
from nfsfuse.protocol.errors import FsError
from tests.helpers.fake_kernel import ME, Client, rig

pytestmark = pytest.mark.usefixtures("autojump_clock")


async def make_directory(client: Client, name: bytes) -> int:
    return (await client.fs.names.mkdir(ROOT, name, 0o755, ME)).inode.node_id


async def make(client: Client, parent: int, name: bytes) -> None:
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    number, _ = await client.fs.files.create(parent, name, 0o644, flags, ME)
    client.fs.files.release(number)


async def is_there(client: Client, parent: int, name: bytes) -> bool:
    return isinstance(await client.fs.names.lookup(parent, name), Found)


async def test_nothing_is_asked_of_a_new_directory_by_its_maker() -> None:
    async with rig() as world:
        client = world.clients[0]
        directory = await make_directory(client, b"new")
        with client.asks("Create"):
            assert await client.fs.names.lookup(directory, b"file") == Absent(lasting=True)
            await make(client, directory, b"file")
            assert await is_there(client, directory, b"file")
            assert not await is_there(client, directory, b"other")
        await client.fs.names.unlink(directory, b"file")
        with client.asks():
            assert not await is_there(client, directory, b"file")


async def test_a_directory_that_cannot_be_listed_is_made_all_the_same() -> None:
    def no_descriptor_left(operation: str, _: object) -> None:
        if operation == "readdir":
            raise FsError(errno.ENFILE)

    async with rig(fault=no_descriptor_left) as world:
        client = world.clients[0]
        directory = await make_directory(client, b"new")
        with client.asks("Lookup"):
            assert not await is_there(client, directory, b"file")


async def test_what_another_client_makes_is_found() -> None:
    async with rig(2) as world:
        maker, other = world.clients
        directory = await make_directory(maker, b"new")
        assert not await is_there(maker, directory, b"file")
        theirs = (await other.fs.names.lookup(ROOT, b"new")).inode.node_id  # type: ignore[union-attr]
        await make(other, theirs, b"file")
        assert maker.kernel.entries == [b"file"], "which it had been told is not there"
        assert await is_there(maker, directory, b"file")
        with maker.asks():
            assert not await is_there(maker, directory, b"another"), "the others are still known"
        await other.fs.names.rename(theirs, b"file", theirs, b"another", 0)
        assert await is_there(maker, directory, b"another")
        assert not await is_there(maker, directory, b"file")


async def test_a_directory_that_was_listed_whole_is_known_whole() -> None:
    async with rig(2) as world:
        for name in (b"a", b"b"):
            world.make_file(name)
        client, other = world.clients
        number = client.fs.directories.opendir(ROOT).number
        assert not await is_there(client, ROOT, b"c")
        while items := await client.fs.directories.read(number, 0):
            for item in items:
                if item.inode is not None:
                    item.inode.lookups += 1
            if not await client.fs.directories.read(number, items[-1].cookie):
                break
        with client.asks():
            assert not await is_there(client, ROOT, b"d")
            assert await is_there(client, ROOT, b"a")
        await make(other, ROOT, b"d")
        assert await is_there(client, ROOT, b"d")


async def test_a_name_that_is_too_long_is_the_servers_to_refuse() -> None:
    async with rig() as world:
        client = world.clients[0]
        directory = await make_directory(client, b"new")
        with pytest.raises(FsError) as refused:
            await client.fs.names.lookup(directory, b"x" * 256)
        assert refused.value.errno == errno.ENAMETOOLONG


@pytest.mark.parametrize("seed", range(30))
async def test_all_clients_agree_on_every_name_of_a_new_directory(seed: int) -> None:
    """One after the other they change names in it and look at them; nobody ever sees what is over."""
    random = Random(seed)
    names = [b"n%d" % number for number in range(5)]
    async with rig(3) as world:
        nodes = [await make_directory(world.clients[0], b"new")]
        for client in world.clients[1:]:
            nodes.append((await client.fs.names.lookup(ROOT, b"new")).inode.node_id)  # type: ignore[union-attr]
        there: set[bytes] = set()
        for _ in range(60):
            index = random.randrange(3)
            client, node = world.clients[index], nodes[index]
            name, target = random.choice(names), random.choice(names)
            match random.choice(("look", "look", "make", "remove", "rename", "list")):
                case "look":
                    assert await is_there(client, node, name) == (name in there)
                case "make" if name not in there:
                    await make(client, node, name)
                    there.add(name)
                case "remove" if name in there:
                    await client.fs.names.unlink(node, name)
                    there.remove(name)
                case "rename" if name in there and target != name:
                    await client.fs.names.rename(node, name, node, target, 0)
                    there.remove(name)
                    there.add(target)
                case "list":
                    number = client.fs.directories.opendir(node).number
                    items = await client.fs.directories.read(number, 0)
                    assert {item.name for item in items} - {b".", b".."} == there
                    for item in items:
                        if item.inode is not None:
                            item.inode.lookups += 1
                    client.fs.directories.releasedir(number)
        for client, node in zip(world.clients, nodes, strict=True):
            for name in names:
                assert await is_there(client, node, name) == (name in there)
