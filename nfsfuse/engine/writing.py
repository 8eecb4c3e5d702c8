"""FUSE_WRITE: absorbed under an EXCLUSIVE token."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from errno import EFBIG, EIO, ENODATA, EOPNOTSUPP

import trio

from nfsfuse.engine.cached_file import CachedFile
from nfsfuse.engine.growths import Growths
from nfsfuse.engine.holdings import Holdings
from nfsfuse.engine.page_protocol import PageProtocol
from nfsfuse.engine.write_back import WriteBack
from nfsfuse.ports.remote import Remote
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.intervals import Interval, IntervalSet
from nfsfuse.protocol.messages import Message
from nfsfuse.protocol.pages import pages_of, pages_within
from nfsfuse.protocol.tokens import TokenMode
from nfsfuse.protocol.types import CAPABILITY, OFFSET_MAX, PAGE_SIZE

Bytes = bytes | memoryview


class _Obstacle(Enum):
    """What a write has to wait for, in the order in which it is looked for."""

    RECALL = "a recall of what it needs has to end"
    PURGE = "its page was stored before the session was lost"
    LEASE = "the lease does not run"
    END_HELD = "of its pages only the last one is held"
    TOKENS = "something is not held"
    CAPABILITIES = "the file may have capabilities, which a write takes away"
    WRITE_BACK = "the extent is on its way to the server, and must not change"
    TELLING = "the times of what is dirty are about to be told, which this would change"
    OVERFLOW = "there is no memory for a page beside what the server refuses"
    REFUSED = "the server refuses data of this file"
    ROOM = "too much is dirty"
    KERNEL_PAGES = "the kernel has pages that lack it"


@dataclass(slots=True)
class _Write:
    """A write on its way in. *passed*: see `DataTokens.watch`. What follows that is determined whenever it is
    looked what is in the way: its pages, and whether the size has to be known, and may grow."""

    offset: int
    data: Bytes
    append: bool
    direct: bool
    page: bool
    passed: IntervalSet
    start_page: int = 0
    end_page: int = 0
    extends: bool = False
    capabilities_taken: bool = False
    beyond: int = 0
    """Bytes that were cut off, as they would be beyond the largest file."""

    @property
    def cached(self) -> bool:
        """The kernel keeps what it wrote."""
        return not (self.append or self.direct or self.page)


class Writer:
    """Writes of a mount."""

    def __init__(
        self,
        remote: Remote,
        holdings: Holdings,
        write_back: WriteBack,
        page_protocol: PageProtocol,
        growths: Growths,
    ) -> None:
        self._remote = remote
        self._growths = growths
        self._holdings = holdings
        self._write_back = write_back
        self._page_protocol = page_protocol
        self.file_size_max = OFFSET_MAX
        """Bytes: what the server's filesystem holds. Who writes beyond is told at once, as by a local one, and
        not by the write-back."""

    def write_at_once(
        self, file: CachedFile, offset: int, data: Bytes, *, append: bool, direct: bool, page: bool
    ) -> int | None:
        """As `write`, if nothing is in the way; else None, and nothing is done. Keeps nothing of *data*."""
        write = _Write(offset, data, append, direct, page, IntervalSet())
        if self._in_the_way(file, write) is not None or self._others_wait(file, write):
            return None
        if write.offset != offset:
            return None  # the kernel does not know where the file ends
        self._absorb(file, write)
        return len(data) - write.beyond

    async def write(
        self, file: CachedFile, offset: int, data: bytes, *, append: bool, direct: bool, page: bool
    ) -> int:
        """Take *data* in; the bytes taken, which are all unless the largest possible file ends there. *append*:
        at the true end, wherever that is. *direct*: the kernel does not keep what it wrote. *page*: it is the
        write-back of a mapped page.

        Raises FsError. Data of the file that the server has refused are tried first: a program that never asks
        by fsync learns of a full disk here, and nothing is taken in that may not find room either. If it makes
        the file longer, whoever has it open knows when this returns."""
        # The write-back of a page carries what the page holds: no page that is read anew lacks it.
        passed = IntervalSet() if page else file.tokens.watch()
        size, write = len(data), _Write(offset, data, append, direct, page, passed)
        await self._take_in(file, write)
        end = write.offset + len(write.data)
        if self._others_wait(file, write):
            await self._growths.tell_others(file, end)
        if append and write.offset != offset:
            # It takes the data to be where it believed the file to end.
            await self._growths.tell_kernel_when_known(file.inode, end)
        return size - write.beyond

    async def _take_in(self, file: CachedFile, write: _Write) -> None:
        """Overcome what is in the way of *write*, and absorb it."""
        entitled: int | None = None
        try:
            while (obstacle := self._in_the_way(file, write)) is not None:
                if obstacle is _Obstacle.KERNEL_PAGES:
                    if entitled is None:
                        entitled = file.entitle(write.start_page, write.end_page, attr=write.extends)
                    if await self._write_past_kernel(file, write, entitled):
                        return
                elif obstacle in (_Obstacle.WRITE_BACK, _Obstacle.TELLING):
                    await file.changed()
                elif obstacle is _Obstacle.ROOM:
                    await self._write_back.room()
                else:
                    file.used(entitled)
                    entitled = None  # while it waits for the server nobody may wait for it (K6)
                    entitled = await self._overcome(file, write, obstacle)
            self._absorb(file, write)
        finally:
            file.used(entitled)
            file.tokens.unwatch(write.passed)

    @staticmethod
    def _others_wait(file: CachedFile, write: _Write) -> bool:
        """Whether others have to be told that the file has become longer by *write*."""
        return write.extends and file.attributes.watched

    def _in_the_way(self, file: CachedFile, write: _Write) -> _Obstacle | None:
        """What *write* has to wait for now, if anything; its place is determined anew."""
        known = file.size()
        if write.append and known is not None:
            write.offset = known
        if not write.page and not (write.append and known is None):
            self._fit(write)
        end = write.offset + len(write.data)
        start_page, end_page = write.start_page, write.end_page = pages_of(write.offset, len(write.data))
        page = write.page
        write.extends = write.append or self._may_extend(file, end, page, start_page, end_page)
        if self._parked(file, write) or (write.extends and file.attributes.revoking):
            return _Obstacle.RECALL
        if page and file.purging:
            return _Obstacle.PURGE
        if not page and not self._remote.leased(finishing=True):
            return _Obstacle.LEASE
        if write.cached and self._only_end_is_held(file, write):
            return _Obstacle.END_HELD
        if not file.tokens.holds(start_page, end_page, TokenMode.EXCLUSIVE):
            return _Obstacle.TOKENS
        if write.extends and not file.attributes.may_change_here():
            return _Obstacle.TOKENS
        if not page and self._may_have_capabilities(file, write):
            return _Obstacle.CAPABILITIES
        if file.pages.writing.overlaps(write.offset, end) and not self._may_write_over(write):
            return _Obstacle.WRITE_BACK
        if file.telling_times and not page:
            return _Obstacle.TELLING
        if page:
            if self._write_back.overflows(file):
                return _Obstacle.OVERFLOW
        elif file.pages.refused:
            return _Obstacle.REFUSED
        elif not self._write_back.has_room():
            return _Obstacle.ROOM
        return None if self._lacking(file, write) is None else _Obstacle.KERNEL_PAGES

    def _fit(self, write: _Write) -> None:
        """Keep *write* within the largest file: what is before its end is written (generic_write_checks_count).
        Raises FsError (EFBIG) if nothing is."""
        room = self.file_size_max - write.offset
        if len(write.data) > room:
            if room <= 0:
                raise FsError(EFBIG, "beyond the largest file of the server's filesystem")
            write.beyond += len(write.data) - room
            write.data = write.data[:room]

    async def _overcome(self, file: CachedFile, write: _Write, obstacle: _Obstacle) -> int | None:
        """Wait for what is in the way, entitled to nothing; the number under which *write* is entitled then."""
        match obstacle:
            case _Obstacle.RECALL:
                await file.changed()
            case _Obstacle.PURGE:
                file.errors.lost(FsError(EIO, "stored before the session was lost"))
                raise FsError(EIO, "stored before the session was lost")
            case _Obstacle.LEASE:
                await self._remote.until_leased()
            case _Obstacle.END_HELD:
                # The kernel may have locked the last page, if it is partly written, until this is answered:
                # a recall of that page would wait for it, and the server for the recall.
                last = write.end_page - PAGE_SIZE
                cut = last - write.offset
                await self.write(file, last, bytes(write.data[cut:]), append=False, direct=False, page=False)
                write.data = write.data[:cut]
            case _Obstacle.TOKENS:
                return await self._get_tokens(file, write)
            case _Obstacle.CAPABILITIES:
                write.capabilities_taken = True  # asked once: whoever gives it some now does so after the write
                await self._take_capabilities(file)
            case _Obstacle.REFUSED:
                await self._write_back.try_again(file)  # no recall need wait for the server's disk
            case _Obstacle.OVERFLOW:
                raise self._write_back.overflowed(file, write.start_page, write.end_page)
            case _:
                raise AssertionError(obstacle)
        return None

    @staticmethod
    def _may_have_capabilities(file: CachedFile, write: _Write) -> bool:
        """Whether to ask for what write(2) takes away at once, for all clients (`file_remove_privs`):
        the server's kernel does so only when the data arrive there. Not without a token, which is where an
        invalidation may be waiting for the write (`_may_extend`)."""
        attributes = file.attributes
        return not (
            attributes.mode is TokenMode.NONE
            or write.capabilities_taken
            or attributes.lacks_xattr(CAPABILITY)
        )

    async def _take_capabilities(self, file: CachedFile) -> None:
        changes = file.attributes.xattr_changes

        def taken(reply: Message, _: bytes | bytearray) -> None:
            assert isinstance(reply, m.Stat)
            file.attributes.forget_xattrs()
            self._holdings.told(file.inode, reply.attributes, reply.tokens)
            file.attributes.learned_xattr(CAPABILITY, None)

        try:
            await self._remote.call(m.GetXattr(file.inode.handle, CAPABILITY))
            await self._remote.call(m.RemoveXattr(file.inode.handle, CAPABILITY), b"", taken)
        except FsError as exc:
            if exc.errno not in (ENODATA, EOPNOTSUPP):
                raise
            if changes == file.attributes.xattr_changes:
                file.attributes.learned_xattr(CAPABILITY, None)

    @staticmethod
    def _parked(file: CachedFile, write: _Write) -> bool:
        """Whether a recall has to end first. A write past the kernel's pages has none of them locked, and what
        an invalidation is about to write back lacks it: it waits for that, too."""
        start, end = write.start_page, write.end_page
        return (write.direct and file.tokens.invalidating(start, end)) or file.tokens.parked(start, end)

    @staticmethod
    def _only_end_is_held(file: CachedFile, write: _Write) -> bool:
        last = write.end_page - PAGE_SIZE
        return (
            write.offset < last
            and file.tokens.holds(last, write.end_page, TokenMode.EXCLUSIVE)
            and not file.tokens.holds(write.start_page, last, TokenMode.EXCLUSIVE)
        )

    async def _write_past_kernel(self, file: CachedFile, write: _Write, entitled: int) -> bool:
        """The kernel has pages that lack what is written past them (`_lacking`). They are taken from it as if
        for another client, or what programs store into them would be written back over it, and the data are
        absorbed before they can be read in again. False if that cannot be done any more: the tokens were
        recalled before, the end of the file is elsewhere, or other pages that lack it have been read in
        meanwhile. Killed, its program has dropped some pages and written nothing.

        The operation is *entitled* all the while: gave it its turn up for this, clients that write to one page
        and also have it mapped would take the page from each other for ever."""
        known, lacking = file.size(), self._lacking(file, write)
        assert lacking is not None
        start, end = write.start_page, write.end_page
        revocation = file.tokens.flush(*lacking, entitled)
        try:
            while not file.tokens.may_begin(revocation):
                await file.changed()
            with trio.CancelScope(shield=True):  # not to be left half-way; it waits for the kernel only
                await self._page_protocol.gather_all_mmap_users(file, revocation)
            while file.pages.writing.overlaps(write.offset, write.offset + len(write.data)):
                await file.changed()  # the server answers these without granting anything
            possible = (
                file.size() == known
                and file.tokens.holds(start, end, TokenMode.EXCLUSIVE)
                and (not write.extends or file.attributes.may_change_here())
                and self._lacking(file, write) is None
            )
            if possible:
                self._absorb(file, write)
        finally:
            file.tokens.revoked(revocation)
            file.wake()
        return possible

    @staticmethod
    def _lacking(file: CachedFile, write: _Write) -> Interval | None:
        """A range with the pages that the kernel may have up to date without what is written: all of a write
        past its pages, if it has any there (an append may even be elsewhere than it knows), so that none is
        read in beside; else those it has read since the write came. The write itself has none of them locked:
        that would have kept reads away, and only its last page can be."""
        start, end = write.start_page, write.end_page
        if write.direct:
            return (start, end) if file.tokens.in_kernel.overlaps(start, end) else None
        read = write.passed.intervals(start, end)
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

    def _may_write_over(self, write: _Write) -> bool:
        """Whether what is on its way to the server may change here. A mapped page that is dropped with the
        lease must not wait for the server, which cannot be reached: it, and the pages behind it, could be
        read and loaded past the lease (promise 8)."""
        return write.page and not self._remote.leased()

    def _absorb(self, file: CachedFile, write: _Write) -> None:
        offset, end = write.offset, write.offset + len(write.data)
        assert file.tokens.holds(write.start_page, write.end_page, TokenMode.EXCLUSIVE), "K3"
        file.changes(offset, end)
        file.pages.write(offset, write.data, trio.current_time(), over=self._may_write_over(write))
        if file.attributes.may_change_here():
            file.attributes.written(end)
        else:
            file.attributes.written_beside_others()
        if not (write.direct or write.page):
            # The kernel has whole pages up to date already; of others it knows what it knew.
            first, last = pages_within(offset, end)
            if first < last:
                file.tokens.written(first, last)
        self._write_back.dirtied(file, offset)
        if write.page and file.tokens.takes_little(write.start_page, write.end_page):
            self._write_back.hasten(file, offset, end)

    async def _get_tokens(self, file: CachedFile, write: _Write) -> int | None:
        start, end, extends = write.start_page, write.end_page, write.extends
        entitled: int | None = None
        given_up = False

        def arrived(reply: Message, _: bytes | bytearray) -> None:
            nonlocal entitled
            assert isinstance(reply, m.TokenGrant)
            self._holdings.apply(reply.tokens)
            if reply.attributes is not None:
                self._holdings.learn(file.inode, reply.attributes, bare=reply.bare)
            if extends:
                file.attributes.told_others(watched=reply.watched)
            if not given_up:  # by who was killed: nobody would say that it was used
                entitled = file.entitle(start, end, attr=extends)

        # Data that are held are not asked for: that would wait for a recall of them, and the recall perhaps for
        # the lock of a page that this write has in part. Attributes never wait for a recall of data. A write
        # past the kernel's pages has none of them locked and asks for both at once: else it could lose either
        # while it waits for the other, again and again.
        held = file.tokens.holds(start, end, TokenMode.EXCLUSIVE) and not (write.direct and extends)
        data = TokenMode.NONE if held else TokenMode.EXCLUSIVE
        attr = TokenMode.EXCLUSIVE if extends else TokenMode.NONE
        message = m.GetToken(file.inode.handle, data, start, end, attr)
        try:
            await self._remote.call(message, b"", arrived)
        except BaseException:
            given_up = True
            file.used(entitled)
            raise
        return entitled
