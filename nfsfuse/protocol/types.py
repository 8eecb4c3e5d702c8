"""The vocabulary that client and server share: identities, attributes, requested changes.

Times are integer nanoseconds since the epoch, sizes and offsets are bytes, names are bytes (every byte but
``/`` and NUL, at most 255 of them: NAME_MAX of Linux).
"""

from __future__ import annotations

from dataclasses import field
from enum import IntEnum
from typing import Final, NewType

from nfsfuse.protocol.record import record

PAGE_SIZE: Final = 4096
"""Bytes. The unit of coherence, and of x86-64's page cache; every token range is a multiple of it."""

NAME_SIZE_MAX: Final = 255
"""Bytes in one name: NAME_MAX of <linux/limits.h>."""

OFFSET_MAX: Final = 2**63 - 1
"""The largest file offset: off_t is signed."""

CAPABILITY: Final = b"security.capability"
"""The extended attribute with a file's capabilities, capabilities(7). Whoever writes the file takes it away."""

ACL_ACCESS: Final = b"system.posix_acl_access"
ACL_DEFAULT: Final = b"system.posix_acl_default"
"""The extended attributes with the ACLs of an inode, and for what is made in a directory: acl(5)."""

ACLS: Final = frozenset({ACL_ACCESS, ACL_DEFAULT})

RENAME_NOREPLACE: Final = 1
"""Of renameat2(2): EEXIST if the new name exists."""

RENAME_EXCHANGE: Final = 2
"""Of renameat2(2): swap the two names, both of which must exist."""

RENAME_WHITEOUT: Final = 4
"""Of renameat2(2): leave a character device 0/0 under the old name, in the same step: what overlayfs hides a
name of a lower layer with."""

# <linux/falloc.h>: the modes of fallocate(2).
FALLOC_FL_KEEP_SIZE: Final = 0x01
FALLOC_FL_PUNCH_HOLE: Final = 0x02
FALLOC_FL_COLLAPSE_RANGE: Final = 0x08
FALLOC_FL_ZERO_RANGE: Final = 0x10
FALLOC_FL_INSERT_RANGE: Final = 0x20

FALLOC_SHIFTS: Final = FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_INSERT_RANGE
"""These two move data, so to do them twice is not to do them once."""

TIME_NS_MIN: Final = -(2**63)
TIME_NS_MAX: Final = 2**64 - 1
"""Nanoseconds since the epoch: what an integer on the wire holds, from the year 1677 to 2554. ext4 and XFS keep
less. Like what a filesystem cannot keep (timestamp_truncate in fs/inode.c), a time beyond is the nearest."""


def nearest_time(time_ns: int) -> int:
    """*time_ns*, or the nearest time that can be sent."""
    return min(max(time_ns, TIME_NS_MIN), TIME_NS_MAX)


InodeHandle = NewType("InodeHandle", bytes)
"""An inode's permanent name, issued by the server and opaque to the client. Survives renames and restarts;
once the inode is gone it is stale (ESTALE) and never names another one."""

OpenId = NewType("OpenId", int)
"""One open file of one session, numbered by the server."""

LockOpenId = NewType("LockOpenId", int)
"""One open file of one session as locks have it, numbered by the client: a file that was opened under tokens
alone is not open on the server, and can be locked all the same."""

LockOwner = NewType("LockOwner", int)
"""64 bits by which a client's kernel tells the owners of its locks apart (``fuse_lk_in.owner``)."""

ClientId = NewType("ClientId", bytes)
"""16 random bytes that a client draws when it is mounted and keeps across reconnections."""

SessionId = NewType("SessionId", bytes)
"""16 random bytes that the server draws for every session."""

Epoch = NewType("Epoch", int)
"""Counts the server's starts on one export; tokens, locks and open files belong to one epoch."""

RequestId = NewType("RequestId", int)
"""Pairs a reply with its request; counted up by the side that asks, and never used again."""


class Sync(IntEnum):
    """What of a file is to be on the server's disk before a write is answered."""

    NONE = 0
    DATA = 1
    """As fdatasync(2): its data, and what reading them needs."""
    ALL = 2
    """As fsync(2): its attributes too."""


@record(frozen=True, slots=True)
class Extent:
    """Where some bytes of a file are."""

    offset: int
    size: int


@record(frozen=True, slots=True)
class Attributes:
    """What stat(2) tells of an inode."""

    ino: int
    mode: int  # type and permissions, as st_mode
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    blocks: int  # of 512 bytes
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int  # 0 where the server's filesystem has no birth time


@record(frozen=True, slots=True)
class Node:
    """An inode as a lookup finds it. *bare*: it is known to have no extended attributes, and so no ACL."""

    handle: InodeHandle
    attributes: Attributes
    bare: bool = field(default=False, compare=False)


@record(frozen=True, slots=True)
class OpenFile:
    """A file that is open on the server, and its number there."""

    open_id: OpenId
    handle: InodeHandle


@record(frozen=True, slots=True)
class AttributeChanges:
    """What setattr changes; None leaves a field as it is (UTIME_OMIT). ``*_now`` is UTIME_NOW: the server's
    clock decides. ctime follows from any change."""

    mode: int | None = None  # permission bits only (07777)
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    atime_now: bool = False
    mtime_now: bool = False

    def sets_mtime(self) -> bool:
        """Whether it is about the mtime."""
        return self.mtime_ns is not None or self.mtime_now


@record(frozen=True, slots=True)
class Credentials:
    """On whose behalf something is created: owner and group of the new inode (the client's kernel has
    checked the permissions). *umask* takes bits from its mode, unless its directory has a default ACL, which
    does so instead (acl(5))."""

    uid: int
    gid: int
    umask: int = 0


@record(frozen=True, slots=True)
class DirEntry:
    """One name in a directory. *cookie* is where a listing goes on after it: stable while the directory
    changes (the d_off of getdents64(2)); *node* is None for a name that vanished while it was listed or
    that leads to another filesystem."""

    name: bytes
    cookie: int
    node: Node | None


@record(frozen=True, slots=True)
class FilesystemStatistics:
    """What statvfs(3) tells of the server's filesystem."""

    block_size: int
    fragment_size: int
    blocks: int
    blocks_free: int
    blocks_available: int
    files: int
    files_free: int
    files_available: int
    name_size_max: int
