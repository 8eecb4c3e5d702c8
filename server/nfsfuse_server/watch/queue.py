"""The queue of inotify(7) events, cut where the server's own operations begin and end.

inotify does not say who did something. But it queues its events before the system call that causes them
returns. So the queue is read empty when an operation of the server begins, and again when it ends, before it
is answered: what comes in between and is about the names and inodes that it touches is the server's own. What
another program does to the very same name or inode in that time - not after the answer - passes for it.

Several operations may run at once, in threads, and one may find only in the end what it has touched (the inode
that a rename replaces). So events are not told before all that ran when they were read have ended.

Nor does inotify say which inode an event is about, only by what name it was reached. So an operation that may
lead a name elsewhere first notes where it has led for the events that are not told yet.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import select
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import trio

from nfsfuse.protocol.types import InodeHandle
from nfsfuse_server.watch.interface import WatchError

Name = tuple[InodeHandle, bytes]
"""In a directory."""

Key = InodeHandle | Name

READ_SIZE: Final = 64 * 1024
"""Bytes of events in one read(2): some 2,000."""

# struct inotify_event: wd, mask, cookie, len; the name follows.
_EVENT: Final = struct.Struct("=iIII")

_libc: Final = ctypes.CDLL(None, use_errno=True)


class Event(NamedTuple):
    """One struct inotify_event."""

    watch: int
    mask: int
    name: bytes


@dataclass(slots=True, eq=False)
class _Operation:
    """One of the server's, and what it is known to touch so far."""

    touched: list[Key]
    ended: bool = False


@dataclass(slots=True, eq=False)
class Batch:
    """Events, and the operations of the server that ran when they were queued."""

    buffer: bytes
    operations: tuple[_Operation, ...]
    led: dict[Name, InodeHandle | None] = field(default_factory=dict)
    """Where names led that may lead elsewhere by now, as an operation began since that touches them."""

    def own(self) -> frozenset[Key]:
        """What these touched, once they have ended."""
        return frozenset(key for operation in self.operations for key in operation.touched)

    @property
    def complete(self) -> bool:
        """Whether they have."""
        return all(operation.ended for operation in self.operations)

    def events(self) -> Iterator[Event]:
        """In order."""
        position = 0
        while position < len(self.buffer):
            watch, mask, _, length = _EVENT.unpack_from(self.buffer, position)
            position += _EVENT.size
            yield Event(watch, mask, self.buffer[position : position + length].rstrip(b"\0"))
            position += length


class EventQueue:
    """An inotify instance. Safe to use from several threads; one task waits."""

    def __init__(self) -> None:
        self._fd: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise WatchError(f"inotify_init1: {os.strerror(ctypes.get_errno())}")
        self._lock = threading.Lock()
        self._running: list[_Operation] = []
        self._batches: list[Batch] = []
        # Readable while there are events, also such as have been read by an operation.
        self._waiting = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._either = select.epoll()
        self._either.register(self._fd, select.EPOLLIN)
        self._either.register(self._waiting, select.EPOLLIN)

    @contextmanager
    def touching(self, *keys: Key, leads_to: Callable[[Name], InodeHandle | None]) -> Iterator[list[Key]]:
        """The body is an operation of the server's on *keys*; it may add to the list what else it finds it
        has touched. *leads_to* looks up a name."""
        operation = _Operation(list(keys))
        with self._lock:
            self._read()
            for key in keys:
                if isinstance(key, tuple):
                    self._note(key, leads_to)
            self._running.append(operation)
        try:
            yield operation.touched
        finally:
            with self._lock:
                self._read()
                self._running.remove(operation)
                operation.ended = True
                if self._batches and self._batches[0].complete:
                    os.eventfd_write(self._waiting, 1)

    @contextmanager
    def taking(self) -> Iterator[list[Batch]]:
        """The body tells all events so far, in order, up to the first that came while an operation ran that
        still does. When that ends there is something to `wait` for."""
        with self._lock:
            self._read()
            taken = list(itertools.takewhile(lambda batch: batch.complete, self._batches))
            os.eventfd_write(self._waiting, 1)
            os.eventfd_read(self._waiting)
        yield taken
        with self._lock:
            del self._batches[: len(taken)]

    async def wait(self) -> None:
        """Until there are events for `taking`."""
        await trio.lowlevel.wait_readable(self._either.fileno())

    def add(self, path: bytes, mask: int) -> int:
        """inotify_add_watch(2). OSError: ENOSPC for too many (fs.inotify.max_user_watches)."""
        number: int = _libc.inotify_add_watch(self._fd, path, ctypes.c_uint32(mask))
        if number < 0:
            failure = ctypes.get_errno()
            raise OSError(failure, os.strerror(failure))
        return number

    def remove(self, number: int) -> None:
        """inotify_rm_watch(2); nothing happens if its directory is gone already."""
        _libc.inotify_rm_watch(self._fd, number)

    def close(self) -> None:
        """Ends all watches."""
        self._either.close()
        os.close(self._waiting)
        os.close(self._fd)

    def _note(self, name: Name, leads_to: Callable[[Name], InodeHandle | None]) -> None:
        """*name* may lead elsewhere soon: where it led for the events that may be about it."""
        terminated = name[1] + b"\0"
        for batch in self._batches:
            if terminated in batch.buffer and name not in batch.led:
                batch.led[name] = leads_to(name)

    def _read(self) -> None:
        """Takes in all that is queued."""
        while True:
            try:
                buffer = os.read(self._fd, READ_SIZE)
            except BlockingIOError:
                return
            self._batches.append(Batch(buffer, tuple(self._running)))
