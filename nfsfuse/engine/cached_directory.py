"""A directory as this client holds it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nfsfuse.machines.directory_cache import DirectoryCache
from nfsfuse.machines.inodes import Inode
from nfsfuse.machines.kernel_listing import KernelListing


class CachedDirectory:
    """One directory."""

    __slots__ = ("cache", "inode", "kernel_listing", "unread")

    def __init__(self, inode: Inode) -> None:
        self.inode = inode
        self.cache = DirectoryCache()
        self.kernel_listing = KernelListing()
        self.unread: set[int] = set()
        """Open directories that were told something, which the kernel may not have taken in: until they ask
        for more, or are closed."""

    @contextmanager
    def pending(self) -> Iterator[DirectoryCache]:
        """An operation of the kernel's in this directory: until it is answered the kernel may hold the
        directory's lock."""
        self.cache.pending += 1
        try:
            yield self.cache
        finally:
            self.cache.pending -= 1
