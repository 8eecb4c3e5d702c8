"""Names and attributes on the client: FUSE's operations on them, without FUSE."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from functools import partial

from nfsfuse.engine.holdings import Holdings
from nfsfuse.engine.write_back import WriteBack
from nfsfuse.machines.inodes import Inode, InodeTable
from nfsfuse.ports.remote import Remote
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.messages import Message, Request
from nfsfuse.protocol.types import Attributes, Credentials, FilesystemStatistics, Node


@dataclass(frozen=True, slots=True)
class Found:
    """An inode as the kernel is told of it."""

    inode: Inode
    attributes: Attributes


class Names:
    """Everything that is about names, attributes and links. Raises FsError."""

    def __init__(self, remote: Remote, inodes: InodeTable, holdings: Holdings, write_back: WriteBack) -> None:
        self._remote = remote
        self._inodes = inodes
        self._holdings = holdings
        self._write_back = write_back

    # --- finding ---

    def told(self, node: Node) -> Found:
        """The kernel is told of *node*: from now on it counts as looked up once more."""
        inode = self._inodes.known(node)
        inode.lookups += 1
        return Found(inode, inode.attributes.known or node.attributes)

    def _entry(self, reply: Message, _: bytes | bytearray) -> None:
        assert isinstance(reply, m.Entry)
        self._holdings.found(reply.node, reply.tokens, reply.affected)

    async def _found(self, message: Request[m.Entry]) -> Found:
        reply, _ = await self._remote.call(message, b"", self._entry)
        return self.told(reply.node)

    async def lookup(self, parent: int, name: bytes) -> Found:
        return await self._found(m.Lookup(self._inodes[parent].handle, name))

    def forget(self, node_id: int, count: int) -> None:
        inode = self._inodes.forget(node_id, count)
        if inode is not None:
            self._holdings.forgotten(inode)

    # --- making and removing ---

    async def symlink(self, parent: int, name: bytes, target: bytes, creds: Credentials) -> Found:
        return await self._found(m.SymLink(self._inodes[parent].handle, name, target, creds))

    async def mknod(self, parent: int, name: bytes, mode: int, rdev: int, creds: Credentials) -> Found:
        return await self._found(m.MkNod(self._inodes[parent].handle, name, mode, rdev, creds))

    async def mkdir(self, parent: int, name: bytes, mode: int, creds: Credentials) -> Found:
        return await self._found(m.MkDir(self._inodes[parent].handle, name, mode, creds))

    async def link(self, node_id: int, parent: int, name: bytes) -> Found:
        return await self._found(m.Link(self._inodes[node_id].handle, self._inodes[parent].handle, name))

    def _done(self, reply: Message, _: bytes | bytearray) -> None:
        assert isinstance(reply, m.Done)
        for node in reply.affected:
            self._holdings.learn_node(node)

    async def unlink(self, parent: int, name: bytes) -> None:
        await self._remote.call(m.Unlink(self._inodes[parent].handle, name), b"", self._done)

    async def rmdir(self, parent: int, name: bytes) -> None:
        await self._remote.call(m.RmDir(self._inodes[parent].handle, name), b"", self._done)

    async def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        old, new = self._inodes[parent].handle, self._inodes[new_parent].handle
        await self._remote.call(m.Rename(old, name, new, new_name, flags), b"", self._done)

    # --- attributes ---

    async def getattr(self, node_id: int) -> Attributes:
        """The attributes; without a round trip under a token for them."""
        inode = self._inodes[node_id]
        file = self._holdings.existing_file(inode.handle)
        if inode.attributes.known is not None and not inode.attributes.revoking:
            return inode.attributes.known
        if file is not None and file.pages.dirty:
            await self._write_back.write_back(file)  # or our own writes would not show in the times

        reply, _ = await self._remote.call(m.GetAttr(inode.handle), b"", partial(self._stat, inode))
        return inode.attributes.known or reply.attributes

    async def readlink(self, node_id: int) -> bytes:
        reply, _ = await self._remote.call(m.ReadLink(self._inodes[node_id].handle))
        return reply.target

    async def statfs(self) -> FilesystemStatistics:
        reply, _ = await self._remote.call(m.StatFs())
        return reply.statistics

    async def getxattr(self, node_id: int, name: bytes) -> bytes:
        inode = self._inodes[node_id]
        cached = inode.attributes.xattrs
        if name in cached:
            known = cached[name]
            if known is None:
                raise FsError(errno.ENODATA)
            return known

        def told(_: Message, payload: bytes | bytearray) -> None:
            inode.attributes.learned_xattr(name, bytes(payload))

        changes = inode.attributes.xattr_changes
        try:
            _, value = await self._remote.call(m.GetXattr(inode.handle, name), b"", told)
        except FsError as exc:
            # A failure has no hook. Unless something has happened meanwhile it is as good as one.
            if exc.errno == errno.ENODATA and changes == inode.attributes.xattr_changes:
                inode.attributes.learned_xattr(name, None)
            raise
        return bytes(value)

    async def setxattr(self, node_id: int, name: bytes, value: bytes, flags: int) -> None:
        inode = self._inodes[node_id]
        inode.attributes.forget_xattrs()
        await self._remote.call(m.SetXattr(inode.handle, name, flags), value, partial(self._changed, inode))

    async def listxattr(self, node_id: int) -> tuple[bytes, ...]:
        reply, _ = await self._remote.call(m.ListXattr(self._inodes[node_id].handle))
        return reply.names

    async def removexattr(self, node_id: int, name: bytes) -> None:
        inode = self._inodes[node_id]
        inode.attributes.forget_xattrs()
        await self._remote.call(m.RemoveXattr(inode.handle, name), b"", partial(self._changed, inode))

    def _changed(self, inode: Inode, reply: Message, payload: bytes | bytearray) -> None:
        inode.attributes.forget_xattrs()
        self._stat(inode, reply, payload)

    def _stat(self, inode: Inode, reply: Message, _: bytes | bytearray) -> None:
        assert isinstance(reply, m.Stat)
        self._holdings.apply(reply.tokens)
        self._holdings.learn(inode, reply.attributes)
