"""Names and attributes on the client: FUSE's operations on them, without FUSE."""

from __future__ import annotations

from dataclasses import dataclass

from nfsfuse.machines.inodes import Inode, InodeTable
from nfsfuse.ports.remote import Remote
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.types import AttributeChanges, Attributes, Credentials, FilesystemStatistics, Node


@dataclass(frozen=True, slots=True)
class Found:
    """An inode as the kernel is told of it."""

    inode: Inode
    attributes: Attributes


class Names:
    """Everything that is about names, attributes and links. Raises FsError."""

    def __init__(self, remote: Remote, inodes: InodeTable) -> None:
        self._remote = remote
        self._inodes = inodes

    def found(self, node: Node) -> Found:
        """Tell the kernel of *node*: from now on it counts as looked up once more."""
        return Found(self._inodes.remember(node), node.attributes)

    async def lookup(self, parent: int, name: bytes) -> Found:
        reply, _ = await self._remote.call(m.Lookup(self._inodes[parent].handle, name))
        return self.found(reply.node)

    def forget(self, node_id: int, count: int) -> None:
        self._inodes.forget(node_id, count)

    async def getattr(self, node_id: int) -> Attributes:
        reply, _ = await self._remote.call(m.GetAttr(self._inodes[node_id].handle))
        return reply.attributes

    async def setattr(self, node_id: int, changes: AttributeChanges) -> Attributes:
        reply, _ = await self._remote.call(m.SetAttr(self._inodes[node_id].handle, changes))
        return reply.attributes

    async def readlink(self, node_id: int) -> bytes:
        reply, _ = await self._remote.call(m.ReadLink(self._inodes[node_id].handle))
        return reply.target

    async def symlink(self, parent: int, name: bytes, target: bytes, creds: Credentials) -> Found:
        reply, _ = await self._remote.call(m.SymLink(self._inodes[parent].handle, name, target, creds))
        return self.found(reply.node)

    async def mknod(self, parent: int, name: bytes, mode: int, rdev: int, creds: Credentials) -> Found:
        reply, _ = await self._remote.call(m.MkNod(self._inodes[parent].handle, name, mode, rdev, creds))
        return self.found(reply.node)

    async def mkdir(self, parent: int, name: bytes, mode: int, creds: Credentials) -> Found:
        reply, _ = await self._remote.call(m.MkDir(self._inodes[parent].handle, name, mode, creds))
        return self.found(reply.node)

    async def link(self, node_id: int, parent: int, name: bytes) -> Found:
        message = m.Link(self._inodes[node_id].handle, self._inodes[parent].handle, name)
        reply, _ = await self._remote.call(message)
        return self.found(reply.node)

    async def unlink(self, parent: int, name: bytes) -> None:
        await self._remote.call(m.Unlink(self._inodes[parent].handle, name))

    async def rmdir(self, parent: int, name: bytes) -> None:
        await self._remote.call(m.RmDir(self._inodes[parent].handle, name))

    async def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        old, new = self._inodes[parent].handle, self._inodes[new_parent].handle
        await self._remote.call(m.Rename(old, name, new, new_name, flags))

    async def statfs(self) -> FilesystemStatistics:
        reply, _ = await self._remote.call(m.StatFs())
        return reply.statistics

    async def getxattr(self, node_id: int, name: bytes) -> bytes:
        _, value = await self._remote.call(m.GetXattr(self._inodes[node_id].handle, name))
        return bytes(value)

    async def setxattr(self, node_id: int, name: bytes, value: bytes, flags: int) -> None:
        await self._remote.call(m.SetXattr(self._inodes[node_id].handle, name, flags), value)

    async def listxattr(self, node_id: int) -> tuple[bytes, ...]:
        reply, _ = await self._remote.call(m.ListXattr(self._inodes[node_id].handle))
        return reply.names

    async def removexattr(self, node_id: int, name: bytes) -> None:
        await self._remote.call(m.RemoveXattr(self._inodes[node_id].handle, name))
