"""The page cache of one inode, as a client's kernel keeps it: folios, their flags, and who waits for them.

Of Linux 6.18, mm/filemap.c, mm/truncate.c and fs/fuse/{file,inode,dir}.c, what matters to a network
filesystem: a folio is up to date or not, dirty or not, locked by one task, under write-back, and mapped into
programs that load and store without asking anybody. A folio is one page here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from nfsfuse.machines.inodes import NodeId
from nfsfuse.protocol.types import PAGE_SIZE

if TYPE_CHECKING:
    from tests.helpers.kernel_model import Descriptor


@dataclass(slots=True, eq=False)
class Folio:
    """One page in memory. It outlives its place in the cache for as long as a write(2) refers to it."""

    index: int
    data: bytearray = field(default_factory=lambda: bytearray(PAGE_SIZE))
    uptodate: bool = False
    dirty: bool = False
    locked: bool = False
    under_write_back: bool = False
    mapped: dict[object, bool] = field(default_factory=dict)  # the mapping: whether its PTE is writable
    writes_pending: int = 0  # write(2)s that have copied into it and are not answered yet

    def __str__(self) -> str:
        flags = ("uptodate", "dirty", "locked", "under_write_back", "mapped", "writes_pending")
        return f"{self.index}: {' '.join(flag for flag in flags if getattr(self, flag))}"

    def protect(self) -> None:
        """page_mkclean: the next store faults."""
        for mapping in self.mapped:
            self.mapped[mapping] = False


class KernelInode:
    """What the kernel knows of one regular file."""

    def __init__(self, node_id: NodeId, size: int) -> None:
        self.node_id = node_id
        self.folios: dict[int, Folio] = {}
        self.size = size
        self.attributes_valid = False
        self.times = 0, 0  # mtime and ctime in nanoseconds, as they were told last
        self.attribute_version = 0
        self.size_unstable = False  # FUSE_I_SIZE_UNSTABLE
        self.lock = trio.Lock()  # inode->i_rwsem, taken by write(2), truncate(2) and fsync(2)
        self.open_for_writing: list[Descriptor] = []  # a page can be written back through them
        self.opens_under_way = 0
        self.nowrite = False  # FUSE_NOWRITE: page write-backs wait until a truncation is answered
        self.write_backs = 0
        self.truncations = 0  # begun and ended: odd while one is under way
        self._changed = trio.lowlevel.ParkingLot()

    def __str__(self) -> str:
        folios = ", ".join(str(folio) for _, folio in sorted(self.folios.items()))
        flags = [
            name
            for name, is_set in (
                ("locked", self.lock.locked()),
                ("nowrite", self.nowrite),
                ("attributes valid", self.attributes_valid),
            )
            if is_set
        ]
        return f"inode {self.node_id}: {self.size} bytes, {' '.join(flags)}, folios [{folios}]"

    async def changed(self) -> None:
        """Wait until some folio, or what page write-backs wait for, has changed."""
        await self._changed.park()

    def wake(self) -> None:
        self._changed.unpark_all()

    async def lock_folio(self, folio: Folio) -> bool:
        """folio_lock; False if the folio has left the cache meanwhile (then it is not locked)."""
        while folio.locked:
            await self.changed()
        if self.folios.get(folio.index) is not folio:
            return False
        folio.locked = True
        return True

    def unlock_folio(self, folio: Folio) -> None:
        assert folio.locked
        folio.locked = False
        self.wake()

    async def wait_write_back(self, folio: Folio) -> None:
        """folio_wait_writeback."""
        while folio.under_write_back:
            await self.changed()

    def has_write_back(self, start: int, end: int) -> bool:
        """filemap_range_has_writeback."""
        return any(
            folio.dirty or folio.locked or folio.under_write_back
            for index, folio in self.folios.items()
            if start < (index + 1) * PAGE_SIZE and index * PAGE_SIZE < end
        )

    def drop(self, folio: Folio) -> None:
        """Out of the page tables and out of the cache; the caller has locked it."""
        folio.mapped.clear()
        del self.folios[folio.index]

    async def truncate_pagecache(self, size: int) -> None:
        """truncate_inode_pages: what lies beyond *size* goes, dirty or not; a page cut in two ends in zeros."""
        for index in sorted(self.folios):
            folio = self.folios.get(index)
            if folio is None or (index + 1) * PAGE_SIZE <= size:
                continue
            if not await self.lock_folio(folio):
                continue
            await self.wait_write_back(folio)
            if index * PAGE_SIZE >= size:
                self.drop(folio)
            else:
                folio.data[size - index * PAGE_SIZE :] = bytes((index + 1) * PAGE_SIZE - size)
            self.unlock_folio(folio)
