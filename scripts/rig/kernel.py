"""Mounts as the kernel sees them, without touching one: those of FUSE may hang."""

from __future__ import annotations

import ctypes
import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_CONNECTIONS = Path("/sys/fs/fuse/connections")
_MNT_DETACH = 2  # <sys/mount.h>
_UMOUNT_NOFOLLOW = 8


@dataclass(frozen=True, slots=True)
class FuseMount:
    """A FUSE mount. *connection* is its number under /sys/fs/fuse/connections."""

    target: Path
    connection: int

    def abort(self) -> None:
        """Let every program that waits in the mount go on, with an error. The mount is dead afterwards.
        Raises FileNotFoundError where fusectl is not mounted: scripts/setup does that."""
        try:
            (_CONNECTIONS / str(self.connection) / "abort").write_text("1")
        except FileNotFoundError:
            if not os.path.ismount(_CONNECTIONS):
                raise
            # else the connection is gone already

    def detach(self) -> None:
        """Unmount now, whoever uses it (``umount --lazy``). To be aborted first if it may hang."""
        detach(self.target)


def detach(target: Path) -> None:
    """Unmount whatever is mounted on *target* now, whoever uses it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(target), _MNT_DETACH | _UMOUNT_NOFOLLOW) != 0:
        number = ctypes.get_errno()
        if number != errno.EINVAL:  # EINVAL: somebody else has unmounted it
            raise OSError(number, os.strerror(number), os.fspath(target))


def _mounts_below(directory: Path) -> Iterator[tuple[Path, str, int]]:
    """What is mounted on *directory* or below: where, the filesystem's type, its device."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        # id parent major:minor root target options [optional ...] - type source super-options
        fields, _, filesystem = line.partition(" - ")
        _, _, device, _, target, *_ = fields.split(" ")
        # mountinfo writes space, tab, newline and backslash as octal numbers.
        path = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), target))
        if path.is_relative_to(directory):
            major, minor = map(int, device.split(":"))
            yield path, filesystem.split(" ")[0], major << 20 | minor  # as linux/kdev_t.h has it


def fuse_mounts_below(directory: Path) -> list[FuseMount]:
    """The FUSE mounts on *directory* or below, the latest first."""
    found = [
        FuseMount(path, device)
        for path, filesystem, device in _mounts_below(directory)
        if filesystem.startswith("fuse")
    ]
    return found[::-1]


def memory_disks_below(directory: Path) -> list[Path]:
    """Where a tmpfs is mounted on *directory* or below, the latest first."""
    return [path for path, filesystem, _ in _mounts_below(directory) if filesystem == "tmpfs"][::-1]


def abort_below(directory: Path) -> int:
    """Abort every FUSE mount on *directory* or below; how many there were."""
    mounts = fuse_mounts_below(directory)
    for mount in mounts:
        mount.abort()
    return len(mounts)
