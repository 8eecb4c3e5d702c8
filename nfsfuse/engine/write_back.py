"""Write-behind: dirty data on their way to the server.

A write(2) is absorbed and returns. The data go out in large writes: as soon as a whole request's worth is
dirty in one piece, or very much of the file in many, when they have been dirty for a second, at fsync and
close, and when the server recalls the pages. Small extents go many to a message (`WriteExtents`).
Write-backs belong to the mount: killing a program that waits in fsync must not leave an extent half-way.

An fsync that finds no more than one message takes has the server synchronise the file with that: one round
trip, not two. The data are on their way for as long as the server's disk takes, mostly milliseconds: a recall
of them waits for that, a store into them, and whoever writes the file back, but for who waits already.

What the server refuses (its disk is full, say) stays dirty while the file is open. Programs that want to
know try again at once: fsync, close, and write, which takes in no more before; the background ever less often.
With the last close it is given up (`PageProtocol.give_up`), loudly.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import trio

from nfsfuse.engine.cached_file import CachedFile
from nfsfuse.machines.page_cache import Outgoing, PageCache
from nfsfuse.machines.tellings import Age
from nfsfuse.ports.remote import Remote
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.codec import ERRNO_MAX
from nfsfuse.protocol.errors import FsError, ProtocolError
from nfsfuse.protocol.intervals import Interval
from nfsfuse.protocol.limits import EXTENTS_PER_WRITE_MAX, IO_SIZE_MAX
from nfsfuse.protocol.messages import Message
from nfsfuse.protocol.tokens import RANGE_END
from nfsfuse.protocol.types import Attributes, Extent, InodeHandle, Sync

log = logging.getLogger(__name__)

WRITES_IN_FLIGHT_MAX: Final = 8
"""Write requests under way: 8 MiB cover the product of bandwidth and delay of 10 Gbit/s and 6 ms."""

SYNCED_WRITES_IN_FLIGHT_MAX: Final = 8
"""Likewise of those that wait for the server's disk: in one number a recall would wait for others' fsyncs."""

GATHERED_BYTES_MAX: Final = 8 * IO_SIZE_MAX
"""Dirty bytes of a file, in extents of less than a request, that are not sent before their time: a program may
be about to write between them, and not over what is on its way."""

GATHERED_EXTENTS_MAX: Final = 16 * EXTENTS_PER_WRITE_MAX
"""Likewise: what they are to cost to remember, some hundred bytes each, and an fsync to send."""

DIRTY_AGE_SECONDS_MAX: Final = 1.0
"""How long data stay dirty for want of more: what a crash may take of unsynced, open files."""


@dataclass(slots=True, eq=False)
class SyncedWrite:
    """A write that the server answers when it has synchronised the file. *taken*: whether it has the data, None
    while that is open. If so it has also tried the sync, and a failure of that is one of the file's reports."""

    sync: Sync
    taken: bool | None = None


class WriteBack:
    """Those of a mount. *attributes_changed*: the server's attributes replace ours. *age*: `Holdings.age`."""

    def __init__(
        self,
        remote: Remote,
        cache: PageCache,
        dirty_bytes_max: int,
        attributes_changed: Callable[[CachedFile], None],
        age: Callable[[InodeHandle, Attributes], Age],
    ) -> None:
        self._remote = remote
        self._cache = cache
        self._dirty_bytes_max = dirty_bytes_max
        self._attributes_changed = attributes_changed
        self._age = age
        self._in_flight = 0
        self._synced_in_flight = 0  # part of them
        self._nursery: trio.Nursery | None = None
        self._dirty_files: dict[CachedFile, float | None] = {}  # and since when, oldest first
        self._slots = trio.lowlevel.ParkingLot()
        self.give_up: Callable[[CachedFile], Awaitable[None]] | None = None
        """What is to be done with refused data of a file that nobody has open any more."""
        self.drop_untaken: Callable[[CachedFile], Awaitable[None]] | None = None
        """What is to be done with mapped pages that were refused."""
        self.writes_sent = 0
        self.bytes_sent = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry out write-backs until cancelled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            try:
                while True:
                    await trio.sleep(DIRTY_AGE_SECONDS_MAX / 2)
                    await self._write_back_old()
            finally:
                self._nursery = None  # it is about to be closed

    async def _write_back_old(self) -> None:
        """What has been dirty for long goes out, and some of what was refused."""
        now = trio.current_time()
        old = []
        for file, since in self._dirty_files.items():
            if since is not None and since > now - DIRTY_AGE_SECONDS_MAX:
                break  # and so are all that follow
            old.append(file)
        for file in old:
            left = file.pages.fresh_extents  # more may come as fast as they are sent
            while (now_left := file.pages.fresh_extents) and left > 0:
                if self._begin(file, 0, RANGE_END):
                    left -= now_left - file.pages.fresh_extents
                else:
                    await self._slots.park()
            if file.errors.retry_due(now) and file.pages.refused:
                self._begin(file, *self._first_refused(file), again=True)

    def dirtied(self, file: CachedFile, offset: int) -> None:
        """*file* has new dirty data at *offset*: send what makes whole requests."""
        pages = file.pages
        if self._dirty_files.get(file) != pages.dirty_since:  # it has been clean in between
            self._dirty_files.pop(file, None)
            self._dirty_files[file] = pages.dirty_since
        if pages.fresh_bytes < IO_SIZE_MAX and pages.fresh_extents < GATHERED_EXTENTS_MAX:
            return
        # Not at once: the program is to have its answer first, and goes on while this much is sent.
        extent = pages.fresh_extent(offset)
        if extent is not None and extent[1] - extent[0] >= IO_SIZE_MAX:
            self._begin(file, *extent, at_once=False)
        elif pages.fresh_bytes >= GATHERED_BYTES_MAX or pages.fresh_extents >= GATHERED_EXTENTS_MAX:
            self._begin(file, 0, RANGE_END, at_once=False)

    def hasten(self, file: CachedFile, start: int, end: int) -> None:
        """What is dirty in ``[start, end)`` is about to be waited for: send it, as far as it can be now."""
        self._begin(file, start, end)

    def has_room(self) -> bool:
        """Whether more data may become dirty. What was refused counts for itself: a file that cannot be written
        must not stop the others, until such data alone fill what may be dirty."""
        refused = self._cache.refused_bytes
        return refused < self._dirty_bytes_max and self._cache.dirty_bytes - refused < self._dirty_bytes_max

    async def room(self) -> None:
        """Wait until more data may become dirty (back-pressure). Raises FsError if that would be for ever: the
        server refuses all there is."""
        while not self.has_room():
            for file in list(self._dirty_files):
                if not self._has_slot():
                    break
                self._begin(file, 0, RANGE_END)
            if self._in_flight == 0:
                refusals = [error for file in self._dirty_files if (error := file.refusal()) is not None]
                assert refusals, "there is room once everything is written back"
                raise refusals[-1].alone()
            await self._slots.park()

    async def try_again(self, file: CachedFile) -> None:
        """Send what was refused until all of it is taken. Raises FsError if some is refused again."""
        while file.pages.refused:
            await self.write_back(file, *self._first_refused(file))

    @staticmethod
    def _first_refused(file: CachedFile) -> Interval:
        refused = file.pages.refused.first(0, RANGE_END)
        assert refused is not None
        start, end = refused
        return start, min(end, start + IO_SIZE_MAX)

    def overflows(self, file: CachedFile) -> bool:
        """Whether a mapped page of *file*, which cannot wait for room, has to be refused."""
        return bool(file.pages.refused) and self._cache.refused_bytes >= self._dirty_bytes_max

    def overflowed(self, file: CachedFile, start: int, end: int) -> FsError:
        """The mapped pages ``[start, end)`` are not taken in: their kernel forgets that they are dirty, and is
        made to drop them. The error for it."""
        error = file.refusal()
        assert error is not None
        file.errors.lost(error)
        if not file.errors.overflowed:
            file.errors.overflowed = True
            log.error("%s: stores through mappings are lost, in [%d, %d) and more: %s",
                      file.inode, start, end, error)  # fmt: skip
        if not file.tokens.untaken and self._nursery is not None:  # else the mount is ending
            assert self.drop_untaken is not None
            self._nursery.start_soon(self.drop_untaken, file)
        file.tokens.refuse(start, end)
        return error

    async def write_back(self, file: CachedFile, start: int = 0, end: int = RANGE_END) -> None:
        """Everything dirty in ``[start, end)`` is at the server when this returns. Raises FsError if it refuses
        some of that, perhaps before all is tried; what it has not taken stays dirty."""
        failed = file.errors.attempts_failed
        pages = file.pages
        while pages.dirty.overlaps(start, end):
            began = self._begin(file, start, end, again=True)
            if not began and not pages.writing.overlaps(start, end):
                await self._slots.park()  # all are in flight for other files
            else:
                await file.changed()
            if file.errors.attempts_failed != failed:
                failed = file.errors.attempts_failed
                await self._attempt_failed(file, start, end)

    async def _attempt_failed(self, file: CachedFile, start: int, end: int) -> None:
        """The server has refused data of *file*. Raises FsError if these, or others of ``[start, end)`` that
        are on their way, stay refused."""
        while file.pages.writing.overlaps(start, end):
            await file.changed()
        error = file.refusal()
        if error is not None and file.pages.refused.overlaps(start, end):
            raise error.alone()

    async def write_back_and_sync(self, file: CachedFile, sync: Sync) -> bool:
        """As `write_back` of everything that is dirty now; if one request does for that, the server is made to
        *sync* the file with it. Whether it has, also if the sync failed, which is then one of the file's
        reports; else the file is still to be synchronised."""
        extents = self._one_request(file)
        if extents:
            failed = file.errors.attempts_failed
            write = SyncedWrite(sync)
            self._start(file, extents, write)
            while write.taken is None:
                await file.changed()
            if write.taken:
                return True
            if file.errors.attempts_failed != failed:
                await self._attempt_failed(file, 0, RANGE_END)
        await self.write_back(file)
        return False

    def _one_request(self, file: CachedFile) -> list[Interval]:
        """All that is dirty of *file*, if one message may take it to the server's disk: nothing is on its way
        that the sync would have to follow, and nobody has been waiting for it. (What was refused may be refused
        again, and is tried as ever.)"""
        pages = file.pages
        if pages.dirty_bytes > IO_SIZE_MAX or len(pages.dirty) > EXTENTS_PER_WRITE_MAX:
            return []
        if pages.writing or pages.refused or file.tokens.revocations or file.attributes.revoking:
            return []
        if self._synced_in_flight >= SYNCED_WRITES_IN_FLIGHT_MAX:
            return []
        return pages.dirty.intervals()

    async def write_back_all(self, file: CachedFile, start: int, end: int) -> FsError | None:
        """As `write_back`, but every dirty byte is tried: the error if any is refused."""
        try:
            await self.write_back(file, start, end)
        except FsError:
            left = file.pages.dirty.intervals(start, end)
        else:
            return None
        error: FsError | None = None
        for begin, stop in left:
            for low in range(begin, stop, IO_SIZE_MAX):
                try:
                    await self.write_back(file, low, min(low + IO_SIZE_MAX, stop))
                except FsError as exc:
                    error = exc.alone()
        return error

    async def before_truncation(self, file: CachedFile, size: int) -> None:
        """The file is about to be cut to *size*: everything dirty is at the server when this returns, but what
        it refuses. Of that, what lies beyond *size* is dropped, or it would undo the truncation. No failure:
        on a full disk truncating is how programs make room."""
        try:
            await self.write_back(file)
        except FsError as exc:
            log.warning("%s: is truncated although %d bytes are not written: %s",
                        file.inode, file.pages.dirty_bytes, exc)  # fmt: skip
            file.changes(size, RANGE_END)
            file.pages.drop(size, RANGE_END)
            file.nothing_refused()

    def closed(self, file: CachedFile) -> None:
        """Nobody has the file open any more: it is not kept for ever what the server does not take."""
        if file.pages.refused and self._nursery is not None:  # else the mount is ending
            assert self.give_up is not None
            self._nursery.start_soon(self.give_up, file)

    async def everything(self) -> None:
        """Write back all files; failures are logged, as nobody is left to be told."""
        for file in list(self._dirty_files):
            try:
                await self.write_back(file)
            except FsError as exc:
                lost = file.pages.dirty_bytes
                log.error("%s: %d bytes are lost at the end of the mount: %s", file.inode, lost, exc)

    def _begin(
        self, file: CachedFile, start: int, end: int, *, again: bool = False, at_once: bool = True
    ) -> bool:
        """Start as many writes as may be in flight; whether any. *again*: also of what was refused. They are
        sent *at_once*, or by another task."""
        began = False
        while self._has_slot():
            extents = file.pages.gather(start, end, IO_SIZE_MAX, EXTENTS_PER_WRITE_MAX, again=again)
            if not extents:
                break
            self._start(file, extents, at_once=at_once)
            began = True
        if not file.pages.dirty:
            self._dirty_files.pop(file, None)
        return began

    def _has_slot(self) -> bool:
        return self._in_flight - self._synced_in_flight < WRITES_IN_FLIGHT_MAX

    def _start(
        self, file: CachedFile, extents: list[Interval], synced: SyncedWrite | None = None,
        *, at_once: bool = True,
    ) -> None:  # fmt: skip
        """Dirty *extents* are on their way, in one message."""
        self._in_flight += 1
        self._synced_in_flight += synced is not None
        outgoing = [file.pages.begin_write_back(*extent) for extent in extents]
        if at_once or self._nursery is None:
            self._send(file, outgoing, synced)
        else:
            self._nursery.start_soon(self._send_soon, file, outgoing)

    async def _send_soon(self, file: CachedFile, outgoing: list[Outgoing]) -> None:
        self._send(file, outgoing, None)

    def _send(self, file: CachedFile, outgoing: list[Outgoing], synced: SyncedWrite | None) -> None:
        data = outgoing[0].data if len(outgoing) == 1 else b"".join([each.data for each in outgoing])
        self.writes_sent += 1
        self.bytes_sent += len(data)

        def written(reply: Message, _: bytes | bytearray) -> None:
            assert isinstance(reply, m.Written)
            if not 0 <= reply.sync_errno <= ERRNO_MAX:
                raise ProtocolError(f"not an errno: {reply.sync_errno}")
            if synced is not None:
                synced.taken = True
            if reply.sync_errno:
                # The server's disk has failed: it says so once, and whoever has the file open here is to know.
                file.errors.lost(FsError(reply.sync_errno))
            for each in outgoing:
                file.pages.end_write_back(each, clean=True)
            if not file.pages.dirty:
                self._dirty_files.pop(file, None)
            self._accepted(file)
            file.attributes.forget_xattr_values()  # capabilities have gone, if there were any
            age = self._age(file.inode.handle, reply.attributes)
            if file.attributes.written_back(reply.attributes, age, all_of_it=not file.pages.dirty):
                self._attributes_changed(file)
            self._sent(file, synced)

        def failed(error: FsError) -> None:
            # In a task, as it may be tried again by whom this tells: not while the session is being renewed.
            if self._nursery is not None:  # else the mount is ending
                self._nursery.start_soon(self._failed, file, outgoing, synced, error)

        sync = Sync.NONE if synced is None else synced.sync
        message: m.Write | m.WriteExtents = m.Write(file.inode.handle, outgoing[0].start, sync)
        if len(outgoing) > 1:
            extents = tuple([Extent(each.start, len(each.data)) for each in outgoing])
            message = m.WriteExtents(file.inode.handle, extents, sync)
        self._remote.ask(message, data, written, failed)

    def _sent(self, file: CachedFile, synced: SyncedWrite | None) -> None:
        """The server has answered, or the session is over."""
        if synced is not None:
            self._synced_in_flight -= 1
            synced.taken = bool(synced.taken)
        self._in_flight -= 1
        file.wake()
        if self._slots:
            self._slots.unpark_all()

    def _accepted(self, file: CachedFile) -> None:
        """The server has taken something."""
        if file.pages.refused:
            file.errors.accepted(trio.current_time())
        elif file.errors.settled():
            log.warning("%s: what the server refused before is written", file.inode)

    async def _failed(
        self, file: CachedFile, outgoing: list[Outgoing], synced: SyncedWrite | None, error: FsError
    ) -> None:
        for each in outgoing:
            self._refused(file, each, error)
        self._sent(file, synced)

    def _refused(self, file: CachedFile, outgoing: Outgoing, error: FsError) -> None:
        """The server has refused something."""
        file.nothing_refused()
        if not file.pages.end_write_back(outgoing, clean=False):
            return  # it was dropped meanwhile, for another reason
        if file.errors.refused(error, trio.current_time()):
            size, start = len(outgoing.data), outgoing.start
            log.error("%s: the server refuses %d bytes at %d: %s", file.inode, size, start, error)
        if file.open_count == 0:
            self.closed(file)
