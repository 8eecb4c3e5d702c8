"""What is mounted, as the kernel tells it."""

from __future__ import annotations

import ctypes
import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FSTYPE = "fuse.nfsfuse"

MOUNT_TABLE = Path("/proc/self/mounts")

MOUNT_INFO = Path("/proc/self/mountinfo")

MNT_DETACH = 2
"""<sys/mount.h>: unmount now, clean up when it is not used any more."""


@dataclass(frozen=True, slots=True)
class Mounted:
    """A line of /proc/self/mounts."""

    source: str
    target: str
    fstype: str


def _unescaped(text: bytes) -> str:
    # /proc/self/mounts writes space, tab, newline, backslash and # as octal numbers, all else as it is: also
    # what is no UTF-8, and what str.splitlines takes for the end of a line.
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), text))


def canonical(path: str) -> str:
    """The real path of a mountpoint, found without touching the mount: it may hang, or be our own."""
    parent, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(parent), name)


def mounted_at(path: str, table: Path = MOUNT_TABLE) -> Mounted | None:
    """What is mounted on *path* itself; the topmost of several. Does not touch the mount, which may hang."""
    target = canonical(path)
    found = None
    for source, where, fstype, *_ in _lines(table):
        if _unescaped(where) == target:
            found = Mounted(_unescaped(source), target, _unescaped(fstype))
    return found


def targets(fstype: str, table: Path = MOUNT_TABLE) -> set[str]:
    """Where filesystems of that type are mounted. Touches none of them."""
    return {_unescaped(where) for _, where, kind, *_ in _lines(table) if _unescaped(kind) == fstype}


def is_mounted(connection: int) -> bool:
    """Whether the FUSE mount of that number (see `connection_of`) is mounted anywhere that this process
    sees."""
    return any(_number_of(fields[2]) == connection for fields in _lines(MOUNT_INFO))


def device_of(path: str) -> str:
    """The number of the filesystem on *path*, ``major:minor`` as the kernel writes it. stat(2) would be a
    request to that. Raises FileNotFoundError."""
    return _mount_info(path)[2].decode("ascii")


def connection_of(path: str) -> int:
    """The number of the FUSE mount on *path* under /sys/fs/fuse/connections, asked of nobody but the kernel.
    Raises FileNotFoundError."""
    return _number_of(_mount_info(path)[2])


def options_of(path: str) -> frozenset[str]:
    """The options of the mount on *path* and of its filesystem, as the kernel shows them. Raises
    FileNotFoundError."""
    fields = _mount_info(path)
    of_the_filesystem = fields[fields.index(b"-") + 3]
    return frozenset(map(_unescaped, fields[5].split(b",") + of_the_filesystem.split(b",")))


def _lines(table: Path) -> Iterator[list[bytes]]:
    for line in table.read_bytes().split(b"\n")[:-1]:
        yield line.split(b" ")


def _mount_info(path: str) -> list[bytes]:
    """The fields of proc(5) about the topmost mount on *path*. Raises FileNotFoundError."""
    target = canonical(path)
    found = None
    for fields in _lines(MOUNT_INFO):
        if _unescaped(fields[4]) == target:
            found = fields
    if found is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), target)
    return found


def _number_of(device: bytes) -> int:
    """``major:minor`` as the kernel's own number, by which it names a connection: 12 and 20 bits
    (linux/kdev_t.h). glibc's makedev(3) is another one from minor 256 on."""
    major, minor = device.split(b":")
    return int(major) << 20 | int(minor)


def is_dead(path: str) -> bool:
    """Whether the mount on *path* has lost its daemon: every access then fails with ENOTCONN. Waits for a
    daemon that is alive and does not answer."""
    try:
        os.statvfs(path)
    except OSError as exc:
        return exc.errno == errno.ENOTCONN
    return False


def unmount(path: str, flags: int = 0) -> None:
    """umount2(2). Raises OSError, with EBUSY for a mount that is used."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(path), flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
