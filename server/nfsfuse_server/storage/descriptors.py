"""Open descriptors by inode: which are kept, and when they are closed.

A descriptor has two kinds of owners: the cache, and the calls of the storage that are using it. A `Descriptor`
closes itself when the last of them lets go of it. So taking an inode out of the cache never pulls a descriptor
from under a thread that is using it (CPython counts references, and pyfuse3 needs CPython). Two rules follow:

* **Bind the Descriptor (or its OpenInode) to a local variable before using its number.**
* **Nothing else may refer to one**: a file that is removed keeps its room on the disk for as long. What would
  without being asked is a failure, whose traceback has the local variables of all that it came through. So
  those are emptied where it leaves the storage (`local_base.translated`), which is the only way out.

The cache is a clock (second chance): a hit only sets a flag and takes no lock.
"""

from __future__ import annotations

import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from nfsfuse.protocol.types import InodeHandle
from nfsfuse_server.storage.syscalls import attributes_of

DESCRIPTORS_RESERVED: Final = 512
"""Descriptors left to the rest of the process: connections, epoll, the state directory's files."""

DESCRIPTORS_CACHED_MAX: Final = 16384
"""By default, one for each inode: each keeps an inode (about 1 KiB) in the kernel's memory."""

PINNED_SHARE: Final = 0.75
"""How much of the cache is for pinned inodes, which the rest must not be closed for again and again. Up to
there none of them is closed: a program on the server could remove one, and no handle would open it again."""

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
    """An inode with the one descriptor that is open of it: *path*. That is an O_PATH one until its data were
    needed; then it is *reader*, or *writer*, as well.

    It never changes, so whoever has it in a local variable has an open descriptor. When an inode is opened in
    another way, another object takes its place in the cache.
    """

    __slots__ = ("above", "handle", "kind", "path", "reader", "used", "writer")

    def __init__(
        self, handle: InodeHandle, kind: int, path: Descriptor, *, reads: bool = False, writes: bool = False
    ) -> None:
        self.handle = handle
        self.kind = kind  # S_IFMT of its mode: never changes
        self.path = path
        self.reader = path if reads else None
        self.writer = path if writes else None
        self.used = True
        self.above = 0  # of a directory: the number of the one it is in, when it was last listed


class DescriptorCache:
    """Inodes by handle, at most *limit* of them open at a time.

    Pinned inodes count, and are closed when they are more than PINNED_SHARE of it: their handles open them
    again. Not so where *reopens* says that handles cannot, and not those without a name (that are no orphans
    either: see `orphans`): what is kept so is never closed. *on_drop* is called, under `lock`, with each inode
    that leaves.
    """

    def __init__(
        self,
        limit: int,
        on_drop: Callable[[OpenInode], None] = lambda inode: None,
        *,
        reopens: bool = True,
    ) -> None:
        if limit < 1:
            raise ValueError("no descriptor may be cached")
        self.lock = threading.RLock()
        self.removals = 0  # counts `forget`; see `add`
        self._limit = limit
        self._on_drop = on_drop
        self._reopens = reopens
        self._inodes: dict[InodeHandle, OpenInode] = {}
        self._pins: dict[InodeHandle, int] = {}
        self._kept: set[InodeHandle] = set()  # pinned, and never closed
        # All others that are open: those that are pinned, and those that are not.
        self._pinned_clock: OrderedDict[InodeHandle, OpenInode] = OrderedDict()
        self._clock: OrderedDict[InodeHandle, OpenInode] = OrderedDict()

    def get(self, handle: InodeHandle) -> OpenInode | None:
        """The inode if it is here."""
        inode = self._inodes.get(handle)
        if inode is not None:
            inode.used = True
        return inode

    def pinned(self, handle: InodeHandle) -> int:
        """How many pins the inode has, whether it is here or not."""
        return self._pins.get(handle, 0)

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
            if (
                removals != self.removals
                and not self.pinned(inode.handle)
                and attributes_of(inode.path.number).nlink == 0
            ):
                return inode
            self._put(inode)
            self._evict()
            return inode

    def attach(self, inode: OpenInode, descriptor: Descriptor, writable: bool) -> Descriptor:
        """Makes *descriptor* the inode's reader or writer, and the only one; returns what is to be used
        instead, if another thread was first. An inode that has left meanwhile is used by the caller alone.

        A writer takes the place of a reader: it can do both, and on overlayfs a reader from before the first
        open for writing goes on seeing the file of the lower layer.
        """
        with self.lock:
            present = self._inodes.get(inode.handle)
            if present is None:
                return descriptor
            better = present.writer or (None if writable else present.reader)
            if better is not None:
                return better
            other = OpenInode(inode.handle, inode.kind, descriptor, reads=not writable, writes=writable)
            other.above = inode.above
            self._put(other)
            return descriptor

    def pin(self, inode: OpenInode, *, always: bool = False) -> None:
        """One more reason to keep the inode; *always*: also to keep it open. Undone by `unpin`."""
        with self.lock:
            self._pins[inode.handle] = self.pinned(inode.handle) + 1
            present = self._inodes.get(inode.handle, inode)
            if always or not self._reopens:
                self._keep(present)
            else:
                self._put(present)
            self._evict()

    def unpin(self, handle: InodeHandle, *, freeing: bool) -> OpenInode | None:
        """With the last pin the writer is closed (an open writer would make execve(2) of the file on the
        server fail with ETXTBSY), and an inode without links leaves: that is returned, and with it the space
        goes. Unless *freeing*, such a one is returned with nothing done to it."""
        with self.lock:
            pins = self.pinned(handle)
            assert pins > 0, "unpin without pin"
            inode = self._inodes.get(handle)
            last = pins == 1
            nameless = last and inode is not None and attributes_of(inode.path.number).nlink == 0
            if nameless and not freeing:
                return inode
            if not last:
                self._pins[handle] = pins - 1
                return None
            del self._pins[handle]
            self._kept.discard(handle)
            self._pinned_clock.pop(handle, None)
            if inode is None:
                return None
            if nameless:
                self._drop(inode)
                return inode
            self._put(inode if inode.writer is None else _without_writer(inode))
            self._evict()
            return None

    def forget(self, inode: OpenInode, *, orphan: bool = False) -> None:
        """The inode's last link is gone: lets go of it, or keeps it open if it is pinned, and no *orphan*."""
        with self.lock:
            self.removals += 1
            if self.pinned(inode.handle):
                if not orphan:
                    self._keep(inode)
            elif inode.handle in self._inodes:
                self._drop(inode)

    def clear(self) -> None:
        """Lets go of everything."""
        with self.lock:
            for inode in list(self._inodes.values()):
                self._drop(inode)
            self._pins.clear()
            self._kept.clear()

    def check(self) -> None:
        """The cache's invariants, for tests."""
        with self.lock:
            assert self._kept <= set(self._pins)
            assert self._kept <= set(self._inodes)
            clocks = {**self._clock, **self._pinned_clock}
            assert clocks == {
                handle: inode for handle, inode in self._inodes.items() if handle not in self._kept
            }
            assert not self._clock.keys() & self._pins.keys()
            assert self._pinned_clock.keys() <= self._pins.keys()
            assert not clocks or len(self._inodes) <= self._limit
            if not self._reopens:
                assert self._kept == set(self._pins)
            assert all(inode.handle == handle for handle, inode in self._inodes.items())

    def _put(self, inode: OpenInode) -> None:
        """*inode* is open, in place of what was open of it before."""
        handle = inode.handle
        self._inodes[handle] = inode
        if handle in self._kept:
            return
        if handle in self._pins:
            self._clock.pop(handle, None)
            self._pinned_clock[handle] = inode
        else:
            self._clock[handle] = inode

    def _keep(self, inode: OpenInode) -> None:
        """A pinned inode is not closed from now on."""
        self._kept.add(inode.handle)
        self._off_the_clock(inode.handle)
        self._inodes.setdefault(inode.handle, inode)

    def _drop(self, inode: OpenInode) -> None:
        gone = self._inodes.pop(inode.handle)
        self._off_the_clock(inode.handle)
        self._on_drop(gone)

    def _off_the_clock(self, handle: InodeHandle) -> None:
        self._clock.pop(handle, None)
        self._pinned_clock.pop(handle, None)

    def _evict(self) -> None:
        """Turns a clock's hand until the limit is kept or only what is never closed is left."""
        while len(self._inodes) > self._limit:
            pinned = len(self._pinned_clock) + len(self._kept)
            fewer = self._pinned_clock if pinned > self._limit * PINNED_SHARE else self._clock
            clock = fewer or self._pinned_clock or self._clock
            if not clock:
                return
            handle, inode = next(iter(clock.items()))
            if inode.used:
                inode.used = False
                clock.move_to_end(handle)
            elif clock is self._pinned_clock and attributes_of(inode.path.number).nlink == 0:
                self._keep(inode)  # removed by a program on the server: no handle would open it again
            else:
                self._drop(inode)


def _without_writer(inode: OpenInode) -> OpenInode:
    """*inode*, open so that it is in nobody's way. If there is no descriptor for that it stays as it is."""
    try:
        path = Descriptor(os.open(by_proc(inode.path), os.O_PATH | os.O_CLOEXEC))
    except OSError:
        return inode
    return OpenInode(inode.handle, inode.kind, path)


def raise_descriptor_limit() -> int:
    """Raises RLIMIT_NOFILE to the hard limit; how many descriptors a cache may hold by default."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard == resource.RLIM_INFINITY:
        return DESCRIPTORS_CACHED_MAX
    return max(64, min(DESCRIPTORS_CACHED_MAX, hard - DESCRIPTORS_RESERVED))
