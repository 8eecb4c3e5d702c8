"""FUSE_WRITE: absorbed under an EXCLUSIVE token."""

from __future__ import annotations

from collections.abc import Callable

import trio

from nfsfuse.engine.cached_file import CachedFile
from nfsfuse.engine.holdings import Holdings
from nfsfuse.engine.reading import pages_of
from nfsfuse.engine.write_back import WriteBack
from nfsfuse.ports.kernel import Kernel
from nfsfuse.ports.remote import Remote
from nfsfuse.protocol import messages as m
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
        kernel: Kernel,
        wall_clock: Callable[[], int],
    ) -> None:
        self._remote = remote
        self._holdings = holdings
        self._write_back = write_back
        self._kernel = kernel
        self._wall_clock = wall_clock

    async def write(
        self, file: CachedFile, offset: int, data: bytes, *, append: bool, direct: bool, page: bool
    ) -> int:
        """Take *data* in; the bytes taken, always all. *append*: at the true end, wherever that is. *direct*:
        the kernel does not keep what it wrote. *page*: it is the write-back of a mapped page."""
        entitled: int | None = None
        # The write-back of a page carries what the page holds: no page that is read anew lacks it.
        passed = IntervalSet() if page else file.tokens.watch()
        try:
            while True:
                known = file.size()
                if append and known is not None:
                    offset = known
                end = offset + len(data)
                start_page, end_page = pages_of(offset, len(data))
                extends = append or self._may_extend(file, end, page, start_page, end_page)
                if file.tokens.parked(start_page, end_page) or (extends and file.attributes.revoking):
                    file.used(entitled)
                    entitled = None
                    await file.changed()
                elif not file.tokens.holds(start_page, end_page, TokenMode.EXCLUSIVE) or (
                    extends and not file.attributes.may_change_here()
                ):
                    file.used(entitled)
                    entitled = None  # while it waits for the server nobody may wait for it (K6)
                    entitled = await self._get_tokens(file, start_page, end_page, extends)
                elif file.pages.writing.overlaps(offset, end):
                    await file.changed()
                elif not page and not self._write_back.has_room():
                    await self._write_back.room()
                elif lacking := self._lacking(file, start_page, end_page, passed, direct=direct):
                    file.used(entitled)
                    entitled = None  # the invalidation may wait for a read that waits for the server (K6)
                    if await self._past_the_kernel(file, offset, data, lacking, keeps=not direct):
                        break
                else:
                    self._absorb(file, offset, data, keeps=not (direct or page))
                    break
        finally:
            file.used(entitled)
            file.tokens.unwatch(passed)
        return len(data)

    @staticmethod
    def _lacking(
        file: CachedFile, start: int, end: int, passed: IntervalSet, *, direct: bool
    ) -> list[Interval]:
        """The pages that the kernel may have up to date, and without what is written: those of a file that is
        written past its pages (an append may even be elsewhere than it knows), and those it has read since
        the write came. None of them is locked by the write itself: that would have kept reads away."""
        if direct:
            return file.tokens.in_kernel.intervals(start, end)
        return [
            common
            for low, high in passed.intervals(start, end)
            for common in file.tokens.in_kernel.intervals(low, high)
        ]

    async def _past_the_kernel(
        self, file: CachedFile, offset: int, data: bytes, lacking: list[Interval], *, keeps: bool
    ) -> bool:
        """Take *data* in while the kernel has none of the pages *lacking* them; whether that was possible.

        First the pages, then the data: what programs have stored into such a page comes back whole, with old
        bytes where these belong. It is a recall by ourselves, of which everything is kept."""
        start, end = pages_of(offset, len(data))
        tokens = file.tokens
        gates = [tokens.revoke(low, high, TokenMode.EXCLUSIVE) for low, high in lacking]
        try:
            for gate in gates:
                while ranges := tokens.invalidate(gate):
                    for low, high in ranges:
                        on_returned = gate.close if (low, high) == ranges[-1] else None
                        await self._kernel.invalidate_pages(file.inode.node_id, low, high, on_returned)
            if (
                not tokens.holds(start, end, TokenMode.EXCLUSIVE)
                or tokens.parked(start, end, apart_from=gates)
                or file.pages.writing.overlaps(offset, offset + len(data))
            ):
                return False
            self._absorb(file, offset, data, keeps=keeps)
            return True
        finally:
            for gate in gates:
                tokens.revoked(gate)
            file.wake()

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

    def _absorb(self, file: CachedFile, offset: int, data: bytes, *, keeps: bool) -> None:
        end = offset + len(data)
        file.changes(offset, end)
        file.pages.write(offset, data, trio.current_time())
        if file.attributes.may_change_here():
            file.attributes.written(end, self._wall_clock())
        else:
            file.attributes.forget_value()
        if keeps:
            # The kernel has whole pages up to date already; of others it knows what it knew.
            first, last = -(-offset // PAGE_SIZE) * PAGE_SIZE, end // PAGE_SIZE * PAGE_SIZE
            if first < last:
                file.tokens.answered(first, last)
        self._write_back.dirtied(file)

    async def _get_tokens(self, file: CachedFile, start: int, end: int, extends: bool) -> int | None:
        entitled: int | None = None

        def arrived(reply: Message, _: bytes | bytearray) -> None:
            nonlocal entitled
            assert isinstance(reply, m.TokenGrant)
            self._holdings.apply(reply.tokens)
            if reply.attributes is not None:
                self._holdings.learn(file.inode, reply.attributes)
            entitled = file.entitle(start, end, attr=extends)

        attr = TokenMode.EXCLUSIVE if extends else TokenMode.NONE
        message = m.GetToken(file.inode.handle, TokenMode.EXCLUSIVE, start, end, attr)
        try:
            await self._remote.call(message, b"", arrived)
        except BaseException:
            file.used(entitled)
            raise
        return entitled
