"""Write-behind: dirty data on their way to the server.

A write(2) is absorbed and returns. The data go out in large writes: as soon as a whole request's worth is
dirty, when they have been dirty for a second, at fsync and close, and when the server recalls the pages.
Write-backs run in tasks of the mount, not of whoever waits for them: killing a program that waits in fsync
must not leave an extent half-way.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import trio

from nfsfuse.engine.cached_file import CachedFile
from nfsfuse.machines.page_cache import Outgoing, PageCache
from nfsfuse.ports.remote import Remote
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.limits import IO_SIZE_MAX
from nfsfuse.protocol.messages import Message
from nfsfuse.protocol.tokens import RANGE_END

log = logging.getLogger(__name__)

WRITES_IN_FLIGHT_MAX: Final = 8
"""Write requests under way: 8 MiB cover the product of bandwidth and delay of 10 Gbit/s and 6 ms."""

DIRTY_AGE_SECONDS_MAX: Final = 1.0
"""How long data stay dirty for want of more: what a crash of this client may take of unsynced, open files."""


class WriteBack:
    """The write-backs of a mount. *attributes_changed* is told when the server's attributes replace ours."""

    def __init__(
        self,
        remote: Remote,
        cache: PageCache,
        dirty_bytes_max: int,
        attributes_changed: Callable[[CachedFile], None],
    ) -> None:
        self._remote = remote
        self._cache = cache
        self._dirty_bytes_max = dirty_bytes_max
        self._attributes_changed = attributes_changed
        self._in_flight = 0
        self._nursery: trio.Nursery | None = None
        self._dirty_files: dict[CachedFile, None] = {}
        self._slots = trio.lowlevel.ParkingLot()
        self.writes_sent = 0
        self.bytes_sent = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry out write-backs until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            while True:
                await trio.sleep(DIRTY_AGE_SECONDS_MAX / 2)
                aged = trio.current_time() - DIRTY_AGE_SECONDS_MAX
                for file in list(self._dirty_files):
                    since = file.pages.dirty_since
                    if since is not None and since <= aged:
                        self._begin(file, 0, RANGE_END, size_min=1)

    def dirtied(self, file: CachedFile) -> None:
        """*file* has new dirty data: send what makes whole requests."""
        self._dirty_files[file] = None
        if file.pages.dirty_bytes >= IO_SIZE_MAX:
            self._begin(file, 0, RANGE_END, size_min=IO_SIZE_MAX)

    def has_room(self) -> bool:
        """Whether more data may become dirty."""
        return self._cache.dirty_bytes < self._dirty_bytes_max

    async def room(self) -> None:
        """Wait until more data may become dirty (back-pressure)."""
        while not self.has_room():
            for file in list(self._dirty_files):
                self._begin(file, 0, RANGE_END, size_min=1)
            await self._slots.park()

    async def write_back(self, file: CachedFile, start: int = 0, end: int = RANGE_END) -> None:
        """Everything dirty in ``[start, end)`` is at the server when this returns. Raises FsError if a
        write-back failed meanwhile; what failed stays dirty."""
        failures = file.failures
        while file.pages.dirty.overlaps(start, end):
            began = self._begin(file, start, end, size_min=1)
            if not began and not file.pages.writing.overlaps(start, end):
                await self._slots.park()  # all are in flight for other files
            else:
                await file.changed()
            if file.failures != failures:
                while file.pages.writing.overlaps(start, end):
                    await file.changed()
                assert file.failure is not None
                raise file.failure

    async def everything(self) -> None:
        """Write back all files; failures are logged, as nobody is left to be told."""
        for file in list(self._dirty_files):
            try:
                await self.write_back(file)
            except FsError as exc:
                log.error("inode %d: data are lost at the end of the mount: %s", file.inode.node_id, exc)

    def _begin(self, file: CachedFile, start: int, end: int, size_min: int) -> bool:
        """Start as many writes as may be in flight, of extents of *size_min* bytes and more; whether any."""
        assert self._nursery is not None
        began = False
        while self._in_flight < WRITES_IN_FLIGHT_MAX:
            extent = file.pages.to_write_back(start, end, IO_SIZE_MAX)
            if extent is None:
                break
            if extent[1] - extent[0] < size_min:
                start = extent[1]
                continue
            self._in_flight += 1
            self._nursery.start_soon(self._send, file, file.pages.begin_write_back(*extent))
            began = True
        if not file.pages.dirty:
            self._dirty_files.pop(file, None)
        return began

    async def _send(self, file: CachedFile, outgoing: Outgoing) -> None:
        self.writes_sent += 1
        self.bytes_sent += len(outgoing.data)

        def written(reply: Message, _: bytes | bytearray) -> None:
            assert isinstance(reply, m.Written)
            file.pages.end_write_back(outgoing, clean=True)
            if file.attributes.written_back(reply.attributes, all_of_it=not file.pages.dirty):
                self._attributes_changed(file)

        try:
            await self._remote.call(m.Write(file.inode.handle, outgoing.start), outgoing.data, written)
        except FsError as exc:
            if file.pages.end_write_back(outgoing, clean=False):  # else it was dropped, for another reason
                log.error(
                    "inode %d: write-back of %d bytes at %d failed: %s",
                    file.inode.node_id,
                    len(outgoing.data),
                    outgoing.start,
                    exc,
                )
                file.failed(exc)
        finally:
            self._in_flight -= 1
            file.wake()
            self._slots.unpark_all()
