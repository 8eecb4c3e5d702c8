"""One mount's sessions with its server, one after the other: what a greeting means for what is held, and what
becomes of it without a connection. A pure machine, `now` goes in. docs/recovery.md tells why.

=======================================  =======  =============================================================
the server's Welcome                     is       what is done, in this order
=======================================  =======  =============================================================
resumes the session                      resume   what the peer lacks is sent again; the lease is renewed
names the session, of a new epoch        reclaim  what is held is claimed, unanswered requests are asked again;
                                                  the session begins anew
names another session                    fence    all that was held is forgotten; the new session begins
names the first session                  new      it begins
=======================================  =======  =============================================================

The lease of the old session counts until `begun`: nothing may be believed by the new one's before what the
old one held is claimed or forgotten.
"""

from __future__ import annotations

import os
from enum import Enum
from typing import Final

from nfsfuse.machines.lease import Do, Lease
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import ProtocolError
from nfsfuse.protocol.messages import IDEMPOTENT, Message
from nfsfuse.protocol.types import Epoch, SessionId

NO_SESSION: Final = SessionId(b"")
"""The id of none: there is no session yet, or none that is to go on."""

ENDS_WITH_SESSION: Final = frozenset({
    m.Heartbeat, m.Goodbye, m.Cancel, m.ReturnTokens, m.Release, m.FlushLocks, m.ReleaseLocks, *m.WRITES,
})  # fmt: skip
"""What is about the old session's state, and without meaning (or, the write-back, refused) in a new one."""

ENDS_WITH_EPOCH: Final = (m.ReturnTokens, m.Release, m.Reclaim, m.ReclaimComplete)
"""What is not asked again of a server that was restarted: it knows only what is reclaimed. Nobody waits for
any of these."""

SAFE_AGAIN: Final = IDEMPOTENT | {m.Open, m.GetToken, m.SetLock}
"""What may be asked in a new session although the old one's server may have done it: its effects, if any, have
ended with the old session."""


class Effect(Enum):
    """What `SessionMachine` wants done. Effects are carried out in the order in which they stand, the next
    only when the one before is done."""

    WELCOMED = "tell the owner what the server says of itself"
    RECLAIM = "claim what is held, and ask again what is unanswered (`survives_epoch`)"
    FENCE = "fail what is unanswered, but what `survives_session`; forget all that was held"
    BEGIN = "what was held is claimed or forgotten: say `SessionMachine.begun`, and tell the owner"
    ATTACH = "go on over the new connection; then say `SessionMachine.attached`"
    RESUME = "operations go on: nothing was lost"
    WAKE = "who waits for the lease looks again"
    HEARTBEAT = "ask for a sign of life, which is answered at once"
    DISCONNECT = "give the connection up: it is half open"
    SUSPEND = "drop what is cached; operations wait"
    UNREACHABLE = "the server has been away for too long: who waits is let go (soft)"
    REACHABLE = "the server is back after that"


_EFFECTS: Final = {
    Do.HEARTBEAT: Effect.HEARTBEAT,
    Do.RECONNECT: Effect.DISCONNECT,
    Do.SUSPEND: Effect.SUSPEND,
}


class SessionMachine:
    """What is known of the session. *replaces* is the session of a dead daemon, which the server is to end;
    *timeo_seconds* how long operations wait for a server that is away, None for as long as it takes. Times are
    seconds of one clock that never goes back, nor stands still while the machine sleeps."""

    def __init__(self, replaces: SessionId = NO_SESSION, timeo_seconds: float | None = None) -> None:
        self.session_id = NO_SESSION
        self.epoch = Epoch(0)
        self.replaces = replaces
        self.number = 0
        """Sessions so far, one that goes on in a new epoch counted again. What the server asks in one is not
        answered in another."""
        self._lease: Lease | None = None
        self.timeo_seconds = timeo_seconds
        self._interrupted_at: float | None = None
        self._unreachable = False
        self._greeted: tuple[m.Welcome, float] | None = None
        """The Welcome that is being carried out, and when its Hello was sent."""

    @property
    def lease(self) -> Lease:
        """The session's; there has to be one."""
        assert self._lease is not None, "there is no session yet"
        return self._lease

    def leased(self, now: float, *, finishing: bool = False) -> bool:
        """Whether what is held may be believed. *finishing*: also while caches are being dropped."""
        return (finishing or not self.lease.suspended) and self.lease.runs(now)

    # --- a greeting ---

    def verify(self, welcome: m.Welcome) -> None:
        """Raises ProtocolError if *welcome* is no answer to what was asked for. The connection is of no use
        then, and the session is what it was."""
        if welcome.resumed and (welcome.session_id, welcome.epoch) != (self.session_id, self.epoch):
            raise ProtocolError("the server resumes a session that it was not asked for")
        if not self.number and welcome.frames_received:
            raise ProtocolError(f"{welcome.frames_received} frames acknowledged, and none was sent")

    def welcomed(self, welcome: m.Welcome, sent_at: float) -> list[Effect]:
        """The server has answered a Hello that was sent at *sent_at*."""
        self.verify(welcome)
        self.replaces = NO_SESSION
        self._greeted = welcome, sent_at
        if welcome.resumed:
            return [Effect.WELCOMED, Effect.ATTACH]
        effects = [Effect.WELCOMED]
        if self.number and welcome.session_id == self.session_id:
            effects.append(Effect.RECLAIM)
            if self.lease.suspended:
                effects.append(Effect.RESUME)
        elif self.number:
            effects.append(Effect.FENCE)
        return [*effects, Effect.BEGIN, Effect.ATTACH]

    def begun(self) -> None:
        """What the old session held is claimed or forgotten: from now on the new one counts, and its lease."""
        assert self._greeted is not None
        welcome, sent_at = self._greeted
        assert not welcome.resumed
        self.number += 1
        self.session_id, self.epoch = welcome.session_id, welcome.epoch
        self._lease = Lease(welcome.lease_ms / 1000, sent_at)

    def attached(self, now: float) -> list[Effect]:
        """The session goes on over the new connection."""
        assert self._greeted is not None
        (welcome, sent_at), self._greeted = self._greeted, None
        effects = self.acknowledged(sent_at, now) if welcome.resumed else [Effect.WAKE]
        self.lease.connected()
        return effects

    def reconnected(self) -> list[Effect]:
        """The interruption is over."""
        self._interrupted_at = None
        if not self._unreachable:
            return []
        self._unreachable = False
        return [Effect.REACHABLE]

    def given_up(self) -> None:
        """The server said what no correct one says, and would say it again: the next Hello asks for a new
        session, and for the end of this one."""
        self.replaces, self.session_id = self.session_id, NO_SESSION
        self._greeted = None

    # --- a connection ---

    def interrupted(self, now: float) -> None:
        """The connection is lost."""
        self._interrupted_at = now

    def away_seconds(self, now: float) -> float:
        """For how long there has been no connection."""
        assert self._interrupted_at is not None
        return now - self._interrupted_at

    def acknowledged(self, sent_at: float, now: float) -> list[Effect]:
        """The server has what was sent at *sent_at*."""
        if self._lease is not None and self._lease.renew(sent_at, now):
            return [Effect.RESUME, Effect.WAKE]
        return []

    def advance(self, now: float, *, connected: bool, heard_at: float) -> list[Effect]:
        """Time has passed; *connected* and *heard_at* as for `Lease.advance`."""
        effects = [_EFFECTS[do] for do in self.lease.advance(now, connected=connected, heard_at=heard_at)]
        since, timeo = self._interrupted_at, self.timeo_seconds
        if since is not None and timeo is not None and not self._unreachable and now >= since + timeo:
            self._unreachable = True
            effects.append(Effect.UNREACHABLE)
        return effects

    def check(self) -> None:
        """Assert every invariant."""
        assert (self._lease is None) == (self.number == 0), "every session has a lease"
        assert not (self.session_id and self.replaces), "who goes on with a session replaces none"
        assert self.session_id == NO_SESSION or self.number, "a session that has not begun"
        if self._unreachable:
            assert self._interrupted_at is not None, "a server that is there is out of reach"
            assert self.timeo_seconds is not None, "a hard mount does not wait for ever"


def survives_epoch(message: Message) -> bool:
    """Whether an unanswered request is asked again, under its old id, of a server that was restarted."""
    return not isinstance(message, ENDS_WITH_EPOCH)


def survives_session(message: Message, *, transmitted: bool) -> bool:
    """Whether an unanswered request that somebody waits for may be asked in the next session: it was certainly
    not done, as it was not *transmitted*, or what it did has ended with the old one."""
    if type(message) in ENDS_WITH_SESSION:
        return False
    if not transmitted:
        return True
    if isinstance(message, m.Open) and message.flags & os.O_TRUNC:
        return False
    return type(message) in SAFE_AGAIN
