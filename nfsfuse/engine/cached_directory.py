"""A directory as this client holds it, and those who wait for operations in it to come and go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from nfsfuse.machines.directory_cache import DirectoryCache
from nfsfuse.machines.inodes import Inode


class CachedDirectory:
    """One directory."""

    def __init__(self, inode: Inode) -> None:
        self.inode = inode
        self.cache = DirectoryCache()
        self._waiting = trio.lowlevel.ParkingLot()

    @contextmanager
    def pending(self) -> Iterator[DirectoryCache]:
        """An operation of the kernel's in this directory: until it is answered the kernel may hold the
        directory's lock."""
        self.cache.pending += 1
        self.wake()
        try:
            yield self.cache
        finally:
            self.cache.pending -= 1

    async def changed(self) -> None:
        """Wait until an operation has come, or an invalidation has ended."""
        await self._waiting.park()

    def wake(self) -> None:
        """Something has changed."""
        self._waiting.unpark_all()
