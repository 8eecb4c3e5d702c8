"""Open files on the client: open, close, and what concerns a file as a whole."""

from __future__ import annotations

import errno
import itertools
import logging
import os
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

from nfsfuse.engine.cached_file import CachedFile
from nfsfuse.engine.growths import Growths
from nfsfuse.engine.holdings import Holdings
from nfsfuse.engine.name_changes import NameChanges
from nfsfuse.engine.names import Found
from nfsfuse.engine.open_file import OpenFile, is_writing
from nfsfuse.engine.page_protocol import PageProtocol
from nfsfuse.engine.reading import Answered, ReadData, Reader
from nfsfuse.engine.write_back import WriteBack
from nfsfuse.engine.writing import Bytes, Writer
from nfsfuse.machines.access_times import AccessTimes
from nfsfuse.machines.inodes import Inode, InodeTable
from nfsfuse.ports.remote import Remote
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.messages import Message, Request
from nfsfuse.protocol.tokens import TokenMode
from nfsfuse.protocol.types import Credentials, Sync

log = logging.getLogger(__name__)

T = TypeVar("T")


class Files:
    """Open files of a mount. Raises FsError."""

    def __init__(
        self,
        remote: Remote,
        inodes: InodeTable,
        holdings: Holdings,
        page_protocol: PageProtocol,
        reader: Reader,
        writer: Writer,
        write_back: WriteBack,
        changes: NameChanges,
        growths: Growths,
        wall_clock: Callable[[], int],
    ) -> None:
        self._growths = growths
        self._changes = changes
        self._wall_clock = wall_clock
        self.access_times = AccessTimes.RELATIVE
        """What the mount does about the times of the last access; nothing is done that the server would not
        keep."""
        self._remote = remote
        self._inodes = inodes
        self._holdings = holdings
        self._page_protocol = page_protocol
        self._reader = reader
        self._writer = writer
        self._write_back = write_back
        self._open: dict[int, OpenFile] = {}
        self.write_directly = True
        """Whether files that are open for writing are read and written past the kernel's page cache. A
        write(2) through it shows in the kernel's pages before this client holds them for it, and a read(2)
        through it ends where the kernel believes the file to end, which an invalidation can keep it from
        learning (docs/coherence.md). Needs a kernel that lets such files be mapped (Linux 6.6): without, only
        O_APPEND goes past the cache, as the daemon alone knows the true end, and O_DIRECT."""
        self._ids = itertools.count(1)

    def limit_sizes(self, file_size_max: int) -> None:
        """No file may be written beyond so many bytes."""
        self._writer.file_size_max = file_size_max

    def __getitem__(self, number: int) -> OpenFile:
        """The open file with this number."""
        return self._open[number]

    # --- open and close ---

    def open_at_once(self, node_id: int, flags: int) -> int | None:
        """Open under tokens that suffice; None if that takes a round trip, or waiting."""
        if not self._remote.leased():
            return None
        file = self._holdings.file(self._inodes[node_id])
        writing = is_writing(flags)
        if (writing and file.tokens.revocations) or not self._is_open_locally(file, flags):
            return None
        if file.inode.kernel_size.behind:
            return None
        file.open_count += 1
        file.tokens.writers += writing
        if file.came_ahead:
            file.came_ahead = False
            self._holdings.opens_ahead.opened()
        number = self._number(file, flags)
        # What is read of pages that the kernel has, nobody hears of: the open counts for it.
        if not writing and file.tokens.in_kernel and self._accessed(self._open[number]):
            self._holdings.distrust(file.inode)
        return number

    async def open(self, node_id: int, flags: int) -> int:
        """Open; the open file's number. Under tokens that suffice it needs no round trip."""
        await self._remote.until_leased()
        number = self.open_at_once(node_id, flags)
        if number is not None:
            return number
        file = self._holdings.file(self._inodes[node_id])
        writing = is_writing(flags)
        if file.open_count == 0 and (file.attributes.mode is TokenMode.NONE or file.attributes.revoking):
            # Perhaps: nobody has told since it was asked, or the recall that is under way tells the server that
            # it is not open here.
            file.inode.kernel_size.behind = True
        # Counted before anything is asked, so that whatever is granted from now on is as K2 wants it.
        file.open_count += 1
        file.tokens.writers += writing
        try:
            while writing and file.tokens.revocations:
                await file.changed()
            if self._is_open_locally(file, flags):
                size = file.size() or 0  # known if it matters
            else:
                size = await self._open_remotely(file, flags)
            if writing:
                await self._page_protocol.give_up_shared(file)
            if file.inode.kernel_size.behind:
                await self._growths.catch_up(file.inode, size)
        except BaseException:
            self._closed(file, writing)
            raise
        return self._number(file, flags)

    def open_for_write_back(self, node_id: int) -> int:
        """Open for the daemon itself, which wants the kernel to write pages back: asks nobody anything."""
        file = self._holdings.file(self._inodes[node_id])
        file.open_count += 1
        return self._number(file, os.O_RDONLY)

    def _is_open_locally(self, file: CachedFile, flags: int) -> bool:
        if flags & os.O_TRUNC or file.attributes.mode is TokenMode.NONE or file.attributes.revoking:
            return False
        if file.inode.kernel_size.behind and file.size() is None:
            return False
        writing = file.tokens.writers or is_writing(flags)
        return bool(file.tokens.held) and not (writing and file.tokens.shared())

    async def _open_remotely(self, file: CachedFile, flags: int) -> int:
        """Open on the server; the file's size then."""
        truncates = bool(flags & os.O_TRUNC)
        if truncates:
            await self._write_back.before_truncation(file, 0)

        def opened(reply: Message, content: bytes | bytearray) -> None:
            assert isinstance(reply, m.Opened)
            file.open_ids.append(reply.open_id)
            if truncates:
                file.truncated(0)
            self._holdings.found(reply.node, reply.tokens)
            if is_writing(flags):
                file.attributes.told_others(watched=reply.watched)
            if reply.content:
                file.has_content(content)
                if not is_writing(flags):
                    self._holdings.opens_ahead.opened()
            if file.open_count == 0:
                self._release(file)  # whoever opened it was interrupted

        reply, _ = await self._remote.call(m.Open(file.inode.handle, flags, True), b"", opened)
        return reply.node.attributes.size

    async def create(
        self, parent: int, name: bytes | None, mode: int, flags: int, creds: Credentials
    ) -> tuple[int, Found]:
        """Create and open: the open file's number, and what was found or made. With None for *name* it gets
        none (O_TMPFILE)."""
        made: list[Inode] = []
        directory = self._holdings.directory(self._inodes[parent])

        def created(reply: Message, _: bytes | bytearray) -> None:
            assert isinstance(reply, m.Opened)
            inode = self._inodes.known(reply.node)
            inode.lookups += 1  # as of now: the kernel may be forgetting what it knew it by, and it is open
            file = self._holdings.file(inode)
            file.tokens.writers += is_writing(flags)
            file.open_count += 1
            file.open_ids.append(reply.open_id)
            inode.kernel_size.behind = False  # fuse_create_open takes the size that it is answered
            file.made_here |= bool(reply.affected)  # else it was there already, or nobody can read it soon
            if flags & os.O_TRUNC:
                file.truncated(0)
            self._holdings.found(reply.node, reply.tokens, reply.affected)
            file.attributes.told_others(watched=reply.watched)
            if name is not None:
                directory.cache.changed(name, inode.handle)
            made.append(inode)

        def close() -> None:
            self._closed(self._holdings.file(made[0]), is_writing(flags))
            self._holdings.forget(made[0].node_id, 1)  # the kernel is not told of it

        message: Request[m.Opened] = m.TmpFile(directory.inode.handle, mode, creds)
        if name is not None:
            message = m.Create(directory.inode.handle, name, mode, flags, creds)
        places = () if name is None else ((directory, name),)
        with directory.pending():
            reply = await self._changes.ask(message, created, *places, unwanted=close)
        inode = made[0]
        file = self._holdings.file(inode)
        if is_writing(flags):
            try:
                await self._page_protocol.give_up_shared(file)
            except BaseException:
                close()
                raise
        lasting = False
        if name is not None:
            inode.found_as = (directory.inode, name)
            lasting = directory.cache.find(name) == inode.handle
        attributes = inode.attributes.known or reply.node.attributes
        return self._number(file, flags), Found(inode, attributes, lasting, bool(reply.affected))

    def _number(self, file: CachedFile, flags: int) -> int:
        if is_writing(flags) and not file.tokens.revocations:
            assert not file.tokens.shared(), "K2: open for writing with SHARED tokens"
        number = next(self._ids)
        writing = is_writing(flags)
        direct = bool(flags & (os.O_DIRECT | os.O_APPEND)) or (writing and self.write_directly)
        self._open[number] = OpenFile(file, flags, file.errors.reports, direct)
        return number

    def is_flushed(self, number: int) -> bool:
        """Whether `flush` has nothing to do, and nothing to tell."""
        opened = self._open[number]
        told = opened.errors_told == opened.file.errors.reports
        return not opened.writing or (told and not opened.file.pages.dirty)

    async def flush(self, number: int) -> None:
        """close(2) of one descriptor: what it wrote is at the server when this returns (promise 5)."""
        opened = self._open[number]
        if not self.is_flushed(number):
            await self._told_of_errors(opened, self._write_back.write_back(opened.file))

    def release(self, number: int) -> None:
        """The last close: nobody waits for it, in the kernel either."""
        opened = self._open.pop(number)
        self._closed(opened.file, opened.writing)

    def _closed(self, file: CachedFile, writing: bool) -> None:
        file.open_count -= 1
        file.tokens.writers -= writing
        if file.open_count == 0:
            if file.attributes.mode is TokenMode.NONE:
                file.inode.kernel_size.behind = True
            self._release(file)
        file.wake()

    def _release(self, file: CachedFile) -> None:
        self._write_back.closed(file)
        # What is new is mostly read next, and by others: they need not recall anything. Who opens it for
        # writing once more makes a round trip for that; what is written again and again is seldom new.
        shared = file.share() if file.made_here and file.open_ids else ()
        file.made_here = False
        known = file.attributes.known
        unlinked = known is not None and known.nlink == 0  # it takes room until the server knows
        for open_id in file.open_ids:
            self._remote.release(open_id, shared, at_once=unlinked)
            shared = ()
        file.open_ids.clear()

    def lost_locks(self, numbers: Iterable[int]) -> None:
        """Locks that were taken through these open files are lost."""
        for number in numbers:
            opened = self._open.get(number)
            if opened is not None:
                opened.lost_lock = True
                log.error("%s: a lock was lost with the session", opened.file.inode)

    def _usable(self, number: int) -> OpenFile:
        opened = self._open[number]
        if opened.lost_lock:
            raise FsError(errno.EIO, "a lock that was held through this open file was lost")
        return opened

    # --- data ---

    def read_at_once(self, number: int, offset: int, size: int, *, cached: bool) -> ReadData | None:
        """As `read`, if that takes neither a round trip nor waiting; else None."""
        opened = self._usable(number)
        data = self._reader.read_at_once(opened.file, offset, size, cached=cached)
        if data is not None:
            self._accessed(opened)
        return data

    def read_later(
        self, number: int, offset: int, size: int, thread: int, answered: Answered
    ) -> Callable[[], None] | None:
        """As `read` of pages for the kernel's cache, but for that no task waits: see `Reader.read_later`."""
        opened = self._usable(number)
        give_up = self._reader.read_later(opened.file, offset, size, thread, answered)
        if give_up is not None:
            self._accessed(opened)
        return give_up

    async def read(
        self, number: int, offset: int, size: int, *, cached: bool | None = None, thread: int = 0
    ) -> ReadData:
        """pread(2) for the kernel. *cached*: it is going to keep the pages; None: as the file was opened (but
        a fault in a mapping of a file that is read directly is cached all the same). *thread* waits for it."""
        opened = self._usable(number)
        keeps = not opened.direct if cached is None else cached
        data = await self._reader.read(opened.file, offset, size, cached=keeps, thread=thread)
        self._accessed(opened)
        return data

    def _accessed(self, opened: OpenFile) -> bool:
        """A program reads it; whether that changes the time of the last access, of which the server is told.
        A file that was written, and is read before that is written back, is not accessed: its mtime is about
        to be later."""
        if opened.flags & os.O_NOATIME:
            return False
        if not opened.file.attributes.accessed(self.access_times, self._wall_clock()):
            return False
        self._remote.accessed(opened.file.inode.handle)
        return True

    def write_at_once(self, number: int, offset: int, data: Bytes, *, page: bool) -> int | None:
        """As `write`, if that takes neither a round trip nor waiting; else None. Keeps nothing of *data*."""
        opened, append, direct = self._writing(number, page)
        written = self._writer.write_at_once(
            opened.file, offset, data, append=append, direct=direct, page=page
        )
        return None if written is None else self._written(opened, offset, written, page)

    async def write(
        self, number: int, offset: int, data: bytes, *, page: bool, sync: Sync = Sync.NONE
    ) -> int:
        """pwrite(2) for the kernel, or the write-back of a mapped *page*. *sync*: as O_SYNC and O_DSYNC want
        it. After a write through its page cache the kernel asks for that itself (`generic_write_sync`), after
        one past it it does not."""
        opened, append, direct = self._writing(number, page)
        written = await self._writer.write(opened.file, offset, data, append=append, direct=direct, page=page)
        self._written(opened, offset, written, page)
        if direct and sync is not Sync.NONE:
            await self.fsync(number, sync is Sync.DATA)
        return written

    def _writing(self, number: int, page: bool) -> tuple[OpenFile, bool, bool]:
        """The open file; whether the write appends, and whether it goes past the kernel's cache."""
        opened = self._open[number] if page else self._usable(number)
        return opened, bool(opened.flags & os.O_APPEND) and not page, opened.direct and not page

    @staticmethod
    def _written(opened: OpenFile, offset: int, size: int, page: bool) -> int:
        if not page:
            opened.file.inode.kernel_size.at_least(offset + size)  # fuse_write_update_attr
        return size

    async def fsync(self, number: int, data_only: bool) -> None:
        """fsync(2): on the server's disk when this returns."""
        opened = self._open[number]
        sync = Sync.DATA if data_only else Sync.ALL
        synced = await self._told_of_errors(opened, self._write_back.write_back_and_sync(opened.file, sync))
        self._usable(number)
        if synced:
            return
        try:
            await self._remote.call(m.Fsync(opened.file.inode.handle, data_only))
        except FsError as exc:
            # The server's disk has failed: it says so once, and whoever else has the file open here is to know.
            opened.file.errors.lost(exc)
            opened.errors_told = opened.file.errors.reports
            raise

    async def _told_of_errors(self, opened: OpenFile, write_back: Coroutine[Any, Any, T]) -> T:
        """Write back, and tell this open file of all errors since it was last told: once (errseq)."""
        errors = opened.file.errors
        try:
            result = await write_back
        finally:
            told, opened.errors_told = opened.errors_told, errors.reports
        if told != errors.reports:
            assert errors.newest is not None
            raise errors.newest.alone()
        return result
