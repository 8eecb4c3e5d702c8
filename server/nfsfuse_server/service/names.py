"""Handlers of names: lookups, what makes and removes them, listings."""

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
from nfsfuse.protocol.limits import LISTING_ENTRIES_MAX, SMALL_FILE_SIZE_MAX
from nfsfuse.protocol.messages import Message
from nfsfuse.protocol.tokens import Token, name_point
from nfsfuse.protocol.types import (
    RENAME_EXCHANGE,
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
    Unnaming,
)
from nfsfuse_server.service.sub_steps import (
    ATTR,
    DATA,
    DIR,
    SHARED,
    absent,
    frees_much,
    hold_attributes,
    hold_name,
    keep_name,
    leads_to,
    node_of,
    shared_node,
)
from nfsfuse_server.state.records import Named
from nfsfuse_server.storage.interface import Listed, Renamed, Storage

log = logging.getLogger(__name__)

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
    told, node = yield from shared_node(call, node.handle)
    found, attributes = m.Entry(node, tokens + told), node.attributes
    if request.content and stat.S_ISREG(attributes.mode) and 0 < attributes.size <= SMALL_FILE_SIZE_MAX:
        reply: Reply = yield from _with_content(call, found, node.handle, attributes.size)
        return reply
    return found


def _with_content(call: Call, found: m.Entry, handle: InodeHandle, size: int) -> Any:
    """Sub-steps: add what is in a file of *size*, if nobody holds what is in the way and it is in memory. The
    size stays, as the token for the attributes is granted already."""
    tokens: tuple[Token, ...] | None = yield Acquire(handle, DATA, SHARED, wait=False)
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
    tokens, told = yield from shared_node(call, node.handle)
    return m.Entry(told, tokens)


def _lookup_parent(call: Call) -> Handling:
    request: m.LookupParent = call.message
    node: Node = yield Quick(lambda: call.storage.parent(request.handle))
    tokens, told = yield from shared_node(call, node.handle)
    return m.Entry(told, tokens)


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


def _link(call: Call) -> Handling:
    r: m.Link = call.message
    yield hold_name(r.parent, r.name)
    yield from hold_attributes(r.handle, r.parent)
    nothing = yield from absent(call, r.parent, r.name)
    node: Node = yield Change(lambda: call.storage.link(r.handle, r.parent, r.name), (nothing,))
    above = yield Quick(lambda: call.storage.getattr(r.parent))
    tokens = (yield keep_name(r.parent, r.name)) or ()
    return m.Entry(node, tokens, (node, Node(r.parent, above)))


def _removed(call: Call, remove: Callable[[InodeHandle, bytes], Node]) -> Handling:
    r: m.Unlink | m.RmDir = call.message
    yield hold_name(r.parent, r.name)
    victim: Node = yield Quick(lambda: call.storage.lookup(r.parent, r.name))
    yield from hold_attributes(victim.handle, r.parent)
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
        found = yield from leads_to(call, parent, name)
        before.append(Named(parent, name, None if found is None else found.handle))
        if found is not None:
            involved.add(found.handle)
            yield Unnaming(found.handle)
    slow = found is not None and found.attributes.nlink <= 1 and frees_much(found.attributes)  # overwritten
    yield from hold_attributes(*involved)
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


def _entry(entry: Listed, told: dict[InodeHandle, Node]) -> DirEntry:
    """*entry* with what was read under its token; without a node if it is gone."""
    return DirEntry(entry.name, entry.cookie, None if entry.handle is None else told.get(entry.handle))


NAME_HANDLERS: Final[dict[type[Message], Handler]] = {
    m.Lookup: _lookup,
    m.LookupNumber: _lookup_number,
    m.LookupParent: _lookup_parent,
    m.SymLink: _symlink,
    m.MkNod: _mknod,
    m.MkDir: _mkdir,
    m.Link: _link,
    m.Unlink: _unlink,
    m.RmDir: _rmdir,
    m.Rename: _rename,
    m.ReadDir: _readdir,
}
