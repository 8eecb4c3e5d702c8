"""How many locks and waiting requests there may be; past a limit the answer is ENOLCK, as fcntl(2) has it.

Without limits one client could make the server's memory, and the time that a conflict search takes, grow
without end by locking every other byte of a file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeVar

from nfsfuse.protocol.record import record
from nfsfuse.protocol.types import InodeHandle, SessionId

LOCKS_PER_INODE_MAX: Final = 16_384
"""Segments of all owners on one inode, POSIX and flock together. A few hundred bytes each, so some
megabytes; busy databases lock a handful of ranges per connection."""

LOCKS_PER_SESSION_MAX: Final = 65_536
"""Segments of one client on all inodes: a mail server with thousands of open mailboxes stays far below, and
a reclaim after a restart stays a few megabytes on the wire."""

WAITERS_PER_INODE_MAX: Final = 1_024
"""Waiting requests on one inode, POSIX and flock together. Each is a blocked thread on some client; one
release may look at all of them (some milliseconds)."""

WAITERS_PER_SESSION_MAX: Final = 4_096
"""Waiting requests of one client: about the number of threads that one could expect to block at once."""


@record(frozen=True, slots=True)
class LockLimits:
    """The limits of one lock manager; smaller ones are for tests of what happens at a limit."""

    locks_per_inode: int = LOCKS_PER_INODE_MAX
    locks_per_session: int = LOCKS_PER_SESSION_MAX
    waiters_per_inode: int = WAITERS_PER_INODE_MAX
    waiters_per_session: int = WAITERS_PER_SESSION_MAX


@dataclass(slots=True)
class Usage:
    """What counts against the limits, of an inode or of a session."""

    locks: int = 0
    waiters: int = 0

    def __bool__(self) -> bool:
        return bool(self.locks or self.waiters)


class Ledger:
    """Counts locks and waiters per inode and per session, and says whether one more is allowed."""

    def __init__(self, limits: LockLimits) -> None:
        self.limits = limits
        self.inodes: dict[InodeHandle, Usage] = {}
        self.sessions: dict[SessionId, Usage] = {}

    def allows_locks(self, inode: InodeHandle, session: SessionId, growth: int) -> bool:
        """Whether *growth* more segments stay within the limits. Freeing always does."""
        if growth <= 0:
            return True
        on_inode, of_session = self.inodes.get(inode, _NOTHING), self.sessions.get(session, _NOTHING)
        return (
            on_inode.locks + growth <= self.limits.locks_per_inode
            and of_session.locks + growth <= self.limits.locks_per_session
        )

    def allows_waiter(self, inode: InodeHandle, session: SessionId) -> bool:
        """Whether one more request may wait."""
        on_inode, of_session = self.inodes.get(inode, _NOTHING), self.sessions.get(session, _NOTHING)
        return (
            on_inode.waiters < self.limits.waiters_per_inode
            and of_session.waiters < self.limits.waiters_per_session
        )

    def add(self, inode: InodeHandle, session: SessionId, *, locks: int = 0, waiters: int = 0) -> None:
        """Book a change, in either direction; who uses nothing any more is forgotten."""
        _book(self.inodes, inode, locks, waiters)
        _book(self.sessions, session, locks, waiters)

    def check(self) -> None:
        """Nobody is past a limit, and nobody is remembered for nothing."""
        for usage in self.inodes.values():
            assert 0 <= usage.locks <= self.limits.locks_per_inode, f"locks on an inode: {usage}"
            assert 0 <= usage.waiters <= self.limits.waiters_per_inode, f"waiters on an inode: {usage}"
        for usage in self.sessions.values():
            assert 0 <= usage.locks <= self.limits.locks_per_session, f"locks of a session: {usage}"
            assert 0 <= usage.waiters <= self.limits.waiters_per_session, f"waiters of a session: {usage}"
        assert all((*self.inodes.values(), *self.sessions.values())), "an empty account is kept"


_NOTHING: Final = Usage()
_Key = TypeVar("_Key")


def _book(accounts: dict[_Key, Usage], key: _Key, locks: int, waiters: int) -> None:
    usage = accounts.setdefault(key, Usage())
    usage.locks += locks
    usage.waiters += waiters
    if not usage:
        del accounts[key]
