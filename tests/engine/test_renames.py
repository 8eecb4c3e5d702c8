"""Renames and removals as the client takes in their answers."""

from __future__ import annotations

import pytest

from nfsfuse.machines.attribute_cache import UNSETTLED_TELLINGS
from nfsfuse.machines.inodes import ROOT, NodeId
from nfsfuse.protocol.types import RENAME_EXCHANGE
from tests.helpers.fake_kernel import Client, rig

pytestmark = pytest.mark.usefixtures("autojump_clock")


async def test_two_names_of_one_file_that_are_exchanged_lead_to_it_still() -> None:
    """Found by the stress of names. A kernel asks for that if another client has made them so between its two
    looks. The old name led to its own directory then, for which the kernel has ELOOP."""
    async with rig(1) as world:
        world.make_file(b"one")
        names = world.clients[0].fs.names
        node = await world.clients[0].node(b"one")
        await names.link(node, ROOT, b"other")
        await names.rename(ROOT, b"one", ROOT, b"other", RENAME_EXCHANGE)
        await names.getattr(ROOT)  # so that an entry which leads there is believed
        for name in (b"one", b"other"):
            assert await world.clients[0].node(name) == node


async def _counted(client: Client, node: NodeId) -> bool:
    """Whether the kernel, asking now, may believe the answer until it is told otherwise."""
    attributes = await client.fs.names.getattr(node)
    return client.fs.inodes[node].attributes.told(attributes)


async def test_links_that_the_kernel_counts_itself_are_not_told_for_good() -> None:
    """Found by the stress of names: a program looked at an open file just as another removed one of its names.
    The kernel took the answer in, and then counted one less."""
    async with rig(1) as world:
        world.make_file(b"one")
        (client,) = world.clients
        names = client.fs.names
        node = await client.node(b"one")
        await names.link(node, ROOT, b"other")
        assert await _counted(client, node)
        await names.unlink(ROOT, b"other")
        assert not await _counted(client, node)
        for _ in range(UNSETTLED_TELLINGS):
            await _counted(client, node)
        assert await _counted(client, node)


@pytest.mark.parametrize("how", ["unlink", "rename"])
async def test_links_of_a_file_that_the_kernel_wrongly_thinks_removed_are_not_told_for_good(how: str) -> None:
    """Another client has exchanged the names since the kernel looked: it counts one less of the wrong file."""
    async with rig(2) as world:
        for name in (b"one", b"other", b"third"):
            world.make_file(name)
        client, second = world.clients
        for each in world.clients:
            assert await _counted(each, await each.node(b"one"))
        one = await client.node(b"one")
        await second.fs.names.rename(ROOT, b"one", ROOT, b"other", RENAME_EXCHANGE)
        assert await _counted(client, one), "it is told what is so"
        if how == "unlink":
            await client.fs.names.unlink(ROOT, b"one")
        else:
            await client.fs.names.rename(ROOT, b"third", ROOT, b"one", 0)
        assert (await client.fs.names.getattr(one)).nlink == 1
        assert not await _counted(client, one)
