"""How a request is handled: a generator that yields what it has to wait for.

A handler is a generator function. It yields steps - acquire this token, run this on the disk - and is sent
their results; what it returns is the reply. `advance` carries out each step at once where that is possible,
so most requests are answered in the very call that received them, in the order received, without a task. Only
when a step has to wait is the rest of the generator handed to one.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

from nfsfuse.protocol import messages as m
from nfsfuse.protocol.intervals import Interval
from nfsfuse.protocol.messages import Message
from nfsfuse.protocol.record import record
from nfsfuse.protocol.tokens import RANGE_END, Resource, Token, TokenMode
from nfsfuse.protocol.types import InodeHandle, RequestId, SessionId
from nfsfuse.rpc.exchange import Payload
from nfsfuse_server.service.session import Session
from nfsfuse_server.state.records import Named
from nfsfuse_server.storage.interface import Storage

Reply = Message | tuple[Message, Payload]
"""A reply, with a payload where it has one."""


@record(frozen=True, slots=True)
class Acquire:
    """A step: get a token for the session, the largest there is (`tuple[Token, ...]`); or, if not to *wait*,
    perhaps none: None."""

    handle: InodeHandle
    resource: Resource
    mode: TokenMode
    start: int = 0
    end: int = RANGE_END
    wait: bool = True


@record(frozen=True, slots=True)
class AcquireRun:
    """A step: get a token of all of *resource* for each of *handles*, in this order (ascending), up to the
    first for which the session would have to wait; how many it got. Never waits."""

    handles: tuple[InodeHandle, ...]
    resource: Resource
    mode: TokenMode


@record(frozen=True, slots=True)
class Hold:
    """A step: keep all other sessions away from this until the request is answered (a mutation). *urgent*: see
    `TokenManager.acquire`; the step gives None if that is refused."""

    handle: InodeHandle
    resource: Resource
    mode: TokenMode = TokenMode.EXCLUSIVE
    start: int = 0
    end: int = RANGE_END
    also: tuple[Interval, ...] = ()
    urgent: bool = False


@record(frozen=True, slots=True)
class Clear:
    """A step: have other sessions give up what is in the way of tokens for all of these inodes, at once rather
    than one after the other. Never waits and takes nothing: each is still to be acquired, in order."""

    handles: tuple[InodeHandle, ...]
    resource: Resource
    mode: TokenMode


@record(frozen=True, slots=True)
class Use:
    """A step: work under a token that the session should hold, until the request is answered; whether it
    holds it, and the ranges *also*, which follow in order (bool). Never waits."""

    handle: InodeHandle
    resource: Resource
    mode: TokenMode
    start: int
    end: int
    also: tuple[Interval, ...] = ()


@record(frozen=True, slots=True)
class Unnaming:
    """A step: the inode is about to lose a name; whoever holds it must not lose it with its last one."""

    handle: InodeHandle


@record(frozen=True, slots=True)
class Tell:
    """A step: tell those from whom names were recalled for this what has come of it, after the change; *wait*
    for them, for a while."""

    message: m.Gone | m.Moved
    wait: bool = False


@record(frozen=True, slots=True)
class GiveBack:
    """A step: the session gives up what of *tokens* exceeds their mode. Never waits. See `m.ReturnTokens`."""

    tokens: tuple[Token, ...]
    frames_received: int


@record(frozen=True, slots=True)
class Quick:
    """A step: a storage call that is usually answered from the server's caches."""

    call: Callable[[], Any]


@record(frozen=True, slots=True)
class Slow:
    """A step: a storage call that waits for the disk by nature."""

    call: Callable[[], Any]


@record(frozen=True, slots=True)
class Change:
    """A step: a storage call that is made once, even if the server dies in the middle of the request: its
    intent is written to the journal, and its outcome before the reply is sent. One in a handler, after it
    holds what it changes, so that a look can tell later what became of it. *names* and *was* as in
    `nfsfuse_server.state.records.Intent`; *slow*: the call waits for the disk by nature."""

    call: Callable[[], Any]
    names: tuple[Named, ...] = ()
    was: int = 0
    slow: bool = False


@record(frozen=True, slots=True)
class TellOthers:
    """A step: the file is at least *size* bytes long now, and others that have it open know when this is done;
    whether there are any (bool). Waits for nothing that is granted."""

    handle: InodeHandle
    size: int


LockMessage = m.GetLock | m.SetLock | m.FlushLocks | m.ReleaseLocks


@record(frozen=True, slots=True)
class Locking:
    """A step: what the client asks of the lock manager; the reply. Waits where the request may wait."""

    message: LockMessage


Step = (
    Acquire | AcquireRun | Hold | Clear | Use | Unnaming | GiveBack | TellOthers | Locking | Quick | Slow
    | Change | Tell
)
Handling = Generator[Step, Any, Reply]


@dataclass(slots=True, eq=False)
class Call:
    """One request being handled. *granted* and *held* are what it took from the token manager, to be ended
    with it; of *recalled* it wanted names; of *attributes_changed* the others are told, without waiting for
    them. *intended*: the journal waits for its outcome."""

    session: Session
    message: Any
    payload: bytes | bytearray
    storage: Storage
    id: RequestId
    granted: tuple[int, ...] = ()
    held: tuple[int, ...] = ()
    granted_handles: tuple[InodeHandle, ...] = ()
    attributes_changed: tuple[InodeHandle, ...] = ()
    intended: bool = False
    unwanted: tuple[InodeHandle, ...] = ()
    """What was pinned for it, without a name, and nobody waits for any more: to be unpinned."""
    again: bool = False
    """An earlier epoch has done it; the journal waits for the frame of its answer."""
    recalled: set[SessionId] = field(default_factory=set)


Handler = Callable[[Call], Handling]

