"""Grace: the time after a restart in which sessions take back what they held, and nothing new is granted.

A pure machine: events and `now` in, decisions out. It begins with the sessions that earlier epochs have left.

=============  ==========================================================================================
ABSENT         known, and not heard of. Once servers have waited for it for the whole time, in all the epochs
               since it was last there, it is forgotten
RECLAIMING     it has returned with its Hello, and has as long again from there. Then it is forgotten: not
               sooner, as it may believe for a lease that it holds what others would be granted. It may say
               Hello again in that time, if it has not seen its Welcome, and has as long again from there
FORGOTTEN      it is too late; but its forgetting is not durable yet
=============  ==========================================================================================

That what earlier epochs have waited counts bounds the pause: were it forgotten, a dead client would delay
everybody anew with each restart, for ever if restarts come fast enough. It is sound: whoever has not been
there since has had no lease renewed, and what servers have waited is no more than the time that has passed,
on whatever clock. It is fair: only time in which it could have come back counts, not that without a server.

All others - complete, gone, forgotten for good - grace does not wait for: it ends when there are no more. Nor
does it for those that *hold nothing*, as nothing was granted since they were opened (the server died before
its grace was over): these may come back as long as all others, and keep nobody waiting. The
forgetting has to be durable before anything is granted: else the next restart would let it reclaim what
others hold by then. (The Linux server waits as long again for clients that are still reclaiming, too:
`clients_still_reclaiming` in fs/nfsd/nfs4state.c.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from enum import Enum

from nfsfuse.protocol.types import SessionId


class Returning(Enum):
    """What a session that grace waits for is doing."""

    ABSENT = "known, and not heard of"
    RECLAIMING = "it has returned"
    FORGOTTEN = "too late, and not durably so yet"


class Grace:
    """The grace of one epoch, of *seconds* from *now*; none if there are no sessions to wait for. *known*: for
    how many seconds each has been waited for already. *hold_nothing*: those of them that do."""

    def __init__(
        self,
        known: Mapping[SessionId, float],
        now: float,
        seconds: float,
        hold_nothing: Iterable[SessionId] = (),
    ) -> None:
        self._seconds = seconds
        self._hold_nothing = frozenset(hold_nothing)
        self._waits_for = dict.fromkeys(known, Returning.ABSENT)
        self._until = {session: now + seconds - waited for session, waited in known.items()}
        self._may_return_until: dict[SessionId, float] = {}
        """Of those that have returned: a client whose Welcome is lost again and again must not keep the others
        waiting for ever."""

    @property
    def over(self) -> bool:
        """Whether anything may be granted."""
        return self._waits_for.keys() <= self._hold_nothing

    def is_expected(self, session: SessionId) -> bool:
        """Whether *session* is waited for, and not too late."""
        return self._waits_for.get(session) in (Returning.ABSENT, Returning.RECLAIMING)

    def may_return(self, session: SessionId, now: float) -> bool:
        """Whether *session* may say Hello (again)."""
        return self.is_expected(session) and now < self._may_return_until.get(session, math.inf)

    def may_reclaim(self, session: SessionId) -> bool:
        """Whether *session* has returned and is not complete."""
        return self._waits_for.get(session) is Returning.RECLAIMING

    def returned(self, session: SessionId, now: float) -> None:
        """*session* has said Hello, perhaps again: the lease that it is welcomed with runs from there."""
        assert self.is_expected(session), session
        self._until[session] = now + self._seconds
        self._may_return_until.setdefault(session, now + self._seconds)
        self._waits_for[session] = Returning.RECLAIMING

    def ended(self, session: SessionId) -> None:
        """*session* has reclaimed all it will, or has said goodbye, or is fenced: it is not waited for."""
        if self._waits_for.get(session) is not Returning.FORGOTTEN:
            self._waits_for.pop(session, None)

    def expired(self, now: float) -> tuple[SessionId, ...]:
        """It is *now*: the sessions that are to be forgotten, durably, and are `forgotten` then. Each is told
        once."""
        forgotten = tuple(
            session
            for session, state in self._waits_for.items()
            if state is not Returning.FORGOTTEN and now >= self._until[session]
        )
        self._waits_for.update(dict.fromkeys(forgotten, Returning.FORGOTTEN))
        return forgotten

    def waited(self, now: float) -> dict[SessionId, float]:
        """For how many seconds each session that is still absent has been waited for, in all."""
        return {
            session: self._seconds - (self._until[session] - now)
            for session, state in self._waits_for.items()
            if state is Returning.ABSENT
        }

    def stood_still(self, seconds: float) -> None:
        """The server itself did nothing for so long: nobody could come back."""
        self._until = {session: until + seconds for session, until in self._until.items()}
        self._may_return_until = {
            session: until + seconds for session, until in self._may_return_until.items()
        }

    def forgotten(self, sessions: Iterable[SessionId]) -> None:
        """Of *sessions* nothing is left that a restart would find."""
        for session in sessions:
            assert self._waits_for[session] is Returning.FORGOTTEN, session
            del self._waits_for[session]

    def waits_for(self) -> tuple[SessionId, ...]:
        """Whom it waits for, for the log."""
        return tuple(self._waits_for)
