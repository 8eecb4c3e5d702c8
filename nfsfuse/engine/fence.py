"""The end of a session: nothing that was cached under its tokens may be believed any more (promise 8).

The machines are emptied first, so that whatever is asked from then on goes to the server (and fails, while
there is none); then the kernel is told to drop what it has. What was dirty is lost, and said so: in the log,
and by the next fsync or close of the file.
"""

from __future__ import annotations

import errno
import logging

from nfsfuse.engine.holdings import Holdings
from nfsfuse.machines.inodes import InodeTable, NodeId
from nfsfuse.ports.kernel import Kernel
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.intervals import Interval
from nfsfuse.protocol.tokens import RANGE_END

log = logging.getLogger(__name__)


async def fence(inodes: InodeTable, holdings: Holdings, kernel: Kernel, *, has_epochs: bool) -> None:
    """Believe nothing any more. Runs to its end; what the kernel writes back meanwhile is refused."""
    pages: list[tuple[NodeId, list[Interval]]] = []
    for file in holdings.files():
        if file.pages.dirty:
            lost = file.pages.dirty_bytes
            log.error("%s: %d bytes written here are lost with the session", file.inode, lost)
            file.errors.lost(FsError(errno.EIO, "the session with the server was lost"))
        pages.append((file.inode.node_id, file.tokens.in_kernel.intervals()))
        file.forget_everything()
    trusted = [inode.node_id for inode in inodes if inode.attributes.kernel_trusts]
    for inode in inodes:
        inode.attributes.lost()
    holdings.forget_directories()
    if has_epochs:
        await kernel.distrust_entries()
    for node_id in trusted:
        await kernel.invalidate_attributes(node_id)
    for node_id, ranges in pages:
        for start, end in ranges:
            await kernel.invalidate_pages(node_id, start, min(end, RANGE_END))
