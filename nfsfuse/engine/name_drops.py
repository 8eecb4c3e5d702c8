"""Having the kernel ask for names again.

A name is *expired* (FUSE_EXPIRE_ONLY): it is asked for before it is used again, and if it leads where it led,
nothing else has happened. Dropping it would take what is mounted below it, and the working directories of programs
in it, from this client for a change that another one may not even make.

The notification takes the lock of the name's directory, which whoever holds it may keep until the server has
answered it: which may be waiting for this very recall (deadlock 6). So it is not waited for long. What is decided
in the kernel from a name that was recalled before the lock was let go is seen to by `nfsfuse.machines.doubts`.
"""

from __future__ import annotations

from typing import Final

import trio

from nfsfuse.engine.cached_directory import CachedDirectory
from nfsfuse.machines.doubts import Doubt, Doubts, Place
from nfsfuse.machines.inodes import Inode, InodeTable
from nfsfuse.ports.kernel import Kernel
from nfsfuse.protocol.types import InodeHandle

DROP_SECONDS_MAX: Final = 0.005
"""How long a name's expiry may take before it is done without its directory's lock. It takes some 50 us if that
is free."""

DROPS_MAX: Final = 16
"""Notifications about names that may wait for a lock at once: each has a thread, which pages need too."""


CERTAIN_SECONDS_MAX: Final = 0.2
"""How long a look at a name waits for another program to let a directory go that it has locked. It may be that
program's own."""


class NameDrops:
    """Those of a mount. They go on in *nursery*, which is set once there is one."""

    def __init__(self, kernel: Kernel, inodes: InodeTable) -> None:
        self._inodes = inodes
        self._kernel = kernel
        self._under_way = 0
        self._ended = trio.lowlevel.ParkingLot()
        self.nursery: trio.Nursery | None = None
        self.doubts = Doubts()
        self._certain = trio.lowlevel.ParkingLot()

    async def drop(self, directory: CachedDirectory, name: bytes) -> None:
        """When this returns no program that begins to use *name* believes what the kernel knows of it."""
        dropped = self.begin(directory, name)
        # An unanswered operation in the directory is a sure sign that it is locked, but none is no sign of the
        # contrary: a rename holds the locks of two directories while it looks names up in one of them, or waits
        # for the other's; nothing tells of the first.
        if not directory.cache.pending or directory.unread:
            with trio.move_on_after(DROP_SECONDS_MAX):
                await dropped.wait()
        if not dropped.is_set():
            await self.expire_at_once(directory, name)

    async def expire_at_once(self, directory: CachedDirectory, name: bytes) -> None:
        """As `drop`, whoever has the directory locked, and nothing else."""
        leads_to = directory.cache.stood_for(name)
        child = self._inodes.by_handle(leads_to) if isinstance(leads_to, bytes) else None
        if not await self._kernel.expire_entry_at_once(directory.inode, name, child):
            await self._kernel.distrust_entries()

    def told(self, directory: CachedDirectory, name: bytes, inode: Inode) -> None:
        """The kernel is told that *name* leads to *inode*, which is true no more perhaps by the time it decides
        by that. It believes it for no time; but whoever asks may have the directory locked."""
        assert self.nursery is not None
        doubt = self.doubts.begin((directory.inode.handle, name), inode.handle)
        self.nursery.start_soon(self._expire, directory, name, doubt, trio.Event())

    async def until_certain(self, place: Place, found: InodeHandle) -> None:
        """Wait until no other name that led to *found* is in doubt, for `CERTAIN_SECONDS_MAX`."""
        with trio.move_on_after(CERTAIN_SECONDS_MAX):
            while self.doubts.is_in_doubt(place, found):
                await self._certain.park()

    def begin(self, directory: CachedDirectory, name: bytes) -> trio.Event:
        """Begin to expire *name*; set when that is done, which whoever holds the directory's lock decides."""
        assert self.nursery is not None
        leads_to, dropped = directory.cache.stood_for(name), trio.Event()
        doubt: Doubt | None = None
        if leads_to is not None:
            handle = leads_to if isinstance(leads_to, bytes) else None
            doubt = self.doubts.begin((directory.inode.handle, name), handle)
        self.nursery.start_soon(self._expire, directory, name, doubt, dropped)
        return dropped

    async def _expire(
        self, directory: CachedDirectory, name: bytes, doubt: Doubt | None, dropped: trio.Event
    ) -> None:
        while self._under_way >= DROPS_MAX:
            await self._ended.park()
        self._under_way += 1
        await self._kernel.expire_entry(directory.inode.node_id, name)
        self._under_way -= 1
        self._ended.unpark()
        if doubt is not None:
            self.doubts.over(doubt)
            self._certain.unpark_all()
        dropped.set()
