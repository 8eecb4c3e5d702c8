"""Inodes by their numbers alone: what is behind a file handle of the kernel's, and above a directory.

A program that has a file handle (name_to_handle_at(2)), an NFS server that exports the mount first of all, may
use it long after the kernel has forgotten the inode. The handle is the node id and the generation; the kernel
then looks up "." in that node id (fuse_get_dentry in fs/fuse/inode.c), takes the inode that it is told, and
compares the generation. A node id is the inode's number on the server, and the generation follows from its
handle (`nfsfuse.machines.inodes`): so a handle is good on every mount and after a remount. "..", likewise, it
looks up in a directory whose place it has to find.
"""

from __future__ import annotations

import errno

from nfsfuse.engine.cached_directory import CachedDirectory
from nfsfuse.engine.holdings import Holdings
from nfsfuse.engine.names import Found, Names
from nfsfuse.machines.inodes import ROOT, Inode, InodeTable
from nfsfuse.ports.remote import Remote
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.messages import Message
from nfsfuse.protocol.tokens import TokenMode
from nfsfuse.protocol.types import Attributes, InodeHandle, Node


class Numbers:
    """Those of a mount. *root_number* is the root's on the server. Raises FsError."""

    def __init__(
        self, remote: Remote, inodes: InodeTable, holdings: Holdings, names: Names, root_number: int
    ) -> None:
        self._remote = remote
        self._inodes = inodes
        self._holdings = holdings
        self._names = names
        self._root_number = root_number

    async def lookup(self, node_id: int) -> Found:
        """The inode with this node id, which the kernel does not know any more, or is just forgetting. ESTALE
        or ENOENT if there is none."""
        await self._remote.until_leased()
        inode = self._inodes.get(node_id)
        if inode is not None:
            return await self._known(inode)
        handle = self._inodes.forgotten(node_id)
        if handle is not None:
            return await self._of_handle(handle)
        return await self._found(m.LookupNumber(node_id))

    async def _known(self, inode: Inode) -> Found:
        inode.lookups += 1  # as of now: the kernel may be forgetting it
        try:
            attributes = await self._names.getattr(inode.node_id)
            if self._inodes.get(inode.node_id) is not inode:
                raise FsError(errno.ESTALE, f"{inode} was removed, and its number is in use again")
        except BaseException:
            self._holdings.forget(inode.node_id, 1)
            raise
        return Found(inode, attributes, lasting=False)

    async def _of_handle(self, handle: InodeHandle) -> Found:
        found: list[Inode] = []

        def told(reply: Message, _: bytes | bytearray) -> None:
            assert isinstance(reply, m.Stat)
            found.append(self._holdings.found(Node(handle, reply.attributes), reply.tokens))

        reply, _ = await self._remote.call(m.GetAttr(handle), b"", told)
        return self._told(found[0], reply.attributes)

    async def parent(self, node_id: int) -> Found:
        """The directory that the directory with this node id is in."""
        await self._remote.until_leased()
        return await self._found(m.LookupParent(self._inodes[node_id].handle))

    async def _found(self, message: m.LookupNumber | m.LookupParent) -> Found:
        found: list[Inode] = []

        def told(reply: Message, _: bytes | bytearray) -> None:
            assert isinstance(reply, m.Entry)
            if reply.node is not None:
                found.append(self._holdings.found(reply.node, reply.tokens))

        reply, _ = await self._remote.call(message, b"", told)
        if reply.node is None:
            raise FsError(errno.ENOENT)
        return self._told(found[0], reply.node.attributes)

    def _told(self, inode: Inode, attributes: Attributes) -> Found:
        # If the kernel has forgotten it since the answer arrived it is made anew.
        inode = self._inodes.still(Node(inode.handle, attributes))
        return self._names.told(inode, attributes, lasting=False)

    async def above(self, directory: CachedDirectory) -> int:
        """The node id of what *directory* is in, for a listing's "..": mostly known, as a listing tells it."""
        inode = directory.inode
        if inode.node_id == ROOT:
            return ROOT
        if inode.attributes.above is not None:
            return self._node_id(inode.attributes.above)

        def told(reply: Message, _: bytes | bytearray) -> None:
            assert isinstance(reply, m.Entry)
            assert reply.node is not None
            self._holdings.apply(reply.tokens)
            if inode.attributes.mode is not TokenMode.NONE:
                inode.attributes.above = reply.node.attributes.ino

        try:
            reply, _ = await self._remote.call(m.LookupParent(inode.handle), b"", told)
        except FsError as exc:
            if exc.errno != errno.ESTALE:
                raise
            return inode.node_id  # it was removed, and is in none
        assert reply.node is not None
        return self._node_id(reply.node.attributes.ino)

    def _node_id(self, number: int) -> int:
        return ROOT if number == self._root_number else number
