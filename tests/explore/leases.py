"""One client's lease, and the server's view of it, in ticks: every way in which time, messages and losses go.

The client counts from the sending of what the server has acknowledged, on a clock that may be slower than the
server's; the server from the arrival of what it hears. A message takes as long as it likes, or is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from nfsfuse.machines.lease import Lease
from nfsfuse.protocol.types import SessionId
from server.machines.leases import Leases

LEASE = 5
"""Ticks: SUSPEND_AT and MARGIN are whole numbers of them."""

OLD = 8
"""Ticks after which it makes no difference any more how old something is: past the lease and the margin."""

UNDER_WAY_MAX = 1
"""Messages in each direction. An older one that is still under way tells less than the newer."""

SESSION = SessionId(b"s")


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
        if self.up or self.down:
            found.append(("everything under way is lost", self._lost))
        return found

    def _tick(self) -> None:
        self.now += 1
        now = self._client_time(self.now)
        self.lease.advance(now, connected=False, heard_at=now)
        if not self.fenced and self.leases.expired(self.now):
            self.fenced = True

    def _heard(self) -> None:
        sent_at = self.up.pop(0)
        if not self.fenced:
            self.leases.heard(SESSION, self.now)
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

        heard = self.leases._leases[SESSION].heard_at
        renewed = self.lease.renewed_at / self.client_rate
        under_way = tuple(map(age, self.up)), tuple(map(age, self.down))
        return self.fenced, self.lease.suspended, age(heard), round(age(renewed), 6), under_way
