"""The inodes that the client's kernel knows: node id to handle, and how often the kernel was told.

A node id is the inode's number on the server, so that ``st_ino`` is the same on all clients and after a
remount; the root is 1 (FUSE_ROOT_ID). A filesystem gives a number to another inode once the first is gone:
the generation then differs, and the kernel tells them apart (``fuse_stale_inode`` in fs/fuse/inode.c). It is a
hash of the server's handle, so that it, too, is the same everywhere: the two are the kernel's own file handle
(``fuse_encode_fh``), which NFS clients of a mount keep for ever.
"""

from __future__ import annotations

import errno
import stat
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, NewType

from nfsfuse.machines.attribute_cache import AttributeCache
from nfsfuse.machines.kernel_size import KernelSize
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.types import InodeHandle, Node

NodeId = NewType("NodeId", int)

PATH_DEPTH_MAX: Final = 40
"""Names in a path that is shown. Directories that were moved into one another may look like a circle."""

ROOT: Final = NodeId(1)

STANDS_IN_MIN: Final = 1 << 62
"""Node ids from here on are of no inode: see `InodeTable.stand_in`. No filesystem has inodes of such
numbers."""

FORGOTTEN_MAX: Final = 65536
"""Inodes of which the handle is remembered when the kernel has forgotten them: some 13 MiB. Others have to be
searched for by the server."""


def generation_of(handle: InodeHandle) -> int:
    """32 bits: an inode that gets another's number has the same once in four thousand millions."""
    return zlib.crc32(handle)


@dataclass(slots=True, eq=False)
class Inode:
    """An inode that the kernel knows. *lookups* is how many times it was told, less what it forgot."""

    node_id: NodeId
    generation: int
    handle: InodeHandle
    lookups: int = 0
    is_directory: bool = False
    attributes: AttributeCache = field(default_factory=AttributeCache)
    kernel_size: KernelSize = field(default_factory=KernelSize)
    found_as: tuple[Inode, bytes] | None = field(default=None, repr=False)
    """The directory and the name in it by which it was last found."""

    def __str__(self) -> str:
        """For people: its path in the mount when it was last looked up, which others may have changed since."""
        names: list[bytes] = []
        at = self
        while at.found_as is not None and len(names) < PATH_DEPTH_MAX:
            at, name = at.found_as
            names.append(name)
        if at.node_id == ROOT and names:
            return b"/".join(reversed(names)).decode("utf-8", "backslashreplace")
        return f"inode {self.node_id}"


class InodeTable:
    """Node ids in use."""

    def __init__(self, root: Node) -> None:
        self._inodes: dict[NodeId, Inode] = {ROOT: Inode(ROOT, 0, root.handle, 1, is_directory=True)}
        self._stood_in = 0
        self.stand_in_wanted: Callable[[int], None] = lambda node_id: None
        """Called before that is raised."""
        self._by_handle: dict[InodeHandle, Inode] = {root.handle: self._inodes[ROOT]}
        self._forgotten: OrderedDict[NodeId, InodeHandle] = OrderedDict()  # oldest first

    def __len__(self) -> int:
        return len(self._inodes)

    def __iter__(self) -> Iterator[Inode]:
        return iter(list(self._inodes.values()))

    def __getitem__(self, node_id: int) -> Inode:
        """The inode behind a node id that the kernel uses. A KeyError would be a bug. Raises FsError (ESTALE)
        for one that stands in: the kernel looks its names up once more then, believing none."""
        if node_id >= STANDS_IN_MIN:
            self.stand_in_wanted(node_id)
            raise FsError(errno.ESTALE, "it was told of an inode whose other name was recalled meanwhile")
        return self._inodes[NodeId(node_id)]

    def stand_in(self, inode: Inode) -> Inode:
        """What the kernel is told in place of *inode*, so that it does not take it for one that it knows: it
        can be asked for nothing. Not remembered."""
        self._stood_in += 1
        return Inode(NodeId(STANDS_IN_MIN + self._stood_in), 0, inode.handle, is_directory=inode.is_directory)

    def get(self, node_id: int) -> Inode | None:
        """The inode behind a node id, if the kernel knows one."""
        return self._inodes.get(NodeId(node_id))

    def same(self, node_id: int, generation: int) -> Inode | None:
        """The inode that had this node id and generation at some time, if the kernel knows it still: who has
        noted an inode by its number gets it back by this. Another one may have the number by now; told its
        generation with what was noted of the former, the kernel takes it for broken if the types differ
        (fuse_make_bad() in fs/fuse/fuse_i.h), and all that is done to it ends in EIO."""
        inode = self._inodes.get(NodeId(node_id))
        return inode if inode is not None and inode.generation == generation else None

    def by_handle(self, handle: InodeHandle) -> Inode | None:
        """The inode of this handle, if the kernel knows it."""
        return self._by_handle.get(handle)

    def known(self, node: Node) -> Inode:
        """The entry of *node*, of which the kernel will perhaps be told."""
        inode = self._by_handle.get(node.handle)
        if inode is None:
            node_id = NodeId(node.attributes.ino)
            assert node_id != ROOT, "only the root may have the root's node id"
            former = self._inodes.get(node_id)
            generation = generation_of(node.handle)
            inode = Inode(node_id, generation, node.handle, is_directory=stat.S_ISDIR(node.attributes.mode))
            self._forgotten.pop(node_id, None)
            if former is not None:
                # The number is in use again. The kernel will still forget the former inode by this number:
                # the counts add up, and the entry stays until both are forgotten.
                if inode.generation == former.generation:
                    inode.generation ^= 1
                inode.lookups = former.lookups
                del self._by_handle[former.handle]
            self._inodes[node_id] = inode
            self._by_handle[node.handle] = inode
        return inode

    def still(self, node: Node) -> Inode:
        """As `known`, of a *node* in an answer that arrived a while ago. Raises FsError (ESTALE) if its number
        is another inode's by now: that one is newer."""
        other = self._inodes.get(NodeId(node.attributes.ino))
        if other is not None and other.handle != node.handle:
            raise FsError(errno.ESTALE, f"inode {other.node_id} was removed, and its number is in use again")
        return self.known(node)

    def forget(self, node_id: int, count: int) -> Inode | None:
        """The kernel forgot *count* lookups; the inode, if it does not know it any more."""
        if node_id >= STANDS_IN_MIN:
            return None
        inode = self._inodes[NodeId(node_id)]
        inode.lookups -= count
        assert inode.lookups >= 0, inode
        if inode.lookups > 0 or node_id == ROOT:
            return None
        del self._inodes[inode.node_id]
        del self._by_handle[inode.handle]
        self._forgotten[inode.node_id] = inode.handle
        if len(self._forgotten) > FORGOTTEN_MAX:
            self._forgotten.popitem(last=False)
        return inode

    def forgotten(self, node_id: int) -> InodeHandle | None:
        """The handle of an inode that the kernel has forgotten, if that is remembered."""
        return self._forgotten.get(NodeId(node_id))

    def drop(self, inode: Inode) -> None:
        """Forget an inode of which the kernel was never told."""
        assert inode.lookups == 0, inode
        assert inode.node_id != ROOT
        del self._inodes[inode.node_id]
        del self._by_handle[inode.handle]

    def check(self) -> None:
        """Assert the invariants."""
        assert ROOT in self._inodes
        assert len(self._inodes) == len(self._by_handle)
        for node_id, inode in self._inodes.items():
            assert inode.node_id == node_id
            assert inode.lookups >= 0
            assert self._by_handle[inode.handle] is inode
