"""Having the kernel ask for names again.

A name is *expired* (FUSE_EXPIRE_ONLY): it is asked for before it is used again, and if it leads where it led,
nothing else has happened. Dropping it would take what is mounted below it, and the working directories of
programs in it, from this client for a change that another one may not even make.

The notification takes the lock of the name's directory, which whoever holds it may keep until the server has
answered it: which may be waiting for this very recall (deadlock 6). So it is not waited for long. What is
decided in the kernel from a name that was recalled before the lock was let go is seen to by
`nfsfuse.machines.doubts`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import trio

from nfsfuse.engine.cached_directory import CachedDirectory
from nfsfuse.engine.distrust import distrust_attributes
from nfsfuse.engine.holdings import Holdings
from nfsfuse.machines.directory_cache import UNKNOWN, Entry
from nfsfuse.machines.doubts import Doubt, Doubts, Place
from nfsfuse.machines.inodes import Inode, InodeTable
from nfsfuse.ports.kernel import Kernel
from nfsfuse.ports.remote import Remote
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.messages import Message
from nfsfuse.protocol.record import record
from nfsfuse.protocol.types import InodeHandle

log = logging.getLogger(__name__)

DROP_SECONDS_MAX: Final = 0.005
"""How long a name's expiry may take before it is done without its directory's lock. It takes some 50 us if that
is free."""

DROPS_MAX: Final = 16
"""Notifications about names that may wait for a lock at once: each has a thread, which pages need too."""

EXPIRED_SECONDS: Final = 1.0
"""How long an expired name is asked for at each use. An answer is taken in within some 50 us, mostly."""

EXPIRED_MAX: Final = 10_000
"""Such names remembered."""

NAMES_PURGED_MAX: Final = 100_000
"""Names expired one by one, at some 50 us, when a session is over. With more, all are dropped."""


@record(frozen=True, slots=True)
class LostNames:
    """What the kernel may still believe of the names in a directory, though nothing of it is held any more."""

    directory: CachedDirectory
    names: Mapping[bytes, Entry]


def lost_names(directories: Iterable[CachedDirectory]) -> tuple[LostNames, ...]:
    """Nothing is known any more of names in *directories*: no attributes of them are told until `purge` is
    done."""
    result = []
    for directory in directories:
        names = directory.cache.believed()
        if names:
            directory.inode.attributes.purging += 1
            result.append(LostNames(directory, names))
    return tuple(result)


class NameDrops:
    """Those of a mount. They go on in *nursery*, which is set once there is one."""

    def __init__(
        self, remote: Remote, kernel: Kernel, inodes: InodeTable, holdings: Holdings
    ) -> None:
        self._remote = remote
        self._inodes = inodes
        self._holdings = holdings
        self._kernel = kernel
        self._under_way = 0
        self._ended = trio.lowlevel.ParkingLot()
        self.nursery: trio.Nursery | None = None
        self.doubts = Doubts()
        self._lately: dict[Place, tuple[float, InodeHandle]] = {}  # names expired: when, and what they led to
        self._purged = trio.lowlevel.ParkingLot()
        inodes.stand_in_wanted = lambda node_id: self.doubts.wanted(node_id, trio.current_time())

    async def drop(self, directory: CachedDirectory, name: bytes) -> None:
        """When this returns no program that begins to use *name* believes what the kernel knows of it."""
        await self.drop_what_led_to(directory, name, directory.cache.stood_for(name))

    async def drop_what_led_to(self, directory: CachedDirectory, name: bytes, leads_to: Entry) -> None:
        """As `drop`, of a name that led there."""
        dropped = self._begin(directory, name, leads_to)
        # An unanswered operation in the directory is a sure sign that it is locked, but none is no sign of the
        # contrary: a rename holds the locks of two directories while it looks names up in one of them, or waits
        # for the other's; nothing tells of the first.
        if not directory.cache.pending or directory.unread:
            with trio.move_on_after(DROP_SECONDS_MAX):
                await dropped.wait()
        if not dropped.is_set():
            await self.expire_at_once(directory, name, leads_to)

    async def expire_at_once(self, directory: CachedDirectory, name: bytes, leads_to: Entry) -> None:
        """Have the kernel believe *name* no more, which it believes to lead there, whoever has the directory
        locked; and nothing else. If it believes it to lead elsewhere it drops it as it is: a rename that is
        under way would have that be believed at the other name (__d_move() in fs/dcache.c)."""
        child = self._inodes.by_handle(leads_to) if isinstance(leads_to, bytes) else None
        if not await self._kernel.expire_entry_at_once(directory.inode, name, child):
            await self._kernel.distrust_entries()

    # --- all of them ---

    async def purge(self, lost: Sequence[LostNames]) -> None:
        """`drop` all names of directories that are `lost_names`."""
        limit = trio.CapacityLimiter(DROPS_MAX)
        many = sum(len(each.names) for each in lost) > NAMES_PURGED_MAX
        if many or not self._kernel.checks_permissions:
            await self._kernel.distrust_entries()
        async with trio.open_nursery() as nursery:
            for each in lost:
                nursery.start_soon(self._purge, each, {} if many else each.names, limit)

    async def _purge(self, lost: LostNames, names: Mapping[bytes, Entry], limit: trio.CapacityLimiter) -> None:
        async with limit:
            # The kernel asks for them, and waits for the answer, before it uses a name (`until_purged`).
            await distrust_attributes(self._kernel, lost.directory.inode)
            for name, leads_to in names.items():
                await self.drop_what_led_to(lost.directory, name, leads_to)
        lost.directory.inode.attributes.purging -= 1
        self._purged.unpark_all()

    async def until_purged(self, inode: Inode) -> None:
        """Wait until no name in a directory is believed that was lost."""
        while inode.attributes.purging:
            await self._purged.park()

    # --- what has become of a name ---

    def gone(self, told: m.Gone) -> None:
        """A file has lost its last name, or a directory is removed: who watches it is to hear of that. The
        kernel looks for whom to tell where that name leads in its caches, if it has it there still."""
        assert self.nursery is not None
        parent, child = self._inodes.by_handle(told.parent), self._inodes.by_handle(told.handle)
        if parent is not None and child is not None:
            self.nursery.start_soon(self._delete, parent, child, told.name)

    async def _delete(self, parent: Inode, child: Inode, name: bytes) -> None:
        await self._turn()
        # What has been found there since would be dropped, for nothing.
        directory = self._holdings.existing_directory(parent.handle)
        if directory is None or directory.cache.stood_for(name) in (None, UNKNOWN, child.handle):
            await self._kernel.delete_entry(parent.node_id, child.node_id, name)
        self._turn_over()

    def moved(self, told: m.Moved, acknowledge: Callable[[m.Done], None]) -> None:
        """A directory has another name: the kernel finds it there, and so do programs in it. Not waited for
        where an operation of this kernel's may have a directory locked."""
        assert self.nursery is not None
        parent, child = self._inodes.by_handle(told.parent), self._inodes.by_handle(told.node.handle)
        if parent is None or child is None:
            acknowledge(m.Done())
            return
        self.nursery.start_soon(self._move, parent, child, told, acknowledge)

    async def _move(
        self, parent: Inode, child: Inode, told: m.Moved, acknowledge: Callable[[m.Done], None]
    ) -> None:
        await self._kernel.find_entry(parent, told.name, child, told.node.attributes)
        acknowledge(m.Done())

        def found(reply: Message, _: bytes | bytearray) -> None:
            assert isinstance(reply, m.Entry)
            if reply.node is None:
                self._holdings.apply(reply.tokens)
            else:
                self._holdings.found(reply.node, reply.tokens)
            entry = None if reply.node is None else reply.node.handle
            self._holdings.directory(parent).cache.learned(told.name, entry)

        # Who holds no token for the name is not told when it is moved once more.
        try:
            await self._remote.call(m.Lookup(parent.handle, told.name, False), b"", found)
        except FsError as exc:
            log.debug("%s was moved, and cannot be looked up where it is: %s", child, exc)

    # --- what was expired, and may be believed again ---

    def _expired(self, place: Place, led_to: InodeHandle) -> None:
        self._lately.pop(place, None)
        self._lately[place] = trio.current_time(), led_to
        if len(self._lately) > EXPIRED_MAX:
            del self._lately[next(iter(self._lately))]

    def led_to(self, directory: CachedDirectory, name: bytes) -> Entry:
        """What the kernel has found by *name*, as far as that is known: also if it was expired since."""
        entry = directory.cache.stood_for(name)
        if entry is not UNKNOWN:
            return entry
        _, led_to = self._lately.get((directory.inode.handle, name), (0.0, None))
        return UNKNOWN if led_to is None else led_to

    def may_be_believed(self, place: Place, found: InodeHandle, thread: int) -> bool:
        """Whether *thread* may be told to believe that a name leads to *found*. Who asks for one that the
        kernel has had takes the answer in without a lock (fuse_dentry_revalidate() in fs/fuse/dir.c), so it
        can undo an expiry that has been faster. Where others want the name it is asked for each time until
        they have not for a while."""
        when, led_to = self._lately.get(place, (0.0, None))
        if led_to is not None and trio.current_time() - when > EXPIRED_SECONDS:
            del self._lately[place]
            led_to = None
        return led_to != found and not self.doubts.is_again(thread)

    # --- doubts ---

    def told(self, directory: CachedDirectory, name: bytes, inode: Inode) -> None:
        """The kernel is told that *name* leads to *inode*, which is true no more perhaps by the time it decides
        by that. It believes it for no time; but whoever asks may have the directory locked."""
        assert self.nursery is not None
        doubt = self.doubts.begin((directory.inode.handle, name), inode.handle)
        self.nursery.start_soon(self._expire, directory, name, doubt, trio.Event())

    def _begin(self, directory: CachedDirectory, name: bytes, leads_to: Entry) -> trio.Event:
        """Begin to expire *name*; set when that is done, which whoever holds the directory's lock decides."""
        assert self.nursery is not None
        dropped = trio.Event()
        doubt: Doubt | None = None
        if isinstance(leads_to, bytes):
            self._expired((directory.inode.handle, name), leads_to)
            doubt = self.doubts.begin((directory.inode.handle, name), leads_to)
        self.nursery.start_soon(self._expire, directory, name, doubt, dropped)
        return dropped

    async def _expire(
        self, directory: CachedDirectory, name: bytes, doubt: Doubt | None, dropped: trio.Event
    ) -> None:
        await self._turn()
        await self._kernel.expire_entry(directory.inode.node_id, name)
        self._turn_over()
        if doubt is not None:
            self.doubts.over(doubt)
        dropped.set()

    async def _turn(self) -> None:
        """Wait until a notification may wait for a lock."""
        while self._under_way >= DROPS_MAX:
            await self._ended.park()
        self._under_way += 1

    def _turn_over(self) -> None:
        self._under_way -= 1
        self._ended.unpark()
