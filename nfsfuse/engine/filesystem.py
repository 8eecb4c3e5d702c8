"""The client's filesystem, whole: names, directories and files over one session, with what they cache."""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from nfsfuse.engine.acls import Acls
from nfsfuse.engine.cached_file import CachedFile
from nfsfuse.engine.directories import Directories
from nfsfuse.engine.distrust import distrust_when_known
from nfsfuse.engine.fence import Fenced, forget_everything, forget_refused, open_again, purge
from nfsfuse.engine.files import Files
from nfsfuse.engine.growths import Growths
from nfsfuse.engine.holdings import Holdings
from nfsfuse.engine.inode_changes import InodeChanges
from nfsfuse.engine.inode_flags import InodeFlags
from nfsfuse.engine.kernel_attributes import attributes_at_once, attributes_for_kernel
from nfsfuse.engine.locks import Locks
from nfsfuse.engine.name_changes import NameChanges
from nfsfuse.engine.name_drops import NameDrops
from nfsfuse.engine.names import Names
from nfsfuse.engine.numbers import Numbers
from nfsfuse.engine.page_protocol import PageProtocol
from nfsfuse.engine.ranges import Ranges
from nfsfuse.engine.reading import Reader
from nfsfuse.engine.recalls import Recalls
from nfsfuse.engine.reclaim import claims, give_up_times
from nfsfuse.engine.suspension import Suspension
from nfsfuse.engine.write_back import WriteBack
from nfsfuse.engine.writing import Writer
from nfsfuse.engine.xattrs import Xattrs
from nfsfuse.machines.access_times import AccessTimes
from nfsfuse.machines.inodes import Inode, InodeTable
from nfsfuse.machines.page_cache import PageCache
from nfsfuse.ports.kernel import Kernel
from nfsfuse.ports.remote import Remote
from nfsfuse.ports.session_owner import Callback
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.record import record
from nfsfuse.protocol.types import Attributes, Node, SessionId

log = logging.getLogger(__name__)


@record(frozen=True, slots=True)
class CacheOptions:
    """How much the daemon may keep. Sizes are bytes."""

    cache_bytes: int = 256 << 20
    dirty_bytes_max: int = 64 << 20
    guard: bool = False


class Filesystem:
    """What a mount is made of. Knows nothing of FUSE."""

    def __init__(
        self,
        remote: Remote,
        root: Node,
        kernel: Kernel,
        options: CacheOptions,
        wall_clock: Callable[[], int],
    ) -> None:
        self._remote = remote
        self._kernel = kernel
        self._nursery: trio.Nursery | None = None
        self.inodes = InodeTable(root)
        self.cache = PageCache(options.cache_bytes, options.guard)
        self.holdings = Holdings(remote, self.inodes, self.cache, self._distrust)
        self.write_back = WriteBack(
            remote, self.cache, options.dirty_bytes_max, self._attributes_changed, self.holdings.age
        )
        self.page_protocol = PageProtocol(kernel, self.write_back)
        self.write_back.give_up = self.page_protocol.give_up
        self.write_back.drop_untaken = self.page_protocol.drop_untaken
        self.name_drops = NameDrops(remote, kernel, self.inodes, self.holdings)
        self.suspension = Suspension(
            self.inodes, self.holdings, kernel, self.page_protocol, self.name_drops
        )
        self.growths = Growths(remote, kernel)
        self.recalls = Recalls(
            remote,
            self.inodes,
            self.holdings,
            kernel,
            self.write_back,
            self.page_protocol,
            self.name_drops,
            self.growths,
        )
        self.changes = NameChanges(remote, self.name_drops)
        self.names = Names(
            remote, self.inodes, self.holdings, self.write_back, self.changes, self.name_drops
        )
        self.xattrs = Xattrs(remote, self.inodes, self.holdings, self.write_back)
        self.acls = Acls(remote, self.inodes, self.names, self.xattrs, kernel)
        self.numbers = Numbers(remote, self.inodes, self.holdings, self.names, root.attributes.ino)
        self.directories = Directories(
            remote, self.inodes, self.holdings, self.names, self.numbers, kernel
        )
        self.reader = Reader(remote, self.holdings, kernel)
        self.files = Files(
            remote,
            self.inodes,
            self.holdings,
            self.page_protocol,
            self.reader,
            Writer(remote, self.holdings, self.write_back, self.page_protocol, self.growths),
            self.write_back,
            self.changes,
            self.growths,
            wall_clock,
        )
        self.inode_changes = InodeChanges(remote, self.holdings, self.page_protocol, self.write_back)
        self.locks = Locks(remote, self.inodes)
        self.ranges = Ranges(remote, self.holdings, self.write_back)
        self.inode_flags = InodeFlags(
            remote, self.inodes, self.holdings, self.write_back, self.page_protocol
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Do what is done in the background, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = self.reader.nursery = self.changes.nursery = nursery
            await nursery.start(self.write_back.run)
            await nursery.start(self.recalls.run)
            task_status.started()
        self.changes.nursery = None

    def attributes_at_once(self, inode: Inode, *, size_only: bool = False) -> Attributes | None:
        """The answer to FUSE_GETATTR, if it takes neither a round trip nor waiting. *size_only*: the kernel
        asks for itself, and no program sees the times."""
        return attributes_at_once(self.names, inode, size_only=size_only)

    async def attributes_for_kernel(self, inode: Inode, *, size_only: bool = False) -> Attributes:
        """The answer to FUSE_GETATTR, as `attributes_at_once`."""
        return await attributes_for_kernel(self.names, self._kernel, inode, size_only=size_only)

    def _attributes_changed(self, file: CachedFile) -> None:
        if file.attributes.has_to_be_told():
            self._distrust(file.inode)

    def _distrust(self, inode: Inode) -> None:
        """The kernel believes attributes that are not the newest: have it ask again, soon. Until that is done a
        recall must not take it for done."""
        assert self._nursery is not None
        inode.attributes.kernel_is_told()
        inode.attributes.distrusting += 1
        self._nursery.start_soon(self._invalidate_attributes, inode)

    async def _invalidate_attributes(self, inode: Inode) -> None:
        await distrust_when_known(self._kernel, inode)
        inode.attributes.distrusting -= 1

    # --- what becomes of the session: a `SessionOwner` decides at once ---

    def recalled(self, callback: Callback, answer: Callable[[m.Recalled | m.Done], None]) -> None:
        """The server asks for something."""
        self.recalls.arrived(callback, answer)

    def session_began(self, session_id: SessionId) -> None:
        """There is a session. What that means for what is held has been told before."""

    def unreachable(self, away: bool) -> None:
        """The server is away. Whoever answers programs lets them go; here the lease says what is believed."""

    def welcomed(self, welcome: m.Welcome) -> None:
        """What the server, perhaps a new one, says of its filesystem."""
        self.files.limit_sizes(welcome.file_size_max)
        if not welcome.keeps_access_times:
            self.files.access_times = AccessTimes.NONE

    def suspended(self) -> None:
        """The lease is about to run out: caches are dropped, and operations wait."""
        assert self._nursery is not None
        self.suspension.begin(self._nursery)

    def resumed(self) -> None:
        """The lease runs again, nothing was lost."""
        self.suspension.end()

    def fenced(self) -> None:
        """The session with the server is over, and there is a new one. Nothing of the old one is believed."""
        assert self._nursery is not None
        self.files.lost_locks(self.locks.lost())
        forgotten = forget_everything(self.inodes, self.holdings)
        self.suspension.end()
        self._nursery.start_soon(self._begin_anew, forgotten)

    def new_epoch(self, welcome: m.Welcome) -> list[m.Reclaim]:
        """The server was restarted, and has forgotten what is held: all of it, to be reclaimed."""
        assert self._nursery is not None
        give_up_times(self.inodes, self.holdings)
        if any(file.open_count and file.inode.kernel_size.behind for file in self.holdings.files()):
            self._nursery.start_soon(self._open_again)
        if welcome.rebooted:
            log.warning("the server's machine was rebooted: clean caches are dropped")
            self._nursery.start_soon(self.suspension.refresh)
        return list(claims(self.inodes, self.holdings, self.locks))

    def refused(self, reclaimed: m.Reclaimed) -> None:
        """Some of that is not held any more. What it is about is fenced, and nothing else."""
        assert self._nursery is not None
        self.files.lost_locks(lock.open_id for lock in reclaimed.locks)
        for lock in reclaimed.locks:
            self.locks.refused(lock)
        handles = {token.handle for token in reclaimed.tokens}
        for file in self.holdings.files():
            gone = set(file.open_ids) & set(reclaimed.open_files)
            if gone:
                file.open_ids = [open_id for open_id in file.open_ids if open_id not in gone]
                handles.add(file.inode.handle)
        if handles:
            forgotten = forget_refused(self.inodes, self.holdings, self._remote, frozenset(handles))
            self._nursery.start_soon(self._begin_anew, forgotten)

    async def _begin_anew(self, forgotten: Fenced) -> None:
        await purge(forgotten, self._kernel, self.name_drops)
        await self._open_again()

    async def _open_again(self) -> None:
        """Files that are open here are opened in the new session or epoch, which keeps them when they are
        unlinked, and tells when they become longer. What they did meanwhile is asked for."""
        await open_again(self.holdings, self._remote)
        for file in self.holdings.files():
            inode = file.inode
            if not (file.open_count and inode.kernel_size.behind):
                continue
            try:
                attributes = await self.ranges.attributes(file)
            except FsError as exc:
                log.error("%s: its size is not known: %s", inode, exc)
            else:
                await self.growths.catch_up(inode, attributes.size)

    def check(self) -> None:
        """Assert every invariant of the client."""
        self.holdings.check()
        self.locks.check()
