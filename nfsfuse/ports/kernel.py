"""What the client's engine needs of the kernel's caches."""

from __future__ import annotations

from typing import Protocol

from nfsfuse.machines.inodes import NodeId
from nfsfuse.machines.turns import Turn


class Kernel(Protocol):
    """Notifications to the kernel of this client. None may run on the event loop's thread: they wait for
    folio locks that only the event loop's answers release."""

    async def invalidate_pages(
        self,
        node_id: NodeId,
        start: int,
        end: int,
        returned: bytearray | None = None,
        turn: Turn | None = None,
    ) -> None:
        """Write back, unmap and drop the pages of ``[start, end)``, after *turn* is over. At the instant that
        is done the byte *returned* becomes 1, whatever Python is about. Runs to its end even if the caller is
        cancelled."""

    async def write_back_pages(self, node_id: NodeId, generation: int, start: int, end: int) -> None:
        """Start writing back the dirty pages of ``[start, end)`` in large requests, so that an invalidation
        finds them clean. Only ever for speed: it may do nothing."""

    async def learn_size(self, node_id: NodeId, generation: int) -> int | None:
        """Have the kernel take the size from what is known here (`AttributeCache.known`), if anything is; what
        it believes afterwards, None if it cannot be asked. Waits for no grant."""

    async def grow(self, node_id: NodeId, generation: int, size: int) -> bool:
        """Have the kernel believe that the file is at least *size* bytes long, from when this returns. Whether
        it knows the inode. No page changes by that, and it waits for no page."""

    async def invalidate_attributes(self, node_id: NodeId) -> bool:
        """Have the attributes asked for again. Whether the kernel knows the inode (see
        `nfsfuse.engine.distrust`)."""

    async def invalidate_entry(self, parent: NodeId, name: bytes) -> None:
        """Drop what is believed of *name*. Waits for the directory's lock, which any operation of the kernel
        in that directory may hold until it is answered."""

    async def delete_entry(self, parent: NodeId, child: NodeId, name: bytes) -> None:
        """As `invalidate_entry`; *child* is a file that loses its last name by that: who watches it is told."""

    def processor(self, thread: int) -> tuple[int, int] | None:
        """How often *thread*, for which the kernel asks, has been given a processor so far, and how many
        nanoseconds it has had one; None if that cannot be told. See `nfsfuse.machines.turns`."""

    async def distrust_entries(self) -> None:
        """Have every name of the mount looked up again before its next use. Waits for nothing."""
