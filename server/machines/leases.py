"""Which sessions have lost their lease: a pure machine, `now` goes in.

A session lives while its client is heard of. One that has been silent for the lease and a margin is *fenced*:
what it held goes to others, and what it sends later is refused. So is one that is heard of but does not do what
it was asked: that has not answered a recall, and has written nothing back either, for as long. Only those who
need that range have waited for it. While the server is at a write of the session's it is not the client that
keeps others waiting, but the server's disk: to fence it would not help them either, as a session gives up what
it holds only when none of its requests is under way.

The client measures its lease from the sending of what the server has acknowledged, the server from the arrival
of what it has received, so the client's ends first, whatever the network does; the margin is for clocks that do
not run at the same speed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from nfsfuse.protocol.types import SessionId

MARGIN: Final = 0.2
"""Part of the lease that the server waits beyond it. Far more than two clocks drift apart in one lease (a
quartz loses 100 ppm); it is also the time that a client has for what it should have done by then."""


@dataclass(slots=True)
class _Lease:
    """One session's. *recalls* are the unanswered ones, by the time they were sent, oldest first; *writes*:
    how many are under way."""

    heard_at: float
    progress_at: float
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
        lease.heard_at = max(lease.heard_at, at)

    def resumed(self, session: SessionId, now: float) -> None:
        """The client has connected again: recalls sent meanwhile reach it now."""
        self.heard(session, now)
        self._leases[session].progress_at = now

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

    def expired(self, now: float) -> list[tuple[SessionId, str]]:
        """The sessions to be fenced, and why."""
        found = []
        for session, lease in self._leases.items():
            if lease.heard_at + self.patience_seconds <= now:
                found.append((session, f"not heard of for {now - lease.heard_at:.1f} s"))
            elif lease.recalls and not lease.writes:
                idle = now - max(next(iter(lease.recalls.values())), lease.progress_at)
                if idle >= self.patience_seconds:
                    found.append((session, f"a recall was not answered in {idle:.1f} s"))
        return found

    def check(self) -> None:
        """Assert the invariants."""
        for lease in self._leases.values():
            times = list(lease.recalls.values())
            assert times == sorted(times), "oldest first"
            assert lease.writes >= 0, "more writes have ended than begun"
