"""The flags of mount(2) that mount(8) gives names to, and which of them a mount has: pure.

libfuse knows some of these options. The others (`LATER_OPTIONS`) are given to the kernel once the mount is
there, as a change of it; and so is everything that ``-o remount`` says.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

RDONLY: Final = 1 << 0
NOSUID: Final = 1 << 1
NODEV: Final = 1 << 2
NOEXEC: Final = 1 << 3
SYNCHRONOUS: Final = 1 << 4
REMOUNT: Final = 1 << 5
DIRSYNC: Final = 1 << 7
NOSYMFOLLOW: Final = 1 << 8
NOATIME: Final = 1 << 10
NODIRATIME: Final = 1 << 11
SILENT: Final = 1 << 15
RELATIME: Final = 1 << 21
STRICTATIME: Final = 1 << 24
LAZYTIME: Final = 1 << 25
"""MS_* of <sys/mount.h>."""

_ATIMES: Final = NOATIME | RELATIME | STRICTATIME

_SETS_CLEARS: Final = {
    "ro": (RDONLY, 0), "rw": (0, RDONLY),
    "nosuid": (NOSUID, 0), "suid": (0, NOSUID),
    "nodev": (NODEV, 0), "dev": (0, NODEV),
    "noexec": (NOEXEC, 0), "exec": (0, NOEXEC),
    "sync": (SYNCHRONOUS, 0), "async": (0, SYNCHRONOUS),
    "dirsync": (DIRSYNC, 0),
    "noatime": (NOATIME, _ATIMES), "atime": (0, NOATIME),
    "relatime": (RELATIME, _ATIMES), "norelatime": (0, RELATIME),
    "strictatime": (STRICTATIME, _ATIMES), "nostrictatime": (0, STRICTATIME),
    "nodiratime": (NODIRATIME, 0), "diratime": (0, NODIRATIME),
    "lazytime": (LAZYTIME, 0), "nolazytime": (0, LAZYTIME),
    "nosymfollow": (NOSYMFOLLOW, 0), "symfollow": (0, NOSYMFOLLOW),
    "silent": (SILENT, 0), "loud": (0, SILENT),
}  # fmt: skip
"""By option: the flags that it sets, and those that it clears before. Without any of the three for access times
the kernel goes by relatime (path_mount in fs/namespace.c)."""

KERNEL_OPTIONS: Final = frozenset(_SETS_CLEARS)
"""Options that are for mount(2)."""

LATER_OPTIONS: Final = KERNEL_OPTIONS - {
    "ro", "rw", "suid", "nosuid", "dev", "nodev", "exec", "noexec", "sync", "async", "atime", "noatime",
    "dirsync",
}  # fmt: skip
"""Those of them that libfuse refuses."""


def flags_of(options: Iterable[str]) -> int:
    """The flags of mount(2) for *options* of `KERNEL_OPTIONS`, in their order. What is not named is off, also
    in a remount, for which mount(8) names everything that stays; but devices and set-user-ID programs have to
    be asked for, as libfuse has it. (If nothing is said of access times the kernel goes on as it does.)"""
    flags = NOSUID | NODEV
    for option in options:
        sets, clears = _SETS_CLEARS[option]
        flags = flags & ~clears | sets
    return flags
