"""The vocabulary of file locks that client and server share.

Byte ranges are inclusive at both ends, as in Linux's ``struct file_lock`` and ``fuse_file_lock``; a lock "to
the end of the file" (``l_len == 0``) ends at `OFFSET_MAX` and so covers what is appended later.
"""

from __future__ import annotations

import errno
from enum import IntEnum
from typing import Final

from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.record import record
from nfsfuse.protocol.types import OFFSET_MAX, InodeHandle, LockOpenId, LockOwner


class LockKind(IntEnum):
    """Two families of locks that take no notice of each other (flock(2), on Linux since 2.0).

    OFD locks are POSIX here: Linux sends them to FUSE as the same request, with the open file description in
    place of the process as the owner (``fcntl_setlk`` sets ``fl_owner = filp``). They conflict with POSIX
    locks, as they must, and nothing in the request tells one from the other.
    """

    POSIX = 1
    FLOCK = 2


class LockMode(IntEnum):
    """What fcntl(2) calls F_RDLCK, F_WRLCK, F_UNLCK and flock(2) LOCK_SH, LOCK_EX, LOCK_UN."""

    READ = 1
    WRITE = 2
    UNLOCK = 3


CONFLICTS: Final[frozenset[tuple[LockMode, LockMode]]] = frozenset(
    {
        (LockMode.READ, LockMode.WRITE),
        (LockMode.WRITE, LockMode.READ),
        (LockMode.WRITE, LockMode.WRITE),
    }
)
"""The pairs of modes that two owners may not hold on one byte at a time; symmetric."""


@record(frozen=True, slots=True)
class LockRange:
    """Bytes *start* to *end*, both included; 0 <= start <= end <= `OFFSET_MAX`.

    Raises `FsError` (EINVAL) for any other pair, the errno that fcntl(2) has for it.
    """

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end <= OFFSET_MAX:
            raise FsError(errno.EINVAL, f"lock range {self.start}..{self.end}")

    def overlaps(self, start: int, end: int) -> bool:
        """Whether a byte of *start* to *end*, both included, is in this range."""
        return self.start <= end and start <= self.end


WHOLE_FILE: Final = LockRange(0, OFFSET_MAX)
"""The only range a flock has."""


@record(frozen=True, slots=True)
class HeldLock:
    """What F_GETLK tells of a lock in the way: its bytes, mode, and the process that took it.

    *pid* is the number that process has on its own client. It is reported to other clients as it is, which is
    what Linux's NFS client does; there, F_GETLK answers -1 for an OFD lock, but FUSE does not say which locks
    those are.
    """

    start: int
    end: int
    mode: LockMode
    pid: int


@record(frozen=True, slots=True)
class OwnedLock:
    """A held lock with everything needed to take it again after the server restarted (reclaim)."""

    inode: InodeHandle
    open_id: LockOpenId
    owner: LockOwner
    kind: LockKind
    mode: LockMode
    start: int
    end: int
    pid: int
