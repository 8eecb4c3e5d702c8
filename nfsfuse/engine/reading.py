"""FUSE_READ: from the daemon's pages, or from the server together with the token for them."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import trio

from nfsfuse.engine.cached_file import CachedFile, Fetch
from nfsfuse.engine.holdings import Holdings
from nfsfuse.ports.kernel import Kernel
from nfsfuse.ports.remote import Remote
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.messages import Message
from nfsfuse.protocol.pages import pages_of
from nfsfuse.protocol.tokens import TokenMode
from nfsfuse.protocol.types import PAGE_SIZE

ReadData = bytes | bytearray | memoryview
"""What was read: good until something of the file changes."""

Answered = Callable[[ReadData | Exception], None]
"""Takes what a read has come to. It must not raise, and nothing else runs before it has returned."""


@dataclass(slots=True, eq=False)
class Reading:
    """A read that waits, of the pages ``[start, end)``. *thread* waits for it, which had *had* of a processor
    when it asked, if that is to be known. *fetch* is what came for it, or is on its way; *entitled* as in
    `CachedFile.entitle`. *over*: it is answered, or given up."""

    file: CachedFile
    offset: int
    size: int
    start: int
    end: int
    cached: bool
    thread: int
    had: tuple[int, int] | None
    fetch: Fetch | None = None
    entitled: int | None = None
    over: bool = False
    give_up: Callable[[], None] | None = None


class Reader:
    """Reads of a mount. What goes on for nobody but the kernel does in *nursery*, once there is one."""

    def __init__(self, remote: Remote, holdings: Holdings, kernel: Kernel) -> None:
        self._remote = remote
        self._holdings = holdings
        self._kernel = kernel
        self.nursery: trio.Nursery | None = None

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
        self, file: CachedFile, offset: int, size: int, *, cached: bool, thread: int = 0
    ) -> ReadData:
        """The bytes of ``[offset, offset + size)``, fewer only at the end of the file. *cached*: the kernel
        is going to keep them (not so for O_DIRECT). *thread* waits for them, if it is not 0. The answer must
        reach the kernel before anything else runs: the token is checked right before this returns.

        EAGAIN: an invalidation may be waiting for the folio lock of one of several pages, and another of them
        would have to be asked for, which the server may only grant when the invalidation is over. Several
        pages at once are read-ahead: the kernel drops its error and asks again page by page
        (`fuse_readpages_end` and `filemap_update_page`), and each is then either held or not in the way."""
        data = self.read_at_once(file, offset, size, cached=cached)
        if data is not None:
            return data
        reading = self._begin(file, offset, size, thread, cached=cached)
        try:
            return await self._until_answered(reading)
        finally:
            self._end(reading)

    def read_later(
        self, file: CachedFile, offset: int, size: int, thread: int, answered: Answered
    ) -> Callable[[], None] | None:
        """As `read` of what is *cached*, but for that no task waits: *answered* is called once, with what it
        returns or raises, where that arrives. Returns what gives it up, and then *answered* is not called; None
        if it has to wait before it can ask, and has not begun. To be called when `read_at_once` gives None."""
        start, end = pages_of(offset, size)
        if file.tokens.parked(start, end) or not self._remote.leased(finishing=True):
            return None
        if _is_read_ahead_at_an_edge(file, start, end) or not self._remote.has_room():
            return None
        reading = self._begin(file, offset, size, thread, cached=True)

        def arrived(reply: Message, payload: bytes | bytearray) -> None:
            self._arrived(reading, reply, payload)
            if not reading.over:
                self._go_on(reading, answered)

        def failed(exc: FsError) -> None:
            if not reading.over:
                self._go_on(reading, answered, exc if exc.errno != errno.EAGAIN else None)

        def give_up() -> None:
            no_answer_is_wanted = reading.give_up
            self._end(reading)
            if no_answer_is_wanted is not None:  # else it is over
                no_answer_is_wanted()

        abandon = self._remote.ask(self._request(reading), b"", arrived, failed)
        if not reading.over:  # it is, if the session is
            reading.give_up = abandon
        return give_up

    def _go_on(self, reading: Reading, answered: Answered, failure: FsError | None = None) -> None:
        """What *reading* asked for has arrived, or a *failure*: it is answered here, or goes on in a task."""
        result: ReadData | None = None
        if failure is None:
            try:
                result = self._attempt(reading)
            except Exception as exc:
                self._answer(reading, answered, exc)
                return
        if result is not None or failure is not None:
            self._answer(reading, answered, failure or result)
        else:
            assert self.nursery is not None
            scope = trio.CancelScope()
            reading.give_up = scope.cancel
            self.nursery.start_soon(self._finish, reading, answered, scope)

    async def _finish(self, reading: Reading, answered: Answered, scope: trio.CancelScope) -> None:
        result: ReadData | Exception = FsError(errno.EIO, "the mount has ended")
        try:
            with scope:
                result = await self._until_answered(reading)
        except Exception as exc:
            self._answer(reading, answered, exc)
        finally:
            self._answer(reading, answered, result)

    def _answer(self, reading: Reading, answered: Answered, result: ReadData | Exception | None) -> None:
        """Nothing happens if it is answered, or was given up."""
        if not reading.over:
            assert result is not None
            answered(result)
            self._end(reading)

    # --- one read that waits ---

    def _begin(self, file: CachedFile, offset: int, size: int, thread: int, *, cached: bool) -> Reading:
        start, end = pages_of(offset, size)
        had: tuple[int, int] | None = None
        if cached:
            file.tokens.read_arrived(start, end)
            if thread and file.turns.are_watched(trio.current_time()):
                had = self._kernel.processor(thread)
        return Reading(file, offset, size, start, end, cached, thread, had)

    def _end(self, reading: Reading) -> None:
        """It is answered, or given up."""
        if not reading.over:
            reading.over = True
            reading.give_up = None  # which knows of the reading: nothing is left for Python's garbage collector
            self._drop(reading)
            if reading.cached:
                reading.file.tokens.read_ended(reading.start, reading.end)

    @staticmethod
    def _drop(reading: Reading) -> None:
        """What was fetched is not used any more; nor is what is on its way."""
        file = reading.file
        if reading.fetch is not None:
            file.fetches.remove(reading.fetch)
            reading.fetch = None
        if reading.entitled is not None:
            file.used(reading.entitled)
            reading.entitled = None

    async def _until_answered(self, reading: Reading) -> ReadData:
        file, start, end = reading.file, reading.start, reading.end
        tokens = file.tokens
        while True:
            data = self._attempt(reading)
            if data is not None:
                return data
            self._drop(reading)  # it is no better than what is being recalled
            if tokens.parked(start, end):
                await file.changed()
            elif not self._remote.leased(finishing=True):
                await self._remote.until_leased()
            else:
                try:
                    await self._remote.call(self._request(reading), b"", partial(self._arrived, reading))
                except FsError as exc:
                    if exc.errno != errno.EAGAIN:
                        raise

    def _attempt(self, reading: Reading) -> ReadData | None:
        """The answer, if it can be given at this instant."""
        file, start, end = reading.file, reading.start, reading.end
        tokens = file.tokens
        if tokens.parked(start, end) or not self._remote.leased(finishing=True):
            return None
        if reading.cached and _is_read_ahead_at_an_edge(file, start, end):
            raise FsError(errno.EAGAIN, "read-ahead across the edge of what is being recalled")
        if not _may_answer(file, start, end):
            return None
        fetch = reading.fetch if reading.fetch is not None and reading.fetch.valid else None
        data = _answer(file, reading.offset, reading.size, fetch)
        if data is not None and reading.cached:
            tokens.answered(start, end)
            if reading.had is not None and reading.entitled is not None:
                file.turns.answered(start, end, reading.thread, reading.had, trio.current_time())
        return data

    @staticmethod
    def _request(reading: Reading) -> m.Read:
        """What to ask for now. What changes here until it has come is newer."""
        file, start, end = reading.file, reading.start, reading.end
        reading.fetch = Fetch(start, end)
        file.fetches.append(reading.fetch)
        if not _may_answer(file, start, end):
            return m.Read(file.inode.handle, start, end - start, file.tokens.reading_mode())
        # An invalidation may wait for the folio of this read, an operation that is entitled to the attributes
        # for that invalidation, their recall for the operation, and whoever is granted them only then: this
        # read must not wait for them. While its page is held it ends in zeros wherever the file ends, and the
        # invalidation takes it back.
        sizeless = reading.cached and file.tokens.invalidating(start, end)
        return m.Read(file.inode.handle, start, end - start, TokenMode.NONE, sizeless)

    def _arrived(self, reading: Reading, reply: Message, payload: bytes | bytearray) -> None:
        """The server's answer. If nobody waits for it any more nobody is entitled by it: nobody would say that
        it was used."""
        assert isinstance(reply, m.Data)
        file, fetch, start, end = reading.file, reading.fetch, reading.start, reading.end
        self._holdings.apply(reply.tokens)
        if reply.attributes is not None:
            self._holdings.learn(file.inode, reply.attributes)
        if reading.over:
            return
        assert fetch is not None
        if len(payload) < end - start and reply.attributes is None:
            payload = bytes(payload) + bytes(end - start - len(payload))  # it was asked for no size
        if file.tokens.holds(start, end, TokenMode.SHARED) and not file.tokens.parked(start, end):
            fetch.data = memoryview(payload)
            fetch.valid = True
            reading.entitled = file.entitle(start, end, attr=reply.attributes is not None)


def _may_answer(file: CachedFile, start: int, end: int) -> bool:
    """Whether what is held is enough for a read of ``[start, end)``. In an invalidation's way it is answered
    under anything that is held, and a further pass takes it back: the invalidation may wait for the folio of
    this very read, also one that gives up SHARED tokens on the way to K2."""
    tokens = file.tokens
    return tokens.holds(start, end, tokens.reading_mode()) or (
        tokens.invalidating(start, end) and tokens.holds(start, end, TokenMode.SHARED)
    )


def _is_read_ahead_at_an_edge(file: CachedFile, start: int, end: int) -> bool:
    """See EAGAIN in `Reader.read`."""
    return (
        end - start > PAGE_SIZE
        and file.tokens.invalidating(start, end)
        and not _may_answer(file, start, end)
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
    # Something is newer here than at the server.
    merged = _laid_over(file, offset, end, fetch)
    file.pages.fill(fetch.start, _slice(fetch, fetch.start, max(end, fetch.start)), fetch.stale)
    return merged


def _laid_over(file: CachedFile, offset: int, end: int, fetch: Fetch) -> bytearray | None:
    """What is newer here laid over what came; None if some of that is not here any more. Not by way of the
    pages, which may have no room for all of it at once: then it would be asked for again, for ever."""
    if not all(file.pages.valid.covers(low, high) for low, high in fetch.stale.intervals(offset, end)):
        return None
    data = bytearray(_slice(fetch, offset, end))
    for low, high in file.pages.valid.intervals(offset, end):
        newer = file.pages.read(low, high)
        assert newer is not None, "it is valid"
        data[low - offset : high - offset] = newer
    return data


def _slice(fetch: Fetch, start: int, end: int) -> bytes | memoryview:
    """``[start, end)`` of what came; beyond the end of the server's file it is a hole."""
    found = fetch.data[start - fetch.start : end - fetch.start]
    missing = end - start - len(found)
    return found if missing == 0 else bytes(found) + bytes(missing)
