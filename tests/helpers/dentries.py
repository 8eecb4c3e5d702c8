"""A kernel's dentries over the client's engine: what it believes of names, and the locks it holds meanwhile.

As fs/fuse/dir.c and fs/namei.c of Linux 6.18 do it: a name is looked up under its directory's lock; who
creates, removes or renames holds the locks of all directories concerned from before it looks its names up, one
after the other, until it is answered; it compares what it has found. FUSE_NOTIFY_INVAL_ENTRY takes the lock,
FUSE_NOTIFY_INC_EPOCH none. A call that fails with ESTALE is made once more with LOOKUP_REVAL. Locks are
exclusive here where the kernel shares some, which only makes more waiting. Attributes are always asked for.
"""

from __future__ import annotations

import errno
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from random import Random
from typing import Final, TypeVar

import trio

from nfsfuse.engine.filesystem import Filesystem
from nfsfuse.engine.names import Found
from nfsfuse.machines.inodes import ROOT, Inode, NodeId
from nfsfuse.protocol.errors import FsError
from tests.helpers.fake_kernel import ME, FakeKernel

PAUSE_SECONDS_MAX: Final = 0.002

EXCHANGE: Final = 2

Place = tuple[NodeId, bytes]
"""A directory and a name in it."""


@dataclass(eq=False)
class Dentry:
    """What is believed of a name; *node* None: there is nothing. Not *valid*: it is asked for before it is
    used. *epoch* is the one it is of."""

    node: NodeId | None
    epoch: int
    valid: bool = True


R = TypeVar("R")


def thread() -> int:
    """A program is a task."""
    return id(trio.lowlevel.current_task())


class DentryKernel(FakeKernel):
    """The Kernel port on one side, system calls on the other; they raise FsError. *harmed* counts names that
    were dropped although they lead where they led: what was mounted below them is gone then, and who worked
    there does not know where it is (d_invalidate() in fs/dcache.c)."""

    fs: Filesystem  # set once it is made

    def __init__(self, random: Random) -> None:
        super().__init__()
        self._random = random
        self._dentries: dict[Place, Dentry] = {}
        self._locks: defaultdict[NodeId, trio.Lock] = defaultdict(trio.Lock)
        self._epoch = 0
        self.harmed = 0
        self.truth: Callable[[Place], NodeId | None] = lambda place: None
        """What the server has there."""
        self.paths: dict[NodeId, bytes] = {}
        """Where programs find the directories that they use: names in the root."""

    async def _pause(self) -> None:
        if self._random.random() < 0.7:
            await trio.sleep(self._random.random() * PAUSE_SECONDS_MAX)

    # --- notifications ---

    async def expire_entry(self, parent: NodeId, name: bytes) -> None:
        await super().expire_entry(parent, name)
        await self._pause()
        async with self._locks[parent]:
            self._expire((parent, name))
        await self._pause()

    def _expire(self, place: Place) -> None:
        """fuse_invalidate_entry_cache(). What is expired and leads nowhere is dropped when it is used."""
        if place in self._dentries:
            self._dentries[place].valid = False

    async def expire_entry_at_once(self, parent: Inode, name: bytes, child: Inode | None) -> bool:
        """A look with LOOKUP_REVAL, see `nfsfuse.fuse.notifications.looks`."""
        place = (parent.node_id, name)
        await self._pause()
        known = self._dentries.get(place)
        if known is not None and known.node is not None and child is not None and known.node == child.node_id:
            known.valid = False
        else:
            self._dentries.pop(place, None)
        await self._pause()
        return True

    async def delete_entry(self, parent: NodeId, child: NodeId, name: bytes) -> None:
        await super().delete_entry(parent, child, name)
        await self._pause()
        async with self._locks[parent]:
            known = self._dentries.get((parent, name))
            if known is not None:  # it is dropped whatever it leads to, and then looked at
                self._drop((parent, name), harms=known.node == child)

    async def distrust_entries(self) -> None:
        await self._pause()
        self._epoch += 1
        await super().distrust_entries()
        await self._pause()

    # --- system calls ---

    def _drop(self, place: Place, *, harms: bool) -> None:
        node = self._dentries.pop(place).node
        if harms and node is not None and node == self.truth(place):
            self.harmed += 1

    async def _again(self, call: Callable[[bool], Awaitable[R]], *places: Place) -> R:
        """retry_estale(): once more, believing nothing, from the beginning of each path on."""
        try:
            return await call(False)
        except FsError as exc:
            if exc.errno != errno.ESTALE:
                raise
        for directory, _ in places:
            await self._ask((ROOT, self.paths[directory]))
        return await call(True)

    async def _ask(self, place: Place) -> tuple[NodeId | None, bool]:
        """FUSE_LOOKUP: the inode, and whether it may be believed."""
        await self._pause()
        found = await self.fs.names.lookup(*place, thread=thread())
        await self._pause()  # the answer is on its way
        return (found.inode.node_id if isinstance(found, Found) else None), found.lasting

    async def _believed(self, place: Place, reval: bool) -> Dentry | None:
        """fuse_dentry_revalidate(): takes no lock, and hears of no error."""
        known = self._dentries.get(place)
        if known is None or (known.epoch == self._epoch and known.valid and not reval):
            return known
        if known.epoch == self._epoch and known.node is not None:
            try:
                node, lasting = await self._ask(place)
            except FsError:
                node, lasting = None, False
            if node == known.node:
                known.valid = lasting
                return known
        if self._dentries.get(place) is known:
            self._drop(place, harms=known.epoch != self._epoch)
        return None

    async def _look(self, place: Place, reval: bool) -> Dentry:
        """lookup_one_qstr_excl(), its directory locked."""
        known = await self._believed(place, reval)
        if known is not None:
            return known
        epoch = self._epoch
        node, lasting = await self._ask(place)
        self._dentries[place] = made = Dentry(node, epoch, lasting)
        return made

    async def _walk(self, place: Place, reval: bool) -> NodeId:
        """walk_component(): what is believed is used without the directory's lock."""
        known = await self._believed(place, reval)
        if known is not None:
            if known.node is None:
                raise FsError(errno.ENOENT)
            return known.node
        async with self._locks[place[0]]:
            return _node_of(await self._look(place, reval))

    async def _made(self, place: Place, epoch: int, found: Found) -> NodeId:
        node, lasting = found.inode.node_id, found.lasting
        await self._pause()
        self._dentries[place] = Dentry(node, epoch, lasting)
        return node

    async def stat(self, place: Place) -> tuple[int, int]:
        """The inode's number and its links."""

        async def call(reval: bool) -> tuple[int, int]:
            node = await self._walk(place, reval)
            await self._pause()
            attributes = await self.fs.names.getattr(node)
            return attributes.ino, attributes.nlink

        return await self._again(call, place)

    async def list(self, directory: NodeId) -> set[bytes]:
        """The names in a directory."""
        number = self.fs.directories.opendir(directory).number
        names: set[bytes] = set()
        offset = 0
        while True:
            async with self._locks[directory]:
                items = await self.fs.directories.read(number, offset)
                await self._pause()
            if not items:
                break
            names.update(item.name for item in items)
            offset = items[-1].cookie
        self.fs.directories.releasedir(number)
        return names - {b".", b".."}

    async def create(self, place: Place) -> int:
        """A file that is not there yet; its inode's number."""

        async def call(reval: bool) -> int:
            async with self._locks[place[0]]:
                if (await self._look(place, True)).node is not None:  # LOOKUP_EXCL
                    raise FsError(errno.EEXIST)
                epoch = self._epoch
                await self._pause()
                self.fs.names.acts(thread())
                return await self._made(place, epoch, await self.fs.names.mknod(*place, 0o100644, 0, ME))

        return await self._again(call, place)

    async def link(self, source: Place, target: Place) -> None:
        async def call(reval: bool) -> None:
            node = await self._walk(source, reval)
            async with self._locks[target[0]]:
                if (await self._look(target, True)).node is not None:  # LOOKUP_EXCL
                    raise FsError(errno.EEXIST)
                epoch = self._epoch
                await self._pause()
                with suppress(FsError):
                    await self.fs.names.getattr(node)  # may_linkat() asks for permissions, and root needs none
                await self._pause()
                self.fs.names.acts(thread(), node)
                await self._made(target, epoch, await self.fs.names.link(node, *target))

        await self._again(call, source, target)

    async def unlink(self, place: Place) -> None:
        async def call(reval: bool) -> None:
            async with self._locks[place[0]]:
                _node_of(await self._look(place, reval))
                await self._pause()
                self.fs.names.acts(thread())
                await self.fs.names.unlink(*place)
                await self._pause()
                self._dentries.pop(place, None)

        await self._again(call, place)

    async def rename(self, source: Place, target: Place, flags: int) -> None:
        async def call(reval: bool) -> None:
            async with AsyncExitStack() as stack:
                for parent in sorted({source[0], target[0]}):
                    await stack.enter_async_context(self._locks[parent])
                    await self._pause()
                moved = await self._look(source, reval)
                _node_of(moved)
                # The new name is asked for anyhow (LOOKUP_RENAME_TARGET), but for an exchange.
                other = await self._look(target, reval or flags != EXCHANGE)
                if flags == EXCHANGE:
                    _node_of(other)
                if moved.node == other.node:
                    return  # vfs_rename()
                await self._pause()
                self.fs.names.acts(thread())
                await self.fs.names.rename(*source, *target, flags)
                await self._pause()
                # d_move() and d_exchange(): what was found is found at the other name from now on, also what
                # has been dropped meanwhile (__d_move() in fs/dcache.c hashes it again), as valid as it was.
                self._dentries.pop(source, None)
                self._dentries[target] = moved
                if flags == EXCHANGE:
                    self._dentries[source] = other

        await self._again(call, source, target)


def _node_of(dentry: Dentry) -> NodeId:
    if dentry.node is None:
        raise FsError(errno.ENOENT)
    return dentry.node
