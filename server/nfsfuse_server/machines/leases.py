"""Which sessions have lost their lease: a pure machine, `now` goes in.

A session lives while its client is heard of, and also for as long as nobody else needs what it holds: a
*courtesy*, as RFC 8881 (8.4.2.1) has it of leases that have run out. A daemon that had too much to do, or was
stopped, or whose machine has slept, then goes on as if nothing had been. It is *fenced*, so that what it held
goes to others and what it sends later is refused, if it keeps somebody waiting, and

* there is no connection to it, and it has been silent for the lease and a margin; or
* there is one, and it has not done for as long what it was asked: it has not answered a recall, and has written
  nothing back either; or it is silent, and somebody has asked for a lock that it holds. Whether its machine is
  dead or its daemon busy cannot be told, so it has this time from when it was asked.

One that has no connection, but locks, counts as keeping somebody waiting: who asks for a lock need not wait for
it. So does one that keeps the room of a file that has been removed. And the courtesy ends after a while: a
session costs memory, and the next start of the server waits for it.

While the server is at a write of the session's it is not the client that keeps others waiting, but the server's
disk: to fence it would not help them either, as a session gives up what it holds only when none of its requests
is under way.

The client measures its lease from the sending of what the server has acknowledged, the server from the arrival
of what it has received, so the client's ends first, whatever the network does; the margin is for clocks that do
not run at the same speed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from nfsfuse.protocol.types import SessionId

MARGIN: Final = 0.2
"""Part of the lease that the server waits beyond it. Far more than two clocks drift apart in one lease (a
quartz loses 100 ppm); it is also the time that a client has for what it should have done by then."""


COURTESY_SECONDS: Final = 600.0
"""How long a client may be silent of which nobody wants anything: longer than a daemon is busy (one whose event
loop does not turn is ended after a minute), and than most connections are away."""


@dataclass(slots=True)
class _Lease:
    """One session's. *recalls* are the unanswered ones, by the time they were sent, oldest first; *writes*:
    how many are under way. *wanted_at*: when, since it was last heard of, it was first asked for a lock that it
    holds."""

    heard_at: float
    progress_at: float
    connected: bool = False
    wanted_at: float | None = None
    writes: int = 0
    recalls: dict[int, float] = field(default_factory=dict)


class Leases:
    """The leases of all sessions. Times are seconds of one clock that never goes back."""

    def __init__(self, lease_seconds: float) -> None:
        self.patience_seconds = lease_seconds * (1 + MARGIN)
        self._leases: dict[SessionId, _Lease] = {}

    def opened(self, session: SessionId, now: float) -> None:
        """A session begins."""
        assert session not in self._leases
        self._leases[session] = _Lease(now, now)

    def closed(self, session: SessionId) -> None:
        """A session is over."""
        del self._leases[session]

    def heard(self, session: SessionId, at: float) -> None:
        """Something of the client arrived."""
        lease = self._leases[session]
        if at > lease.heard_at:
            lease.heard_at = at
            lease.wanted_at = None

    def resumed(self, session: SessionId, now: float) -> None:
        """The client has connected (again): recalls sent meanwhile reach it now."""
        self.heard(session, now)
        self._leases[session].progress_at = now
        self._leases[session].connected = True

    def disconnected(self, session: SessionId) -> None:
        """There is no connection any more."""
        lease = self._leases.get(session)
        if lease is not None:  # else the session is over
            lease.connected = False

    def wanted(self, session: SessionId, now: float) -> None:
        """Somebody is kept from a lock by one that the session holds."""
        lease = self._leases.get(session)
        if lease is not None and lease.wanted_at is None:
            lease.wanted_at = now

    def write_began(self, session: SessionId) -> None:
        """The client writes back, which may be its answer to a recall in the making."""
        self._leases[session].writes += 1

    def write_ended(self, session: SessionId, now: float) -> None:
        """A write is answered: the client can go on."""
        lease = self._leases[session]
        lease.writes -= 1
        lease.progress_at = now

    def recalled(self, session: SessionId, recall: int, now: float) -> None:
        """A recall was sent."""
        self._leases[session].recalls[recall] = now

    def answered(self, session: SessionId, recall: int) -> None:
        """A recall was answered."""
        self._leases[session].recalls.pop(recall, None)

    def stood_still(self, seconds: float, now: float) -> None:
        """The server itself has not run for so long (stopped, starved, its machine asleep): what has arrived
        meanwhile it has still to read. Nobody is fenced for that."""
        for lease in self._leases.values():
            lease.heard_at = min(now, lease.heard_at + seconds)
            oldest = next(iter(lease.recalls.values()), -math.inf)
            lease.progress_at = min(now, max(lease.progress_at, oldest) + seconds)
            if lease.wanted_at is not None:
                lease.wanted_at = min(now, lease.wanted_at + seconds)

    def expired(self, now: float, is_in_the_way: Callable[[SessionId], bool]) -> list[tuple[SessionId, str]]:
        """The sessions to be fenced, and why. It is asked of few whether they are in the way by what nobody has
        to ask for: locks, and the room of files that are removed."""
        found = []
        for session, lease in self._leases.items():
            silent = now - lease.heard_at
            if lease.recalls and not lease.writes:
                idle = now - max(next(iter(lease.recalls.values())), lease.progress_at)
                if idle >= self.patience_seconds:
                    found.append((session, f"a recall was not answered in {idle:.1f} s"))
                    continue
            if silent >= self.patience_seconds and (
                silent >= max(COURTESY_SECONDS, self.patience_seconds)
                or (lease.wanted_at is not None and lease.wanted_at + self.patience_seconds <= now)
                or (not lease.connected and (bool(lease.recalls) or is_in_the_way(session)))
            ):
                found.append((session, f"not heard of for {silent:.1f} s"))
        return found

    def check(self) -> None:
        """Assert the invariants."""
        for lease in self._leases.values():
            times = list(lease.recalls.values())
            assert times == sorted(times), "oldest first"
            assert lease.writes >= 0, "more writes have ended than begun"
