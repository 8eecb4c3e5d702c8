"""Open directories: listings in pieces, at offsets that stay good while the directory changes."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from typing import Final

from nfsfuse.machines.inodes import Inode, InodeTable
from nfsfuse.ports.remote import Remote
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.limits import LISTING_ENTRIES_MAX
from nfsfuse.protocol.types import OFFSET_MAX, DirEntry

# The server's cookies serve as offsets. Those of "." and ".." come from here; they are such as no filesystem
# uses (ext4 clears the lowest bit of its hashes, others count up from small numbers).
_AFTER_DOT: Final = OFFSET_MAX - 2
_AFTER_DOT_DOT: Final = OFFSET_MAX - 4


class _OpenDirectory:
    """One opendir(3). Keeps the last piece received, as the kernel asks for much less at a time."""

    def __init__(self, inode: Inode) -> None:
        self.inode = inode
        self._entries: tuple[DirEntry, ...] = ()
        self._end = False
        self._index: dict[int, int] = {}  # cookie to the index of the entry that follows it

    def replace(self, cookie: int, listing: m.Listing) -> None:
        self._entries, self._end = listing.entries, listing.end
        self._index = {entry.cookie: index + 1 for index, entry in enumerate(listing.entries)}
        self._index[cookie] = 0

    def after(self, cookie: int) -> tuple[DirEntry, ...] | None:
        """What follows *cookie* of the piece at hand; None if that must be asked for."""
        index = self._index.get(cookie)
        if index is None or (index == len(self._entries) and not self._end):
            return None
        return self._entries[index:]

    def drop(self) -> None:
        self._index = {}


class Directories:
    """Open directories of a mount. Raises FsError."""

    def __init__(self, remote: Remote, inodes: InodeTable) -> None:
        self._remote = remote
        self._inodes = inodes
        self._open: dict[int, _OpenDirectory] = {}
        self._ids = itertools.count(1)

    def opendir(self, node_id: int) -> int:
        number = next(self._ids)
        self._open[number] = _OpenDirectory(self._inodes[node_id])
        return number

    def releasedir(self, number: int) -> None:
        del self._open[number]

    async def fsyncdir(self, number: int) -> None:
        await self._remote.call(m.Fsync(self._open[number].inode.handle, False))

    async def read(self, number: int, offset: int) -> AsyncIterator[DirEntry]:
        """The entries after *offset*, "." and ".." first (their node is None); offset 0 lists anew."""
        directory = self._open[number]
        if offset == 0:
            directory.drop()
            yield DirEntry(b".", _AFTER_DOT, None)
        if offset in (0, _AFTER_DOT):
            yield DirEntry(b"..", _AFTER_DOT_DOT, None)
        cookie = 0 if offset in (_AFTER_DOT, _AFTER_DOT_DOT) else offset
        while True:
            entries = directory.after(cookie)
            if entries is None:
                message = m.ReadDir(directory.inode.handle, cookie, LISTING_ENTRIES_MAX)
                listing, _ = await self._remote.call(message)
                directory.replace(cookie, listing)
                entries = listing.entries
            if not entries:
                return
            for entry in entries:
                cookie = entry.cookie
                if entry.node is not None:
                    yield entry
