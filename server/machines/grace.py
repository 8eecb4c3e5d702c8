"""Grace: the time after a restart in which sessions take back what they held, and nothing new is granted.

A pure machine: events and `now` in, decisions out. It begins with the sessions that the last epoch has left.
A session *returns* with its Hello, reclaims, and says that this is complete. Once all have - or have said
goodbye - grace ends; at the latest at its deadline, when those that have not returned are forgotten. Their
forgetting has to be durable before anything is granted: else the next restart would let them reclaim what
others hold by then.

A session that has returned and is still reclaiming at the deadline is waited for once more as long (the Linux
server does so too, `clients_still_reclaiming` in fs/nfsd/nfs4state.c); then it is forgotten like the rest. A
session that is fenced or goes meanwhile is `gone`.

=============  ===================================================================================
ABSENT         known, and not heard of
RECLAIMING     it has returned
(gone)         complete, forgotten or gone: grace does not wait for it
=============  ===================================================================================
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from nfsfuse.protocol.types import SessionId


class Returning(Enum):
    """What a session that grace waits for is doing."""

    ABSENT = "known, and not heard of"
    RECLAIMING = "it has returned"


class Phase(Enum):
    """Where grace is."""

    RECLAIM = "sessions take back what they held"
    FORGETTING = "those that have not are being forgotten, durably"
    OVER = "everything may be granted"


class Grace:
    """The grace of one epoch, of *seconds* from *now*; none if there are no sessions to wait for."""

    def __init__(self, known: Iterable[SessionId], now: float, seconds: float) -> None:
        self._waits_for = dict.fromkeys(known, Returning.ABSENT)
        self._seconds = seconds
        self._deadline = now + seconds
        self._extended = False
        self._forgetting: tuple[SessionId, ...] = ()
        self.phase = Phase.RECLAIM if self._waits_for else Phase.OVER

    @property
    def deadline(self) -> float | None:
        """When `expired` is to be called; None if it is not."""
        return self._deadline if self.phase is Phase.RECLAIM else None

    def waits_for(self, session: SessionId) -> bool:
        """Whether *session* may reclaim."""
        return self.phase is Phase.RECLAIM and session in self._waits_for

    def returned(self, session: SessionId) -> None:
        """*session*, which is waited for, has said Hello, perhaps not for the first time."""
        assert self.waits_for(session), session
        self._waits_for[session] = Returning.RECLAIMING

    def complete(self, session: SessionId) -> None:
        """*session* has reclaimed all it will."""
        self._ended(session)

    def gone(self, session: SessionId) -> None:
        """*session* has said goodbye, or is fenced: it is not waited for."""
        self._ended(session)

    def expired(self, now: float) -> tuple[SessionId, ...]:
        """It is *now*: the sessions that have to be forgotten, durably, before `forgotten` ends grace. None
        if the deadline is not reached; it may then be a new one."""
        if self.phase is not Phase.RECLAIM or now < self._deadline:
            return ()
        reclaiming = Returning.RECLAIMING in self._waits_for.values()
        if reclaiming and not self._extended:
            self._extended = True
            self._deadline += self._seconds
            return ()
        self._forgetting = tuple(self._waits_for)
        self._waits_for.clear()
        self.phase = Phase.FORGETTING
        return self._forgetting

    def forgotten(self) -> None:
        """What `expired` has told is done."""
        assert self.phase is Phase.FORGETTING
        self.phase = Phase.OVER

    def _ended(self, session: SessionId) -> None:
        self._waits_for.pop(session, None)
        if self.phase is Phase.RECLAIM and not self._waits_for:
            self.phase = Phase.OVER

    def check(self) -> None:
        """Assert the invariants."""
        assert bool(self._waits_for) == (self.phase is Phase.RECLAIM)
        assert self.phase is not Phase.OVER or not self._waits_for
