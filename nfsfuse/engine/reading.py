"""FUSE_READ: from the daemon's pages, or from the server together with the token for them."""

from __future__ import annotations

import trio

from nfsfuse.engine.cached_file import CachedFile, Fetch
from nfsfuse.engine.holdings import Holdings
from nfsfuse.ports.kernel import Kernel
from nfsfuse.ports.remote import Remote
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.messages import Message
from nfsfuse.protocol.tokens import RANGE_END, TokenMode
from nfsfuse.protocol.types import PAGE_SIZE

EAGAIN = 11

ReadData = bytes | bytearray | memoryview
"""What was read: good until something of the file changes."""


def pages_of(offset: int, size: int) -> tuple[int, int]:
    """The range of whole pages that contains ``[offset, offset + size)``."""
    return offset // PAGE_SIZE * PAGE_SIZE, min(-(-(offset + size) // PAGE_SIZE) * PAGE_SIZE, RANGE_END)


class Reader:
    """Reads of a mount."""

    def __init__(self, remote: Remote, holdings: Holdings, kernel: Kernel) -> None:
        self._remote = remote
        self._holdings = holdings
        self._kernel = kernel

    def read_at_once(self, file: CachedFile, offset: int, size: int, *, cached: bool) -> ReadData | None:
        """As `read`, of what is held and in the daemon's pages; None if it is not, or an operation has to wait.
        Nothing may run before the kernel has the answer."""
        start, end = pages_of(offset, size)
        tokens = file.tokens
        if tokens.parked(start, end) or not self._remote.leased(finishing=True):
            return None
        data = _answer(file, offset, size, None) if _may_answer(file, start, end) else None
        if data is not None and cached:
            tokens.answered(start, end)
        return data

    async def read(
        self, file: CachedFile, offset: int, size: int, *, cached: bool, thread: int | None = None
    ) -> ReadData:
        """The bytes of ``[offset, offset + size)``, fewer only at the end of the file. *cached*: the kernel
        is going to keep them (not so for O_DIRECT). *thread* waits for them. The answer must reach the kernel
        before anything else runs: the token is checked right before this returns.

        EAGAIN: an invalidation may be waiting for the folio lock of one of several pages, and another of them
        would have to be asked for, which the server may only grant when the invalidation is over. Several
        pages at once are read-ahead: the kernel drops its error and asks again page by page
        (`fuse_readpages_end` and `filemap_update_page`), and each is then either held or not in the way."""
        data = self.read_at_once(file, offset, size, cached=cached)
        if data is not None:
            return data
        start, end = pages_of(offset, size)
        tokens = file.tokens
        if cached:
            tokens.read_arrived(start, end)
        fetch: Fetch | None = None
        entitled: int | None = None
        reader = thread if cached and file.turns.are_watched(trio.current_time()) else None
        had = None if reader is None else self._kernel.processor(reader)
        try:
            while True:
                if tokens.parked(start, end):
                    file.used(entitled)
                    fetch, entitled = None, None  # what was fetched is no better than what is being recalled
                    await file.changed()
                    continue
                if not self._remote.leased(finishing=True):
                    file.used(entitled)
                    fetch, entitled = None, None
                    await self._remote.until_leased()
                    continue
                held = _may_answer(file, start, end)
                if held:
                    data = _answer(file, offset, size, fetch)
                    if data is not None:
                        if cached:
                            tokens.answered(start, end)
                        if reader is not None and had is not None and entitled is not None:
                            file.turns.answered(start, end, reader, had, trio.current_time())
                        return data
                elif cached and tokens.invalidating(start, end) and end - start > PAGE_SIZE:
                    raise FsError(EAGAIN, "read-ahead across the edge of what is being recalled")
                file.used(entitled)
                mode = TokenMode.NONE if held else tokens.reading_mode()
                fetch, entitled = await self._fetch(file, start, end, mode)
        finally:
            file.used(entitled)
            if cached:
                tokens.read_ended(start, end)

    async def _fetch(
        self, file: CachedFile, start: int, end: int, mode: TokenMode
    ) -> tuple[Fetch | None, int | None]:
        fetch = Fetch(start, end)
        entitled: int | None = None

        def arrived(reply: Message, payload: bytes | bytearray) -> None:
            nonlocal entitled
            assert isinstance(reply, m.Data)
            self._holdings.apply(reply.tokens)
            if reply.attributes is not None:
                self._holdings.learn(file.inode, reply.attributes)
            if fetch not in file.fetches:
                return  # whoever asked was killed: nobody would say that it was used
            if file.tokens.holds(start, end, TokenMode.SHARED) and not file.tokens.parked(start, end):
                fetch.data = memoryview(payload)
                fetch.valid = True
                entitled = file.entitle(start, end, attr=reply.attributes is not None)

        file.fetches.append(fetch)
        try:
            await self._remote.call(m.Read(file.inode.handle, start, end - start, mode), b"", arrived)
        except FsError as exc:
            file.used(entitled)
            if exc.errno != EAGAIN:
                raise
            return None, None
        except BaseException:
            file.used(entitled)
            raise
        finally:
            file.fetches.remove(fetch)
        return (fetch if fetch.valid else None), entitled


def _may_answer(file: CachedFile, start: int, end: int) -> bool:
    """Whether what is held is enough for a read of ``[start, end)``. In an invalidation's way it is answered
    under anything that is held, and a further pass takes it back: the invalidation may wait for the folio of
    this very read, also one that gives up SHARED tokens on the way to K2."""
    tokens = file.tokens
    return tokens.holds(start, end, tokens.reading_mode()) or (
        tokens.invalidating(start, end) and tokens.holds(start, end, TokenMode.SHARED)
    )


def _answer(file: CachedFile, offset: int, size: int, fetch: Fetch | None) -> ReadData | None:
    """The data from the daemon's pages and from *fetch*; None if they do not suffice."""
    end = offset + size
    known = file.size()
    if known is not None:
        end = min(end, known)
        if end <= offset:
            return b""
    data = file.pages.read(offset, end)
    if data is not None or fetch is None:
        return data
    short = len(fetch.data) < fetch.end - fetch.start
    if short and known is None:
        return None  # the attributes were recalled meanwhile: nobody knows where the file ends now
    if not fetch.stale and not file.pages.valid.overlaps(offset, end):
        return _slice(fetch, offset, end)
    # Something is newer here than at the server: lay it over what came.
    file.pages.fill(fetch.start, _slice(fetch, fetch.start, max(end, fetch.start)), fetch.stale)
    return file.pages.read(offset, end)


def _slice(fetch: Fetch, start: int, end: int) -> bytes | memoryview:
    """``[start, end)`` of what came; beyond the end of the server's file it is a hole."""
    found = fetch.data[start - fetch.start : end - fetch.start]
    missing = end - start - len(found)
    return found if missing == 0 else bytes(found) + bytes(missing)
