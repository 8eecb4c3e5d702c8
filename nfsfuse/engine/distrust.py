"""Having the kernel ask for an inode's attributes again."""

from __future__ import annotations

from typing import Final

import trio

from nfsfuse.machines.inodes import Inode
from nfsfuse.ports.kernel import Kernel

UNKNOWN_SECONDS: Final = 0.0005
"""How long until a kernel that does not know an inode yet is told again: some wake-ups of a thread."""


UNKNOWN_SECONDS_MAX: Final = 0.02
"""How long until it is taken for stuck. Otherwise it knows the inode once the program that asked has run."""


async def distrust_attributes(kernel: Kernel, inode: Inode) -> bool:
    """Whatever the kernel was told of the attributes, it does not believe it when this returns.

    It may not know the inode yet although it was told of it: between the answer to a lookup and the inode that
    the program which asked makes of it (`fuse_iget`) a notification finds nothing, and the inode then begins
    with attributes that are out of date. It is told until it does know it, or has forgotten it.

    False: it is stuck, and a recall must not wait for it (K6). Of what a listing told it makes one inode after
    the other, and for a name that another program is looking up it waits until that one is answered, by the
    server (`fuse_direntplus_link`, d_alloc_parallel): deadlock 7."""
    begin = trio.current_time()
    while not await kernel.invalidate_attributes(inode.node_id):
        if inode.lookups == 0:
            return True
        if trio.current_time() - begin > UNKNOWN_SECONDS_MAX:
            return False
        await trio.sleep(UNKNOWN_SECONDS)
    return True


async def distrust_when_known(kernel: Kernel, inode: Inode) -> None:
    """As `distrust_attributes`, however long it takes."""
    while not await distrust_attributes(kernel, inode):
        pass
