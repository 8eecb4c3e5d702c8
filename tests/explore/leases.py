"""One client's lease, and the server's view of it, in ticks: every way in which time, messages and losses go.

The client counts from the sending of what the server has acknowledged, on a clock that may be slower than the
server's; the server from the arrival of what it hears. A message takes as long as it likes, or is lost. The
connection ends and begins again, and somebody else may want what the client holds, at any time; a client that
is heard of has given it up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import partial

from nfsfuse.machines.lease import Lease
from nfsfuse.protocol.types import SessionId
from nfsfuse_server.machines.grace import Grace
from nfsfuse_server.machines.leases import Leases

LEASE = 5
"""Ticks: SUSPEND_AT and MARGIN are whole numbers of them."""

OLD = 8
"""Ticks after which it makes no difference any more how old something is: past the lease and the margin."""

UNDER_WAY_MAX = 1
"""Messages in each direction. An older one that is still under way tells less than the newer."""

SESSION = SessionId(b"s")
SESSIONS = (SessionId(b"one"), SessionId(b"other"))


@dataclass
class TwoLeases:
    """*client_rate*: ticks of the client's clock for one of the server's."""

    client_rate: float = 1.0
    now: int = 0
    fenced: bool = False
    up: list[int] = field(default_factory=list)  # when what is on its way was sent
    down: list[int] = field(default_factory=list)  # when that was sent which is acknowledged

    def __post_init__(self) -> None:
        self.lease = Lease(LEASE, 0.0)
        self.leases = Leases(LEASE)
        self.leases.opened(SESSION, 0.0)
        self.leases.resumed(SESSION, 0.0)

    def _client_time(self, tick: int) -> float:
        return tick * self.client_rate

    def steps(self) -> list[tuple[str, Callable[[], None]]]:
        found: list[tuple[str, Callable[[], None]]] = [("a tick", self._tick)]
        if len(self.up) < UNDER_WAY_MAX:
            found.append(("the client sends", lambda: self.up.append(self.now)))
        if self.up:
            found.append(("the server hears", self._heard))
        if self.down:
            found.append(("the client is answered", self._answered))
        if not self.fenced:
            lease = self.leases._leases[SESSION]
            if lease.connected:
                found.append(("the connection ends", lambda: self.leases.disconnected(SESSION)))
            else:
                found.append(("there is a connection", self._connected))
            if not lease.recalls:
                wants = partial(self.leases.recalled, SESSION, 1, self.now)
                found.append(("somebody wants what the client holds", wants))
        if self.up or self.down:
            found.append(("everything under way is lost", self._lost))
        return found

    def _tick(self) -> None:
        self.now += 1
        now = self._client_time(self.now)
        self.lease.advance(now, connected=False, heard_at=now)
        if not self.fenced and self.leases.expired(self.now, lambda _: False):
            assert self.leases._leases[SESSION].recalls, "it is fenced although nobody wants anything"
            self.fenced = True

    def _connected(self) -> None:
        self.leases._leases[SESSION].connected = True  # what is heard over it comes by `_heard`

    def _heard(self) -> None:
        sent_at = self.up.pop(0)
        if not self.fenced:
            self.leases.heard(SESSION, self.now)
            self.leases.answered(SESSION, 1)
            if len(self.down) < UNDER_WAY_MAX:
                self.down.append(sent_at)

    def _answered(self) -> None:
        self.lease.renew(self._client_time(self.down.pop(0)), self._client_time(self.now))

    def _lost(self) -> None:
        self.up.clear()
        self.down.clear()

    def check(self) -> None:
        now = self._client_time(self.now)
        assert not (self.fenced and self.lease.runs(now)), "what was given to others is believed to be held"
        assert not self.fenced or self.lease.suspended, "what was given to others is still cached"
        assert self.lease.suspended or self.lease.runs(now), "caches are dropped before the lease is over"

    def mark(self) -> Hashable:
        def age(tick: float) -> float:
            return min(self.now - tick, OLD)

        lease = self.leases._leases[SESSION]
        heard, asked = lease.heard_at, lease.recalls.get(1, -math.inf)
        renewed = self.lease.renewed_at / self.client_rate
        under_way = tuple(map(age, self.up)), tuple(map(age, self.down))
        ages = age(heard), age(asked), round(age(renewed), 6)
        return self.fenced, self.lease.suspended, lease.connected, ages, under_way


@dataclass
class ReturningClients:
    """A server that has just been started again, and the clients of two sessions that it knows: they come back
    and reclaim, or come back and do not, or do not come back. Forgetting a session takes a while, as it has to
    be durable first.

    What is granted once grace is over may be anything. So by then nobody may believe in what it held before and
    has not reclaimed: for a lease from when it last sent something that was acknowledged, which was before the
    server died, or its Hello."""

    now: int = 0

    def __post_init__(self) -> None:
        self.grace = Grace(dict.fromkeys(SESSIONS, 0.0), 0.0, Leases(LEASE).patience_seconds)
        self.renewed = dict.fromkeys(SESSIONS, 0)  # by a client whose lease had just been renewed
        self.complete: set[SessionId] = set()
        self.forgetting: set[SessionId] = set()

    def steps(self) -> list[tuple[str, Callable[[], None]]]:
        found: list[tuple[str, Callable[[], None]]] = [("a tick", self._tick)]
        for session in SESSIONS:
            name = session.decode()
            if self.grace.may_return(session, self.now):
                found.append((f"{name} says hello", lambda session=session: self._returned(session)))
            if self.grace.may_reclaim(session):
                found.append((f"{name} has reclaimed", lambda session=session: self._ended(session)))
            if session in self.forgetting:
                found.append((f"{name} is forgotten", lambda session=session: self._forgotten(session)))
        return found

    def _tick(self) -> None:
        self.now += 1
        self.forgetting.update(self.grace.expired(self.now))

    def _returned(self, session: SessionId) -> None:
        self.grace.returned(session, self.now)
        self.renewed[session] = self.now

    def _ended(self, session: SessionId) -> None:
        self.grace.ended(session)
        self.complete.add(session)

    def _forgotten(self, session: SessionId) -> None:
        self.forgetting.remove(session)
        self.grace.forgotten([session])

    def check(self) -> None:
        for session in self.forgetting:
            assert not self.grace.over, "what is forgotten could still be reclaimed from the next server"
            assert not self.grace.is_expected(session), "it is too late"
        if self.grace.over:
            for session in set(SESSIONS) - self.complete:
                lease = Lease(LEASE, self.renewed[session])
                assert not lease.runs(self.now), "somebody believes in what may be granted to others"

    def mark(self) -> Hashable:
        of_each = tuple(
            (
                self.grace._waits_for.get(session),
                min(self.now - self.renewed[session], OLD),
                max(self.grace._until[session] - self.now, 0.0),
                max(self.grace._may_return_until.get(session, math.inf) - self.now, 0.0),
                session in self.complete,
                session in self.forgetting,
            )
            for session in SESSIONS
        )
        return self.grace.over, of_each
