"""Open descriptors by inode: which are kept, and when they are closed.

A `Descriptor` closes itself when nothing refers to it any more. So taking an inode out of the cache never
pulls a descriptor from under a thread that is using it (CPython counts references, and pyfuse3 needs
CPython). The rule that follows: **bind the Descriptor (or its OpenInode) to a local variable before using its
number.**

The cache is a clock (second chance): a hit only sets a flag and takes no lock. Pinned inodes are not on the
clock.
"""

from __future__ import annotations

import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from nfsfuse.protocol.types import InodeHandle
from server.storage.syscalls import attributes_of

DESCRIPTORS_RESERVED: Final = 512
"""Descriptors left to the rest of the process: connections, epoll, the state directory's files."""

DESCRIPTORS_CACHED_MAX: Final = 16384
"""By default: each keeps an inode (about 1 KiB) in the kernel's memory."""


_PROC: Final = b"/proc/self/fd/%d"


class Descriptor:
    """One open file descriptor, closed when the last reference goes."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        close(self.number)


def by_proc(descriptor: Descriptor) -> bytes:
    """A path that leads to exactly this inode, even a symbolic link, for calls that take no O_PATH
    descriptor."""
    return _PROC % descriptor.number


class OpenInode:
    """An inode with what is open of it: *path* (O_PATH) always, *reader* and *writer* once they were
    needed."""

    __slots__ = ("above", "handle", "kind", "path", "pins", "reader", "used", "writer")

    def __init__(self, handle: InodeHandle, kind: int, path: Descriptor) -> None:
        self.handle = handle
        self.kind = kind  # S_IFMT of its mode: never changes
        self.path = path
        self.reader: Descriptor | None = None
        self.writer: Descriptor | None = None
        self.pins = 0
        self.used = True
        self.above = 0  # of a directory: the number of the one it is in, when it was last listed

    def cost(self) -> int:
        """How many descriptors it holds."""
        return 1 + (self.reader is not None) + (self.writer is not None)


class DescriptorCache:
    """Inodes by handle, at most *limit* descriptors plus those of pinned inodes.

    *on_drop* is called, under `lock`, with each inode that leaves.
    """

    def __init__(self, limit: int, on_drop: Callable[[OpenInode], None] = lambda inode: None) -> None:
        if limit < 1:
            raise ValueError("no descriptor may be cached")
        self.lock = threading.RLock()
        self.removals = 0  # counts `forget`; see `add`
        self._limit = limit
        self._on_drop = on_drop
        self._open = 0
        self._inodes: dict[InodeHandle, OpenInode] = {}
        self._clock: OrderedDict[InodeHandle, OpenInode] = OrderedDict()

    def get(self, handle: InodeHandle) -> OpenInode | None:
        """The inode if it is here."""
        inode = self._inodes.get(handle)
        if inode is not None:
            inode.used = True
        return inode

    def add(self, inode: OpenInode, removals: int) -> OpenInode:
        """Keeps *inode*; if another thread was first, returns that thread's one.

        *removals* is `self.removals` as read before the inode was opened or its link count seen. If inodes
        were removed since, this one may be among them, and keeping it would keep its disk space: then it is
        used by the caller alone.
        """
        with self.lock:
            present = self._inodes.get(inode.handle)
            if present is not None:
                return present
            if removals != self.removals and attributes_of(inode.path.number).nlink == 0:
                return inode
            self._insert(inode)
            self._evict()
            return inode

    def attach(self, inode: OpenInode, descriptor: Descriptor, writable: bool) -> Descriptor:
        """Makes *descriptor* the inode's reader or writer; returns what is to be used instead, if another
        thread was first.

        A writer takes the place of a reader: it can do both, and on overlayfs a reader from before the first
        open for writing goes on seeing the file of the lower layer.
        """
        with self.lock:
            present = inode.writer or (None if writable else inode.reader)
            if present is not None:
                return present
            before = inode.cost()
            if writable:
                inode.writer, inode.reader = descriptor, None
            else:
                inode.reader = descriptor
            if self._inodes.get(inode.handle) is inode:
                self._open += inode.cost() - before
                self._evict()
            return descriptor

    def pin(self, inode: OpenInode) -> None:
        """One more reason to keep the inode. Undone by `unpin`."""
        with self.lock:
            present = self._inodes.get(inode.handle)
            if present is None:
                self._insert(inode)
                present = inode
            present.pins += 1
            self._clock.pop(present.handle, None)
            self._evict()

    def unpin(self, handle: InodeHandle) -> None:
        """With the last pin the writer is closed (an open writer would make execve(2) of the file on the
        server fail with ETXTBSY), and an inode without links leaves."""
        with self.lock:
            inode = self._inodes.get(handle)
            assert inode is not None, "unpin without pin"
            assert inode.pins > 0, "unpin without pin"
            inode.pins -= 1
            if inode.pins:
                return
            if attributes_of(inode.path.number).nlink == 0:
                self._drop(inode)
                return
            if inode.writer is not None:
                inode.writer = None
                self._open -= 1
            self._clock[handle] = inode
            self._evict()

    def forget(self, inode: OpenInode) -> None:
        """The inode's last link is gone: unless it is pinned, lets go of it."""
        with self.lock:
            self.removals += 1
            if self._inodes.get(inode.handle) is inode and not inode.pins:
                self._drop(inode)

    def clear(self) -> None:
        """Lets go of everything."""
        with self.lock:
            for inode in list(self._inodes.values()):
                self._drop(inode)

    def check(self) -> None:
        """The cache's invariants, for tests."""
        with self.lock:
            assert self._open == sum(inode.cost() for inode in self._inodes.values())
            unpinned = {handle for handle, inode in self._inodes.items() if not inode.pins}
            assert set(self._clock) == unpinned
            assert sum(inode.cost() for inode in self._clock.values()) <= self._limit

    def _insert(self, inode: OpenInode) -> None:
        self._inodes[inode.handle] = inode
        if not inode.pins:
            self._clock[inode.handle] = inode
        self._open += inode.cost()

    def _drop(self, inode: OpenInode) -> None:
        del self._inodes[inode.handle]
        self._clock.pop(inode.handle, None)
        self._open -= inode.cost()
        self._on_drop(inode)

    def _evict(self) -> None:
        """Turns the clock's hand until the limit is kept or only pinned inodes are left."""
        while self._open > self._limit and self._clock:
            handle, inode = next(iter(self._clock.items()))
            if inode.used:
                inode.used = False
                self._clock.move_to_end(handle)
            else:
                self._drop(inode)


def raise_descriptor_limit() -> int:
    """Raises RLIMIT_NOFILE to the hard limit; how many descriptors a cache may hold by default."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard == resource.RLIM_INFINITY:
        return DESCRIPTORS_CACHED_MAX
    return max(64, min(DESCRIPTORS_CACHED_MAX, hard - DESCRIPTORS_RESERVED))
