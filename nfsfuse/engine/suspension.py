"""What happens when the lease is about to run out: nothing may be read from a cache past it (promise 8).

It is a recall of everything that takes nothing. Each file's pages leave the kernel by the very protocol by
which they leave it for another client (`PageProtocol.gather_all_mmap_users`), so what programs have stored
through mappings lands in the daemon; operations are parked as in any recall, until the lease runs again. What
is held and what is dirty stays: if the server still has the session then, nothing was lost. Names stay too, and
with them what is mounted below them: before it uses one the kernel asks for the attributes of its directory, to
see whether it may, and these are not told until the lease runs again.
"""

from __future__ import annotations

import logging
from typing import Final

import trio

from nfsfuse.engine.cached_file import CachedFile
from nfsfuse.engine.distrust import distrust_attributes, distrust_when_known
from nfsfuse.engine.holdings import Holdings
from nfsfuse.engine.name_drops import NameDrops, lost_names
from nfsfuse.engine.page_protocol import PageProtocol
from nfsfuse.machines.data_tokens import Revocation
from nfsfuse.machines.inodes import Inode, InodeTable
from nfsfuse.ports.kernel import Kernel
from nfsfuse.protocol.tokens import RANGE_END

log = logging.getLogger(__name__)

FILES_AT_ONCE: Final = 16
"""Files whose pages are dropped at the same time: a file whose pages are slow to write must not keep the
others."""


class Suspension:
    """Drops the kernel's caches, and parks whoever comes."""

    def __init__(
        self,
        inodes: InodeTable,
        holdings: Holdings,
        kernel: Kernel,
        page_protocol: PageProtocol,
        name_drops: NameDrops,
    ) -> None:
        self._inodes = inodes
        self._holdings = holdings
        self._kernel = kernel
        self._page_protocol = page_protocol
        self._name_drops = name_drops
        self._wanted = False
        self._running = False
        self._begun = 0
        self._changed = trio.lowlevel.ParkingLot()

    def begin(self, nursery: trio.Nursery) -> None:
        """The lease is about to run out."""
        self._wanted = True
        self._begun += 1
        self._changed.unpark_all()
        if not self._running:
            self._running = True
            nursery.start_soon(self._run)

    def end(self) -> None:
        """The lease runs again, or the session is over and everything forgotten."""
        self._wanted = False
        self._changed.unpark_all()

    async def refresh(self) -> None:
        """Drop everything clean once, here and in the kernel: the server may have lost it. What is held and
        what is dirty stays. Operations that come meanwhile wait."""
        parked = [(file, file.tokens.suspend()) for file in self._holdings.files()]
        names = lost_names(self._holdings.directories())
        await self._drop(parked)
        await self._name_drops.purge(names)
        for inode in self._inodes:
            inode.attributes.forget_value()
            inode.attributes.forget_xattrs()
        for directory in self._holdings.directories():
            directory.cache.forget()
        for file, revocation in parked:
            file.changes(0, RANGE_END)
            file.pages.drop_clean()
            file.tokens.revoked(revocation)
            file.wake()

    async def _run(self) -> None:
        while self._wanted:
            number = self._begun
            parked = [(file, file.tokens.suspend()) for file in self._holdings.files()]
            await self._drop(parked)
            while self._wanted and self._begun == number:
                await self._changed.park()
            for file, revocation in parked:
                file.tokens.revoked(revocation)
                file.wake()
        self._running = False

    async def _drop(self, parked: list[tuple[CachedFile, Revocation]]) -> None:
        began = trio.current_time()
        if not self._kernel.checks_permissions:
            await self._kernel.distrust_entries()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._distrust_attributes)
            for directory in self._holdings.distrust_listings():
                nursery.start_soon(self._kernel.invalidate_pages, directory.inode.node_id, 0, RANGE_END)
            limit = trio.CapacityLimiter(FILES_AT_ONCE)
            for file, revocation in parked:
                if file.tokens.in_kernel or not file.tokens.may_suspend(revocation):
                    nursery.start_soon(self._drop_pages, file, revocation, limit)
                else:
                    file.tokens.invalidate(revocation)  # which parks, as there is nothing
        log.info("caches were dropped in %.3f s", trio.current_time() - began)

    async def _distrust_attributes(self) -> None:
        stuck: list[Inode] = []
        for inode in self._inodes:
            if inode.attributes.kernel_believes:
                inode.attributes.kernel_is_told()
                inode.attributes.distrusting += 1
                if not await distrust_attributes(self._kernel, inode):
                    stuck.append(inode)  # until the server answers again
                    continue
                inode.attributes.distrusting -= 1
        for inode in stuck:
            await distrust_when_known(self._kernel, inode)
            inode.attributes.distrusting -= 1

    async def _drop_pages(self, file: CachedFile, revocation: Revocation, limit: trio.CapacityLimiter) -> None:
        while not file.tokens.may_suspend(revocation):
            await file.changed()
        async with limit:
            await self._page_protocol.gather_all_mmap_users(file, revocation)
