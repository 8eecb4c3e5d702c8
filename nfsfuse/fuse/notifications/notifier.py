"""Notifications to the kernel: what it must drop from its caches.

Written straight to the FUSE device as ``fuse_out_header{len, error=code, unique=0}`` and a payload: that
gives ranges, epochs and expiry, which pyfuse3 does not. Each write(2) may block for as long as a folio or a
directory is locked, so each has a thread to itself: one of `_notifications`, as a Python thread would wait for
Python's lock before and after.
"""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import trio

from nfsfuse.fuse.binding import abi
from nfsfuse.fuse.binding.abi import NotifyCode
from nfsfuse.fuse.binding.libraries import _notifications
from nfsfuse.machines.turns import Turn
from nfsfuse.protocol.record import record
from nfsfuse.protocol.types import NAME_SIZE_MAX

if TYPE_CHECKING:
    from nfsfuse.fuse.notifications._notifications import Notification

THREADS_MAX: Final = 64
"""Notifications that can block at once. Each costs a thread while it blocks; the next one waits its turn."""

THROUGH_SECONDS: Final = 0.005
"""How long a growth is waited for before it is looked whether it has had its effect. It takes some 50 us if the
page is free."""

LATE_MAX: Final = 16
"""Growths that have had their effect and wait for the lock of a page: each has a thread, which pages need
too."""

_EXPECTED: Final[dict[NotifyCode, frozenset[int]]] = {
    NotifyCode.INVAL_INODE: frozenset({errno.ENOENT}),
    NotifyCode.INVAL_ENTRY: frozenset({errno.ENOENT}),
    NotifyCode.STORE: frozenset({errno.ENOENT, errno.EFAULT}),
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
        self._late: list[tuple[Notification, int]] = []  # that nobody waits for
        self._one_looks = trio.Lock()

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

    async def grow(self, nodeid: int, size: int, is_through: Callable[[], Awaitable[bool]]) -> Notified:
        """Have the kernel believe that the file is at least *size* (> 0) bytes long. `done` if it knows the
        inode.

        It is a store of the last byte, whose payload cannot be read. fuse_notify_store (fs/fuse/dev.c) first
        raises i_size, and the attr_version with it, so that no older answer lowers it again
        (fuse_write_update_attr); then locks the page; and only then finds that there is nothing to copy
        (EFAULT): the page is left as it was, or empty and not up to date if there was none.

        Who waits for that lock may wait for a read that is not answered yet. After `THROUGH_SECONDS` it is
        asked again and again if it *is_through*, the size what it should be: then nobody waits any more."""
        await self._few_are_late()
        payload = abi.NOTIFY_STORE_OUT.pack(nodeid, size - 1, 1, 0)
        message = abi.OUT_HEADER.pack(abi.OUT_HEADER.size + len(payload) + 1, NotifyCode.STORE, 0) + payload
        notification, event = await self._begin(message, unreadable=1)
        late = True
        try:
            while True:
                with trio.move_on_after(THROUGH_SECONDS):
                    await trio.lowlevel.wait_readable(event)
                    late = False
                    return self._growth(self._ended(notification, event))
                if await is_through():
                    return Notified(0, THROUGH_SECONDS)
        finally:
            if late:
                self._late.append((notification, event))

    @staticmethod
    def _growth(notified: Notified) -> Notified:
        if notified.errno == errno.EFAULT:
            return Notified(0, notified.seconds)
        if notified.errno == errno.ENOENT:
            return notified
        raise OSError(notified.errno, "FUSE notification of a size")

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
        waits_for: tuple[int, int, int, float] = (0, 0, 0, 0.0)
        if turn is not None:
            waits_for = (turn.thread, turn.times, turn.nanoseconds, turn.until - trio.current_time())
        return await self._end(*await self._begin(message, returned, waits_for))

    async def _begin(
        self,
        message: bytes,
        returned: bytearray | None = None,
        waits_for: tuple[int, int, int, float] = (0, 0, 0, 0.0),
        unreadable: int = 0,
    ) -> tuple[Notification, int]:
        if self._threads >= THREADS_MAX:
            with trio.CancelScope(shield=True):
                while self._threads >= THREADS_MAX:
                    await self._thread_ended.park()
        event = self._events.pop() if self._events else os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        notification = _notifications.send(self._device, message, returned, event, *waits_for, unreadable)
        self._threads += 1
        return notification, event

    async def _end(self, notification: Notification, event: int) -> Notified:
        await _set(event)
        return self._ended(notification, event)

    def _ended(self, notification: Notification, event: int) -> Notified:
        os.eventfd_read(event)
        self._events.append(event)
        self._threads -= 1
        if self._thread_ended:
            self._thread_ended.unpark()
        return Notified(*_notifications.result(notification))

    async def _few_are_late(self) -> None:
        """Wait until there are fewer than LATE_MAX that nobody waits for. They end without this one's help."""
        async with self._one_looks:
            self._late = [begun for begun in self._late if not self._is_over(*begun)]
            while len(self._late) >= LATE_MAX:
                await trio.lowlevel.wait_readable(self._late[0][1])
                self._late = [begun for begun in self._late if not self._is_over(*begun)]

    def _is_over(self, notification: Notification, event: int) -> bool:
        if not select.select([event], [], [], 0)[0]:
            return False
        self._ended(notification, event)
        return True


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
