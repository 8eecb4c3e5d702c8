"""Locks on the client: asked of the server, never granted here; and dropped there when a file is closed.

What this client holds is recorded, for three uses: a close that has nothing to drop costs no round trip; a
grant that nobody waits for any more is undone exactly; and after a restart of the server it is reclaimed.
The record is what the server has granted, as it is kept in the hooks that see the replies in the order sent.

A program that is interrupted while it waits is told EINTR only once the server has said that the request left
the queue. Were it told at once, the grant that crossed with the cancellation would have to be undone later,
and the undoing could hit the lock that the program, trying again, has taken meanwhile. Where the server does
not answer, the program still has to die when it is killed: then the request is abandoned, the undoing is left
to the reply, and whatever the same owner asks for on this file waits until that has come.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import trio

from nfsfuse.machines.inodes import InodeTable
from nfsfuse.ports.remote import Remote
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.intervals import Interval, IntervalMap
from nfsfuse.protocol.locks import HeldLock, LockKind, LockMode, LockRange, OwnedLock
from nfsfuse.protocol.messages import Message
from nfsfuse.protocol.record import record
from nfsfuse.protocol.types import InodeHandle, LockOpenId, LockOwner

CANCEL_SECONDS_MAX: Final = 0.5
"""How long an interrupted program waits to hear that its request is cancelled: many round trips of any
network, and still well below the second within which a killed program has to be gone."""


FLOCK_LOST: Final = frozenset({errno.EAGAIN, errno.EINTR})
"""With these answers a flock that was to be converted is gone. With others it is as it was."""


@record(frozen=True, slots=True)
class LockRequest:
    """What a program asks for; *open_file* is the number of the open file it asks through."""

    node_id: int
    open_file: int
    owner: LockOwner
    kind: LockKind
    mode: LockMode
    range: LockRange
    pid: int


@record(frozen=True, slots=True)
class _Lock:
    """How a range is locked, through which open file, by which process."""

    mode: LockMode
    open_file: int
    pid: int


@dataclass(slots=True, eq=False)
class _Holder:
    """What one owner holds on one file, as half-open ranges."""

    held: IntervalMap[_Lock] = field(default_factory=IntervalMap)
    unanswered: int = 0  # abandoned requests


_Who = tuple[LockKind, LockOwner]


class _Pending:
    """One request under way, seen from both sides: whoever waits for it, and its reply."""

    def __init__(self) -> None:
        self.answered = trio.Event()
        self.granted = False
        self.abandoned = False


class Locks:
    """The locks of a mount. Raises FsError."""

    def __init__(self, remote: Remote, inodes: InodeTable) -> None:
        self._remote = remote
        self._inodes = inodes
        self._holders: dict[InodeHandle, dict[_Who, _Holder]] = {}
        self._answers = trio.lowlevel.ParkingLot()

    # --- what programs ask for ---

    async def find(self, request: LockRequest) -> HeldLock | None:
        """F_GETLK: a lock in the way."""
        handle = self._inodes[request.node_id].handle
        span = request.range
        reply, _ = await self._remote.call(
            m.GetLock(handle, request.owner, request.kind, request.mode, span.start, span.end)
        )
        return reply.lock

    async def set(self, request: LockRequest, *, wait: bool) -> None:
        """F_SETLK, or with *wait* F_SETLKW; flock(2) likewise. Cancelled, nothing is held that was not held
        before - unless the lock was granted just before: then this returns as if it had not been cancelled."""
        handle, who = self._inodes[request.node_id].handle, (request.kind, request.owner)
        while (holder := self._holder(handle, who)) is not None and holder.unanswered:
            await self._answers.park()
        pending = _Pending()
        converted = self._give_up_flock(handle, who, request)

        def granted(_reply: Message, _payload: bytes | bytearray) -> None:
            pending.granted = True
            if pending.abandoned:
                self._undo(handle, who, request)
            else:
                self._record(handle, who, request)
            self._answered(handle, who, pending)

        def failed(failure: Exception) -> None:
            if converted is not None and isinstance(failure, FsError) and failure.errno not in FLOCK_LOST:
                self._made(handle, who).held.set(*_half_open(request.range), converted)
            self._answered(handle, who, pending)

        span = request.range
        message = m.SetLock(
            handle, LockOpenId(request.open_file), request.owner, request.kind, request.mode,
            span.start, span.end, request.pid, wait,
        )  # fmt: skip
        try:
            await self._remote.call(message, b"", granted, failed)
        except trio.Cancelled:
            with trio.move_on_after(CANCEL_SECONDS_MAX, shield=True):
                await pending.answered.wait()
            if pending.granted:
                return  # the grant crossed with the cancellation: the program has its lock
            if not pending.answered.is_set():
                pending.abandoned = True
                self._made(handle, who).unanswered += 1
            raise

    # --- closes ---

    def has_any(self, node_id: int, owner: LockOwner) -> bool:
        """Whether *owner* has POSIX locks on the file."""
        holder = self._holder(self._inodes[node_id].handle, (LockKind.POSIX, owner))
        return holder is not None and bool(holder.held)

    async def flush(self, node_id: int, owner: LockOwner) -> None:
        """A process closed a descriptor of the file: its POSIX locks on it go, whichever descriptor they
        came through (fcntl(2)). If this is cancelled they are on their way."""
        if not self.has_any(node_id, owner):
            return
        handle, who = self._inodes[node_id].handle, (LockKind.POSIX, owner)
        self._made(handle, who).held.clear()
        self._tidy(handle, who)
        message = m.FlushLocks(handle, owner)
        try:
            await self._remote.call(message)
        except trio.Cancelled:
            # It was not sent, or the server is told that nobody waits for it: but it has to be done.
            self._remote.post(message)
            raise

    def release(self, node_id: int, open_file: int, owner: LockOwner | None) -> None:
        """The last close of an open file: what was locked through it and is still held goes: OFD locks, and
        the flock of *owner*. Nobody waits for it, in the kernel either."""
        handle = self._inodes[node_id].handle
        found = False
        for who, holder in list(self._holders.get(handle, {}).items()):
            whole = who == (LockKind.FLOCK, owner)
            for start, end, lock in holder.held:
                if whole or lock.open_file == open_file:
                    found = True
                    holder.held.delete(start, end)
            self._tidy(handle, who)
        if found or owner is not None:
            self._remote.post(m.ReleaseLocks(handle, LockOpenId(open_file), owner))

    def owned(self) -> Iterator[OwnedLock]:
        """Everything that is held, to be reclaimed."""
        for handle, holders in self._holders.items():
            for (kind, owner), holder in holders.items():
                for start, end, lock in holder.held:
                    yield OwnedLock(
                        handle, LockOpenId(lock.open_file), owner, kind, lock.mode, start, end - 1, lock.pid
                    )

    def refused(self, lock: OwnedLock) -> None:
        """The server does not let *lock* be reclaimed: it is not held any more."""
        who = (lock.kind, lock.owner)
        holder = self._holder(lock.inode, who)
        if holder is not None:
            holder.held.delete(lock.start, lock.end + 1)
            self._tidy(lock.inode, who)

    def lost(self) -> frozenset[int]:
        """The session is over, and with it every lock at the server: the open files through which one was
        held."""
        through: frozenset[int] = frozenset()
        for handle, holders in list(self._holders.items()):
            for who, holder in list(holders.items()):
                through |= {lock.open_file for _, _, lock in holder.held}
                holder.held.clear()
                self._tidy(handle, who)
        return through

    # --- the record ---

    def _holder(self, handle: InodeHandle, who: _Who) -> _Holder | None:
        return self._holders.get(handle, {}).get(who)

    def _made(self, handle: InodeHandle, who: _Who) -> _Holder:
        return self._holders.setdefault(handle, {}).setdefault(who, _Holder())

    def _give_up_flock(self, handle: InodeHandle, who: _Who, request: LockRequest) -> _Lock | None:
        """A flock is converted by giving it up first (flock(2)): while that is under way it is not held, and
        must not be reclaimed, as somebody else may have it. What it was; None if there is no conversion."""
        holder = self._holder(handle, who)
        if request.kind is not LockKind.FLOCK or holder is None or request.mode is LockMode.UNLOCK:
            return None
        start, end = _half_open(request.range)
        held = holder.held.at(start)
        if held is None or held.mode is request.mode:
            return None
        holder.held.delete(start, end)
        self._tidy(handle, who)
        return held

    def _record(self, handle: InodeHandle, who: _Who, request: LockRequest) -> None:
        start, end = _half_open(request.range)
        holder = self._made(handle, who)
        if request.mode is LockMode.UNLOCK:
            holder.held.delete(start, end)
            self._tidy(handle, who)
        else:
            holder.held.set(start, end, _Lock(request.mode, request.open_file, request.pid))

    def _undo(self, handle: InodeHandle, who: _Who, request: LockRequest) -> None:
        """A lock was granted that nobody waits for: back to what the record says, which is never more than
        was granted, so none of this can be refused or wait."""
        kind, owner = who
        start, end = _half_open(request.range)
        held = self._made(handle, who).held
        nothing = _Lock(LockMode.UNLOCK, request.open_file, request.pid)
        before = held.overlapping(start, end)
        before += [(low, high, nothing) for low, high in held.gaps(start, end)]
        for low, high, lock in sorted(before, key=lambda piece: piece[0]):
            self._remote.post(
                m.SetLock(
                    handle, LockOpenId(lock.open_file), owner, kind, lock.mode, low, high - 1, lock.pid, False
                )
            )

    def _answered(self, handle: InodeHandle, who: _Who, pending: _Pending) -> None:
        pending.answered.set()
        if pending.abandoned:
            self._made(handle, who).unanswered -= 1
            self._tidy(handle, who)
            self._answers.unpark_all()

    def _tidy(self, handle: InodeHandle, who: _Who) -> None:
        holder = self._holder(handle, who)
        if holder is not None and not holder.held and not holder.unanswered:
            del self._holders[handle][who]
            if not self._holders[handle]:
                del self._holders[handle]

    def check(self) -> None:
        """Assert that nobody is recorded for nothing."""
        for handle, holders in self._holders.items():
            assert holders, handle
            for who, holder in holders.items():
                holder.held.check()
                assert holder.held or holder.unanswered, (handle, who)


def _half_open(span: LockRange) -> Interval:
    return span.start, span.end + 1
