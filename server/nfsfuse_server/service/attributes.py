"""Handlers of attributes: of an inode's own, its flags, its extended ones, and what is asked in one call."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, Final

from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.limits import XATTR_SIZE_MAX
from nfsfuse.protocol.messages import Message
from nfsfuse.protocol.pages import page_start
from nfsfuse.protocol.types import CAPABILITY, Attributes
from nfsfuse_server.service.calls import (
    Acquire,
    Call,
    Change,
    Handler,
    Handling,
    Hold,
    Quick,
    Reply,
    TellOthers,
)
from nfsfuse_server.service.sub_steps import ATTR, DATA, EXCLUSIVE, SHARED, frees_much, shared_node
from nfsfuse_server.storage.interface import Storage, set_xattr

Perform = Callable[[Storage, Any], Reply]


def _quick(perform: Perform) -> Handler:
    """A handler that is one storage call, usually answered from the server's caches."""

    def handle(call: Call) -> Handling:
        reply: Reply = yield Quick(lambda: perform(call.storage, call.message))
        return reply

    return handle


def _set_inode_flags(call: Call) -> Handling:
    request: m.SetInodeFlags = call.message
    # It may become immutable: whoever has written without telling tells before, and asks to open it again.
    yield Hold(request.handle, DATA)
    tokens = yield Acquire(request.handle, ATTR, EXCLUSIVE)
    attributes = yield Change(
        lambda: call.storage.set_flags(request.handle, request.numbers, request.extended)
    )
    return m.Stat(attributes, tokens)


def _getattr(call: Call) -> Handling:
    tokens, node = yield from shared_node(call, call.message.handle)
    return m.Stat(node.attributes, tokens, node.bare)


def _setattr(call: Call) -> Handling:
    request: m.SetAttr = call.message
    size = request.changes.size
    if size is not None:
        # Pages from the one that contains the new end are everybody's to drop.
        start = page_start(size)
        urgent = request.blocks_write_back
        if (yield Hold(request.handle, DATA, start=start, urgent=urgent)) is None:
            raise FsError(errno.EINTR, "another client cuts the file at the same time, and waits for this one")
    elif request.changes.sets_mtime():
        # What others have written already is written back now, or that would overwrite the time later.
        yield Hold(request.handle, DATA, SHARED)
    tokens = yield Acquire(request.handle, ATTR, EXCLUSIVE)
    if size is None:
        attributes = yield Change(lambda: call.storage.setattr(request.handle, request.changes))
    else:
        before: Attributes = yield Quick(lambda: call.storage.getattr(request.handle))
        slow = frees_much(before, size)
        attributes = yield Change(lambda: call.storage.setattr(request.handle, request.changes), slow=slow)
        if before.size < size:
            yield TellOthers(request.handle, size)
    return m.Stat(attributes, tokens)


def _has_xattr(call: Call) -> Any:
    """Sub-steps: whether the extended attribute that the request names is there."""
    request: m.SetXattr | m.RemoveXattr = call.message
    try:
        yield Quick(lambda: call.storage.getxattr(request.handle, request.name))
    except FsError as exc:
        if exc.errno != errno.ENODATA:
            raise
        return False
    return True


def _set_xattr(call: Call) -> Handling:
    r: m.SetXattr = call.message
    if len(call.payload) > XATTR_SIZE_MAX:
        raise FsError(errno.E2BIG)
    if r.name == CAPABILITY:
        # What others have written takes it away when it arrives: it is to arrive before.
        yield Hold(r.handle, DATA, SHARED)
    tokens = yield Acquire(r.handle, ATTR, EXCLUSIVE)
    value = bytes(call.payload)
    was = bool(r.flags) and (yield from _has_xattr(call))
    attributes = yield Change(
        lambda: set_xattr(call.storage, r.handle, r.name, value, r.flags, kill_sgid=r.kill_sgid), was=was
    )
    return m.Stat(attributes, tokens)


def _remove_xattr(call: Call) -> Handling:
    request: m.RemoveXattr = call.message
    tokens = yield Acquire(request.handle, ATTR, EXCLUSIVE)
    was: bool = yield from _has_xattr(call)
    attributes = yield Change(lambda: call.storage.removexattr(request.handle, request.name), was=was)
    return m.Stat(attributes, tokens)


ATTRIBUTE_HANDLERS: Final[dict[type[Message], Handler]] = {
    m.GetInodeFlags: _quick(lambda s, r: m.InodeFlags(s.get_flags(r.handle, r.extended))),
    m.SetInodeFlags: _set_inode_flags,
    m.GetAttr: _getattr,
    m.SetAttr: _setattr,
    m.ReadLink: _quick(lambda s, r: m.Target(s.readlink(r.handle))),
    m.StatFs: _quick(lambda s, r: m.Statistics(s.statfs())),
    m.GetXattr: _quick(lambda s, r: (m.Value(), s.getxattr(r.handle, r.name))),
    m.SetXattr: _set_xattr,
    m.ListXattr: _quick(lambda s, r: m.Names(tuple(s.listxattr(r.handle)))),
    m.RemoveXattr: _remove_xattr,
}
