"""What is different after a restart: sessions come back and reclaim, and everybody else waits for them.

`nfsfuse_server.machines.grace` decides for how long. Requests that would be granted something new meanwhile
are held back, and begun in the order of their arrival when grace is over. What a client that reclaims needs
for that is not: its writes under tokens that it has taken back, and giving things up.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

import trio

from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError, ProtocolError
from nfsfuse.protocol.limits import CLAIMS_MAX
from nfsfuse.protocol.locks import LockMode, OwnedLock
from nfsfuse.protocol.messages import Message
from nfsfuse.protocol.types import OpenFile, OpenId, RequestId, SessionId
from nfsfuse_server.machines.grace import Grace
from nfsfuse_server.service.calls import Call, Handling, Slow
from nfsfuse_server.service.locks import Locks
from nfsfuse_server.service.session import Session
from nfsfuse_server.service.tokens import Tokens
from nfsfuse_server.state.interface import Start
from nfsfuse_server.storage.interface import Storage

log = logging.getLogger(__name__)

ADMITTED: Final = (*m.WRITES, m.Fsync, m.Release, m.FlushLocks, m.ReleaseLocks, m.StatFs)
"""Requests that are granted nothing new. A Write is taken under a token that its session holds, or refused."""


class Recovery:
    """The grace of a service. *over* is called when nobody is waited for any more: `end` then ends it."""

    def __init__(
        self,
        start: Start,
        tokens: Tokens,
        locks: Locks,
        over: Callable[[], None],
    ) -> None:
        self._known = {session.id: session for session in start.sessions}
        self._hold_nothing = {each.id for each in start.sessions if each.epoch > start.granted_epoch}
        self._tokens = tokens
        self._locks = locks
        self._over = over
        self._grace: Grace | None = None
        self._ending = False
        self._held_back: dict[tuple[SessionId, RequestId], Callable[[], None]] = {}
        self.granting = trio.Event()
        """Grace is over, or there was none."""

    def begin(self, now: float, seconds: float) -> None:
        """The service begins to serve."""
        self._grace = Grace(
            {session.id: session.waited_seconds for session in self._known.values()},
            now,
            seconds,
            self._hold_nothing,
        )
        if not self._grace.over:
            log.warning(
                "grace: %d sessions of an earlier epoch have up to %g s to come back", len(self._known), seconds
            )
        self._end_if_over()

    @property
    def in_grace(self) -> bool:
        """Whether nothing new may be granted."""
        return self._grace is not None and not self.granting.is_set()

    # --- sessions that come back ---

    def may_return(self, hello: m.Hello, now: float) -> bool:
        """Whether *hello* asks for a session that is waited for. ProtocolError if that is another client's."""
        if self._grace is None or not self._grace.may_return(hello.session_id, now):
            return False
        if self._known[hello.session_id].client_id != hello.client_id:
            raise ProtocolError("this session is another client's")
        return True

    def returned(self, session: Session, now: float) -> None:
        """A session that may do so has returned."""
        assert self._grace is not None
        self._grace.returned(session.id, now)

    def is_absent(self, session: SessionId) -> bool:
        """Whether *session* is of an earlier epoch and still expected."""
        return self._grace is not None and self._grace.is_expected(session)

    def replaced(self, session: SessionId) -> None:
        """An absent session's client has come back without it, and it is forgotten durably."""
        log.warning("%s will not come back", self._name(session))
        self._ended(session)

    def reclaim(self, call: Call) -> Handling:
        """A session takes back what it can; what not is told, and in the log."""
        session, claims = call.session, call.message
        assert isinstance(claims, m.Reclaim)
        count = len(claims.tokens) + len(claims.open_files) + len(claims.locks)
        if count > CLAIMS_MAX:
            raise ProtocolError(f"{count} claims in one message")
        if self._grace is None or not self._grace.may_reclaim(session.id):
            log.warning("%s: %d claims are too late", session, count)
            open_ids = tuple(claim.open_id for claim in claims.open_files)
            return m.Reclaimed(claims.tokens, open_ids, claims.locks)
        numbers = [claim.open_id for claim in claims.open_files]
        if len(set(numbers)) < len(numbers) or session.open_files.keys() & set(numbers):
            raise ProtocolError("an open file is claimed twice")
        tokens = tuple(token for token in claims.tokens if not self._tokens.reclaimed(session, token))
        lost: dict[OpenId, FsError] = {}
        if claims.open_files:
            # Many, and not in memory after a reboot. Nothing else of the session is begun meanwhile; and if it
            # is over by then, it releases what it has here.
            lost = yield Slow(partial(_pin_all, call.storage, claims.open_files))
        for claim in claims.open_files:
            if claim.open_id in lost:
                log.error("%s: open file %d is gone: %s", session, claim.open_id, lost[claim.open_id])
            else:
                session.reopened(claim.open_id, claim.handle)
        locks = tuple(lock for lock in claims.locks if not self._lock(session, lock))
        refused = m.Reclaimed(tokens, tuple(lost), locks)
        for refusal in (*refused.tokens, *refused.open_files, *refused.locks):
            log.error("%s: cannot have back %s", session, refusal)
        return refused

    def _lock(self, session: Session, lock: OwnedLock) -> bool:
        try:
            return self._locks.manager.reclaim(session.id, lock)
        except FsError as exc:
            raise ProtocolError(f"{lock} is no lock: {exc}") from exc

    def complete(self, session: Session) -> None:
        """*session* has reclaimed everything."""
        if self._grace is not None and self._grace.may_reclaim(session.id):
            log.info("%s: has reclaimed what it held", session)
            self._ended(session.id)

    def gone(self, session: Session) -> None:
        """*session* is over: it is not waited for."""
        for key in [key for key in self._held_back if key[0] == session.id]:
            del self._held_back[key]
        self._ended(session.id)

    # --- the end ---

    def stood_still(self, seconds: float) -> None:
        """The server itself did nothing for so long."""
        if self._grace is not None:
            self._grace.stood_still(seconds)

    def waited(self, now: float) -> dict[SessionId, float]:
        """For how many seconds each session that is still absent has been waited for, in all epochs."""
        return {} if self._grace is None else self._grace.waited(now)

    def expired(self, now: float) -> tuple[SessionId, ...]:
        """It is *now*: the sessions to be forgotten, durably, and then to be told to `forgotten`."""
        late = () if self._grace is None else self._grace.expired(now)
        for session in late:
            log.warning("%s has not come back in time: what it held is given to others", self._name(session))
        return late

    def forgotten(self, sessions: Iterable[SessionId]) -> None:
        """Of *sessions* nothing is left."""
        assert self._grace is not None
        self._grace.forgotten(sessions)
        self._end_if_over()

    def _name(self, session: SessionId) -> str:
        return f"{self._known[session].client_name} (session {session.hex()[:8]})"

    def _ended(self, session: SessionId) -> None:
        if self._grace is not None:
            self._grace.ended(session)
            self._end_if_over()

    def _end_if_over(self) -> None:
        assert self._grace is not None
        if self._grace.over and not self._ending:
            self._ending = True
            self._over()

    def end(self) -> None:
        """A restart would know that something may have been granted in this epoch: now it may."""
        if self._known:
            log.warning("grace is over")
        self.granting.set()
        held_back, self._held_back = self._held_back, {}
        for begin in held_back.values():
            begin()

    # --- requests ---

    def admits(self, session: Session, message: Message) -> bool:
        """Whether *message* of *session* may be handled now. A file is opened only for a client that holds
        something, and may have to give that up: to others it would be the first that they hold, and the next
        restart would not wait for them."""
        if not self.in_grace or isinstance(message, ADMITTED):
            return True
        match message:
            case m.SetLock(mode=LockMode.UNLOCK):
                return True
            case m.Open(want=False, flags=flags):
                holds = session.id in self._known and session.id not in self._hold_nothing
                return holds and not flags & os.O_TRUNC
        return False

    def hold_back(self, session: Session, request: RequestId, begin: Callable[[], None]) -> None:
        """A request has to wait for the end of grace; *begin* begins it then."""
        self._held_back[session.id, request] = begin

    def cancel(self, session: Session, request: RequestId) -> bool:
        """Give up on a request; whether it was held back (then it is forgotten, and to be answered)."""
        return self._held_back.pop((session.id, request), None) is not None


def _pin_all(storage: Storage, claims: Iterable[OpenFile]) -> dict[OpenId, FsError]:
    """Pin what was open; those that are gone, and why."""
    lost = {}
    for claim in claims:
        try:
            storage.pin(claim.handle)
        except FsError as exc:
            lost[claim.open_id] = exc.alone()
    return lost
