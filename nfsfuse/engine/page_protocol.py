"""The page protocol: how a page is taken from this client's programs because another client needs it.

In October 2000 Linus Torvalds sketched on linux-kernel how a network filesystem could have one copy of every
page although programs have it mapped: ::

    LockPage(page)                 nobody writes to this page
    gather_all_mmap_users(page)    find every mapping, write-protect it, shoot down the TLBs
    nfs_wb_page(page)              force write-back
    ClearPageUptodate(page)        the next access reads it in again
    UnlockPage(page)               the client can go wild

`PageProtocol.revoke` is those five lines, for a range of pages. What may run while it does is decided by
`nfsfuse.machines.data_tokens`; why it cannot deadlock is told in docs/coherence.md, and each rule there is a
test of the same name.
"""

from __future__ import annotations

import logging
from typing import Final

from nfsfuse.engine.cached_file import CachedFile
from nfsfuse.engine.write_back import WriteBack
from nfsfuse.machines.data_tokens import Phase, Revocation
from nfsfuse.ports.kernel import Kernel
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.intervals import Interval
from nfsfuse.protocol.tokens import TokenMode
from nfsfuse.protocol.types import PAGE_SIZE

log = logging.getLogger(__name__)

BULK_SIZE_MIN: Final = 16 * PAGE_SIZE
"""Bytes: from here on write-back in bulk pays, which costs as much as laundering some ten dirty pages."""


class PageProtocol:
    """Takes pages away from the kernel and the daemon, in the one order that loses nothing."""

    def __init__(self, kernel: Kernel, write_back: WriteBack) -> None:
        self._kernel = kernel
        self._write_back = write_back

    async def revoke(self, file: CachedFile, recall: Revocation) -> TokenMode:
        """Give up ``[recall.start, recall.end)`` down to *recall.keep*; the mode that is left. When this
        returns the recall may be acknowledged, and must be before anything else runs (K5)."""
        await self.lock_page(file, recall)
        # Decided once: somebody may begin to open the file for writing while this goes on. That waits for it.
        if recall.keep is TokenMode.SHARED and not file.tokens.writers:
            recall.phase = Phase.CLOSED  # nobody can write: clean pages may stay where they are
            kept = TokenMode.SHARED
        else:
            await self.gather_all_mmap_users(file, recall)
            kept = TokenMode.NONE
        if not await self.write_back_page(file, recall) and kept:
            await self.gather_all_mmap_users(file, recall)  # what is lost must not stay in the kernel
            kept = TokenMode.NONE
        self.clear_page_uptodate(file, recall, kept)
        self._check_k5(file, recall, kept)
        self.unlock_page(file, recall)
        return kept

    @staticmethod
    def _check_k5(file: CachedFile, recall: Revocation, kept: TokenMode) -> None:
        """Nothing beyond what is kept is left, anywhere, and everything dirty has been taken by the server."""
        start, end = recall.start, recall.end
        assert not file.pages.dirty.overlaps(start, end), "K5: dirty data are left"
        if kept is TokenMode.NONE:
            assert not file.tokens.in_kernel.overlaps(start, end), "K5: pages are left in the kernel"
            assert not file.pages.valid.overlaps(start, end), "K5: pages are left in the daemon"

    async def lock_page(self, file: CachedFile, recall: Revocation) -> None:
        """Wait for the operations that were granted these pages before the recall came: each gets to use
        them once, or two clients could take a page from each other for ever. And for earlier recalls of any
        of these pages, which the kernel may still be dropping for them."""
        while not file.tokens.may_begin(recall):
            await file.changed()

    async def gather_all_mmap_users(self, file: CachedFile, recall: Revocation) -> None:
        """The kernel locks each folio, unmaps it from every process, writes it back (which comes to us as
        FUSE_WRITEs that are taken at once) and drops it. Operations are parked from the instant it has
        returned; what those that ran meanwhile have put there is taken in a further pass."""
        while cached := file.tokens.invalidate(recall):
            file.wake()  # whoever was parked since the last pass may be what this one is going to wait for
            await self._invalidate(file, recall, cached)
        file.wake()

    async def _invalidate(self, file: CachedFile, recall: Revocation, cached: list[Interval]) -> None:
        last = cached[-1]
        inode = file.inode
        for start, end in cached:
            if end - start >= BULK_SIZE_MIN and file.tokens.may_be_dirty(start, end):
                await self._kernel.write_back_pages(inode.node_id, inode.generation, start, end)
            on_returned = recall.close if (start, end) == last else None
            await self._kernel.invalidate_pages(inode.node_id, start, end, on_returned)

    async def write_back_page(self, file: CachedFile, recall: Revocation) -> bool:
        """What is dirty goes to the server, which takes it from the holder that is being recalled. False if
        it refuses: that is lost, and its file's next fsync or close says so."""
        try:
            await self._write_back.write_back(file, recall.start, recall.end)
        except FsError as exc:
            log.error(
                "inode %d: a write-back that was recalled failed, data are lost: %s", file.inode.node_id, exc
            )
        return not file.pages.dirty.overlaps(recall.start, recall.end)

    def clear_page_uptodate(self, file: CachedFile, recall: Revocation, kept: TokenMode) -> None:
        """The daemon's own copy goes too, or stays as a clean one."""
        if kept is TokenMode.NONE:
            file.pages.drop(recall.start, recall.end)
            file.changes(recall.start, recall.end)
        file.tokens.reduce(recall.start, recall.end, kept)

    def unlock_page(self, file: CachedFile, recall: Revocation) -> None:
        """The client can go wild."""
        file.tokens.revoked(recall)
        file.wake()
