"""Extended attributes: what is known of them under the token for attributes, and changes of them."""

from __future__ import annotations

import errno

from nfsfuse.engine.holdings import Holdings
from nfsfuse.engine.write_back import WriteBack
from nfsfuse.machines.inodes import Inode, InodeTable
from nfsfuse.ports.remote import Remote
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.messages import Message, Request
from nfsfuse.protocol.types import CAPABILITY


class Xattrs:
    """Those of a mount. Raises FsError, with the errnos of xattr(7)."""

    def __init__(self, remote: Remote, inodes: InodeTable, holdings: Holdings, write_back: WriteBack) -> None:
        self._remote = remote
        self._inodes = inodes
        self._holdings = holdings
        self._write_back = write_back

    def get_at_once(self, node_id: int, name: bytes) -> bytes | None:
        """The value, if it is known here (FsError ENODATA if it is known that there is none); None if that
        takes a round trip, or waiting."""
        attributes = self._inodes[node_id].attributes
        if attributes.revoking or not self._remote.leased():
            return None  # a change that nobody waits for (a write-back) may be what it is recalled for
        if attributes.lacks_xattr(name):
            raise FsError(errno.ENODATA)
        return attributes.xattrs.get(name)

    async def get(self, node_id: int, name: bytes) -> bytes:
        await self._remote.until_leased()
        known = self.get_at_once(node_id, name)
        if known is not None:
            return known
        inode = self._inodes[node_id]
        changes = inode.attributes.xattr_changes

        def told(_: Message, payload: bytes | bytearray) -> None:
            if changes == inode.attributes.xattr_changes:
                inode.attributes.learned_xattr(name, bytes(payload))

        try:
            _, value = await self._remote.call(m.GetXattr(inode.handle, name), b"", told)
        except FsError as exc:
            # A failure has no hook. Unless something has happened meanwhile it is as good as one.
            if exc.errno == errno.ENODATA and changes == inode.attributes.xattr_changes:
                inode.attributes.learned_xattr(name, None)
            raise
        return bytes(value)

    async def set(
        self, node_id: int, name: bytes, value: bytes, flags: int, *, kill_sgid: bool = False
    ) -> None:
        inode = self._inodes[node_id]
        file = self._holdings.existing_file(inode.handle)
        if name == CAPABILITY and file is not None:
            await self._write_back.write_back(file)  # what was written before would take it away after
        message = m.SetXattr(inode.handle, name, flags, kill_sgid)
        await self._change(inode, name, message, value)

    def has_none_at_once(self, node_id: int) -> bool:
        """Whether it is known here that there are none; False if that takes a round trip, or waiting."""
        attributes = self._inodes[node_id].attributes
        return attributes.has_no_xattrs and not attributes.revoking and self._remote.leased()

    async def names(self, node_id: int) -> tuple[bytes, ...]:
        await self._remote.until_leased()
        if self.has_none_at_once(node_id):
            return ()
        reply, _ = await self._remote.call(m.ListXattr(self._inodes[node_id].handle))
        return reply.names

    async def remove(self, node_id: int, name: bytes) -> None:
        inode = self._inodes[node_id]
        await self._change(inode, name, m.RemoveXattr(inode.handle, name), b"")

    async def _change(self, inode: Inode, name: bytes, message: Request[m.Stat], value: bytes) -> None:
        attributes = inode.attributes
        has_none = name != CAPABILITY and attributes.lacks_xattr(CAPABILITY)
        attributes.forget_xattrs()
        changes = attributes.xattr_changes

        def changed(reply: Message, _: bytes | bytearray) -> None:
            still_none = has_none and changes == attributes.xattr_changes
            attributes.forget_xattrs()
            assert isinstance(reply, m.Stat)
            self._holdings.told(inode, reply.attributes, reply.tokens, bare=reply.bare)
            if still_none:
                attributes.learned_xattr(CAPABILITY, None)  # which the next write would ask for

        await self._remote.call(message, value, changed)
