"""chmod, chown, truncate and utimensat of any inode, in order with what is written to it."""

from __future__ import annotations

from nfsfuse.engine.holdings import Holdings
from nfsfuse.engine.page_protocol import PageProtocol
from nfsfuse.engine.write_back import WriteBack
from nfsfuse.machines.inodes import Inode
from nfsfuse.ports.remote import Remote
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.messages import Message
from nfsfuse.protocol.types import AttributeChanges, Attributes


class InodeChanges:
    """Those of a mount. Raises FsError."""

    def __init__(
        self, remote: Remote, holdings: Holdings, page_protocol: PageProtocol, write_back: WriteBack
    ) -> None:
        self._remote = remote
        self._holdings = holdings
        self._page_protocol = page_protocol
        self._write_back = write_back

    async def setattr(self, inode: Inode, changes: AttributeChanges) -> Attributes:
        """chmod, chown, truncate, utimensat of any inode. What is dirty goes first, or its write-back would
        change the times again and undo the truncation. Before a time is set that is also what is dirty in
        mapped pages, as Linux's FUSE does with its writeback cache (`fuse_do_setattr`); the server has other
        clients do the same."""
        file = self._holdings.existing_file(inode.handle)
        if file is not None and changes.size is not None:
            await self._write_back.before_truncation(file, changes.size)
        elif file is not None:
            if changes.sets_mtime():
                await self._page_protocol.take_stores(file)
            await self._write_back.write_back(file)
        if changes.atime_ns is not None or changes.atime_now:
            self._remote.tell_pending()  # of an access before this one, which would set it again

        def changed(reply: Message, _: bytes | bytearray) -> None:
            assert isinstance(reply, m.Stat)
            if file is not None and changes.size is not None:
                file.truncated(changes.size)
            inode.attributes.forget_value()
            inode.attributes.forget_xattr_values()
            self._holdings.told(inode, reply.attributes, reply.tokens)
            inode.attributes.changed_here = file is not None and bool(file.pages.dirty)

        if changes.size is None:
            reply, _ = await self._remote.call(m.SetAttr(inode.handle, changes, False), b"", changed)
        else:
            blocked = file is not None and file.tokens.may_have_dirty_pages()
            with inode.kernel_size.changed_here():
                reply, _ = await self._remote.call(m.SetAttr(inode.handle, changes, blocked), b"", changed)
            inode.kernel_size.at_least(changes.size)
        return inode.attributes.known or reply.attributes
