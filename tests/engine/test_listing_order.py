"""Deadlock 7 in the engine: a kernel takes in a listing name by name, beside a program that looks one up."""

from __future__ import annotations

import pytest
import trio

from nfsfuse.machines.inodes import ROOT, NodeId
from tests.helpers.fake_kernel import Client, FakeKernel, rig
from tests.sim.mutations import rule_7_a_recall_waits_until_the_kernel_knows_the_inode

pytestmark = pytest.mark.usefixtures("autojump_clock")

STUCK_SECONDS = 2.0
"""Of simulated time: whoever is not through by then never will be."""


class ListingKernel(FakeKernel):
    """Of what a listing told it makes an inode for one name after the other (fuse_direntplus_link). For a name
    that another program is looking up it waits until that is answered (d_alloc_parallel). No notification finds
    an inode that is not made yet."""

    def __init__(self) -> None:
        super().__init__()
        self.inodes: set[NodeId] = set()
        self.looked_up = trio.Event()

    async def invalidate_attributes(self, node_id: NodeId) -> bool:
        await trio.lowlevel.checkpoint()
        return node_id in self.inodes

    async def take_in(self, client: Client, listing: int) -> None:
        """READDIRPLUS, its answer, and what becomes of it."""
        for item in await client.fs.directories.read(listing, 0):
            if item.inode is not None:
                item.inode.lookups += 1
                item.inode.attributes.kernel_trusts = True
                await self.looked_up.wait()
                self.inodes.add(item.inode.node_id)


async def play() -> None:
    """Two names of one file. One client lists them, the other removes the first, for which it needs the
    attributes; meanwhile the first name is looked up by a program of the one."""
    async with rig(2, make_kernel=ListingKernel, link_seconds=lambda: 0.001) as world:
        one, other = world.clients
        assert isinstance(one.kernel, ListingKernel)
        world.make_file(b"first")
        await other.fs.names.link(await other.node(b"first"), ROOT, b"second")
        listing = one.fs.directories.opendir(ROOT).number
        with trio.fail_after(STUCK_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one.kernel.take_in, one, listing)
                await trio.sleep(0.01)  # the answer is here
                before = len(one.kernel.entries)
                nursery.start_soon(other.fs.names.unlink, ROOT, b"first")
                while len(one.kernel.entries) == before:  # noqa: ASYNC110 - the kernel tells nobody
                    await trio.sleep(0.0001)
                await one.fs.names.lookup(ROOT, b"first")
                one.kernel.looked_up.set()
        one.fs.directories.releasedir(listing)
        left, _ = world.storage.readdir(world.storage.root().handle, 0, 10)
        assert [entry.name for entry in left] == [b"second"]


async def test_a_listing_that_is_stuck_does_not_keep_others_waiting() -> None:
    await play()


async def test_a_recall_that_waits_for_the_kernel_to_know_the_inode_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rule_7_a_recall_waits_until_the_kernel_knows_the_inode(monkeypatch)
    with pytest.RaisesGroup(trio.TooSlowError, allow_unwrapped=True, flatten_subgroups=True):
        await play()
