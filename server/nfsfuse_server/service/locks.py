"""Locks of all clients, on the server: handlers, and the lock manager at work.

The machine (`nfsfuse_server.machines.locks`) decides at once; here its requests are numbered, its effects
carried out in the order given, and requests that have to wait are waited for, each in its own task.
"""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable
from typing import Final, assert_never

import trio

from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.limits import REQUESTS_IN_FLIGHT_MAX
from nfsfuse.protocol.messages import Message
from nfsfuse_server.machines.leases import Leases
from nfsfuse_server.machines.lock_effects import Denied, Effect
from nfsfuse_server.machines.lock_limits import LockLimits
from nfsfuse_server.machines.locks import LockManager
from nfsfuse_server.service.calls import Call, Handler, Handling, Locking, LockMessage
from nfsfuse_server.service.session import Session

WAITERS_PER_SESSION_MAX: Final = REQUESTS_IN_FLIGHT_MAX // 2
"""Waiting requests of one client; one more is ENOLCK. Each is a request in flight, of which a connection may
have only so many: programs that wait for locks must leave room for those that do not."""


class LockWaiting:
    """A request that is in the lock manager's queue."""

    def __init__(self, ticket: int, cancel: Callable[[int], None]) -> None:
        self._ticket = ticket
        self._cancel = cancel
        self._decided = trio.Event()
        self._denied: int | None = None

    @property
    def decided(self) -> bool:
        """Whether the request has been granted or denied."""
        return self._decided.is_set()

    @property
    def denied(self) -> int | None:
        """The errno with which it was."""
        return self._denied

    def decide(self, effect: Effect) -> None:
        """The manager's decision."""
        self._denied = effect.errno if isinstance(effect, Denied) else None
        self._decided.set()

    def result(self) -> m.Done:
        """The reply, once it is decided. Raises FsError if the request was denied."""
        if self._denied is not None:
            raise FsError(self._denied)
        return m.Done()

    async def wait(self) -> m.Done:
        """The reply. Cancelled, the request leaves the queue; one that was granted before it could stays
        granted and is answered so, or its lock would be nobody's."""
        if not self.decided:
            try:
                await self._decided.wait()
            except trio.Cancelled:
                self._cancel(self._ticket)
                if self._denied is not None:
                    raise
        return self.result()


class Locks:
    """The one lock manager of a service."""

    def __init__(self, leases: Leases) -> None:
        self._leases = leases
        self.manager = LockManager(LockLimits(waiters_per_session=WAITERS_PER_SESSION_MAX))
        self._tickets = itertools.count(1)
        self._undecided: dict[int, LockWaiting] = {}

    def begin(self, session: Session, message: LockMessage) -> Message | LockWaiting:
        """Carry out a Locking step. Raises FsError."""
        match message:
            case m.SetLock():
                return self._set(session, message)
            case m.GetLock(handle=handle, owner=owner, kind=kind, mode=mode, start=start, end=end):
                found = self.manager.test(session.id, handle, owner, kind, mode, start, end)
                if found is not None:
                    self._wants(session, message)
                return m.LockFound(found)
            case m.FlushLocks(handle=handle, owner=owner):
                self._carry_out(self.manager.flush(session.id, handle, owner))
            case m.ReleaseLocks(handle=handle, open_file=open_file, owner=releasing):
                self._carry_out(self.manager.release(session.id, handle, open_file, releasing))
            case _:
                assert_never(message)
        return m.Done()

    def _set(self, session: Session, r: m.SetLock) -> m.Done | LockWaiting:
        ticket = next(self._tickets)
        waiting = self._undecided[ticket] = LockWaiting(ticket, self._cancelled)
        self._carry_out(
            self.manager.request(
                session.id, r.handle, r.open_file, r.owner, r.kind, r.mode, r.start, r.end, r.pid, r.wait,
                ticket,
            )
        )  # fmt: skip
        if not waiting.decided:
            return waiting
        if waiting.denied == errno.EAGAIN:
            self._wants(session, r)
        return waiting.result()

    def _wants(self, session: Session, r: m.SetLock | m.GetLock) -> None:
        """*session* is kept from a lock, and does not wait for it."""
        now = trio.current_time()
        for other in self.manager.holders_in_the_way(
            session.id, r.handle, r.owner, r.kind, r.mode, r.start, r.end
        ):
            self._leases.wanted(other, now)

    def _cancelled(self, ticket: int) -> None:
        self._carry_out(self.manager.cancel(ticket))

    def dropped(self, session: Session) -> None:
        """The session is over; nothing of it is left."""
        self._carry_out(self.manager.drop_session(session.id))

    def _carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            self._undecided.pop(effect.ticket).decide(effect)


def _locking(call: Call) -> Handling:
    reply: Message = yield Locking(call.message)
    return reply


LOCK_HANDLERS: Final[dict[type[Message], Handler]] = {
    m.GetLock: _locking,
    m.SetLock: _locking,
    m.FlushLocks: _locking,
    m.ReleaseLocks: _locking,
}
