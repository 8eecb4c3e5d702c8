"""What handlers are put together from: steps and sub-steps that several of them take, and the words for it.

Sub-steps are generators that a handler yields from; each says which steps it has.
"""

from __future__ import annotations

import errno
from typing import Any, Final

from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.tokens import Resource, Token, TokenMode, name_point
from nfsfuse.protocol.types import Attributes, InodeHandle, Node
from nfsfuse_server.service.calls import Acquire, Call, Hold, Quick
from nfsfuse_server.state.records import Named
from nfsfuse_server.storage.interface import Storage

ATTR: Final = Resource.ATTR
DATA: Final = Resource.DATA
DIR: Final = Resource.DIR
SHARED: Final = TokenMode.SHARED
EXCLUSIVE: Final = TokenMode.EXCLUSIVE

BLOCK_SIZE: Final = 512
"""Bytes: the unit of `Attributes.blocks`."""

FREED_INLINE_SIZE_MAX: Final = 8 << 20
"""Bytes that are freed on the disk, and in the page cache, in a millisecond or two. What takes a while is done
in a thread."""


def frees_much(before: Attributes, size: int = 0) -> bool:
    """Whether cutting a file that was like *before* to *size* bytes takes a while."""
    return before.blocks * BLOCK_SIZE - size > FREED_INLINE_SIZE_MAX


def node_of(storage: Storage, handle: InodeHandle) -> Node:
    """An inode as clients are told of it with the token for its attributes: also whether there are extended
    ones, as the kernel asks for its ACL before anybody but its owner may use it, and ls(1) for each name."""
    attributes = storage.getattr(handle)
    try:
        return Node(handle, attributes, not storage.listxattr(handle))
    except FsError as exc:
        if exc.errno == errno.EOPNOTSUPP:
            return Node(handle, attributes)
        raise


def shared_node(call: Call, handle: InodeHandle) -> Any:
    """Sub-steps: the token to cache an inode's attributes, and the inode as it is under it. Whoever has changed
    it without telling is made to tell."""
    tokens: tuple[Token, ...] = yield Acquire(handle, ATTR, SHARED)
    node: Node = yield Quick(lambda: node_of(call.storage, handle))
    return tokens, node


def hold_name(parent: InodeHandle, name: bytes) -> Hold:
    """A step: no other client looks this name up, or changes it, until the request is answered."""
    point = name_point(name)
    return Hold(parent, DIR, start=point, end=point + 1)


def keep_name(parent: InodeHandle, name: bytes) -> Acquire:
    """A step: whoever has just changed this name, which it holds, may go on believing what it knows of it. Its
    kernel does so already."""
    point = name_point(name)
    return Acquire(parent, DIR, SHARED, point, point + 1, wait=False)


def leads_to(call: Call, parent: InodeHandle, name: bytes) -> Any:
    """Sub-steps: what a name leads to, a `Node` or None; whoever asks holds it."""
    try:
        node: Node = yield Quick(lambda: call.storage.lookup(parent, name))
    except FsError as exc:
        if exc.errno != errno.ENOENT:
            raise
        return None
    return node


def named(call: Call, parent: InodeHandle, name: bytes) -> Any:
    """Sub-steps: the same as the journal has it (`Named`)."""
    node: Node | None = yield from leads_to(call, parent, name)
    return Named(parent, name, None if node is None else node.handle)


def absent(call: Call, parent: InodeHandle, name: bytes) -> Any:
    """Sub-steps: a name that is about to be made leads nowhere. EEXIST if it does."""
    try:
        found: Named = yield from named(call, parent, name)
    except FsError as exc:
        if exc.errno != errno.EXDEV:
            raise
        raise FsError(errno.EEXIST, "a filesystem is mounted there") from exc
    if found.handle is not None:
        raise FsError(errno.EEXIST)
    return found


def hold_attributes(*handles: InodeHandle) -> Any:
    """Sub-steps: keep others from caching the attributes of *handles*, in the order that cannot deadlock."""
    for handle in sorted(set(handles)):
        yield Hold(handle, ATTR)
