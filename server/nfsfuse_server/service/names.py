"""Handlers of names and attributes."""

from __future__ import annotations

import errno
import logging
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Final

from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.limits import LISTING_ENTRIES_MAX, SMALL_FILE_SIZE_MAX, XATTR_SIZE_MAX
from nfsfuse.protocol.messages import Message
from nfsfuse.protocol.pages import page_start
from nfsfuse.protocol.tokens import Resource, Token, TokenMode, name_point
from nfsfuse.protocol.types import (
    CAPABILITY,
    RENAME_EXCHANGE,
    Attributes,
    DirEntry,
    InodeHandle,
    Node,
)
from nfsfuse_server.service.calls import (
    Acquire,
    AcquireRun,
    Call,
    Change,
    Clear,
    Handler,
    Handling,
    Hold,
    Quick,
    Reply,
    Slow,
    Tell,
    TellOthers,
    Unnaming,
)
from nfsfuse_server.state.records import Named
from nfsfuse_server.storage.interface import Listed, Renamed, Storage, set_xattr

log = logging.getLogger(__name__)

ATTR: Final = Resource.ATTR
DIR: Final = Resource.DIR
SHARED: Final = TokenMode.SHARED
EXCLUSIVE: Final = TokenMode.EXCLUSIVE

BLOCK_SIZE: Final = 512
"""Bytes: the unit of `Attributes.blocks`."""

FREED_INLINE_SIZE_MAX: Final = 8 << 20
"""Bytes that are freed on the disk, and in the page cache, in a millisecond or two. What takes a while is done
in a thread."""

Perform = Callable[[Storage, Any], Reply]


def _quick(perform: Perform) -> Handler:
    """A handler that is one storage call, usually answered from the server's caches."""

    def handle(call: Call) -> Handling:
        reply: Reply = yield Quick(lambda: perform(call.storage, call.message))
        return reply

    return handle


def _told(call: Call, handle: InodeHandle) -> Any:
    """Sub-steps: the token to cache an inode's attributes, and the inode as it is under it. Whoever has changed
    it without telling is made to tell."""
    tokens: tuple[Token, ...] = yield Acquire(handle, ATTR, SHARED)
    node: Node = yield Quick(lambda: node_of(call.storage, handle))
    return tokens, node


def _lookup(call: Call) -> Handling:
    request: m.Lookup = call.message
    point = name_point(request.name)
    tokens: tuple[Token, ...] = yield Acquire(request.parent, DIR, SHARED, point, point + 1)
    try:
        node: Node = yield Quick(lambda: call.storage.lookup(request.parent, request.name))
    except FsError as exc:
        if exc.errno != errno.ENOENT:
            raise
        return m.Entry(None, tokens)
    told, node = yield from _told(call, node.handle)
    found, attributes = m.Entry(node, tokens + told), node.attributes
    if request.content and stat.S_ISREG(attributes.mode) and 0 < attributes.size <= SMALL_FILE_SIZE_MAX:
        reply: Reply = yield from _with_content(call, found, node.handle, attributes.size)
        return reply
    return found


def _with_content(call: Call, found: m.Entry, handle: InodeHandle, size: int) -> Any:
    """Sub-steps: add what is in a file of *size*, if nobody holds what is in the way and it is in memory. The
    size stays, as the token for the attributes is granted already."""
    tokens: tuple[Token, ...] | None = yield Acquire(handle, Resource.DATA, SHARED, wait=False)
    if tokens is None:
        return found
    data = call.storage.read_nowait(handle, 0, size)
    content = data is not None and len(data) == size
    found = replace(found, tokens=found.tokens + tokens, content=content)
    return (found, data) if content else found


def _next(steps: Iterator[Node | None]) -> tuple[Node | None, bool]:
    """What the next step gives, and whether there was one."""
    for found in steps:
        return found, True
    return None, False


def _lookup_number(call: Call) -> Handling:
    request: m.LookupNumber = call.message
    steps: Iterator[Node | None] = yield Quick(lambda: call.storage.search(request.number))
    node: Node | None = None
    more = True
    while more and node is None:
        node, more = yield Slow(lambda: _next(steps))  # so that others have their turn in between
    if node is None:
        return m.Entry(None, ())
    tokens, told = yield from _told(call, node.handle)
    return m.Entry(told, tokens)


def _lookup_parent(call: Call) -> Handling:
    request: m.LookupParent = call.message
    node: Node = yield Quick(lambda: call.storage.parent(request.handle))
    tokens, told = yield from _told(call, node.handle)
    return m.Entry(told, tokens)


def _set_inode_flags(call: Call) -> Handling:
    request: m.SetInodeFlags = call.message
    # It may become immutable: whoever has written without telling tells before, and asks to open it again.
    yield Hold(request.handle, Resource.DATA)
    tokens = yield Acquire(request.handle, ATTR, EXCLUSIVE)
    attributes = yield Change(
        lambda: call.storage.set_flags(request.handle, request.numbers, request.extended)
    )
    return m.Stat(attributes, tokens)


def frees_much(before: Attributes, size: int = 0) -> bool:
    """Whether cutting a file that was like *before* to *size* bytes takes a while."""
    return before.blocks * BLOCK_SIZE - size > FREED_INLINE_SIZE_MAX


def _getattr(call: Call) -> Handling:
    tokens, node = yield from _told(call, call.message.handle)
    return m.Stat(node.attributes, tokens, node.bare)


def _setattr(call: Call) -> Handling:
    request: m.SetAttr = call.message
    size = request.changes.size
    if size is not None:
        # Pages from the one that contains the new end are everybody's to drop.
        start = page_start(size)
        urgent = request.blocks_write_back
        if (yield Hold(request.handle, Resource.DATA, start=start, urgent=urgent)) is None:
            raise FsError(errno.EINTR, "another client cuts the file at the same time, and waits for this one")
    elif request.changes.sets_mtime():
        # What others have written already is written back now, or that would overwrite the time later.
        yield Hold(request.handle, Resource.DATA, SHARED)
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


def hold_name(parent: InodeHandle, name: bytes) -> Hold:
    """A step: no other client looks this name up, or changes it, until the request is answered."""
    point = name_point(name)
    return Hold(parent, DIR, start=point, end=point + 1)


def keep_name(parent: InodeHandle, name: bytes) -> Acquire:
    """A step: whoever has just changed this name, which it holds, may go on believing what it knows of it. Its
    kernel does so already."""
    point = name_point(name)
    return Acquire(parent, DIR, SHARED, point, point + 1, wait=False)


def _leads_to(call: Call, parent: InodeHandle, name: bytes) -> Any:
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
    node: Node | None = yield from _leads_to(call, parent, name)
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


def _made(call: Call, make: Callable[[], Node]) -> Any:
    """Sub-steps: an inode is made; its maker may cache its attributes, and knows the parent's."""
    parent: InodeHandle = call.message.parent
    name: bytes = call.message.name
    yield hold_name(parent, name)
    yield Hold(parent, ATTR)
    nothing = yield from absent(call, parent, name)
    node: Node = yield Change(make, (nothing,))
    # Not waiting: an operation that holds it may itself wait for the parent that we hold.
    tokens = (yield Acquire(node.handle, ATTR, SHARED, wait=False)) or ()
    tokens += (yield keep_name(parent, name)) or ()
    above = yield Quick(lambda: call.storage.getattr(parent))
    return m.Entry(node, tokens, (Node(parent, above),))


def _symlink(call: Call) -> Handling:
    r: m.SymLink = call.message
    entry: m.Entry = yield from _made(
        call, lambda: call.storage.symlink(r.parent, r.name, r.target, r.credentials)
    )
    return entry


def _mknod(call: Call) -> Handling:
    r: m.MkNod = call.message
    entry: m.Entry = yield from _made(
        call, lambda: call.storage.mknod(r.parent, r.name, r.mode, r.rdev, r.credentials)
    )
    return entry


def _mkdir(call: Call) -> Handling:
    r: m.MkDir = call.message
    entry: m.Entry = yield from _made(
        call, lambda: call.storage.mkdir(r.parent, r.name, r.mode, r.credentials)
    )
    assert entry.node is not None
    handle = entry.node.handle
    # Nobody can have looked it up, as its name is held; but a program on the server's machine may be in it
    # already. So it is looked at under the token.
    names: tuple[Token, ...] | None = yield Acquire(handle, DIR, SHARED, wait=False)
    if not names:
        return entry
    try:
        listed, end = yield Quick(lambda: call.storage.readdir(handle, 0, 1))
        empty = end and not listed
    except FsError as exc:  # no descriptor is left, say: made it is all the same
        log.warning("%s: a directory that was just made cannot be listed: %s", call.session, exc)
        empty = False
    return replace(entry, tokens=entry.tokens + names, empty=empty)


def _hold_attributes(*handles: InodeHandle) -> Any:
    """Sub-steps: keep others from caching the attributes of *handles*, in the order that cannot deadlock."""
    for handle in sorted(set(handles)):
        yield Hold(handle, ATTR)


def _link(call: Call) -> Handling:
    r: m.Link = call.message
    yield hold_name(r.parent, r.name)
    yield from _hold_attributes(r.handle, r.parent)
    nothing = yield from absent(call, r.parent, r.name)
    node: Node = yield Change(lambda: call.storage.link(r.handle, r.parent, r.name), (nothing,))
    above = yield Quick(lambda: call.storage.getattr(r.parent))
    tokens = (yield keep_name(r.parent, r.name)) or ()
    return m.Entry(node, tokens, (node, Node(r.parent, above)))


def _removed(call: Call, remove: Callable[[InodeHandle, bytes], Node]) -> Handling:
    r: m.Unlink | m.RmDir = call.message
    yield hold_name(r.parent, r.name)
    victim: Node = yield Quick(lambda: call.storage.lookup(r.parent, r.name))
    yield from _hold_attributes(victim.handle, r.parent)
    yield Unnaming(victim.handle)
    before = Named(r.parent, r.name, victim.handle)
    slow = victim.attributes.nlink <= 1 and frees_much(victim.attributes)
    node: Node = yield Change(lambda: remove(r.parent, r.name), (before,), slow=slow)
    yield from _tell_gone(r.parent, r.name, node)
    above = yield Quick(lambda: call.storage.getattr(r.parent))
    tokens = (yield keep_name(r.parent, r.name)) or ()
    return m.Done((node, Node(r.parent, above)), tokens)


def _tell_gone(parent: InodeHandle, name: bytes, node: Node) -> Any:
    """Sub-steps: whose kernel may have believed in *name* is told, if it was the last one of *node*."""
    if node.attributes.nlink == 0 or stat.S_ISDIR(node.attributes.mode):
        yield Tell(m.Gone(parent, name, node.handle))


def _tell_moved(parent: InodeHandle, name: bytes, node: Node) -> Any:
    """Sub-steps: whose kernel may have believed in another name of a directory finds it here, or programs in it
    would not know where they are. (What their kernels find of files they find by a look.)"""
    if stat.S_ISDIR(node.attributes.mode):
        yield Tell(m.Moved(parent, name, node), wait=True)


def _unlink(call: Call) -> Handling:
    return _removed(call, call.storage.unlink)


def _rmdir(call: Call) -> Handling:
    return _removed(call, call.storage.rmdir)


def _hold_both_names(r: m.Rename) -> Any:
    """Sub-steps: hold a rename's two names, in the order that cannot deadlock."""
    old = hold_name(r.parent, r.name)
    new = hold_name(r.new_parent, r.new_name)
    if r.parent == r.new_parent:
        yield replace(new, also=((old.start, old.end),))
    else:
        first, second = sorted((old, new), key=lambda hold: hold.handle)
        yield first
        yield second


def _rename(call: Call) -> Handling:
    r: m.Rename = call.message
    yield from _hold_both_names(r)
    involved = {r.parent, r.new_parent}
    before: list[Named] = []
    found: Node | None = None
    for parent, name in ((r.parent, r.name), (r.new_parent, r.new_name)):
        found = yield from _leads_to(call, parent, name)
        before.append(Named(parent, name, None if found is None else found.handle))
        if found is not None:
            involved.add(found.handle)
            yield Unnaming(found.handle)
    slow = found is not None and found.attributes.nlink <= 1 and frees_much(found.attributes)  # overwritten
    yield from _hold_attributes(*involved)
    renamed: Renamed = yield Change(
        lambda: call.storage.rename(r.parent, r.name, r.new_parent, r.new_name, r.flags),
        tuple(before),
        slow=slow,
    )
    replaced = renamed.other
    # Of a directory that was replaced the kernel finds out when it finds the other one there.
    if replaced is not None and r.flags != RENAME_EXCHANGE and not stat.S_ISDIR(replaced.attributes.mode):
        yield from _tell_gone(r.new_parent, r.new_name, replaced)
    yield from _tell_moved(r.new_parent, r.new_name, renamed.moved)
    if renamed.other is not None and r.flags == RENAME_EXCHANGE:
        yield from _tell_moved(r.parent, r.name, renamed.other)
    affected = [renamed.moved]
    if renamed.other is not None:
        affected.append(renamed.other)
    elif r.flags == RENAME_EXCHANGE:
        affected.append(renamed.moved)  # both are names of it
    for parent in {r.parent, r.new_parent}:
        above = yield Quick(partial(call.storage.getattr, parent))
        affected.append(Node(parent, above))
    tokens = (yield keep_name(r.parent, r.name)) or ()
    tokens += (yield keep_name(r.new_parent, r.new_name)) or ()
    return m.Done(tuple(affected), tokens)


def _readdir(call: Call) -> Handling:
    request: m.ReadDir = call.message
    limit = max(1, min(request.limit, LISTING_ENTRIES_MAX))
    tokens: tuple[Token, ...] = yield Acquire(request.handle, DIR, SHARED)
    listed: list[Listed]
    listed, end = yield Slow(lambda: call.storage.readdir(request.handle, request.cookie, limit))
    # Attributes are true only under their token, and the order of handles is the one that cannot deadlock.
    handles = tuple(sorted({entry.handle for entry in listed if entry.handle is not None}))
    yield Clear(handles, ATTR, SHARED)
    taken = 0
    while taken < len(handles):
        taken += yield AcquireRun(handles[taken:], ATTR, SHARED)
        if taken < len(handles):
            yield Acquire(handles[taken], ATTR, SHARED)
            taken += 1
    told: dict[InodeHandle, Node] = yield Slow(partial(_told_in_a_listing, call.storage, handles))
    above = 0
    if not request.cookie:
        above = yield Quick(lambda: call.storage.number_above(request.handle))
    return m.Listing(tuple(_entry(entry, told) for entry in listed), end, tokens, above)


def _told_in_a_listing(storage: Storage, handles: tuple[InodeHandle, ...]) -> dict[InodeHandle, Node]:
    """What a listing tells of each of *handles* that is still there."""
    told: dict[InodeHandle, Node] = {}
    for handle in handles:
        try:
            told[handle] = node_of(storage, handle)
        except FsError as exc:
            if exc.errno != errno.ESTALE:  # removed meanwhile, by a program on the server's machine
                raise
    return told


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


def _entry(entry: Listed, told: dict[InodeHandle, Node]) -> DirEntry:
    """*entry* with what was read under its token; without a node if it is gone."""
    return DirEntry(entry.name, entry.cookie, None if entry.handle is None else told.get(entry.handle))


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
        yield Hold(r.handle, Resource.DATA, SHARED)
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


NAME_HANDLERS: Final[dict[type[Message], Handler]] = {
    m.Lookup: _lookup,
    m.LookupNumber: _lookup_number,
    m.LookupParent: _lookup_parent,
    m.GetInodeFlags: _quick(lambda s, r: m.InodeFlags(s.get_flags(r.handle, r.extended))),
    m.SetInodeFlags: _set_inode_flags,
    m.GetAttr: _getattr,
    m.SetAttr: _setattr,
    m.ReadLink: _quick(lambda s, r: m.Target(s.readlink(r.handle))),
    m.SymLink: _symlink,
    m.MkNod: _mknod,
    m.MkDir: _mkdir,
    m.Link: _link,
    m.Unlink: _unlink,
    m.RmDir: _rmdir,
    m.Rename: _rename,
    m.ReadDir: _readdir,
    m.StatFs: _quick(lambda s, r: m.Statistics(s.statfs())),
    m.GetXattr: _quick(lambda s, r: (m.Value(), s.getxattr(r.handle, r.name))),
    m.SetXattr: _set_xattr,
    m.ListXattr: _quick(lambda s, r: m.Names(tuple(s.listxattr(r.handle)))),
    m.RemoveXattr: _remove_xattr,
}
