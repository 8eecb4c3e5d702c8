"""What the kernel is answered when it asks for attributes: with a size that it may not get to know by that.

A read(2) through the page cache ends where the kernel believes the file to end. It asks before that, but
ignores the answer if it has been told meanwhile to forget the attributes or pages of the inode, and reads on
with the old size (`nfsfuse.fuse.notifications.believed_sizes`). So where a file has grown, it is made sure
that the kernel knows before it is answered.
"""

from __future__ import annotations

import stat

from nfsfuse.engine.names import Names
from nfsfuse.machines.inodes import Inode
from nfsfuse.ports.kernel import Kernel
from nfsfuse.protocol.types import Attributes


def attributes_at_once(names: Names, inode: Inode, *, size_only: bool) -> Attributes | None:
    """The attributes, if they are known here, and the kernel knows the file's size or need not. *size_only*:
    as for `Names.getattr`."""
    attributes = names.getattr_at_once(inode.node_id, size_only=size_only)
    return attributes if attributes is None or _is_known(inode, attributes) else None


def _is_known(inode: Inode, attributes: Attributes) -> bool:
    return not stat.S_ISREG(attributes.mode) or inode.kernel_size.suffices(attributes.size)


async def attributes_for_kernel(
    names: Names, kernel: Kernel, inode: Inode, *, size_only: bool
) -> Attributes:
    """The attributes. If they show that a file has grown elsewhere, the kernel knows its size already. No
    recall waits for this (K6)."""
    while True:
        attributes = await names.getattr(inode.node_id, size_only=size_only)
        if _is_known(inode, attributes):
            return attributes
        with inode.kernel_size.asking(attributes.size) as question:
            believed = await kernel.learn_size(inode.node_id, inode.generation)
            if believed is None:
                return attributes  # it cannot be done here; the mount has said so
            question.found = believed >= attributes.size
