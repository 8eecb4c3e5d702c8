"""Flags of inodes as a storage in memory keeps them: FS_*_FL, told in the three ways that Linux has."""

from __future__ import annotations

from typing import Final

# <linux/fs.h>
FS_IMMUTABLE_FL: Final = 0x10
FS_APPEND_FL: Final = 0x20
FS_XFLAG_IMMUTABLE: Final = 0x08
FS_XFLAG_APPEND: Final = 0x10
_SAME: Final = ((FS_IMMUTABLE_FL, FS_XFLAG_IMMUTABLE), (FS_APPEND_FL, FS_XFLAG_APPEND))


def flags_of_protection(flags: int) -> int:
    """STATX_ATTR_* for FS_*_FL; the two have the same bits."""
    return flags & (FS_IMMUTABLE_FL | FS_APPEND_FL)


def xflags_of(flags: int) -> int:
    """FS_XFLAG_* for FS_*_FL, of the two that both know here."""
    return sum(xflag for flag, xflag in _SAME if flags & flag)


def flags_of(xflags: int) -> int:
    """The reverse of `xflags_of`."""
    return sum(flag for flag, xflag in _SAME if xflags & xflag)
