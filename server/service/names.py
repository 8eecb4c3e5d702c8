"""Handlers of names and attributes: each translates one message to one storage call."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, Final

from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.limits import LISTING_ENTRIES_MAX, XATTR_SIZE_MAX
from nfsfuse.protocol.messages import Message
from server.service.calls import Answer, Environment, Handler, Reply
from server.service.session import Session
from server.storage.interface import Storage

Perform = Callable[[Storage, Any], Reply]


def _quick(perform: Perform) -> Handler:
    """A handler whose storage call is usually answered from the server's caches."""

    def handle(env: Environment, _: Session, request: Any, __: bytes | bytearray) -> Answer:
        return env.disk.quick(lambda: perform(env.storage, request))

    return handle


def _slow(perform: Perform) -> Handler:
    """A handler whose storage call is long by nature."""

    def handle(env: Environment, _: Session, request: Any, __: bytes | bytearray) -> Answer:
        return env.disk.slow(lambda: perform(env.storage, request))

    return handle


def _done(result: object) -> Message:
    return m.Done()


def _set_xattr(env: Environment, _: Session, request: m.SetXattr, value: bytes | bytearray) -> Answer:
    if len(value) > XATTR_SIZE_MAX:
        raise FsError(errno.E2BIG)
    return env.disk.quick(
        lambda: _done(env.storage.setxattr(request.handle, request.name, bytes(value), request.flags))
    )


def _listing(storage: Storage, request: m.ReadDir) -> Reply:
    limit = max(1, min(request.limit, LISTING_ENTRIES_MAX))
    entries, end = storage.readdir(request.handle, request.cookie, limit, with_nodes=True)
    return m.Listing(tuple(entries), end)


NAME_HANDLERS: Final[dict[type[Message], Handler]] = {
    m.Lookup: _quick(lambda s, r: m.Entry(s.lookup(r.parent, r.name))),
    m.GetAttr: _quick(lambda s, r: m.Stat(s.getattr(r.handle))),
    m.SetAttr: _quick(lambda s, r: m.Stat(s.setattr(r.handle, r.changes))),
    m.ReadLink: _quick(lambda s, r: m.Target(s.readlink(r.handle))),
    m.SymLink: _quick(lambda s, r: m.Entry(s.symlink(r.parent, r.name, r.target, r.credentials))),
    m.MkNod: _quick(lambda s, r: m.Entry(s.mknod(r.parent, r.name, r.mode, r.rdev, r.credentials))),
    m.MkDir: _quick(lambda s, r: m.Entry(s.mkdir(r.parent, r.name, r.mode, r.credentials))),
    m.Link: _quick(lambda s, r: m.Entry(s.link(r.handle, r.parent, r.name))),
    m.Unlink: _quick(lambda s, r: _done(s.unlink(r.parent, r.name))),
    m.RmDir: _quick(lambda s, r: _done(s.rmdir(r.parent, r.name))),
    m.Rename: _quick(lambda s, r: _done(s.rename(r.parent, r.name, r.new_parent, r.new_name, r.flags))),
    m.ReadDir: _slow(_listing),
    m.StatFs: _quick(lambda s, r: m.Statistics(s.statfs())),
    m.GetXattr: _quick(lambda s, r: (m.Value(), s.getxattr(r.handle, r.name))),
    m.SetXattr: _set_xattr,
    m.ListXattr: _quick(lambda s, r: m.Names(tuple(s.listxattr(r.handle)))),
    m.RemoveXattr: _quick(lambda s, r: _done(s.removexattr(r.handle, r.name))),
}
