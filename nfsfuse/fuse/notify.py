"""Notifications to the kernel: what it must drop from its caches.

Written straight to the FUSE device as ``fuse_out_header{len, error=code, unique=0}`` and a payload: that
gives ranges, epochs and expiry, which pyfuse3 does not. Each write(2) may block for as long as a folio or a
directory is locked, so each has a thread to itself: one of `_notifications`, as a Python thread would wait for
Python's lock before and after.
"""

from __future__ import annotations

import errno
import os
from typing import Final

import trio

from nfsfuse.fuse import abi
from nfsfuse.fuse.abi import NotifyCode
from nfsfuse.fuse.binding import _notifications
from nfsfuse.machines.turns import Turn
from nfsfuse.protocol.record import record
from nfsfuse.protocol.types import NAME_SIZE_MAX

THREADS_MAX: Final = 64
"""Notifications that can block at once. Each costs a thread while it blocks; the next one waits its turn."""

STORE_BYTES_MAX: Final = 1 << 20
"""Data of one `Notifier.store`: the kernel takes at most 256 pages a message everywhere."""

_EXPECTED: Final[dict[NotifyCode, frozenset[int]]] = {
    NotifyCode.INVAL_INODE: frozenset({errno.ENOENT}),
    NotifyCode.INVAL_ENTRY: frozenset({errno.ENOENT}),
    NotifyCode.STORE: frozenset({errno.ENOENT}),
    NotifyCode.DELETE: frozenset({errno.ENOENT, errno.EBUSY, errno.ENOTEMPTY}),
    NotifyCode.INC_EPOCH: frozenset({errno.EINVAL, errno.ENOSYS}),
}
"""Results that are answers and not failures: the kernel knows no such inode or entry (nothing to drop), it
cannot be deleted because it is a mount point or has cached children, the kernel is too old for it."""


@record(frozen=True, slots=True)
class Notified:
    """*errno* is 0 or one of the answers in `_EXPECTED`; *seconds* is how long write(2) took."""

    errno: int
    seconds: float

    @property
    def done(self) -> bool:
        return self.errno == 0


class Notifier:
    """Sends notifications through *device*, a descriptor of the FUSE device (see `Mount.notifier`).

    Every method returns when write(2) has, also if its caller is cancelled meanwhile: what follows an
    invalidation must not run before it is over. OSError: the kernel refused the message (ENODEV, EPERM:
    unmounted), which is never a normal answer.
    """

    def __init__(self, device: int) -> None:
        self._device = device
        self._threads = 0
        self._events: list[int] = []  # eventfds of notifications that are over, for the next ones
        self._thread_ended = trio.lowlevel.ParkingLot()

    def close(self) -> None:
        """The descriptor is about to be closed: from now on every notification fails with EBADF."""
        self._device = -1
        while self._events:
            os.close(self._events.pop())

    async def inval_inode(
        self,
        nodeid: int,
        offset: int,
        length: int,
        returned: bytearray | None = None,
        turn: Turn | None = None,
    ) -> Notified:
        """Forget the attributes and drop the pages of ``[offset, offset + length)``: write dirty ones back,
        unmap, wait for locked ones. Length 0 is to the end; a negative offset is the attributes only. Success
        does not mean that every page could be written back (fs/fuse/inode.c ignores it): the daemon sees the
        failed FUSE_WRITE. It is sent when *turn* is over. The byte *returned* becomes 1 as soon as write(2) has
        returned, while the event loop may already be at a request that came after it."""
        payload = abi.NOTIFY_INVAL_INODE_OUT.pack(nodeid, offset, length)
        return await self._send(NotifyCode.INVAL_INODE, payload, returned, turn)

    async def inval_entry(self, parent: int, name: bytes) -> Notified:
        """Drop the dentry (a negative one too) and the parent's attributes. Waits for the directory's lock,
        which a pending create, unlink or rename in it holds."""
        return await self._send(NotifyCode.INVAL_ENTRY, _entry(parent, name, 0))

    async def expire_entry(self, parent: int, name: bytes) -> Notified:
        """Have the dentry looked up again before its next use. Waits like `inval_entry`. A kernel older than
        6.2 drops it instead."""
        return await self._send(NotifyCode.INVAL_ENTRY, _entry(parent, name, abi.EXPIRE_ONLY))

    async def delete(self, parent: int, child: int, name: bytes) -> Notified:
        """The name is gone and *child* was there: as `inval_entry`, and *child* is taken to have no link left:
        inotify tells those who watch *child* of that (IN_DELETE_SELF). Those who watch *parent* hear nothing:
        since Linux 5.3 only vfs_unlink(), vfs_rmdir() and vfs_rename() tell them."""
        payload = abi.NOTIFY_DELETE_OUT.pack(parent, child, len(_checked(name)), 0) + name + b"\0"
        return await self._send(NotifyCode.DELETE, payload)

    async def store(self, nodeid: int, offset: int, data: bytes) -> Notified:
        """Put *data* into the page cache, at most `STORE_BYTES_MAX`; a page is up to date only if all of it
        is given (or if it was)."""
        if not 0 < len(data) <= STORE_BYTES_MAX:
            raise ValueError(f"1 to {STORE_BYTES_MAX} bytes can be stored at once, not {len(data)}")
        payload = abi.NOTIFY_STORE_OUT.pack(nodeid, offset, len(data), 0) + data
        return await self._send(NotifyCode.STORE, payload)

    async def inc_epoch(self) -> Notified:
        """Have every dentry of the mount looked up again before its next use; waits for nothing. Not `done`
        (EINVAL, ENOSYS) before Linux 6.16."""
        return await self._send(NotifyCode.INC_EPOCH, b"")

    async def _send(
        self, code: NotifyCode, payload: bytes, returned: bytearray | None = None, turn: Turn | None = None
    ) -> Notified:
        message = abi.OUT_HEADER.pack(abi.OUT_HEADER.size + len(payload), code, 0) + payload
        notified = await self._written(message, returned, turn)
        if notified.errno and notified.errno not in _EXPECTED[code]:
            raise OSError(notified.errno, f"FUSE notification {code.name}: {os.strerror(notified.errno)}")
        return notified

    async def _written(self, message: bytes, returned: bytearray | None, turn: Turn | None) -> Notified:
        """What write(2) of *message* in a thread has come to. Not to be cancelled, also while it waits for a
        thread: a cancelled recall has either not begun or is over."""
        waits_for: tuple[int, int, int, float] | tuple[()] = ()
        if turn is not None:
            waits_for = (turn.thread, turn.times, turn.nanoseconds, turn.until - trio.current_time())
        if self._threads >= THREADS_MAX:
            with trio.CancelScope(shield=True):
                while self._threads >= THREADS_MAX:
                    await self._thread_ended.park()
        event = self._events.pop() if self._events else os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        notification = _notifications.send(self._device, message, returned, event, *waits_for)
        self._threads += 1
        await _set(event)
        os.eventfd_read(event)
        self._events.append(event)
        self._threads -= 1
        if self._thread_ended:
            self._thread_ended.unpark()
        return Notified(*_notifications.result(notification))


async def _set(event: int) -> None:
    """Wait until the eventfd is set; a cancellation waits for that, too. (A shield around every wait would cost
    as much as the wait.)"""
    try:
        await trio.lowlevel.wait_readable(event)
    except trio.Cancelled:  # of a scope that says so again at the caller's next checkpoint
        with trio.CancelScope(shield=True):
            await trio.lowlevel.wait_readable(event)


def _checked(name: bytes) -> bytes:
    if not 0 < len(name) <= NAME_SIZE_MAX:
        raise ValueError(f"a name has 1 to {NAME_SIZE_MAX} bytes, not {len(name)}")
    return name


def _entry(parent: int, name: bytes, flags: int) -> bytes:
    return abi.NOTIFY_INVAL_ENTRY_OUT.pack(parent, len(_checked(name)), flags) + name + b"\0"
