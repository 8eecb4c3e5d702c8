"""Renames as the client takes in their answers."""

from __future__ import annotations

import pytest

from nfsfuse.machines.inodes import ROOT
from nfsfuse.protocol.types import RENAME_EXCHANGE
from tests.helpers.fake_kernel import rig

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
