"""A client's lease: what it may still believe, and what it has to do to keep it. A pure machine, `now` goes in.

=============  ==========================  =====================================================================
state          the lease                   what the mount does
=============  ==========================  =====================================================================
CONNECTED      runs, and is renewed        everything
INTERRUPTED    runs                        answers from its caches; requests wait for the next connection
SUSPENDED      is about to run out, or has the kernel's caches are dropped before it has, operations wait; what
                                           is held and dirty here stays
=============  ==========================  =====================================================================

From each of the last two the way back is CONNECTED: *resumed*, with nothing lost, if the server still has the
session, else *fenced*, with a new session and everything forgotten.

The lease runs from the *sending* of the newest frame that the server has acknowledged: the server, which counts
from its arrival, cannot have given away anything before it has run out here.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

SUSPEND_AT: Final = 0.8
"""Part of the lease after which caches are dropped: the kernel needs time for it. A heartbeat is due after a
third, and a connection given up after two, which leaves some time for a new one."""

HEARTBEAT_AT: Final = 1 / 3
"""Part of the lease after which the server is asked for a sign of life, and in which it has to give it."""


class Do(Enum):
    """What `Lease.advance` wants done."""

    HEARTBEAT = "ask for a sign of life, which is answered at once"
    RECONNECT = "give the connection up: it is half open"
    SUSPEND = "drop what is cached; operations wait"


class Lease:
    """One session's lease. Times are seconds of one clock that never goes back, nor stands still while the
    machine sleeps."""

    def __init__(self, seconds: float, sent_at: float) -> None:
        self.seconds = seconds
        self.renewed_at = sent_at
        self.suspended = False
        self._heartbeat_at: float | None = None  # when one was sent that is not answered
        self._advanced_at = sent_at

    def renew(self, sent_at: float, now: float) -> bool:
        """The server has what was sent at *sent_at*; whether that ends a suspension."""
        self.renewed_at = max(self.renewed_at, sent_at)
        if self._heartbeat_at is not None and sent_at >= self._heartbeat_at:
            self._heartbeat_at = None
        if self.suspended and now < self._suspends_at:
            self.suspended = False
            return True
        return False

    def runs(self, now: float) -> bool:
        """Whether what is held is held."""
        return now < self.renewed_at + self.seconds

    def connected(self) -> None:
        """There is a new connection."""
        self._heartbeat_at = None

    def advance(self, now: float, *, connected: bool, heard_at: float) -> list[Do]:
        """What is to be done now. *heard_at* is when something last arrived. If this comes late, the client
        itself did nothing meanwhile (stopped, or busy): the answer may be there, and has still to be read."""
        done = []
        patience = self.seconds * HEARTBEAT_AT
        late, self._advanced_at = now - self._advanced_at >= patience, now
        if late and self._heartbeat_at is not None:
            self._heartbeat_at = max(self._heartbeat_at, now - patience / 2)
        if not self.suspended and now >= self._suspends_at:
            self.suspended = True
            done.append(Do.SUSPEND)
        if not connected:
            return done
        if self._heartbeat_at is not None:
            if now >= max(self._heartbeat_at, heard_at) + patience:
                self._heartbeat_at = None
                done.append(Do.RECONNECT)
        elif now >= self.renewed_at + patience:
            self._heartbeat_at = now
            done.append(Do.HEARTBEAT)
        return done

    @property
    def _suspends_at(self) -> float:
        return self.renewed_at + self.seconds * SUSPEND_AT
