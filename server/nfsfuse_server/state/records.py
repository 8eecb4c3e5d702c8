"""The journal's records: what an operation intends, and how it ended.

=======  ==========================================================================
intent   ``[0, session, request id, request, payload, [[parent, name, handle], ...], was]``
done     ``[1, session, request id, reply]``
version  ``[2, number]``: the first record of all, from version 2 on
=======  ==========================================================================

*request* and *reply* are headers of frames, as they go over the wire; a reply without what does not survive a
restart (tokens, the number of the open file).

What an earlier server has written is read as long as the codes of its messages are not retired, and fields were
only added (`nfsfuse.protocol.codes`). Version 1, which has no version record, is that of the first release.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, cast

import msgpack

from nfsfuse.protocol import messages as m
from nfsfuse.protocol.codec import FailureEnvelope, ReplyEnvelope, RequestEnvelope, decode, encode
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.messages import Message
from nfsfuse.protocol.record import record
from nfsfuse.protocol.types import InodeHandle, OpenId, RequestId, SessionId

INTENT: Final = 0
DONE: Final = 1
VERSION: Final = 2

JOURNAL_VERSION: Final = 2
"""Of the records themselves; raised whenever an earlier server would misread one."""

Outcome = Message | FsError
"""How an operation ended: a reply, or an errno."""


@record(frozen=True, slots=True)
class Named:
    """What a name leads to: an inode, or nothing (None)."""

    parent: InodeHandle
    name: bytes
    handle: InodeHandle | None


@record(frozen=True, slots=True)
class Intent:
    """An operation that is about to be done: who asked what, and how things are before it. *names* are all
    that it may change; *was* is the size of the file before a fallocate, and 1 or 0 for whether the extended
    attribute was there."""

    session: SessionId
    request: RequestId
    message: Message
    payload: bytes
    names: tuple[Named, ...]
    was: int


@record(frozen=True, slots=True)
class Done:
    """A request's outcome, encoded."""

    session: SessionId
    request: RequestId
    reply: bytes


def pack_intent(intent: Intent) -> bytes:
    """The record of *intent*."""
    header = encode(RequestEnvelope(intent.request, intent.message))
    names = [[named.parent, named.name, named.handle] for named in intent.names]
    return _dump([INTENT, intent.session, intent.request, header, intent.payload, names, intent.was])


def pack_version(number: int = JOURNAL_VERSION) -> bytes:
    """The first record of a journal."""
    return _dump([VERSION, number])


def pack_done(session: SessionId, request: RequestId, outcome: Outcome) -> bytes:
    """The record that *request* ended so."""
    if isinstance(outcome, FsError):
        reply = encode(FailureEnvelope(request, outcome.errno, ""))
    else:
        reply = encode(ReplyEnvelope(request, lasting(outcome)))
    return _dump([DONE, session, request, reply])


def lasting(reply: Message) -> Message:
    """*reply* without what does not survive a restart."""
    match reply:
        case m.Opened(node=node, affected=affected):
            return m.Opened(OpenId(0), node, (), False, affected)
        case m.Entry():
            return replace(reply, tokens=(), empty=False)
        case m.Done() | m.Stat():
            return replace(reply, tokens=())
        case m.Position():
            return reply
    raise AssertionError(f"no operation of the journal is answered by {type(reply).__name__}")


def version_of(records: Sequence[bytes]) -> int:
    """The version of the journal that *records* are. ValueError if the first is none."""
    match msgpack.unpackb(records[0], raw=False, use_list=True) if records else [VERSION, JOURNAL_VERSION]:
        case [2, int(number)]:
            return number
    return 1


def unpack(record: bytes) -> Intent | Done:
    """What `pack_intent` or `pack_done` made. ValueError or ProtocolError for anything else."""
    match msgpack.unpackb(record, raw=False, use_list=True):
        case [0, session, request, header, payload, names, was]:
            envelope = decode(header)
            if not isinstance(envelope, RequestEnvelope):
                raise ValueError("an intent without a request")
            before = tuple(Named(parent, name, handle) for parent, name, handle in names)
            return Intent(session, request, envelope.message, payload, before, was)
        case [1, session, request, reply]:
            return Done(session, request, reply)
    raise ValueError("no record of the journal")


def outcome_of(done: Done) -> Outcome:
    """The outcome in a record. ValueError or ProtocolError if there is none."""
    envelope = decode(done.reply)
    if isinstance(envelope, FailureEnvelope):
        return FsError(envelope.errno, envelope.detail)
    if not isinstance(envelope, ReplyEnvelope):
        raise ValueError("an outcome that is no answer")
    return envelope.message


_dump: Final = cast("Callable[[Any], bytes]", msgpack.Packer(use_bin_type=True, autoreset=True).pack)
