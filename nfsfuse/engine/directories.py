"""Open directories: listings in pieces, at offsets that stay good while the directory changes."""

from __future__ import annotations

import errno
import itertools
from typing import Final

from nfsfuse.engine.cached_directory import CachedDirectory
from nfsfuse.engine.holdings import Holdings
from nfsfuse.engine.names import Names
from nfsfuse.engine.numbers import Numbers
from nfsfuse.machines.directory_cache import Listed
from nfsfuse.machines.inodes import Inode, InodeTable
from nfsfuse.ports.kernel import Kernel
from nfsfuse.ports.remote import Remote
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.limits import LISTING_ENTRIES_MAX
from nfsfuse.protocol.messages import Message
from nfsfuse.protocol.record import record
from nfsfuse.protocol.tokens import RANGE_END, TokenMode
from nfsfuse.protocol.types import OFFSET_MAX, Attributes, InodeHandle, Node

# The server's cookies serve as offsets. Those of "." and ".." come from here; they are such as no filesystem
# uses (ext4 clears the lowest bit of its hashes, others count up from small numbers).
_AFTER_DOT: Final = OFFSET_MAX - 2
_AFTER_DOT_DOT: Final = OFFSET_MAX - 4

ITEMS_MAX: Final = 256
"""Entries put together at once: more than the kernel's buffer for one request takes."""

SOUGHT_ENTRIES: Final = 64
"""Entries asked for where a program has gone with seekdir(3): it may go elsewhere next. If it goes on, as many
as ever."""


@record(frozen=True, slots=True)
class Item:
    """One entry of a listing. *inode* is None for "." and "..", which have a *number*, their node id, alone.
    *lasting* as in `names.Found`."""

    name: bytes
    cookie: int
    number: int = 0
    inode: Inode | None = None
    attributes: Attributes | None = None
    lasting: bool = False


@record(frozen=True, slots=True)
class Opening:
    """An open directory: its number, and whether the kernel may cache the listing, and believe what it has of
    it (`machines.kernel_listing`)."""

    number: int
    cached: bool
    kept: bool


class _OpenDirectory:
    """One opendir(3). Keeps the last piece, as the kernel asks for much less at a time."""

    def __init__(self, number: int, directory: CachedDirectory) -> None:
        self.number = number
        self.directory = directory
        self._entries: tuple[Listed, ...] = ()
        self._end = False
        self.changes = -1  # `DirectoryCache.changes` when the piece was listed
        self.attributes: dict[InodeHandle, Attributes] = {}  # as the server told them with the piece
        self._index: dict[int, int] = {}  # cookie to the index of the entry that follows it

    def replace(self, cookie: int, entries: tuple[Listed, ...], end: bool, changes: int) -> None:
        self._entries, self._end, self.changes = entries, end, changes
        self._index = {after: index + 1 for index, (_, after, _) in enumerate(entries)}
        self._index[cookie] = 0

    def after(self, cookie: int) -> tuple[Listed, ...] | None:
        """What follows *cookie* of the piece at hand; None if that must be asked for."""
        index = self._index.get(cookie)
        if index is None or (index == len(self._entries) and not self._end):
            return None
        return self._entries[index:]

    def drop(self) -> None:
        self._index = {}

    def continues(self, cookie: int) -> bool:
        """Whether *cookie* is the beginning, or follows the piece at hand."""
        return cookie == 0 or (bool(self._entries) and self._entries[-1][1] == cookie)

    def handles(self) -> list[InodeHandle]:
        """What is in the piece at hand."""
        return [handle for _, _, handle in self._entries]


class Directories:
    """Open directories of a mount. Raises FsError."""

    def __init__(
        self,
        remote: Remote,
        inodes: InodeTable,
        holdings: Holdings,
        names: Names,
        numbers: Numbers,
        kernel: Kernel,
    ) -> None:
        self._remote = remote
        self._kernel = kernel
        self._inodes = inodes
        self._holdings = holdings
        self._names = names
        self._numbers = numbers
        self._open: dict[int, _OpenDirectory] = {}
        self._ids = itertools.count(1)

    def opendir(self, node_id: int) -> Opening:
        number = next(self._ids)
        directory = self._holdings.directory(self._inodes[node_id])
        self._open[number] = _OpenDirectory(number, directory)
        cached, kept = directory.kernel_listing.opened(number, directory.cache.changes)
        return Opening(number, cached, kept)

    def releasedir(self, number: int) -> None:
        opened = self._open.pop(number)
        opened.directory.unread.discard(number)
        opened.directory.kernel_listing.released(number)
        self._holdings.never_told(opened.handles())

    async def fsyncdir(self, number: int) -> None:
        await self._remote.call(m.Fsync(self._open[number].directory.inode.handle, False))

    async def read(self, number: int, offset: int) -> list[Item]:
        """Some entries after *offset*, "." and ".." first; none at the end. Offset 0 lists anew.

        What is told of them is put together without waiting, last of all: so nothing in it was recalled
        before the kernel gets it."""
        opened = self._open[number]
        directory = opened.directory
        directory.unread.discard(number)
        with directory.pending():
            await self._remote.until_leased()
            if directory.kernel_listing.must_drop(number):
                await self._kernel.invalidate_pages(directory.inode.node_id, 0, RANGE_END)
            if offset == 0:
                opened.drop()
            cookie = 0 if offset in (_AFTER_DOT, _AFTER_DOT_DOT) else offset
            while True:
                at_hand = opened.after(cookie)
                entries = (await self._piece(opened, cookie) if at_hand is None else at_hand)[:ITEMS_MAX]
                above = await self._numbers.above(directory) if offset in (0, _AFTER_DOT) else 0
                if any(self._inodes.by_handle(handle) is None for _, _, handle in entries):
                    entries = (await self._ask(opened, cookie))[:ITEMS_MAX]  # the kernel forgot some meanwhile
                told = await self._attributes(opened, entries)
                dots = [Item(b".", _AFTER_DOT, directory.inode.node_id)] if offset == 0 else []
                dots += [Item(b"..", _AFTER_DOT_DOT, above)] if above else []
                items = [item for entry in entries if (item := self._item(opened, entry, told)) is not None]
                if items:
                    directory.unread.add(number)
                if items or not entries:
                    return dots + items
                cookie = entries[-1][1]  # all of them are gone: an empty answer would be the end

    async def _attributes(
        self, opened: _OpenDirectory, entries: tuple[Listed, ...]
    ) -> dict[InodeHandle, Attributes]:
        """The attributes of all *entries* but those that are gone."""
        told: dict[InodeHandle, Attributes] = {}
        for _, _, handle in entries:
            inode = self._inodes.by_handle(handle)
            known = opened.attributes.get(handle) if inode is None else inode.attributes.known
            if known is not None:
                told[handle] = known
            elif inode is not None:
                try:
                    told[handle] = await self._names.getattr(inode.node_id)
                except FsError as exc:
                    if exc.errno != errno.ESTALE:
                        raise
        return told

    def _item(
        self, opened: _OpenDirectory, entry: Listed, told: dict[InodeHandle, Attributes]
    ) -> Item | None:
        """What is told of an entry; None if it is gone."""
        name, cookie, handle = entry
        if handle not in told:
            return None
        try:
            inode = self._inodes.still(Node(handle, told[handle]))
        except FsError:
            return None
        inode.found_as = inode.found_as or (opened.directory.inode, name)
        attributes = inode.attributes.known or told[handle]
        # A piece is shown as it was listed, but what has changed since then is not to be believed.
        cache = opened.directory.cache
        lasting = opened.changes == cache.changes and cache.learned(name, handle)
        return Item(name, cookie, 0, inode, attributes, lasting)

    async def _piece(self, opened: _OpenDirectory, cookie: int) -> tuple[Listed, ...]:
        known = opened.directory.cache.listing(cookie, ITEMS_MAX)
        if known is None:
            return await self._ask(opened, cookie)
        opened.replace(cookie, *known, opened.directory.cache.changes)
        return known[0]

    async def _ask(self, opened: _OpenDirectory, cookie: int) -> tuple[Listed, ...]:
        """Have the server list what follows *cookie*, with the attributes and the tokens for them."""
        cache = opened.directory.cache
        changes = cache.changes
        entries: tuple[Listed, ...] = ()
        before = opened.handles()

        def listed(reply: Message, _: bytes | bytearray) -> None:
            nonlocal entries
            assert isinstance(reply, m.Listing)
            self._holdings.apply(reply.tokens)
            attributes_of_it = opened.directory.inode.attributes
            if reply.above and attributes_of_it.mode is not TokenMode.NONE:
                attributes_of_it.above = reply.above
            for entry in reply.entries:
                if entry.node is not None:
                    self._holdings.listed(entry.node)
            entries = tuple((e.name, e.cookie, e.node.handle) for e in reply.entries if e.node is not None)
            cache.listed(cookie, entries, reply.end, changes)
            # Not with what leads to another filesystem, or was gone already: that is no inode, but a name.
            if cookie == 0 and reply.end and len(entries) == len(reply.entries) and changes == cache.changes:
                cache.knows_all()
            opened.replace(cookie, entries, reply.end, changes)
            opened.attributes = {e.node.handle: e.node.attributes for e in reply.entries if e.node is not None}

        limit = LISTING_ENTRIES_MAX if opened.continues(cookie) else SOUGHT_ENTRIES
        message = m.ReadDir(opened.directory.inode.handle, cookie, limit)
        await self._remote.call(message, b"", listed)
        self._holdings.never_told(set(before).difference(opened.handles()))
        return entries
