"""A model of the kernel of one client: the Kernel port on one side, what programs do on the other.

It asks a real `Filesystem` as fs/fuse of Linux 6.18 asks a daemon, with the INIT flags of this project (no
writeback cache, AUTO_INVAL_DATA off, EXPLICIT_INVAL_DATA and ATOMIC_O_TRUNC on). Requests take a while to
reach the daemon and answers a while to take effect (`pause`), but the daemon's answer and the copy of its
data are one step: "the answer must reach the kernel before anything else runs" is the engine's assumption.

Not modelled: several pages per folio, splice, O_DIRECT reads of a mapped range under write-back,
memory pressure that waits for a write-back, dentries.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

import trio

from nfsfuse.engine.filesystem import Filesystem
from nfsfuse.engine.names import Found
from nfsfuse.engine.reading import ReadData
from nfsfuse.machines.inodes import Inode, NodeId
from nfsfuse.machines.turns import Turn
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.types import PAGE_SIZE, AttributeChanges, Attributes, Credentials
from tests.helpers.kernel_pages import Folio, KernelInode

T = TypeVar("T")

_CREDENTIALS = Credentials(0, 0)

THREAD = 1
"""Its number."""

KILL_SECONDS_MAX = 0.01
"""After which a program is killed: some round trips and recalls."""

WORD_SIZE = 8
"""Bytes that a program loads or stores at once."""


class Sigbus(Exception):
    """A program touched its mapping beyond the end of the file, or its page could not be read."""


class Killed(Exception):
    """The program was killed while it waited for the daemon, which has answered EINTR."""


@dataclass(slots=True, eq=False)
class Descriptor:
    """An open file. Mappings keep it open."""

    inode: KernelInode
    handle: int
    flags: int
    direct: bool  # FOPEN_DIRECT_IO: read(2) and write(2) go past the page cache, mappings use it
    users: int = 1
    in_exec: bool = False  # execve(2) is closing it: whose it is holds exec_update_lock

    @property
    def writing(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_RDONLY


@dataclass(slots=True, eq=False)
class Mapping:
    """mmap(2), MAP_SHARED, of a whole file."""

    opened: Descriptor


@dataclass(slots=True)
class Delays:
    """Seconds that things take, drawn anew each time; *read_ahead_pages_max* is the most that one read asks."""

    random: Random
    seconds_max: float = 0.0005
    at_once: float = 0.3  # how often nothing is waited for at all
    read_ahead_pages_max: int = 3
    killed: float = 0.0  # how often who waits for the daemon is killed meanwhile, if it takes that long
    later: float = 0.0  # how often a read is answered without a task of the daemon's (`Files.read_later`)

    async def unless_killed(self, work: Awaitable[T]) -> T:
        """What the daemon answers to a request of a program. Raises Killed: FUSE_INTERRUPT was faster."""
        if not self.killed or self.random.random() >= self.killed:
            return await work
        with trio.move_on_after(self.random.random() * KILL_SECONDS_MAX):
            return await work
        raise Killed

    def reads_later(self) -> bool:
        """Whether the next read into the cache is one that the daemon answers without a task."""
        return self.later > 0.0 and self.random.random() < self.later

    def read_ahead_pages(self) -> int:
        """How many pages the next read into the cache asks for, if as many are missing."""
        return self.random.randint(1, self.read_ahead_pages_max)

    async def pause(self) -> None:
        if self.random.random() >= self.at_once:
            await trio.sleep(self.random.random() * self.seconds_max)


@dataclass(slots=True, eq=False)
class KernelModel:
    """One client's kernel. *fs* is set once the engine behind it is made; *note* is told what happens."""

    delays: Delays
    note: Callable[[NodeId, str], None]
    fs: Filesystem = field(init=False)
    checks_permissions: bool = True
    inodes: dict[NodeId, KernelInode] = field(default_factory=dict)
    invalidations: list[tuple[NodeId, int, int]] = field(default_factory=list)
    failed_write_backs: list[FsError] = field(default_factory=list)
    processor_seconds: float | None = None
    """How long a thread that is woken in a fault waits for a processor; None: it need not. All programs are one
    thread then."""
    _processor_times: int = 0
    _gone_on: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)
    _executed: trio.lowlevel.ParkingLot = field(default_factory=lambda: trio.lowlevel.ParkingLot())
    _version: int = 1  # fc->attr_version

    async def _pause(self) -> None:
        await self.delays.pause()

    # --- the Kernel port: FUSE_NOTIFY_INVAL_INODE ---

    async def invalidate_pages(
        self,
        node_id: NodeId,
        start: int,
        end: int,
        returned: bytearray | None = None,
        turn: Turn | None = None,
    ) -> None:
        """fuse_reverse_inval_inode: attributes, then invalidate_inode_pages2_range."""
        await self._pause()  # the thread hop
        if turn is not None:
            with trio.move_on_at(turn.until):
                while self._processor_times == turn.times:
                    await self._gone_on.park()
        inode = self.inodes.get(node_id)
        if inode is None:
            if returned is not None:
                returned[0] = 1
            return
        self._forget_attributes(inode)
        self.note(node_id, f"invalidation of [{start:#x}, {end:#x}) begins")
        self.invalidations.append((node_id, start, end))
        await self._invalidate_range(inode, start, end)
        self.note(node_id, f"invalidation of [{start:#x}, {end:#x}) is done")
        await self._pause()  # out of the system call
        self.invalidations.remove((node_id, start, end))
        if returned is not None:
            returned[0] = 1
        await self._pause()  # back to the event loop

    def processor(self, thread: int) -> tuple[int, int] | None:
        assert thread == THREAD
        return self._processor_times, 0

    async def write_back_pages(self, node_id: NodeId, generation: int, start: int, end: int) -> None:
        """sync_file_range(2): now and then it gets somewhere."""
        if self.delays.random.random() < 0.5:
            await self._pause()
            await self._write_and_wait(self.inodes[node_id], start, end)

    async def grow(self, node_id: NodeId, generation: int, size: int) -> bool:
        """FUSE_NOTIFY_STORE of the last byte, of which nothing can be read: fuse_write_update_attr, then the
        lock of the page, for which nobody waits, and nothing else."""
        await self._pause()
        inode = self.inodes.get(node_id)
        if inode is not None:
            if size > inode.size:
                self._version += 1
                inode.attribute_version = self._version
                inode.size = size
                inode.attributes_valid = False
            inode.folios.setdefault((size - 1) // PAGE_SIZE, Folio((size - 1) // PAGE_SIZE))
            self.note(node_id, f"it is told of {size} bytes, and believes in {inode.size}")
        await self._pause()
        return inode is not None

    async def delete_entry(self, parent: NodeId, child: NodeId, name: bytes) -> None:
        """Dentries are not modelled."""

    async def expire_entry(self, parent: NodeId, name: bytes) -> None:
        await self._pause()

    async def expire_entry_at_once(self, parent: Inode, name: bytes, child: Inode | None) -> bool:
        await self._pause()
        return True

    async def find_entry(self, parent: Inode, name: bytes, child: Inode, attributes: Attributes) -> None:
        await self._pause()

    async def distrust_entries(self) -> None:
        await self._pause()

    async def invalidate_attributes(self, node_id: NodeId) -> bool:
        await self._pause()
        known = node_id in self.inodes
        if known:
            self._forget_attributes(self.inodes[node_id])
        await self._pause()
        return known

    async def _invalidate_range(self, inode: KernelInode, start: int, end: int) -> None:
        for index in sorted(inode.folios):
            folio = inode.folios.get(index)
            if folio is None or not start <= index * PAGE_SIZE < end:
                continue
            if not await inode.lock_folio(folio):
                continue
            await inode.wait_write_back(folio)
            folio.mapped.clear()  # unmap_mapping_folio: later faults wait for the folio lock
            await self._pause()
            if folio.dirty:  # fuse_launder_folio
                await self._write_page(inode, folio)
            inode.drop(folio)
            inode.unlock_folio(folio)

    # --- page write-back ---

    async def _write_page(self, inode: KernelInode, folio: Folio) -> None:
        """fuse_writepage and its answer; the folio is locked, or was when write-back was begun."""
        self._begin_write_back(folio)
        await self._send_page(inode, folio)

    def _begin_write_back(self, folio: Folio) -> None:
        folio.dirty = False
        folio.protect()
        folio.under_write_back = True

    async def _send_page(self, inode: KernelInode, folio: Folio) -> None:
        while inode.nowrite:
            await inode.changed()
        inode.write_backs += 1
        start = folio.index * PAGE_SIZE
        size = min(PAGE_SIZE, inode.size - start)  # fuse_send_writepage; <= 0: truncated off completely
        try:
            if size > 0:
                await self._pause()
                self.note(inode.node_id, f"FUSE_WRITE of page {folio.index}, write-back")
                data = bytes(folio.data[:size])
                await self._write_page_through(inode.open_for_writing[0], start, data)
                await self._pause()
        except FsError as exc:
            self.failed_write_backs.append(exc)
        finally:
            inode.write_backs -= 1
            folio.under_write_back = False
            inode.wake()

    async def _write_page_through(self, opened: Descriptor, start: int, data: bytes) -> None:
        """FUSE_WRITE of a page, which keeps the file open (fuse_write_file_get)."""
        opened.users += 1
        try:
            await self.fs.files.write(opened.handle, start, data, page=True)
        finally:
            self._put(opened)

    async def write_back_some(self, inode: KernelInode, count: int) -> None:
        """What the flusher thread does now and then."""
        dirty = [folio for _, folio in sorted(inode.folios.items()) if folio.dirty]
        for folio in self.delays.random.sample(dirty, min(count, len(dirty))):
            await self._write_back_folio(inode, folio)

    async def _write_back_folio(self, inode: KernelInode, folio: Folio) -> None:
        if not await inode.lock_folio(folio):
            return
        await inode.wait_write_back(folio)
        if not folio.dirty:
            inode.unlock_folio(folio)
            return
        self._begin_write_back(folio)
        inode.unlock_folio(folio)
        await self._send_page(inode, folio)

    async def _write_and_wait(self, inode: KernelInode, start: int = 0, end: int = 2**63) -> None:
        """filemap_write_and_wait_range."""
        for index in sorted(inode.folios):
            folio = inode.folios.get(index)
            if folio is not None and start < (index + 1) * PAGE_SIZE and index * PAGE_SIZE < end:
                if folio.dirty:
                    await self._write_back_folio(inode, folio)
                await inode.wait_write_back(folio)

    def evict_some(self, inode: KernelInode, count: int) -> None:
        """Memory pressure: clean pages that nobody works on go, mapped or not."""
        idle = [
            folio
            for _, folio in sorted(inode.folios.items())
            if not (folio.dirty or folio.locked or folio.under_write_back or folio.writes_pending)
        ]
        for folio in self.delays.random.sample(idle, min(count, len(idle))):
            inode.drop(folio)

    # --- attributes ---

    def _forget_attributes(self, inode: KernelInode) -> None:
        self._version += 1
        inode.attribute_version = self._version
        inode.attributes_valid = False

    def _told(self, node_id: NodeId, attributes: Attributes) -> bool:
        """As the adapter answers (`Operations.told`): whether the kernel may trust them."""
        known = self.fs.inodes[node_id]
        known.kernel_size.told(attributes.size)
        return known.attributes.told(attributes)

    async def _getattr(self, inode: KernelInode, *, size_only: bool) -> Attributes:
        """FUSE_GETATTR and fuse_change_attributes; what the daemon said. *size_only*: with FUSE_GETATTR_FH, as
        the kernel asks for itself (fuse_update_attributes)."""
        version = self._version
        await self._pause()
        known = self.fs.inodes[inode.node_id]
        attributes = await self.fs.attributes_for_kernel(known, size_only=size_only)
        await self._answered(inode, attributes, version)
        return attributes

    async def _answered(self, inode: KernelInode, attributes: Attributes, version: int) -> None:
        trusted = self._told(inode.node_id, attributes)
        await self._pause()
        if inode.attribute_version <= version and not inode.size_unstable:
            await self._set_attributes(inode, attributes.size, trusted)
            inode.times = attributes.mtime_ns, attributes.ctime_ns

    async def learn_size(self, node_id: NodeId, generation: int) -> int | None:
        """statx(2) with a FUSE_GETATTR that is answered from what is known, or EINTR; then without."""
        inode, version = self.inodes[node_id], self._version
        await self._pause()
        known = self.fs.inodes[node_id].attributes.known
        if known is not None:
            await self._answered(inode, known, version)
        await self._pause()
        return inode.size

    async def _set_attributes(self, inode: KernelInode, size: int, trusted: bool) -> None:
        self._version += 1
        inode.attribute_version = self._version
        inode.attributes_valid = trusted
        before, inode.size = inode.size, size
        if before != size:
            await inode.truncate_pagecache(size)

    async def stat_size(self, opened: Descriptor) -> int:
        """fstat(2): st_size."""
        inode = opened.inode
        if inode.attributes_valid:
            return inode.size
        return (await self._getattr(inode, size_only=False)).size

    async def stat_times(self, opened: Descriptor) -> tuple[int, int]:
        """fstat(2): st_mtim and st_ctim."""
        inode = opened.inode
        if inode.attributes_valid:
            return inode.times
        told = await self._getattr(inode, size_only=False)
        return told.mtime_ns, told.ctime_ns

    async def utime(self, opened: Descriptor, mtime_ns: int) -> None:
        """futimens(2) of the mtime: fuse_do_setattr without a size. Nothing keeps pages from being written
        back, and nothing has been without a writeback cache."""
        inode = opened.inode
        async with inode.lock:
            await self._pause()
            changes = AttributeChanges(mtime_ns=mtime_ns)
            attributes = await self.fs.inode_changes.setattr(self.fs.inodes[inode.node_id], changes)
            await self._pause()
            self._version += 1
            inode.attribute_version = self._version
            inode.attributes_valid = False
            inode.size = attributes.size

    # --- open and close ---

    async def open(self, name: bytes, flags: int, *, create: bool = False) -> Descriptor:
        """open(2) of a file in the root. O_TRUNC is part of FUSE_OPEN (ATOMIC_O_TRUNC)."""
        version = self._version
        await self._pause()
        if create:
            credentials = _CREDENTIALS
            handle, found = await self.fs.files.create(1, name, 0o100644, flags, credentials)
            inode = await self._found(found.inode.node_id, found.attributes, version)
            return self._opened(inode, handle, flags)
        entry = await self.fs.names.lookup(1, name)
        assert isinstance(entry, Found), name
        inode = await self._found(entry.inode.node_id, entry.attributes, version)
        inode.opens_under_way += 1
        try:
            if flags & os.O_TRUNC:
                handle = await self._truncating(inode, 0, lambda: self.fs.files.open(inode.node_id, flags))
            else:
                opening = self.fs.files.open(inode.node_id, flags)
                handle = await self.delays.unless_killed(opening)
        finally:
            inode.opens_under_way -= 1
        return self._opened(inode, handle, flags)

    async def _found(self, node_id: NodeId, attributes: Attributes, version: int) -> KernelInode:
        """fuse_iget, with what a lookup told. Until then no notification finds a new inode."""
        trusted = self._told(node_id, attributes)
        await self._pause()
        inode = self.inodes.get(node_id)
        if inode is None:
            inode = self.inodes[node_id] = KernelInode(node_id, attributes.size)
        if inode.attribute_version <= version and not inode.size_unstable:
            await self._set_attributes(inode, attributes.size, trusted)
        return inode

    async def takes_in(self, found: Found) -> None:
        """The answer to a lookup of a program that calls the engine itself."""
        await self._found(found.inode.node_id, found.attributes, self._version)

    def forget(self, node_id: NodeId) -> None:
        """Such a program forgets what it has looked up; and so does the kernel, if nobody else knows it."""
        self.fs.names.forget(node_id, 1)
        if self.fs.inodes.get(node_id) is None:
            self.inodes.pop(node_id, None)

    def _opened(self, inode: KernelInode, handle: int, flags: int) -> Descriptor:
        opened = Descriptor(inode, handle, flags, self.fs.files[handle].direct)
        if opened.writing:
            inode.open_for_writing.append(opened)
        return opened

    async def map(self, opened: Descriptor) -> Mapping:
        """mmap(2). fuse_file_mmap drops what is cached first, if the file is read and written directly."""
        opened.users += 1
        if opened.direct:
            await self._invalidate_range(opened.inode, 0, 2**63)
        return Mapping(opened)

    async def unmap(self, mapping: Mapping) -> None:
        """munmap(2): fuse_vma_close writes back."""
        for folio in mapping.opened.inode.folios.values():
            folio.mapped.pop(mapping, None)
        await self._write_and_wait(mapping.opened.inode)
        self._put(mapping.opened)

    async def close(self, opened: Descriptor) -> None:
        """close(2): fuse_flush, and FUSE_RELEASE with the last user."""
        try:
            await self._write_and_wait(opened.inode)
            await self._pause()
            await self.answer_flush(opened)
        finally:
            self._put(opened)

    async def answer_flush(self, opened: Descriptor) -> None:
        """What the daemon does at FUSE_FLUSH."""
        await self.fs.files.flush(opened.handle)

    async def exec(self, opened: Descriptor, mapping: Mapping | None = None) -> None:
        """execve(2) of a program whose descriptor is close-on-exec: begin_new_exec (fs/exec.c) takes
        exec_update_lock, has the old memory go, and closes."""
        opened.in_exec = True
        try:
            if mapping is not None:
                await self.unmap(mapping)
            await self.close(opened)
        finally:
            opened.in_exec = False
            self._executed.unpark_all()

    async def look_at_who_closes(self, opened: Descriptor) -> None:
        """A read of /proc/PID/stat, or another file of that directory that takes exec_update_lock."""
        while opened.in_exec:
            await self._executed.park()

    def _put(self, opened: Descriptor) -> None:
        opened.users -= 1
        if opened.users == 0:
            if opened.writing:
                opened.inode.open_for_writing.remove(opened)
            self.fs.files.release(opened.handle)

    # --- loads and stores through a mapping ---

    async def load(self, mapping: Mapping, offset: int) -> bytes:
        """A load of a word. Once a page is mapped, nobody is asked."""
        index, at = divmod(offset, PAGE_SIZE)
        inode = mapping.opened.inode
        while True:
            folio = inode.folios.get(index)
            if folio is not None and mapping in folio.mapped:
                return bytes(folio.data[at : at + WORD_SIZE])
            await self._fault(mapping, index, store=False)

    async def store(self, mapping: Mapping, offset: int, word: bytes) -> None:
        """A store of a word. The first one to a clean page tells nobody (fuse_page_mkwrite)."""
        index, at = divmod(offset, PAGE_SIZE)
        inode = mapping.opened.inode
        while True:
            folio = inode.folios.get(index)
            if folio is not None and folio.mapped.get(mapping, False):
                folio.data[at : at + WORD_SIZE] = word
                return
            await self._fault(mapping, index, store=True)

    async def _fault(self, mapping: Mapping, index: int, *, store: bool) -> None:
        """filemap_fault, and fuse_page_mkwrite for a store."""
        inode = mapping.opened.inode
        if index * PAGE_SIZE >= inode.size:
            raise Sigbus(f"page {index} of {inode.size} bytes")
        folio = inode.folios.get(index)
        if folio is None:
            await self._read_ahead(mapping.opened, index)
            if self.processor_seconds is not None:
                await trio.sleep(self.processor_seconds)
                self._processor_times += 1
                self._gone_on.unpark_all()
            return
        if not await inode.lock_folio(folio):
            return
        if not folio.uptodate:
            await self._read_locked(mapping.opened, [folio], Sigbus)
            return
        if store:
            await inode.wait_write_back(folio)
            folio.dirty = True
        folio.mapped[mapping] = store or folio.mapped.get(mapping, False)
        inode.unlock_folio(folio)

    # --- FUSE_READ into the cache ---

    async def _read_ahead(self, opened: Descriptor, index: int) -> None:
        """Bring in the page, and some that follow it and are not cached. An error leaves folios that are not
        up to date; whoever needs one then asks for it alone, and is told."""
        inode = opened.inode
        folios: list[Folio] = []
        for number in range(index, index + self.delays.read_ahead_pages()):
            if number in inode.folios or (folios and number * PAGE_SIZE >= inode.size):
                break
            inode.folios[number] = Folio(number, locked=True)
            folios.append(inode.folios[number])
        with suppress(FsError):
            await self._read_locked(opened, folios, None)

    async def _read_locked(
        self, opened: Descriptor, folios: list[Folio], failure: type[Exception] | None
    ) -> None:
        """FUSE_READ of locked folios that follow one another; unlocked again at the end."""
        inode, start = opened.inode, folios[0].index * PAGE_SIZE
        version = self._version
        try:
            await self._pause()
            self.note(inode.node_id, f"FUSE_READ of pages {folios[0].index} to {folios[-1].index}")
            size = len(folios) * PAGE_SIZE
            filled = 0

            def fill(data: ReadData) -> None:
                nonlocal filled
                filled = len(data)
                for folio in folios:
                    at = folio.index * PAGE_SIZE - start
                    folio.data[:] = bytes(data[at : at + PAGE_SIZE]).ljust(PAGE_SIZE, b"\0")

            await self._read(opened.handle, start, size, fill)
            if filled < size:
                self._short_read(inode, start + filled, version)
            if len(folios) == 1:
                await self._pause()  # fuse_read_folio: it is up to date once the reader has woken up
            for folio in folios:
                folio.uptodate = True
        except FsError as exc:
            if failure is not None:
                raise failure(str(exc)) from exc
            raise
        finally:
            for folio in folios:
                inode.unlock_folio(folio)

    async def _read(self, handle: int, start: int, size: int, fill: Callable[[ReadData], None]) -> None:
        """Ask for pages, in a task of the daemon's or without one; *fill* takes what comes. Raises FsError."""
        thread = 0 if self.processor_seconds is None else THREAD
        files = self.fs.files
        results: list[Exception | None] = []
        answered = trio.lowlevel.ParkingLot()

        def take(result: ReadData | Exception) -> None:
            assert not results, "answered twice"
            if isinstance(result, Exception):
                results.append(result)
            else:
                fill(result)
                results.append(None)
            answered.unpark_all()

        give_up: Callable[[], None] | None = None
        if self.delays.reads_later():
            data = files.read_at_once(handle, start, size, cached=True)
            if data is not None:
                fill(data)
                return
            give_up = files.read_later(handle, start, size, thread, take)
        if give_up is None:
            fill(await self.delays.unless_killed(files.read(handle, start, size, cached=True, thread=thread)))
            return

        async def wait() -> None:
            while not results:
                await answered.park()

        try:
            await self.delays.unless_killed(wait())
        except Killed:
            give_up()
            raise
        if results[0] is not None:
            raise results[0]

    def _short_read(self, inode: KernelInode, size: int, version: int) -> None:
        """fuse_read_update_size."""
        if inode.attribute_version <= version and size < inode.size and not inode.size_unstable:
            self._version += 1
            inode.attribute_version = self._version
            inode.size = size

    # --- read(2) and write(2) ---

    async def read(self, opened: Descriptor, offset: int, size: int) -> bytes:
        """pread(2)."""
        inode = opened.inode
        if opened.direct:
            return await self._read_direct(opened, offset, size)
        if offset + size > inode.size and not inode.attributes_valid:
            await self._getattr(inode, size_only=True)
        found = bytearray()
        while len(found) < size and offset + len(found) < inode.size:
            index, at = divmod(offset + len(found), PAGE_SIZE)
            folio = inode.folios.get(index)
            if folio is None:
                await self._read_ahead(opened, index)
            elif not folio.uptodate:
                if await inode.lock_folio(folio):
                    if folio.uptodate:
                        inode.unlock_folio(folio)
                    else:
                        await self._read_locked(opened, [folio], None)
            else:
                end = min(at + size - len(found), PAGE_SIZE, inode.size - index * PAGE_SIZE)
                found += folio.data[at:end]
        return bytes(found)

    async def splice(self, opened: Descriptor, offset: int, size: int) -> bytes:
        """splice(2) and sendfile(2): filemap_splice_read. However the file was opened they go through the page
        cache, and by the size that is believed, without a question."""
        inode = opened.inode
        found = bytearray()
        while len(found) < size and offset + len(found) < inode.size:
            index, at = divmod(offset + len(found), PAGE_SIZE)
            folio = inode.folios.get(index)
            if folio is None:
                await self._read_ahead(opened, index)
            elif not folio.uptodate:
                if await inode.lock_folio(folio):
                    if folio.uptodate:
                        inode.unlock_folio(folio)
                    else:
                        await self._read_locked(opened, [folio], None)
            else:
                found += folio.data[at : min(at + size - len(found), PAGE_SIZE, inode.size - index * PAGE_SIZE)]
        return bytes(found)

    def copied_at_most(self, opened: Descriptor, offset: int, size: int) -> int:
        """Of *size* bytes that copy_file_range(2) is asked for: what it asks the daemon for
        (generic_copy_file_checks), without a question."""
        return max(0, min(size, opened.inode.size - offset))

    async def _read_direct(self, opened: Descriptor, offset: int, size: int) -> bytes:
        """fuse_direct_io."""
        inode = opened.inode
        await self._write_and_wait(inode, offset, offset + size)
        if inode.has_write_back(offset, offset + size):
            async with inode.lock:
                await self._sync_writes(inode)
        await self._pause()
        reading = self.fs.files.read(opened.handle, offset, size, cached=False)
        return bytes(await self.delays.unless_killed(reading))

    async def _sync_writes(self, inode: KernelInode) -> None:
        """fuse_sync_writes: wait for the write-backs under way, and hold up others meanwhile."""
        assert not inode.nowrite
        inode.nowrite = True
        while inode.write_backs:
            await inode.changed()
        inode.nowrite = False
        inode.wake()

    async def write(self, opened: Descriptor, offset: int, data: bytes) -> int:
        """pwrite(2), or with O_APPEND write(2)."""
        inode = opened.inode
        async with inode.lock:
            if opened.direct:
                return await self._write_direct(opened, offset, data)
            inode.size_unstable = offset + len(data) > inode.size
            done = 0
            try:
                while done < len(data):
                    done += await self._write_through(opened, offset + done, data[done:])
            finally:
                self._written(inode, offset + done)
        return done

    def _written(self, inode: KernelInode, end: int) -> None:
        """fuse_write_update_attr."""
        self._version += 1
        inode.attribute_version = self._version
        inode.size = max(inode.size, end)
        inode.attributes_valid = False
        inode.size_unstable = False

    async def _write_direct(self, opened: Descriptor, offset: int, data: bytes) -> int:
        """FOPEN_DIRECT_IO. Where O_APPEND ends up only the daemon knows; the kernel takes its own i_size."""
        inode = opened.inode
        if opened.flags & os.O_APPEND:
            if not inode.attributes_valid:
                await self._getattr(inode, size_only=True)  # generic_write_checks, after fuse_update_attributes
            offset = inode.size
        await self._write_and_wait(inode, offset, offset + len(data))
        if inode.has_write_back(offset, offset + len(data)):
            await self._sync_writes(inode)
        await self._invalidate_range(inode, offset // PAGE_SIZE * PAGE_SIZE, offset + len(data))
        await self._pause()
        writing = self.fs.files.write(opened.handle, offset, data, page=False)
        written = await self.delays.unless_killed(writing)
        await self._pause()
        self._written(inode, offset + written)
        return written

    async def _write_through(self, opened: Descriptor, offset: int, data: bytes) -> int:
        """fuse_fill_write_pages and fuse_send_write_pages: one FUSE_WRITE; the bytes written. A page that is
        not up to date and only partly written ends it, and stays locked until the answer."""
        inode = opened.inode
        pieces: list[tuple[Folio, int, int]] = []
        done, stays_locked = 0, False
        while done < len(data) and not stays_locked:
            index, at = divmod(offset + done, PAGE_SIZE)
            folio = inode.folios.get(index)
            if folio is None:
                folio = inode.folios[index] = Folio(index, locked=True)
            elif not await inode.lock_folio(folio):
                continue
            size = min(PAGE_SIZE - at, len(data) - done)
            folio.data[at : at + size] = data[done : done + size]
            folio.uptodate |= size == PAGE_SIZE
            folio.writes_pending += 1
            pieces.append((folio, at, at + size))
            done += size
            if folio.uptodate:
                inode.unlock_folio(folio)
            else:
                stays_locked = True
        try:
            for folio, _, _ in pieces:
                await inode.wait_write_back(folio)
            await self._pause()
            # The daemon reads the request, and with it the pages as they are by now.
            content = b"".join(bytes(folio.data[low:high]) for folio, low, high in pieces)
            self.note(inode.node_id, f"FUSE_WRITE of [{offset:#x}, {offset + done:#x})")
            writing = self.fs.files.write(opened.handle, offset, content, page=False)
            written = await self.delays.unless_killed(writing)
            await self._pause()
            return written
        except (FsError, Killed):
            for folio, _, _ in pieces:
                folio.uptodate = False
            raise
        finally:
            for folio, _, _ in pieces:
                folio.writes_pending -= 1
            if stays_locked:
                inode.unlock_folio(pieces[-1][0])

    # --- truncate, fsync ---

    async def truncate(self, opened: Descriptor, size: int) -> None:
        """ftruncate(2): fuse_do_setattr."""
        inode = opened.inode

        async def set_size() -> Attributes:
            known = self.fs.inodes[inode.node_id]
            return await self.fs.inode_changes.setattr(known, AttributeChanges(size=size))

        # The adapter lets no attributes of a SETATTR be trusted: they are taken without a look at their age.
        await self._truncating(inode, size, set_size)

    async def _truncating(self, inode: KernelInode, size: int, ask: Callable[[], Awaitable[T]]) -> T:
        """What truncate(2) and O_TRUNC have in common. Between fuse_set_nowrite and the answer no page is
        written back; the answer's attributes are taken without a look at their age (fuse_do_setattr)."""
        async with inode.lock:
            inode.nowrite = inode.size_unstable = True
            inode.truncations += 1
            try:
                while inode.write_backs:
                    await inode.changed()
                await self._pause()
                self.note(inode.node_id, f"truncation to {size}")
                answer = await ask()
                await self._pause()
                self._version += 1
                inode.attribute_version = self._version
                inode.attributes_valid = False
                inode.size = size
            finally:
                inode.nowrite = inode.size_unstable = False
                inode.truncations += 1
                inode.wake()
            await inode.truncate_pagecache(size)
        return answer

    async def fsync(self, opened: Descriptor) -> None:
        """fsync(2)."""
        async with opened.inode.lock:
            await self._write_and_wait(opened.inode)
            await self._pause()
            await self.fs.files.fsync(opened.handle, False)

    async def drop_everything(self, opened: Descriptor) -> None:
        """posix_fadvise(DONTNEED) after an fsync: the next reads ask the daemon."""
        with suppress(FsError):
            await self._write_and_wait(opened.inode)
        self.evict_some(opened.inode, len(opened.inode.folios))
