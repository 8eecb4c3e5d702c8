"""Handlers of open files and their data."""

from __future__ import annotations

import errno
import logging
import os
import stat
from dataclasses import replace
from functools import partial
from typing import Any, Final

from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError, ProtocolError
from nfsfuse.protocol.limits import (
    ACCESSES_MAX,
    PAYLOAD_SIZE_MAX,
    RELEASES_MAX,
    SMALL_FILE_SIZE_MAX,
)
from nfsfuse.protocol.messages import Message
from nfsfuse.protocol.pages import is_page_range, pages_of
from nfsfuse.protocol.tokens import Token, TokenMode
from nfsfuse.protocol.types import (
    AttributeChanges,
    Attributes,
    InodeHandle,
    Node,
    Sync,
)
from nfsfuse_server.service.calls import (
    Acquire,
    Call,
    Change,
    GiveBack,
    Handler,
    Handling,
    Hold,
    Quick,
    Slow,
    TellOthers,
    Unnaming,
    Use,
)
from nfsfuse_server.service.extents import check_extents, pages_of_extents, write_all
from nfsfuse_server.service.sub_steps import (
    ATTR,
    DATA,
    EXCLUSIVE,
    SHARED,
    frees_much,
    hold_name,
    keep_name,
    leads_to,
    node_of,
)
from nfsfuse_server.state.records import Named
from nfsfuse_server.storage.interface import Storage

log = logging.getLogger(__name__)

INLINE_WRITE_SIZE_MAX: Final = 64 * 1024
"""Bytes: a write no larger is a short copy into the server's page cache."""

INLINE_EXTENTS_MAX: Final = 16
"""Extents, likewise: a system call or two each."""


def _open(call: Call) -> Handling:
    request: m.Open = call.message
    reply: m.Opened | tuple[m.Opened, bytes] = yield from _opened(
        call, request.handle, request.flags, request.want, ()
    )
    return reply


def _opened(call: Call, handle: InodeHandle, flags: int, want: bool, affected: tuple[Node, ...]) -> Any:
    """Sub-steps: open an inode, with the tokens that are free and the content of a small file."""
    writing = flags & os.O_ACCMODE != os.O_RDONLY
    tokens: list[Token] = []
    node: Node
    if flags & os.O_TRUNC:
        yield Hold(handle, DATA)
    if want:
        tokens += (yield Acquire(handle, DATA, EXCLUSIVE if writing else SHARED, wait=False)) or ()
    has_data = bool(tokens)
    if flags & os.O_TRUNC:
        tokens += yield Acquire(handle, ATTR, EXCLUSIVE)
        before: Attributes = yield Quick(lambda: call.storage.getattr(handle))
        cut: Attributes = yield Change(
            lambda: call.storage.setattr(handle, AttributeChanges(size=0)), slow=frees_much(before)
        )
        node = Node(handle, cut)
    else:
        if want:
            exclusive = (yield Acquire(handle, ATTR, EXCLUSIVE, wait=False)) if writing else None
            tokens += exclusive or (yield Acquire(handle, ATTR, SHARED))
        if want:
            node = yield Quick(lambda: node_of(call.storage, handle))
        else:
            node = Node(handle, (yield Quick(lambda: call.storage.getattr(handle))))
        if writing and want:
            yield Quick(lambda: call.storage.check_open(handle, flags))
    attributes = node.attributes
    _check_regular(attributes)
    data = None
    if has_data and 0 < attributes.size <= SMALL_FILE_SIZE_MAX:
        data = call.storage.read_nowait(handle, 0, attributes.size)
    yield Quick(lambda: call.storage.pin(handle))
    open_id = call.session.opened(handle)
    content = data is not None and len(data) == attributes.size
    watched = writing and call.session.is_watched(handle)
    reply = m.Opened(open_id, node, tuple(tokens), content, affected, watched)
    return (reply, data) if content else reply


def _check_regular(attributes: Attributes) -> None:
    """Raise what makes the client's kernel do the right thing with anything else: after ESTALE it walks the
    path anew (do_filp_open in fs/namei.c), and then follows a link or opens a device itself."""
    if stat.S_ISDIR(attributes.mode):
        raise FsError(errno.EISDIR)
    if not stat.S_ISREG(attributes.mode):
        raise FsError(errno.ESTALE, "only regular files are opened")


def _create(call: Call) -> Handling:
    r: m.Create = call.message
    yield hold_name(r.parent, r.name)
    found: Node | None = yield from leads_to(call, r.parent, r.name)
    if found is not None:
        if r.flags & os.O_EXCL:
            raise FsError(errno.EEXIST)
        _check_regular(found.attributes)
        tokens_of_name = (yield keep_name(r.parent, r.name)) or ()
        existing: m.Opened | tuple[m.Opened, bytes] = yield from _opened(call, found.handle, r.flags, True, ())
        opened, *content = existing if isinstance(existing, tuple) else (existing,)
        assert isinstance(opened, m.Opened)
        opened = replace(opened, tokens=opened.tokens + tokens_of_name)
        return (opened, content[0]) if content else opened
    yield Hold(r.parent, ATTR)
    node: Node = yield Change(
        lambda: call.storage.create(r.parent, r.name, r.mode, r.credentials),
        (Named(r.parent, r.name, None),),
    )
    above = yield Quick(lambda: call.storage.getattr(r.parent))
    # Not waiting: nobody can be in the way but an operation that waits for the parent that we hold.
    tokens: list[Token] = []
    tokens += (yield Acquire(node.handle, DATA, EXCLUSIVE, wait=False)) or ()
    tokens += (yield Acquire(node.handle, ATTR, EXCLUSIVE, wait=False)) or ()
    tokens += (yield keep_name(r.parent, r.name)) or ()
    yield Quick(lambda: call.storage.pin(node.handle))
    open_id = call.session.opened(node.handle)
    return m.Opened(open_id, node, tuple(tokens), False, (Node(r.parent, above),))


def _tmpfile(call: Call) -> Handling:
    """No change that must not be made twice: what a server that died has made without telling is nobody's, and
    swept as any orphan."""
    r: m.TmpFile = call.message
    made: list[Node] = []
    try:
        yield Quick(lambda: made.append(_make_nameless(call.storage, r)))
    except GeneratorExit:  # nobody waits for it any more
        call.unwanted = tuple(node.handle for node in made)
        raise
    (node,) = made
    open_id = call.session.opened(node.handle)
    tokens: list[Token] = []
    tokens += (yield Acquire(node.handle, DATA, EXCLUSIVE, wait=False)) or ()
    tokens += (yield Acquire(node.handle, ATTR, EXCLUSIVE, wait=False)) or ()
    yield Unnaming(node.handle)
    return m.Opened(open_id, node, tuple(tokens), False)


def _make_nameless(storage: Storage, request: m.TmpFile) -> Node:
    node = storage.tmpfile(request.parent, request.mode, request.credentials)
    storage.pin(node.handle)
    return node


def _release(call: Call) -> Handling:
    r: m.Release = call.message
    if len(r.closed) > RELEASES_MAX:
        raise ProtocolError(f"{len(r.closed)} closed files in one message")
    # Tokens first, in one go and in the order in which everything else arrives that is given up.
    for closed in r.closed:
        if closed.tokens:
            yield GiveBack(closed.tokens, closed.frames_received)
    failure: FsError | None = None
    for closed in r.closed:
        try:
            # Not before its turn: what is left when the session ends is released with it.
            handle = call.session.released(closed.open_id)
            if not (yield Quick(partial(call.storage.unpin_nowait, handle))):
                yield Slow(partial(call.storage.unpin, handle))
        except FsError as exc:
            failure = failure or exc.alone()  # the others are open files all the same
    if failure is not None:
        raise failure.alone()
    return m.Done()


def _accessed(call: Call) -> Handling:
    r: m.Accessed = call.message
    if len(r.handles) > ACCESSES_MAX:
        raise ProtocolError(f"{len(r.handles)} files in one message")
    for handle in r.handles:
        try:
            yield Quick(partial(call.storage.accessed, handle))
        except FsError as exc:
            log.debug("%s: a time of access is not kept: %s", call.session, exc)  # nobody could do anything
    return m.Done()


def _read(call: Call) -> Handling:
    r: m.Read = call.message
    if not 0 < r.size <= PAYLOAD_SIZE_MAX or r.offset < 0:
        raise FsError(errno.EINVAL, f"read of {r.size} bytes at {r.offset}")
    start, end = pages_of(r.offset, r.size)
    tokens: tuple[Token, ...] = ()
    if r.mode is TokenMode.NONE:
        if not (yield Use(r.handle, DATA, SHARED, start, end)):
            raise FsError(errno.EAGAIN, "the token for these pages is not held any more")
    else:
        tokens = yield Acquire(r.handle, DATA, r.mode, start, end)
    data: bytes | bytearray = yield from _data(call, r)
    attributes: Attributes | None = None
    if len(data) < r.size and not r.sizeless:
        # Only who may cache the size knows where the file ends: another client may be about to extend it.
        tokens += yield Acquire(r.handle, ATTR, SHARED)
        data = yield from _data(call, r)
        attributes = yield Quick(lambda: call.storage.getattr(r.handle))
    return m.Data(tokens, attributes), data


def _data(call: Call, r: m.Read) -> Any:
    data = call.storage.read_nowait(r.handle, r.offset, r.size)
    if data is None:
        data = yield Slow(lambda: call.storage.read(r.handle, r.offset, r.size))
    return data


def _write(call: Call) -> Handling:
    r: m.Write = call.message
    size = len(call.payload)
    if not 0 < size <= PAYLOAD_SIZE_MAX or r.offset < 0:
        raise FsError(errno.EINVAL, f"write of {size} bytes at {r.offset}")
    if not (yield Use(r.handle, DATA, EXCLUSIVE, *pages_of(r.offset, size))):
        raise FsError(errno.EAGAIN, "the token for these pages is not held any more")
    data = memoryview(call.payload)
    step = Quick if size <= INLINE_WRITE_SIZE_MAX else Slow
    attributes = yield step(lambda: call.storage.write(r.handle, r.offset, data))
    written: m.Written = yield from _written(call, r, attributes)
    return written


def _write_extents(call: Call) -> Handling:
    r: m.WriteExtents = call.message
    check_extents(r.extents, len(call.payload))
    first, *others = pages_of_extents(r.extents)
    if not (yield Use(r.handle, DATA, EXCLUSIVE, *first, tuple(others))):
        raise FsError(errno.EAGAIN, "the token for these pages is not held any more")
    data = memoryview(call.payload)

    few = len(r.extents) <= INLINE_EXTENTS_MAX and len(data) <= INLINE_WRITE_SIZE_MAX
    step = Quick if few else Slow
    attributes = yield step(lambda: write_all(call.storage, r, data))
    written: m.Written = yield from _written(call, r, attributes)
    return written


def _written(call: Call, r: m.Write | m.WriteExtents, attributes: Attributes) -> Any:
    """Sub-steps: what follows a write-back, with its sync, if it was asked for."""
    call.session.sync_errors.wrote(call.session.id, r.handle)
    call.attributes_changed += (r.handle,)
    if r.sync is Sync.NONE:
        return m.Written(attributes)
    # A step of its own, after `wrote`: it may be another session's fsync, meanwhile, that is told of the loss
    # of these data, and then this session is to be told as well. (Nor is a short write worth a thread.)
    sync_errno = 0
    try:
        yield from _synced(call, r.handle, data_only=r.sync is Sync.DATA)
    except FsError as exc:
        sync_errno = exc.errno
    # As they are when the answer is sent: the client takes them to be newer than those of any answer before it.
    attributes = yield Quick(lambda: call.storage.getattr(r.handle))
    return m.Written(attributes, sync_errno)


def _fsync(call: Call) -> Handling:
    r: m.Fsync = call.message
    attributes: Attributes = yield Quick(lambda: call.storage.getattr(r.handle))
    if stat.S_ISDIR(attributes.mode):
        yield Slow(lambda: call.storage.fsync_dir(r.handle))
    else:
        yield from _synced(call, r.handle, data_only=r.data_only)
    return m.Done()


def _synced(call: Call, handle: InodeHandle, *, data_only: bool) -> Any:
    """Sub-steps: synchronise a file. Raises what the session has to be told."""
    errors = call.session.sync_errors
    try:
        yield Slow(lambda: call.storage.fsync(handle, data_only))
    except FsError as exc:
        errors.failed(call.session.id, handle, exc)
        raise
    if (owed := errors.synced(call.session.id, handle)) is not None:
        raise owed.alone()


def _fallocate(call: Call) -> Handling:
    r: m.Fallocate = call.message
    yield Hold(r.handle, DATA)
    tokens = yield Acquire(r.handle, ATTR, EXCLUSIVE)
    before: Attributes = yield Quick(lambda: call.storage.getattr(r.handle))
    attributes = yield Change(
        lambda: call.storage.fallocate(r.handle, r.mode, r.offset, r.length), was=before.size, slow=True
    )
    if attributes.size > before.size:
        yield TellOthers(r.handle, attributes.size)
    return m.Stat(attributes, tokens)


def _seek(call: Call) -> Handling:
    r: m.Seek = call.message
    # Whoever has written without telling tells now: what is data and what a hole is known afterwards.
    yield Hold(r.handle, DATA, SHARED)
    yield Acquire(r.handle, ATTR, SHARED)
    position = yield Quick(lambda: call.storage.seek(r.handle, r.offset, r.whence))
    return m.Position(position)


def _copy_range(call: Call) -> Handling:
    r: m.CopyRange = call.message
    modes = {r.source: SHARED}
    modes[r.target] = EXCLUSIVE
    for handle, mode in sorted(modes.items()):
        yield Hold(handle, DATA, mode)
    yield Hold(r.target, ATTR)
    copied: int = yield Change(
        lambda: call.storage.copy_range(r.source, r.source_offset, r.target, r.target_offset, r.length),
        slow=True,
    )
    yield TellOthers(r.target, r.target_offset + copied)
    return m.Position(copied)


def _get_token(call: Call) -> Handling:
    r: m.GetToken = call.message
    tokens: tuple[Token, ...] = ()
    attributes: Attributes | None = None
    bare = False
    if r.data is not TokenMode.NONE:
        if not is_page_range(r.start, r.end):
            raise FsError(errno.EINVAL, f"not a range of pages: [{r.start}, {r.end})")
        tokens += yield Acquire(r.handle, DATA, r.data, r.start, r.end)
    if r.attr is not TokenMode.NONE:
        tokens += yield Acquire(r.handle, ATTR, r.attr)
        node: Node = yield Quick(lambda: node_of(call.storage, r.handle))
        attributes, bare = node.attributes, node.bare
    return m.TokenGrant(tokens, attributes, call.session.is_watched(r.handle), bare)


def _grown(call: Call) -> Handling:
    r: m.Grown = call.message
    watched: bool = yield TellOthers(r.handle, r.size)
    return m.Watched(watched)


FILE_HANDLERS: Final[dict[type[Message], Handler]] = {
    m.Open: _open,
    m.Create: _create,
    m.TmpFile: _tmpfile,
    m.Release: _release,
    m.Accessed: _accessed,
    m.Read: _read,
    m.Write: _write,
    m.WriteExtents: _write_extents,
    m.Fsync: _fsync,
    m.Fallocate: _fallocate,
    m.Seek: _seek,
    m.CopyRange: _copy_range,
    m.GetToken: _get_token,
    m.Grown: _grown,
}
