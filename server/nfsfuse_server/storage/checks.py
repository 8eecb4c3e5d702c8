"""What every storage refuses before it touches anything: arguments that a correct client never sends."""

from __future__ import annotations

import errno
from typing import Final

from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.types import (
    NAME_SIZE_MAX,
    OFFSET_MAX,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    TIME_NS_MAX,
    TIME_NS_MIN,
    AttributeChanges,
    Credentials,
)
from nfsfuse_server.storage.interface import ORPHANS_NAME

RENAME_FLAGS: Final = frozenset(
    (0, RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT, RENAME_WHITEOUT | RENAME_NOREPLACE)
)
"""What renameat2(2) takes together (do_renameat2 in fs/namei.c)."""

ID_MAX: Final = 2**32 - 2
"""The largest uid or gid: (uid_t)-1 means "leave as it is" to chown(2)."""

SYMLINK_SIZE_MAX: Final = 4095
"""Bytes of a symbolic link's target: PATH_MAX without its NUL."""

XATTR_NAME_SIZE_MAX: Final = 255
"""Bytes: XATTR_NAME_MAX of <linux/limits.h>."""


def check_name(name: bytes) -> None:
    """EINVAL or ENAMETOOLONG unless *name* is one component that stays in its directory."""
    if not name or b"/" in name or b"\0" in name or name in (b".", b".."):
        raise FsError(errno.EINVAL, "not a file name")
    if len(name) > NAME_SIZE_MAX:
        raise FsError(errno.ENAMETOOLONG)


def check_reserved(in_root: bool, name: bytes, number: int) -> None:
    """The errno *number* if the name is the one, in the export's root, that is the server's own."""
    if in_root and name == ORPHANS_NAME:
        raise FsError(number, "a name that is reserved")


def check_target(target: bytes) -> None:
    """Whether *target* can be a symbolic link's: ENOENT, EINVAL, ENAMETOOLONG."""
    if not target:
        raise FsError(errno.ENOENT, "empty symbolic link")
    if b"\0" in target:
        raise FsError(errno.EINVAL, "NUL in a symbolic link")
    if len(target) > SYMLINK_SIZE_MAX:
        raise FsError(errno.ENAMETOOLONG)


def check_read(offset: int, size: int) -> None:
    """EINVAL unless *offset* and *size* are what pread(2) accepts."""
    if not 0 <= offset <= OFFSET_MAX or size < 0:
        raise FsError(errno.EINVAL, "offset or size out of range")


def check_write(offset: int, size: int) -> None:
    """EINVAL as `check_read`; EFBIG for an end that no off_t can name."""
    check_read(offset, size)
    if offset + size > OFFSET_MAX:
        raise FsError(errno.EFBIG)


def check_rename_flags(flags: int) -> None:
    """EINVAL for what is none of `RENAME_FLAGS`."""
    if flags not in RENAME_FLAGS:
        raise FsError(errno.EINVAL, "rename flags")


def check_xattr_name(name: bytes) -> None:
    """ERANGE as the kernel has it for a bad length; EINVAL for a NUL."""
    if not 0 < len(name) <= XATTR_NAME_SIZE_MAX:
        raise FsError(errno.ERANGE)
    if b"\0" in name:
        raise FsError(errno.EINVAL, "NUL in an attribute's name")


def check_credentials(creds: Credentials) -> None:
    """EINVAL unless both numbers are real ids, and the umask is one."""
    if not (0 <= creds.uid <= ID_MAX and 0 <= creds.gid <= ID_MAX):
        raise FsError(errno.EINVAL, "uid or gid out of range")
    if creds.umask & ~0o777:
        raise FsError(errno.EINVAL, "umask")


def check_changes(changes: AttributeChanges) -> None:
    """EINVAL for values that fit no field of an inode."""
    for number in (changes.uid, changes.gid):
        if number is not None and not 0 <= number <= ID_MAX:
            raise FsError(errno.EINVAL, "uid or gid out of range")
    if changes.size is not None and not 0 <= changes.size <= OFFSET_MAX:
        raise FsError(errno.EINVAL, "size out of range")
    for time_ns in (changes.atime_ns, changes.mtime_ns):
        if time_ns is not None and not TIME_NS_MIN <= time_ns <= TIME_NS_MAX:
            raise FsError(errno.EINVAL, "time out of range")
