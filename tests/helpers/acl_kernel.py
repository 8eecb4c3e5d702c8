"""A kernel's cache of ACLs over the client's engine, as fs/posix_acl.c and fs/fuse of Linux 6.18 have it.

One ACL for each inode. It is asked for where none is kept; the place is marked with the question, and the
answer is put there only if the mark still is (`__get_acl`). Whatever has the kernel forget attributes, or ask
for them, takes out the ACL or the mark (`forget_all_cached_acls`). An ACL that is kept is used without a look
at how good the attributes are, as getxattr(2) does.
"""

from __future__ import annotations

import errno
from random import Random
from typing import Final

import trio

from nfsfuse.engine.filesystem import Filesystem
from nfsfuse.machines.inodes import NodeId
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.types import AttributeChanges
from tests.helpers.fake_kernel import FakeKernel

PAUSE_SECONDS_MAX: Final = 0.002

ACL: Final = b"user.acl"
"""An extended attribute in an ACL's place: the memory storage has no ACLs, and the engine takes any name."""


class _Mark:
    """Of a question that is not answered."""


class AclKernel(FakeKernel):
    """The Kernel port on one side, system calls on the other."""

    fs: Filesystem  # set once it is made

    def __init__(self, random: Random) -> None:
        super().__init__()
        self._random = random
        self._kept: dict[NodeId, bytes | _Mark | None] = {}

    async def _pause(self) -> None:
        if self._random.random() < 0.7:
            await trio.sleep(self._random.random() * PAUSE_SECONDS_MAX)

    def _forget(self, node: NodeId) -> None:
        self._kept.pop(node, None)

    async def invalidate_attributes(self, node_id: NodeId) -> bool:
        await self._pause()
        self._forget(node_id)
        await self._pause()
        return await super().invalidate_attributes(node_id)

    async def acl(self, node: NodeId) -> bytes | None:
        """What the kernel goes by; None: there is none."""
        kept = self._kept.get(node, self)
        if kept is None or isinstance(kept, bytes):
            return kept
        mark = _Mark()
        self._kept.setdefault(node, mark)
        await self._pause()
        value: bytes | None
        try:
            # As the adapter does (`Quick.getxattr`, `Operations.getxattr`).
            value = self.fs.acls.at_once(node, ACL) or await self.fs.acls.get(node, ACL)
        except FsError as exc:
            if exc.errno != errno.ENODATA:
                raise
            value = None
        await self._pause()  # the answer is on its way
        if self._kept.get(node) is mark:
            self._kept[node] = value
        return value

    async def set_acl(self, node: NodeId, value: bytes) -> None:
        """setxattr(2) of it (`fuse_set_acl`)."""
        await self._pause()
        await self.fs.xattrs.set(node, ACL, value, 0)
        await self._pause()
        self._forget(node)

    async def chmod(self, node: NodeId, mode: int) -> None:
        """`fuse_setattr`."""
        await self._pause()
        await self.fs.inode_changes.setattr(self.fs.inodes[node], AttributeChanges(mode=mode))
        await self._pause()
        self._forget(node)

    async def stat(self, node: NodeId) -> None:
        """`fuse_update_get_attr`, where the attributes are not believed."""
        self._forget(node)
        await self._pause()
        inode = self.fs.inodes[node]
        inode.attributes.told(await self.fs.attributes_for_kernel(inode))  # as `Operations.told`
        await self._pause()
