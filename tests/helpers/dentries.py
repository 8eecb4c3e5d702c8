"""A kernel's dentries over the client's engine: what it believes of names, and the locks it holds meanwhile.

As fs/fuse/dir.c and fs/namei.c of Linux 6.18 do it: a name is looked up under its directory's lock; who
creates, removes or renames holds the locks of all directories concerned from before it looks its names up until
it is answered; FUSE_NOTIFY_INVAL_ENTRY takes the lock, FUSE_NOTIFY_INC_EPOCH none. Locks are exclusive here
where the kernel shares some, which only makes more waiting. Attributes are always asked for.
"""

from __future__ import annotations

import errno
from collections import defaultdict
from contextlib import AsyncExitStack
from random import Random
from typing import Final

import trio

from nfsfuse.engine.filesystem import Filesystem
from nfsfuse.engine.names import Found
from nfsfuse.machines.inodes import NodeId
from nfsfuse.protocol.errors import FsError
from tests.helpers.fake_kernel import ME, FakeKernel

PAUSE_SECONDS_MAX: Final = 0.002

EXCHANGE: Final = 2

Place = tuple[NodeId, bytes]
"""A directory and a name in it."""


class DentryKernel(FakeKernel):
    """The Kernel port on one side, system calls on the other; they raise FsError."""

    fs: Filesystem  # set once it is made

    def __init__(self, random: Random) -> None:
        super().__init__()
        self._random = random
        self._dentries: dict[Place, tuple[NodeId | None, int]] = {}  # and the epoch it is of
        self._locks: defaultdict[NodeId, trio.Lock] = defaultdict(trio.Lock)
        self._epoch = 0

    async def _pause(self) -> None:
        if self._random.random() < 0.7:
            await trio.sleep(self._random.random() * PAUSE_SECONDS_MAX)

    # --- notifications ---

    async def expire_entry(self, parent: NodeId, name: bytes) -> None:
        await super().expire_entry(parent, name)
        await self._pause()
        async with self._locks[parent]:
            self._dentries.pop((parent, name), None)
        await self._pause()

    async def delete_entry(self, parent: NodeId, child: NodeId, name: bytes) -> None:
        await super().delete_entry(parent, child, name)
        await self.expire_entry(parent, name)

    async def distrust_entries(self) -> None:
        await self._pause()
        self._epoch += 1
        await super().distrust_entries()
        await self._pause()

    # --- system calls ---

    async def _look(self, place: Place) -> NodeId | None:
        """lookup_one_qstr_excl(), its directory locked."""
        known = self._dentries.get(place)
        if known is not None and known[1] == self._epoch:
            return known[0]
        epoch = self._epoch
        await self._pause()
        found = await self.fs.names.lookup(*place)
        node = found.inode.node_id if isinstance(found, Found) else None
        lasting = found.lasting
        await self._pause()  # the answer is on its way
        if lasting:
            self._dentries[place] = (node, epoch)
        else:
            self._dentries.pop(place, None)
        return node

    async def _walk(self, place: Place) -> NodeId:
        """walk_component(): what is believed is used without the directory's lock."""
        known = self._dentries.get(place)
        if known is not None and known[1] == self._epoch and known[0] is not None:
            return known[0]
        async with self._locks[place[0]]:
            return await self._existing(place)

    async def _existing(self, place: Place) -> NodeId:
        node = await self._look(place)
        if node is None:
            raise FsError(errno.ENOENT)
        return node

    async def _made(self, place: Place, epoch: int, found: Found) -> NodeId:
        node, lasting = found.inode.node_id, found.lasting
        await self._pause()
        self._dentries.pop(place, None)
        if lasting:
            self._dentries[place] = (node, epoch)
        return node

    async def stat(self, place: Place) -> tuple[int, int]:
        """The inode's number and its links."""
        node = await self._walk(place)
        await self._pause()
        attributes = await self.fs.names.getattr(node)
        return attributes.ino, attributes.nlink

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
        async with self._locks[place[0]]:
            if await self._look(place) is not None:
                raise FsError(errno.EEXIST)
            epoch = self._epoch
            await self._pause()
            return await self._made(place, epoch, await self.fs.names.mknod(*place, 0o100644, 0, ME))

    async def link(self, source: Place, target: Place) -> None:
        node = await self._walk(source)
        async with self._locks[target[0]]:
            if await self._look(target) is not None:
                raise FsError(errno.EEXIST)
            epoch = self._epoch
            await self._pause()
            await self._made(target, epoch, await self.fs.names.link(node, *target))

    async def unlink(self, place: Place) -> None:
        async with self._locks[place[0]]:
            await self._existing(place)
            await self._pause()
            await self.fs.names.unlink(*place)
            await self._pause()
            self._dentries.pop(place, None)

    async def rename(self, source: Place, target: Place, flags: int) -> None:
        async with AsyncExitStack() as stack:
            for parent in sorted({source[0], target[0]}):
                await stack.enter_async_context(self._locks[parent])
                await self._pause()
            moved = await self._existing(source)
            other = await self._look(target)
            if flags == EXCHANGE and other is None:
                raise FsError(errno.ENOENT)
            if moved == other:
                return  # vfs_rename()
            await self._pause()
            await self.fs.names.rename(*source, *target, flags)
            await self._pause()
            self._move(source, target, flags)

    def _move(self, source: Place, target: Place, flags: int) -> None:
        """d_move() and d_exchange(): what is believed moves with the name."""
        old, new = self._dentries.pop(source, None), self._dentries.pop(target, None)
        if old is not None:
            self._dentries[target] = old
        if flags == EXCHANGE and new is not None:
            self._dentries[source] = new
