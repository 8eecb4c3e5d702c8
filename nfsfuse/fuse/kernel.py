"""The Kernel port, by FUSE notifications."""

from __future__ import annotations

from collections.abc import Callable

from nfsfuse.fuse.notify import Notifier
from nfsfuse.machines.inodes import NodeId
from nfsfuse.protocol.tokens import RANGE_END


class FuseKernel:
    """The kernel behind a mount. The mount is made after the engine, so the notifier is set later; before
    that the kernel knows no inode and nothing is asked of it."""

    def __init__(self) -> None:
        self.notifier: Notifier | None = None
        self.invalidations = 0
        self.invalidation_seconds = 0.0

    async def invalidate_pages(
        self, node_id: NodeId, start: int, end: int, on_returned: Callable[[], None] | None = None
    ) -> None:
        assert self.notifier is not None
        # A length of 0 is "to the end" (fuse_reverse_inval_inode).
        length = 0 if end >= RANGE_END else end - start
        notified = await self.notifier.inval_inode(node_id, start, length, on_returned)
        self.invalidations += 1
        self.invalidation_seconds += notified.seconds

    async def invalidate_attributes(self, node_id: NodeId) -> None:
        assert self.notifier is not None
        await self.notifier.inval_inode(node_id, -1, 0)
