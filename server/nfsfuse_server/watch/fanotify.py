"""Changes as fanotify(7) tells them: of the whole filesystem, by handles, and with who did it.

The handles in the events are those of name_to_handle_at(2) (fanotify(7), "FAN_REPORT_FID"), of which the
storage makes its own, so an event leads straight to whom to tell: no path is resolved, no directory watched
by itself. One mark covers the filesystem, also what of it is not exported; nobody holds that. The process id
in the event tells the server's own changes, which are skipped before anything else of them is looked at.

Needs CAP_SYS_ADMIN, Linux 5.9 (FAN_REPORT_DFID_NAME), and a filesystem with an id and handles: ext4, XFS,
tmpfs; btrfs only as a whole. From 5.17 on (FAN_REPORT_TARGET_FID) the inode that got or lost a name is told.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Final, NamedTuple

import trio

from nfsfuse.protocol.types import InodeHandle
from nfsfuse_server.watch.interface import (
    PAUSE_SECONDS,
    AttributesChanged,
    Change,
    ContentChanged,
    NameChanged,
    Overflow,
    Watcher,
    WatchError,
)

# <linux/fanotify.h>
_CLOEXEC: Final = 0x1
_NONBLOCK: Final = 0x2
_REPORT_FID: Final = 0x200
_REPORT_DFID_NAME: Final = 0xC00
_REPORT_TARGET_FID: Final = 0x1000
_MARK_ADD: Final = 0x1
_MARK_FILESYSTEM: Final = 0x100

FAN_MODIFY: Final = 0x2
FAN_ATTRIB: Final = 0x4
FAN_MOVED_FROM: Final = 0x40
FAN_MOVED_TO: Final = 0x80
FAN_CREATE: Final = 0x100
FAN_DELETE: Final = 0x200
FAN_MOVE_SELF: Final = 0x800
FAN_Q_OVERFLOW: Final = 0x4000
FAN_ONDIR: Final = 0x40000000

FAN_NAMES: Final = FAN_CREATE | FAN_DELETE | FAN_MOVED_FROM | FAN_MOVED_TO
_WATCHED: Final = FAN_NAMES | FAN_MODIFY | FAN_ATTRIB | FAN_MOVE_SELF | FAN_ONDIR

_INFO_FID: Final = 1
_INFO_DFID_NAME: Final = 2
_INFO_DFID: Final = 3

# struct fanotify_event_metadata: event_len, vers, reserved, metadata_len, mask, fd, pid.
_EVENT: Final = struct.Struct("=IBBHQii")
# struct fanotify_event_info_header, the filesystem's id, struct file_handle (bytes, type): the handle follows.
_INFO: Final = struct.Struct("=BBH8xI4s")
_METADATA_VERSION: Final = 3

READ_SIZE: Final = 16 * 1024
"""Bytes of events taken in at once: some 200, a few milliseconds of work before others have their turn."""

HANDLES_CACHED_MAX: Final = 4096
"""Inodes: a filesystem's busy files are told of again and again, and most are not even exported."""

_libc: Final = ctypes.CDLL(None, use_errno=True)
_fanotify_init = _libc.fanotify_init
_fanotify_init.argtypes = [ctypes.c_uint, ctypes.c_uint]
_fanotify_mark = _libc.fanotify_mark
_fanotify_mark.argtypes = [ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p]


class Event(NamedTuple):
    """What a foreign event says: its mask; the inode it is about, if told; the directory and the name in it.
    Handles are the kernel's: type (4 bytes) and handle."""

    mask: int
    inode: bytes | None
    directory: bytes | None
    name: bytes


def events(buffer: bytes, own_pid: int) -> Iterator[Event]:
    """The events of one read(2), without those of process *own_pid*."""
    position = 0
    while position < len(buffer):
        length, version, _, header, mask, _, pid = _EVENT.unpack_from(buffer, position)
        assert version == _METADATA_VERSION, version
        if pid != own_pid:
            yield _event(buffer, position + header, position + length, mask)
        position += length


def _event(buffer: bytes, start: int, end: int, mask: int) -> Event:
    inode = directory = None
    name = b""
    while start < end:
        kind, _, length, size, handle_type = _INFO.unpack_from(buffer, start)
        handle_end = start + _INFO.size + size
        handle = handle_type + buffer[start + _INFO.size : handle_end]
        if kind == _INFO_FID:
            inode = handle
        elif kind in (_INFO_DFID_NAME, _INFO_DFID):
            directory = handle
            name = buffer[handle_end : start + length].split(b"\0", 1)[0]
        start += length
    return Event(mask, inode, directory, name)


def changes_of(event: Event, handle_of: Callable[[bytes], InodeHandle]) -> Iterator[Change]:
    """What *event* means; several events about one inode may come as one, with a mask of all."""
    if event.mask & FAN_Q_OVERFLOW:
        yield Overflow()
        return
    inode = event.inode
    if event.mask & FAN_NAMES and event.directory is not None:
        yield NameChanged(handle_of(event.directory), event.name)
    elif inode is None:
        inode = event.directory  # a directory itself: then its name is "."
    if inode is None:
        return
    if event.mask & FAN_MODIFY:
        yield ContentChanged(handle_of(inode))
    else:
        yield AttributesChanged(handle_of(inode))


class FanotifyWatcher(Watcher):
    """Watches the filesystem of the directory *root*. *handle_of* turns a kernel's handle into the storage's.
    `WatchError` where privilege, kernel or filesystem forbid it."""

    def __init__(self, root: str | os.PathLike[str], handle_of: Callable[[bytes], InodeHandle]) -> None:
        self._handle_of = lru_cache(HANDLES_CACHED_MAX)(handle_of)
        self._own_pid = os.getpid()
        self._fd = _open()
        if _fanotify_mark(self._fd, _MARK_ADD | _MARK_FILESYSTEM, _WATCHED, -100, os.fsencode(root)) < 0:
            number = ctypes.get_errno()
            os.close(self._fd)
            raise WatchError(f"fanotify_mark: {os.strerror(number)}")

    async def changes(self) -> list[Change]:
        while True:
            await trio.lowlevel.wait_readable(self._fd)
            try:
                buffer = os.read(self._fd, READ_SIZE)
            except BlockingIOError:
                continue
            found: dict[Change, None] = {}
            for event in events(buffer, self._own_pid):
                found.update(dict.fromkeys(changes_of(event, self._handle_of)))
            if found:
                return list(found)
            await trio.sleep(PAUSE_SECONDS)

    def close(self) -> None:
        os.close(self._fd)


def _open() -> int:
    """A group that tells as much as the kernel can."""
    flags = _CLOEXEC | _NONBLOCK | _REPORT_FID | _REPORT_DFID_NAME
    for more in (_REPORT_TARGET_FID, 0):
        fd: int = _fanotify_init(flags | more, os.O_RDONLY | os.O_CLOEXEC)
        if fd >= 0:
            return fd
        number = ctypes.get_errno()
        if number != errno.EINVAL:
            break
    raise WatchError(f"fanotify_init: {os.strerror(number)}")
