"""What chattr(1), lsattr(1) and their kin set and show: an inode's flags, as the server's filesystem has them.
"""

from __future__ import annotations

import trio

from nfsfuse.engine.cached_file import CachedFile
from nfsfuse.engine.holdings import Holdings
from nfsfuse.engine.page_protocol import PageProtocol
from nfsfuse.engine.write_back import WriteBack
from nfsfuse.machines.inodes import InodeTable
from nfsfuse.ports.remote import Remote
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.messages import Message
from nfsfuse.protocol.tokens import RANGE_END, Resource, Token, TokenMode


class InodeFlags:
    """Those of a mount. Nothing of them is cached here. Raises FsError."""

    def __init__(
        self,
        remote: Remote,
        inodes: InodeTable,
        holdings: Holdings,
        write_back: WriteBack,
        page_protocol: PageProtocol,
    ) -> None:
        self._remote = remote
        self._inodes = inodes
        self._holdings = holdings
        self._write_back = write_back
        self._page_protocol = page_protocol

    async def get(self, node_id: int, *, extended: bool) -> tuple[int, ...]:
        """The flags; *extended*: see `m.GetInodeFlags`."""
        message = m.GetInodeFlags(self._inodes[node_id].handle, extended)
        reply, _ = await self._remote.call(message)
        return reply.numbers

    async def set(self, node_id: int, numbers: tuple[int, ...], *, extended: bool) -> None:
        """Set what `get` tells. A file can be made immutable by that: so what was written before is at the
        server before, and no data are held afterwards, under which it could be opened for writing, or written,
        without the server being asked."""
        inode = self._inodes[node_id]
        file = self._holdings.existing_file(inode.handle)
        if file is not None:
            await self._write_back.write_back(file)
            await self._give_up(file)

        def changed(reply: Message, _: bytes | bytearray) -> None:
            assert isinstance(reply, m.Stat)
            inode.attributes.forget_value()
            self._holdings.told(inode, reply.attributes, reply.tokens)
            self._holdings.distrust(inode)

        message = m.SetInodeFlags(inode.handle, extended, numbers)
        await self._remote.call(message, b"", changed)

    async def _give_up(self, file: CachedFile) -> None:
        """As if another client had recalled all of the file's data."""
        revocation = file.tokens.revoke(0, RANGE_END, TokenMode.NONE)
        with trio.CancelScope(shield=True):  # half of it must not stay; little is left to be written back
            await self._page_protocol.revoke(file, revocation)
        self._remote.return_tokens(
            (Token(file.inode.handle, Resource.DATA, 0, RANGE_END, TokenMode.NONE),)
        )
