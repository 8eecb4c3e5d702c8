"""What the lock manager has decided: the end of a request, to be sent to the client that made it."""

from __future__ import annotations

from nfsfuse.protocol.record import record


@record(frozen=True, slots=True)
class Granted:
    """The request of this ticket has what it asked for."""

    ticket: int


@record(frozen=True, slots=True)
class Denied:
    """The request of this ticket has ended without a lock; *errno* says why.

    EAGAIN: it must not wait. EDEADLK: it would wait for ever. ENOLCK: a limit. EINVAL: no such range.
    EINTR: cancelled. EBADF: its open file was released. ENOTCONN: its session ended.
    """

    ticket: int
    errno: int


Effect = Granted | Denied
