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

import trio

from nfsfuse.engine.cached_file import CachedFile
from nfsfuse.engine.write_back import WriteBack
from nfsfuse.machines.data_tokens import Phase, Revocation
from nfsfuse.ports.kernel import Kernel
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.intervals import Interval
from nfsfuse.protocol.pages import pages_around
from nfsfuse.protocol.tokens import RANGE_END, TokenMode
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
        if file.tokens.may_keep_pages(recall):
            recall.phase = Phase.CLOSED
            kept = TokenMode.SHARED
        else:
            await self.gather_all_mmap_users(file, recall)
            kept = TokenMode.NONE
        refusal = await self.write_back_page(file, recall)
        if refusal and kept:
            await self.gather_all_mmap_users(file, recall)  # what is lost must not stay in the kernel
            kept = TokenMode.NONE
        while file.pages.writing.overlaps(recall.start, recall.end):
            await file.changed()  # somebody else (an fsync, the background) tries once more what was refused
        lost = sum(end - start for start, end in file.pages.dirty.intervals(recall.start, recall.end))
        self.clear_page_uptodate(file, recall, kept)
        if refusal and lost:
            log.error("%s: %d bytes are recalled and refused, the data are lost: %s", file.inode, lost, refusal)
            file.lost(refusal)
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
        them once, or two clients could take a page from each other for ever. (The program behind it gets to
        use them before they are unmapped: `Turns`.) And for earlier recalls of any of these pages, which the
        kernel may still be dropping for them."""
        while not file.tokens.may_begin(recall):
            await file.changed()

    async def gather_all_mmap_users(self, file: CachedFile, recall: Revocation) -> None:
        """The kernel locks each folio, unmaps it from every process, writes it back (which comes to us as
        FUSE_WRITEs that are taken at once) and drops it. Operations are parked from the instant it has
        returned; what those that ran meanwhile have put there is taken in a further pass. Only the first waits
        for programs to have their turn: while it does others may come, and a recall must not last for ever."""
        first = True
        while True:
            if file.tokens.follow(recall):
                file.wake()
                while file.tokens.follow(recall):
                    await file.changed()
            cached = file.tokens.invalidate(recall)
            if not cached:
                break
            file.wake()  # whoever was parked since the last pass may be what this one is going to wait for
            await self._invalidate(file, recall, cached, give_turns=first)
            first = False
        file.wake()

    async def _invalidate(
        self, file: CachedFile, recall: Revocation, cached: list[Interval], *, give_turns: bool
    ) -> None:
        last = cached[-1]
        inode = file.inode
        for start, end in cached:
            if end - start >= BULK_SIZE_MIN and file.tokens.may_be_dirty(start, end):
                await self._kernel.write_back_pages(inode.node_id, inode.generation, start, end)
            returned = recall.returned if (start, end) == last else None
            turn = file.turns.take(start, end, trio.current_time()) if give_turns else None
            await self._kernel.invalidate_pages(inode.node_id, start, end, returned, turn)

    async def write_back_page(self, file: CachedFile, recall: Revocation) -> FsError | None:
        """What is dirty goes to the server, which takes it from the holder that is being recalled. The error if
        it refuses: that is lost, and its file's next fsync or close says so."""
        return await self._write_back.write_back_all(file, recall.start, recall.end)

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

    async def take_from_kernel(self, file: CachedFile, start: int, end: int) -> Revocation:
        """The first two lines, for the client itself: it goes on holding ``[start, end)``, which is locked when
        this returns, and in no page of the kernel."""
        revocation = file.tokens.revoke(start, end, TokenMode.EXCLUSIVE)
        await self.lock_page(file, revocation)
        await self.gather_all_mmap_users(file, revocation)
        return revocation

    async def take_stores(self, file: CachedFile) -> None:
        """What programs have stored through mappings until now is this daemon's dirty data when this returns,
        and the next store is a fault again. Waits for the kernel. Not to be asked for while a change of the
        size is unanswered: the kernel writes no page back then (fuse_set_nowrite). Cancelled, it is as if it
        had not been asked for."""
        if not file.tokens.may_have_dirty_pages():
            return
        revocation = file.tokens.revoke(0, RANGE_END, TokenMode.EXCLUSIVE)
        await file.begun(revocation)
        with trio.CancelScope(shield=True):  # not to be left half-way; it waits for the kernel only
            await self.gather_all_mmap_users(file, revocation)
        self.unlock_page(file, revocation)

    async def drop_untaken(self, file: CachedFile) -> None:
        """Mapped pages were refused. Their kernel takes them for clean, and programs would go on finding there
        what is nowhere else: it drops them, until there are none. Waits for the kernel."""
        while untaken := file.tokens.untaken.intervals():
            revocation = await self.take_from_kernel(file, untaken[0][0], untaken[-1][1])
            self.unlock_page(file, revocation)

    async def give_up(self, file: CachedFile) -> None:
        """The server refuses what is dirty, and nobody has the file open: it is dropped, as if it were
        recalled, so that no program finds in the kernel what is nowhere else. If it is opened meanwhile, it is
        kept as for any open file. Waits for the kernel, and for write-backs under way."""
        refused = file.pages.refused.intervals()
        if not refused:
            return  # it was done already, for another of the requests that failed together
        start, end = pages_around(refused[0][0], refused[-1][1])
        revocation = await self.take_from_kernel(file, start, end)
        while file.pages.writing.overlaps(start, end):
            await file.changed()
        error = file.refusal()
        lost = file.pages.refused.intervals(start, end)
        if error is not None and lost and file.open_count == 0:
            for low, high in lost:
                file.pages.drop(low, high)
                file.changes(low, high)
            file.lost(error)
            size = sum(high - low for low, high in lost)
            log.error("%s: %d bytes are lost, which the server refused to the end: %s", file.inode, size, error)
        self.unlock_page(file, revocation)

    async def give_up_shared(self, file: CachedFile) -> None:
        """K2: open for writing, nothing is held SHARED. The server upgraded what it could; what others share
        is given up, the kernel's pages first, and comes again page by page as it is used.

        The server is not told: a return would cross with grants that are on their way. That it believes too
        much costs a recall that is acknowledged at once."""
        while shared := file.tokens.shared():
            await self._give_up_range(file, *shared[0])

    async def _give_up_range(self, file: CachedFile, start: int, end: int) -> None:
        revocation = file.tokens.revoke(start, end, TokenMode.NONE)
        await file.begun(revocation)
        with trio.CancelScope(shield=True):  # half of it must not stay; it waits for the kernel only
            await self.gather_all_mmap_users(file, revocation)
        for low, high in file.tokens.shared():  # some of it may have been upgraded, and used, meanwhile
            low, high = max(low, start), min(high, end)
            if low < high:
                file.pages.drop(low, high)
                file.changes(low, high)
                file.tokens.reduce(low, high, TokenMode.NONE)
        file.tokens.revoked(revocation)
        file.wake()
