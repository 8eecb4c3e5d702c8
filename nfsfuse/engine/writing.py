"""FUSE_WRITE: absorbed under an EXCLUSIVE token."""

from __future__ import annotations

from collections.abc import Callable
from errno import EIO

import trio

from nfsfuse.engine.cached_file import CachedFile
from nfsfuse.engine.holdings import Holdings
from nfsfuse.engine.page_protocol import PageProtocol
from nfsfuse.engine.reading import pages_of
from nfsfuse.engine.write_back import WriteBack
from nfsfuse.ports.remote import Remote
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.intervals import Interval, IntervalSet
from nfsfuse.protocol.messages import Message
from nfsfuse.protocol.tokens import TokenMode
from nfsfuse.protocol.types import PAGE_SIZE


class Writer:
    """Writes of a mount. *wall_clock* gives nanoseconds since the epoch, for mtime."""

    def __init__(
        self,
        remote: Remote,
        holdings: Holdings,
        write_back: WriteBack,
        page_protocol: PageProtocol,
        wall_clock: Callable[[], int],
    ) -> None:
        self._remote = remote
        self._holdings = holdings
        self._write_back = write_back
        self._page_protocol = page_protocol
        self._wall_clock = wall_clock

    async def write(
        self, file: CachedFile, offset: int, data: bytes, *, append: bool, direct: bool, page: bool
    ) -> int:
        """Take *data* in; the bytes taken, always all. *append*: at the true end, wherever that is. *direct*:
        the kernel does not keep what it wrote. *page*: it is the write-back of a mapped page.

        Raises FsError. Data of the file that the server has refused are tried first: a program that never asks
        by fsync learns of a full disk here, and nothing is taken in that may not find room either."""
        entitled: int | None = None
        # The write-back of a page carries what the page holds: no page that is read anew lacks it.
        passed = IntervalSet() if page else file.tokens.watch()
        size, cached = len(data), not (append or direct or page)
        try:
            while True:
                known = file.size()
                if append and known is not None:
                    offset = known
                end = offset + len(data)
                start_page, end_page = pages_of(offset, len(data))
                extends = append or self._may_extend(file, end, page, start_page, end_page)
                if self._parked(file, start_page, end_page, direct=direct) or (
                    extends and file.attributes.revoking
                ):
                    file.used(entitled)
                    entitled = None
                    await file.changed()
                elif page and file.purging:
                    failure = FsError(EIO, "stored before the session was lost")
                    file.errors.lost(failure)
                    raise failure
                elif not page and not self._remote.leased(finishing=True):
                    file.used(entitled)
                    entitled = None
                    await self._remote.until_leased()
                elif cached and self._only_end_is_held(file, offset, start_page, end_page):
                    # The kernel may have locked the last page, if it is partly written, until this is answered:
                    # a recall of that page would wait for it, and the server for the recall.
                    file.used(entitled)
                    entitled = None
                    last = end_page - PAGE_SIZE
                    await self.write(file, last, data[last - offset :], append=False, direct=False, page=False)
                    data = data[: last - offset]
                elif not file.tokens.holds(start_page, end_page, TokenMode.EXCLUSIVE) or (
                    extends and not file.attributes.may_change_here()
                ):
                    file.used(entitled)
                    entitled = None  # while it waits for the server nobody may wait for it (K6)
                    entitled = await self._get_tokens(file, start_page, end_page, extends, direct=direct)
                elif file.pages.writing.overlaps(offset, end) and not self._may_write_over(page):
                    await file.changed()
                elif not page and file.pages.refused:
                    file.used(entitled)
                    entitled = None  # no recall need wait for the server's disk
                    await self._write_back.try_again(file)
                elif page and self._write_back.overflows(file):
                    raise self._write_back.overflowed(file, len(data))
                elif not page and not self._write_back.has_room():
                    await self._write_back.room()
                elif lacking := self._lacking(file, start_page, end_page, passed, direct=direct):
                    if entitled is None:
                        entitled = file.entitle(start_page, end_page, attr=extends)
                    if await self._write_past_kernel(
                        file, offset, data, extends, lacking, passed, entitled, direct=direct
                    ):
                        break
                else:
                    over = self._may_write_over(page)
                    self._absorb(file, offset, data, keeps=not (direct or page), over=over)
                    break
        finally:
            file.used(entitled)
            file.tokens.unwatch(passed)
        return size

    @staticmethod
    def _parked(file: CachedFile, start: int, end: int, *, direct: bool) -> bool:
        """Whether a recall has to end first. A write past the kernel's pages has none of them locked, and what
        an invalidation is about to write back lacks it: it waits for that, too."""
        return file.tokens.parked(start, end) or (direct and file.tokens.invalidating(start, end))

    @staticmethod
    def _only_end_is_held(file: CachedFile, offset: int, start_page: int, end_page: int) -> bool:
        last = end_page - PAGE_SIZE
        return (
            offset < last
            and file.tokens.holds(last, end_page, TokenMode.EXCLUSIVE)
            and not file.tokens.holds(start_page, last, TokenMode.EXCLUSIVE)
        )

    async def _write_past_kernel(
        self,
        file: CachedFile,
        offset: int,
        data: bytes,
        extends: bool,
        lacking: Interval,
        passed: IntervalSet,
        entitled: int,
        *,
        direct: bool,
    ) -> bool:
        """The kernel has pages in *lacking* that lack what is written past them. They are taken from it as if
        for another client, or what programs store into them would be written back over it, and the data are
        absorbed before they can be read in again. False if that cannot be done any more: the tokens were
        recalled before, the end of the file is elsewhere, or pages beside *lacking* have been read in
        meanwhile. Killed, its program has dropped some pages and written nothing.

        The operation is *entitled* all the while: gave it its turn up for this, clients that write to one page
        and also have it mapped would take the page from each other for ever."""
        known = file.size()
        start, end = pages_of(offset, len(data))
        revocation = file.tokens.flush(*lacking, entitled)
        try:
            while not file.tokens.may_begin(revocation):
                await file.changed()
            with trio.CancelScope(shield=True):  # not to be left half-way; it waits for the kernel only
                await self._page_protocol.gather_all_mmap_users(file, revocation)
            while file.pages.writing.overlaps(offset, offset + len(data)):
                await file.changed()  # the server answers these without granting anything
            possible = (
                file.size() == known
                and file.tokens.holds(start, end, TokenMode.EXCLUSIVE)
                and (not extends or file.attributes.may_change_here())
                and not self._lacking(file, start, end, passed, direct=direct)
            )
            if possible:
                self._absorb(file, offset, data, keeps=not direct)
        finally:
            file.tokens.revoked(revocation)
            file.wake()
        return possible

    @staticmethod
    def _lacking(
        file: CachedFile, start: int, end: int, passed: IntervalSet, *, direct: bool
    ) -> Interval | None:
        """A range with the pages that the kernel may have up to date without what is written: all of a write
        past its pages, if it has any there (an append may even be elsewhere than it knows), so that none is
        read in beside; else those it has read since the write came. The write itself has none of them locked:
        that would have kept reads away, and only its last page can be."""
        if direct:
            return (start, end) if file.tokens.in_kernel.overlaps(start, end) else None
        read = passed.intervals(start, end)
        found = [it for low, high in read for it in file.tokens.in_kernel.intervals(low, high)]
        return (found[0][0], found[-1][1]) if found else None

    @staticmethod
    def _may_extend(file: CachedFile, end: int, page: bool, start_page: int, end_page: int) -> bool:
        """Whether the size has to be known, and may grow, for a write up to *end*.

        Not for a mapped page: that never grows a file, and it may be the invalidation of a recall that writes
        it back, which must not wait for a grant (K6). Nor for a write that an invalidation in the kernel may
        be waiting for, for the same reason: if it does extend the file, the others are told when it is
        written back."""
        known = file.size()
        if page or (known is not None and end <= known):
            return False
        return not file.tokens.invalidating(start_page, end_page)

    def _may_write_over(self, page: bool) -> bool:
        """Whether what is on its way to the server may change here. A mapped page that is dropped with the
        lease must not wait for the server, which cannot be reached: it, and the pages behind it, could be
        read and loaded past the lease (promise 8)."""
        return page and not self._remote.leased()

    def _absorb(
        self, file: CachedFile, offset: int, data: bytes, *, keeps: bool, over: bool = False
    ) -> None:
        end = offset + len(data)
        assert file.tokens.holds(*pages_of(offset, len(data)), TokenMode.EXCLUSIVE), "K3"
        file.changes(offset, end)
        file.pages.write(offset, data, trio.current_time(), over=over)
        if file.attributes.may_change_here():
            file.attributes.written(end, self._wall_clock())
        else:
            file.attributes.forget_value()
        if keeps:
            # The kernel has whole pages up to date already; of others it knows what it knew.
            first, last = -(-offset // PAGE_SIZE) * PAGE_SIZE, end // PAGE_SIZE * PAGE_SIZE
            if first < last:
                file.tokens.written(first, last)
        self._write_back.dirtied(file)

    async def _get_tokens(
        self, file: CachedFile, start: int, end: int, extends: bool, *, direct: bool
    ) -> int | None:
        entitled: int | None = None

        def arrived(reply: Message, _: bytes | bytearray) -> None:
            nonlocal entitled
            assert isinstance(reply, m.TokenGrant)
            self._holdings.apply(reply.tokens)
            if reply.attributes is not None:
                self._holdings.learn(file.inode, reply.attributes)
            entitled = file.entitle(start, end, attr=extends)

        # Data that are held are not asked for: that would wait for a recall of them, and the recall perhaps for
        # the lock of a page that this write has in part. Attributes never wait for a recall of data. A write
        # past the kernel's pages has none of them locked and asks for both at once: else it could lose either
        # while it waits for the other, again and again.
        held = file.tokens.holds(start, end, TokenMode.EXCLUSIVE) and not (direct and extends)
        data = TokenMode.NONE if held else TokenMode.EXCLUSIVE
        attr = TokenMode.EXCLUSIVE if extends else TokenMode.NONE
        message = m.GetToken(file.inode.handle, data, start, end, attr)
        try:
            await self._remote.call(message, b"", arrived)
        except BaseException:
            file.used(entitled)
            raise
        return entitled
