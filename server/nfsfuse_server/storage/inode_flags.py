"""Flags of inodes: FS_IOC_GETFLAGS and FS_IOC_FSGETXATTR of <linux/fs.h>, and what they forbid."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import Final

from nfsfuse.protocol.errors import FsError
from nfsfuse_server.storage.syscalls import STATX_ATTR_APPEND, STATX_ATTR_IMMUTABLE

_GETFLAGS: Final = 0x80086601
_SETFLAGS: Final = 0x40086602
_FSGETXATTR: Final = 0x801C581F
_FSSETXATTR: Final = 0x401C5820

_FLAGS: Final = struct.Struct("=I4x")  # an int, whatever the commands' numbers say
_FSXATTR: Final = struct.Struct("=IIIII8x")

FS_CASEFOLD_FL: Final = 0x40000000


def get_flags(descriptor: int, extended: bool) -> tuple[int, ...]:
    """ioctl(2). Raises OSError."""
    command, form = (_FSGETXATTR, _FSXATTR) if extended else (_GETFLAGS, _FLAGS)
    return form.unpack(fcntl.ioctl(descriptor, command, bytes(form.size)))


def set_flags(descriptor: int, numbers: tuple[int, ...], extended: bool) -> None:
    """ioctl(2). Raises OSError."""
    command, form = (_FSSETXATTR, _FSXATTR) if extended else (_SETFLAGS, _FLAGS)
    fcntl.ioctl(descriptor, command, form.pack(*numbers))


def check_flags(numbers: tuple[int, ...], extended: bool) -> None:
    """EINVAL for numbers that are none, EOPNOTSUPP for what this protocol cannot have."""
    if len(numbers) != (5 if extended else 1) or not all(0 <= number < 2**32 for number in numbers):
        raise FsError(errno.EINVAL, "flags of an inode")
    if not extended and numbers[0] & FS_CASEFOLD_FL:
        raise FsError(errno.EOPNOTSUPP, "names in which case does not matter")


def check_protected(flags: int, protection: int) -> None:
    """EPERM if open(2) with *flags* for writing is forbidden by *protection* (STATX_ATTR_*)."""
    if protection & STATX_ATTR_IMMUTABLE:
        raise FsError(errno.EPERM, "immutable")
    if protection & STATX_ATTR_APPEND and not flags & os.O_APPEND:
        raise FsError(errno.EPERM, "append-only")
