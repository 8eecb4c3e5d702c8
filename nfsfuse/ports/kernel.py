"""What the client's engine needs of the kernel's caches."""

from __future__ import annotations

from typing import Protocol

from nfsfuse.machines.inodes import Inode, NodeId
from nfsfuse.machines.turns import Turn
from nfsfuse.protocol.types import Attributes


class Kernel(Protocol):
    """Notifications to the kernel of this client. None may run on the event loop's thread: they wait for
    folio locks that only the event loop's answers release."""

    checks_permissions: bool
    """Whether it needs the attributes of a directory before it uses a name in it (default_permissions)."""

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

    async def expire_entry(self, parent: NodeId, name: bytes) -> None:
        """Have *name* asked for again before its next use. What is below it, and mounted there, stays if it
        leads to the same inode then. Waits for the directory's lock, which any operation of the kernel in that
        directory may hold until it is answered."""

    async def expire_entry_at_once(self, parent: Inode, name: bytes, child: Inode | None) -> bool:
        """As `expire_entry`, and waits for nothing but the kernel; whether it can be done here. *child* is what
        the kernel may believe of it, None if there is nothing, or if that is not known: it is dropped then."""

    async def delete_entry(self, parent: NodeId, child: NodeId, name: bytes) -> None:
        """*name* is gone, and *child* is a file that has lost its last name by that: who watches it is told.
        Waits as `expire_entry`."""

    async def find_entry(self, parent: Inode, name: bytes, child: Inode, attributes: Attributes) -> None:
        """Have the directory *child*, which has been moved there, found as *name*, with what is below it and in
        it. Returns when it is, or will be when some program lets a directory go that it has locked."""

    def processor(self, thread: int) -> tuple[int, int] | None:
        """How often *thread*, for which the kernel asks, has been given a processor so far, and how many
        nanoseconds it has had one; None if that cannot be told. See `nfsfuse.machines.turns`."""

    async def distrust_entries(self) -> None:
        """Have every name of the mount looked up again before its next use. Waits for nothing. A directory that
        is used then is dropped first, with what is mounted below it and the working directories in it: only
        where a name cannot be had in another way."""
