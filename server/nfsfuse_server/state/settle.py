"""What became of operations that were begun when the server died, found out before anybody may change anything.

While an operation runs nobody else changes what it is about (see `nfsfuse_server.state.journal`), so:

====================  ==================================  ======================  ============================
operation             not done if                         done if                 what is done now
====================  ==================================  ======================  ============================
create, mkdir, mknod, the name leads nowhere, as before   it leads somewhere      owner and mode are completed:
symlink                                                                           they are set after the name
link                  the name leads nowhere, as before   it leads to the inode
unlink, rmdir         the name leads to the victim still  it leads nowhere
rename                both names lead where they did      the new one leads to
                                                          the inode, the old one
                                                          nowhere
... RENAME_EXCHANGE   both names lead where they did      each leads to the
                                                          other's inode
... RENAME_WHITEOUT   both names lead where they did      the new one leads to
                                                          the inode, the old one
                                                          to something else
open with O_TRUNC,    it cannot be told, and need not: to do them again makes no   they are done again
setattr, setxattr,    difference, as nobody has seen the file since or changed it
flags, removexattr,
copy,             (whether the extended attribute was there before is written
fallocate             down, for XATTR_CREATE and XATTR_REPLACE)
... COLLAPSE_RANGE,   the file has its size of before     its size differs by the
INSERT_RANGE                                              length
====================  ==================================  ======================  ============================

What was not done is forgotten: it has had no effect, and is done when the client asks again.

After a power failure none of this is certain: the journal may have lost that something was done long ago, and
the filesystem what was. So nothing is done then, not even again - it could undo what has been fsynced since -
and only what the names show counts as done.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from typing import Final

from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.messages import Message
from nfsfuse.protocol.types import (
    FALLOC_FL_COLLAPSE_RANGE,
    FALLOC_FL_INSERT_RANGE,
    RENAME_EXCHANGE,
    RENAME_WHITEOUT,
    AttributeChanges,
    Credentials,
    InodeHandle,
    Node,
    OpenId,
)
from nfsfuse_server.state.records import Intent, Named, Outcome
from nfsfuse_server.storage.interface import Storage, set_xattr

log = logging.getLogger(__name__)

_SPECIAL: Final = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX


def settle(storage: Storage, intent: Intent) -> Outcome | None:
    """How *intent* ended, or None: it was not done. Does what is missing of it."""
    try:
        return _settle_names(storage, intent, completing=True) or _repeat(storage, intent)
    except FsError as exc:
        return exc


def look(storage: Storage, intent: Intent) -> Outcome | None:
    """How *intent* ended, after a power failure: None if that does not show. Changes nothing."""
    try:
        return _settle_names(storage, intent, completing=False)
    except FsError:
        return None


def _settle_names(storage: Storage, intent: Intent, *, completing: bool) -> Message | None:
    r = intent.message
    match r:
        case m.Create() | m.MkDir() | m.MkNod() | m.SymLink() if intent.names:
            return _made(storage, r, intent.names[0], completing=completing)
        case m.Link():
            return _linked(storage, r)
        case m.Unlink() | m.RmDir():
            return _removed(storage, intent.names[0])
        case m.Rename():
            return _renamed(storage, r, intent.names)
    return None


def _repeat(storage: Storage, intent: Intent) -> Message | None:
    r = intent.message
    match r:
        case m.Create() if not intent.names:  # it was there, and was cut
            node = storage.lookup(r.parent, r.name)
            attributes = storage.setattr(node.handle, AttributeChanges(size=0))
            return m.Opened(OpenId(0), Node(node.handle, attributes), (), False)
        case m.Open():
            attributes = storage.setattr(r.handle, AttributeChanges(size=0))
            return m.Opened(OpenId(0), Node(r.handle, attributes), (), False)
        case m.SetAttr():
            return m.Stat(storage.setattr(r.handle, r.changes), ())
        case m.SetInodeFlags():
            return m.Stat(storage.set_flags(r.handle, r.numbers, r.extended), ())
        case m.SetXattr():
            return _xattr_set(storage, r, intent)
        case m.RemoveXattr():
            return _xattr_removed(storage, r, intent)
        case m.Fallocate():
            return _allocated(storage, r, intent)
        case m.CopyRange():
            copied = storage.copy_range(r.source, r.source_offset, r.target, r.target_offset, r.length)
            return m.Position(copied)
    assert intent.names, f"no operation of the journal: {type(r).__name__}"
    return None


def _found(storage: Storage, parent: InodeHandle, name: bytes) -> Node | None:
    try:
        return storage.lookup(parent, name)
    except FsError as exc:
        if exc.errno != errno.ENOENT:
            raise
        return None


def _leads(storage: Storage, named: Named) -> InodeHandle | None:
    node = _found(storage, named.parent, named.name)
    return None if node is None else node.handle


def _now(storage: Storage, handle: InodeHandle) -> Node:
    return Node(handle, storage.getattr(handle))


def _unknown(message: Message) -> None:
    log.warning("what became of %s cannot be told: it is taken for not done", type(message).__name__)


# --- names ---


def _made(
    storage: Storage, r: m.Create | m.MkDir | m.MkNod | m.SymLink, named: Named, *, completing: bool
) -> Message | None:
    node = _found(storage, named.parent, named.name)
    if node is None:
        return None
    if completing:
        mode = None if isinstance(r, m.SymLink) else r.mode
        node = _completed(storage, named.parent, node, mode, r.credentials)
    affected = (_now(storage, named.parent),)
    if isinstance(r, m.Create):
        return m.Opened(OpenId(0), node, (), False, affected)
    return m.Entry(node, (), affected)


def _completed(
    storage: Storage, parent: InodeHandle, node: Node, mode: int | None, creds: Credentials
) -> Node:
    """*node*, just made, as its maker would have left it: owner, then special mode bits. The group may come
    from a set-group-ID directory. A server that is not root cannot give files away, and never does."""
    has = node.attributes
    inherited = bool(storage.getattr(parent).mode & stat.S_ISGID)
    gid = has.gid if inherited else creds.gid
    if (has.uid, has.gid) != (creds.uid, gid):
        try:
            has = storage.setattr(node.handle, AttributeChanges(uid=creds.uid, gid=gid))
        except FsError as exc:
            if exc.errno != errno.EPERM:
                raise
    missing = 0 if mode is None else mode & _SPECIAL & ~has.mode
    if missing:
        changes = AttributeChanges(mode=stat.S_IMODE(has.mode) | missing)
        has = storage.setattr(node.handle, changes)
    return Node(node.handle, has)


def _linked(storage: Storage, r: m.Link) -> Message | None:
    found = _found(storage, r.parent, r.name)
    if found is None:
        return None
    if found.handle != r.handle:
        _unknown(r)
        return None
    return m.Entry(found, (), (found, _now(storage, r.parent)))


def _removed(storage: Storage, named: Named) -> Message | None:
    if _leads(storage, named) is not None:
        return None
    assert named.handle is not None
    return m.Done((*_still_there(storage, named.handle), _now(storage, named.parent)))


def _still_there(storage: Storage, handle: InodeHandle) -> tuple[Node, ...]:
    """An inode that has lost a name, if that was not its last."""
    try:
        return (_now(storage, handle),)
    except FsError as exc:
        if exc.errno != errno.ESTALE:
            raise
        return ()


def _renamed(storage: Storage, r: m.Rename, names: tuple[Named, ...]) -> Message | None:
    old, new = names
    before = (old.handle, new.handle)
    after = before[::-1] if r.flags & RENAME_EXCHANGE else (None, old.handle)
    now = (_leads(storage, old), _leads(storage, new))
    if now == before:
        return None
    if r.flags & RENAME_WHITEOUT and now[0] != old.handle:
        after = (now[0], old.handle)
    if now != after:
        _unknown(r)
        return None
    affected = [node for handle in before if handle is not None for node in _still_there(storage, handle)]
    affected += [_now(storage, parent) for parent in {old.parent, new.parent}]
    return m.Done(tuple(affected))


# --- attributes and data ---


def _xattr_set(storage: Storage, r: m.SetXattr, intent: Intent) -> Message:
    if r.flags == os.XATTR_CREATE and intent.was:
        raise FsError(errno.EEXIST)
    if r.flags == os.XATTR_REPLACE and not intent.was:
        raise FsError(errno.ENODATA)
    value = intent.payload
    return m.Stat(set_xattr(storage, r.handle, r.name, value, 0, kill_sgid=r.kill_sgid), ())


def _xattr_removed(storage: Storage, r: m.RemoveXattr, intent: Intent) -> Message:
    try:
        return m.Stat(storage.removexattr(r.handle, r.name), ())
    except FsError as exc:
        if exc.errno != errno.ENODATA or not intent.was:
            raise
        return m.Stat(storage.getattr(r.handle), ())


def _allocated(storage: Storage, r: m.Fallocate, intent: Intent) -> Message | None:
    moved = {FALLOC_FL_COLLAPSE_RANGE: -r.length, FALLOC_FL_INSERT_RANGE: r.length}.get(r.mode)
    if moved is None:
        return m.Stat(storage.fallocate(r.handle, r.mode, r.offset, r.length), ())
    attributes = storage.getattr(r.handle)
    return m.Stat(attributes, ()) if attributes.size == intent.was + moved else None
