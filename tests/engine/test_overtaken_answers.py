"""An answer is overtaken: attributes in it are out of date when it comes, or when the kernel takes it in.

Found by the stress of names: they were believed until somebody else wanted them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import pytest
import trio
import trio.testing

from nfsfuse.machines.inodes import ROOT, NodeId
from nfsfuse.protocol.types import AttributeChanges
from tests.helpers.disk import InlineDisk
from tests.helpers.fake_kernel import Client, Rig, rig

pytestmark = pytest.mark.usefixtures("autojump_clock")

T = TypeVar("T")


class LateDisk(InlineDisk):
    """What is called in a thread is done at once, and known when the *gate* is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = trio.Event()
        self.gate.set()

    async def slow(self, call: Callable[[], T]) -> T:
        result = await super().slow(call)
        await self.gate.wait()
        return result


@asynccontextmanager
async def listed_late(client: Client, disk: LateDisk) -> AsyncIterator[None]:
    """A listing of the root by *client*, which is made before and arrives after what is done within: the server
    has a thread read it."""
    number = client.fs.directories.opendir(ROOT).number
    async with trio.open_nursery() as nursery:
        disk.gate = trio.Event()
        nursery.start_soon(client.fs.directories.read, number, 0)
        await trio.testing.wait_all_tasks_blocked()
        disk.gate.set()  # it knows the names
        disk.gate = trio.Event()
        await trio.testing.wait_all_tasks_blocked()  # their attributes are read
        yield
        disk.gate.set()
    client.fs.directories.releasedir(number)


async def known_without_a_token(world: Rig) -> tuple[Client, NodeId]:
    """A client that has looked up a file, of which another has taken its token since; and the file."""
    world.make_file(b"file")
    client, other = world.clients
    node = await client.node(b"file")
    inode = other.fs.inodes[await other.node(b"file")]
    await other.fs.inode_changes.setattr(inode, AttributeChanges(mode=0o640))
    assert client.fs.inodes[node].attributes.known is None
    return client, node


async def test_links_in_a_listing_that_was_overtaken_are_not_believed() -> None:
    disk = LateDisk()
    async with rig(2, make_disk=lambda: disk) as world:
        client, node = await known_without_a_token(world)
        async with listed_late(client, disk):
            await client.fs.names.link(node, ROOT, b"second")
        assert (await client.fs.names.getattr(node)).nlink == 2


async def test_a_listing_that_was_overtaken_does_not_hide_an_extended_attribute() -> None:
    disk = LateDisk()
    async with rig(2, make_disk=lambda: disk) as world:
        client, node = await known_without_a_token(world)
        async with listed_late(client, disk):
            await client.fs.xattrs.set(node, b"user.x", b"value", 0)
        assert await client.fs.xattrs.names(node) == (b"user.x",)
        assert await client.fs.xattrs.get(node, b"user.x") == b"value"


async def test_a_listing_that_nothing_has_overtaken_is_believed() -> None:
    disk = LateDisk()
    async with rig(2, make_disk=lambda: disk) as world:
        client, node = await known_without_a_token(world)
        async with listed_late(client, disk):
            await client.fs.names.statfs()
        with client.asks():
            assert (await client.fs.names.getattr(node)).nlink == 1
            assert await client.fs.xattrs.names(node) == ()


async def test_an_inode_that_the_kernel_makes_anew_of_an_older_answer_is_distrusted() -> None:
    """tests/mount/test_starved.py tells how it comes to that."""
    async with rig() as world:
        world.make_file(b"file")
        client = world.clients[0]
        node = await client.node(b"file")
        inode = client.fs.inodes[node]
        told = inode.attributes.known
        assert told is not None
        inode.lookups, names = 3, client.fs.names
        assert inode.attributes.told(told)
        names.forget(node, 1)
        await trio.testing.wait_all_tasks_blocked()
        assert client.kernel.attributes == 0, "what it was told is so still"
        await names.link(node, ROOT, b"second")
        await trio.testing.wait_all_tasks_blocked()
        assert client.kernel.attributes == 1, "the inode that it has is told"
        names.forget(node, 1)
        await trio.testing.wait_all_tasks_blocked()
        assert client.kernel.attributes == 2, "the inode that it will have is told"
        names.forget(node, inode.lookups)
        await trio.testing.wait_all_tasks_blocked()
        assert client.kernel.attributes == 2, "there is none"
