"""Having the kernel ask for an inode's attributes again."""

from __future__ import annotations

from typing import Final

import trio

from nfsfuse.machines.inodes import Inode
from nfsfuse.ports.kernel import Kernel

UNKNOWN_SECONDS: Final = 0.0005
"""How long until a kernel that does not know an inode yet is told again: some wake-ups of a thread."""


async def distrust_attributes(kernel: Kernel, inode: Inode) -> None:
    """Whatever the kernel was told of the attributes, it does not believe it when this returns.

    It may not know the inode yet although it was told of it: between the answer to a lookup and the inode that
    the program which asked makes of it (`fuse_iget`) a notification finds nothing, and the inode then begins
    with attributes that are out of date. It is told until it does know it, or has forgotten it. Neither waits
    for the server (K6)."""
    while not await kernel.invalidate_attributes(inode.node_id):
        if inode.lookups == 0:
            return
        await trio.sleep(UNKNOWN_SECONDS)
