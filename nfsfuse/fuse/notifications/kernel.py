"""The Kernel port, by FUSE notifications."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import trio

from nfsfuse.fuse.binding.libraries import _notifications
from nfsfuse.fuse.notifications.believed_sizes import believed_size, learn_size
from nfsfuse.fuse.notifications.bulk_write_back import start_write_back
from nfsfuse.fuse.notifications.looks import look_again
from nfsfuse.fuse.notifications.notifier import Notifier
from nfsfuse.fuse.notifications.own_mount import Look, OwnMount
from nfsfuse.machines.inodes import Inode, NodeId
from nfsfuse.machines.turns import Turn
from nfsfuse.protocol.tokens import RANGE_END
from nfsfuse.protocol.types import Attributes

BULK_THREADS_MAX = 4
"""Threads that start write-backs: each occupies the kernel for as long as the writes take."""

SIZE_THREADS_MAX = 4
"""Threads that have the kernel learn sizes: a few hundred microseconds each."""

LOOK_THREADS_MAX = 8
"""Threads that look at names: some 200 us each."""

log = logging.getLogger(__name__)


class FuseKernel:
    """The kernel behind a mount. The mount is made after the engine, so the notifier is set later; before
    that the kernel knows no inode and nothing is asked of it."""

    def __init__(self, mountpoint: str, *, checks_permissions: bool) -> None:
        self.checks_permissions = checks_permissions
        self.notifier: Notifier | None = None
        self.own_mount = OwnMount(mountpoint)
        self._threads = trio.CapacityLimiter(BULK_THREADS_MAX)
        self._size_threads = trio.CapacityLimiter(SIZE_THREADS_MAX)
        self._sizes_can_be_learned = True
        self._epochs = False
        self._can_look = checks_permissions
        self._look_threads = trio.CapacityLimiter(LOOK_THREADS_MAX)
        self.invalidations = 0
        self.invalidation_seconds = 0.0

    async def invalidate_pages(
        self,
        node_id: NodeId,
        start: int,
        end: int,
        returned: bytearray | None = None,
        turn: Turn | None = None,
    ) -> None:
        assert self.notifier is not None
        log.debug("invalidate [%d, %d) of inode %d", start, end, node_id)
        # A length of 0 is "to the end" (fuse_reverse_inval_inode).
        length = 0 if end >= RANGE_END else end - start
        notified = await self.notifier.inval_inode(node_id, start, length, returned, turn)
        log.debug("invalidated [%d, %d) of inode %d: %s", start, end, node_id, notified)
        self.invalidations += 1
        self.invalidation_seconds += notified.seconds

    async def write_back_pages(self, node_id: NodeId, generation: int, start: int, end: int) -> None:
        end = min(end, RANGE_END - 1)
        with trio.CancelScope(shield=True):
            call = partial(start_write_back, self.own_mount, node_id, generation, start, end)
            await trio.to_thread.run_sync(call, limiter=self._threads)

    async def learn_size(self, node_id: NodeId, generation: int) -> int | None:
        if not self._sizes_can_be_learned:
            return None
        call = partial(learn_size, self.own_mount, node_id, generation)
        try:
            return await trio.to_thread.run_sync(call, limiter=self._size_threads)
        except PermissionError as exc:
            self._cannot_learn_sizes(exc)
            return None

    def _cannot_learn_sizes(self, exc: PermissionError) -> None:
        self._sizes_can_be_learned = False
        log.warning(
            "a read(2) of a file that another client makes larger at the same time may end too early: the "
            "daemon may not open its own files (%s; it needs CAP_DAC_READ_SEARCH)", exc.strerror
        )  # fmt: skip

    async def grow(self, node_id: NodeId, generation: int, size: int) -> bool:
        assert self.notifier is not None
        log.debug("inode %d has at least %d bytes", node_id, size)

        async def is_through() -> bool:
            if not self._sizes_can_be_learned:
                return True  # it has had the time that it takes many times over
            call = partial(believed_size, self.own_mount, node_id, generation)
            try:
                return await trio.to_thread.run_sync(call, limiter=self._size_threads) >= size
            except PermissionError as exc:
                self._cannot_learn_sizes(exc)
                return True

        return (await self.notifier.grow(node_id, size, is_through)).done

    def processor(self, thread: int) -> tuple[int, int] | None:
        return _notifications.processor(thread)

    async def invalidate_attributes(self, node_id: NodeId) -> bool:
        assert self.notifier is not None
        return (await self.notifier.inval_inode(node_id, -1, 0)).done

    async def expire_entry(self, parent: NodeId, name: bytes) -> None:
        assert self.notifier is not None
        log.debug("expire %r in directory %d", name, parent)
        await self.notifier.expire_entry(parent, name)

    async def expire_entry_at_once(self, parent: Inode, name: bytes, child: Inode | None) -> bool:
        if not self._epochs:
            return True  # no name is believed: see `Operations.trust_names`
        if not self._can_look:
            return False
        look = Look(parent.node_id, parent.generation, name, None, None)
        if child is not None:
            look.child, look.attributes = (child.node_id, child.generation), child.attributes.known
        done = False
        parent.attributes.doubted += 1
        try:
            await self.invalidate_attributes(parent.node_id)
            with self._looking():
                call = partial(look_again, self.own_mount, look)
                done = await trio.to_thread.run_sync(call, limiter=self._look_threads)
        finally:
            parent.attributes.doubted -= 1
        log.debug("%r in directory %d is expired without its lock: %s", name, parent.node_id, done)
        return done

    async def find_entry(self, parent: Inode, name: bytes, child: Inode, attributes: Attributes) -> None:
        if self._can_look:
            look = Look(
                parent.node_id, parent.generation, name, (child.node_id, child.generation), attributes,
                told_stale=True
            )
            with self._looking():
                await trio.to_thread.run_sync(look_again, self.own_mount, look, limiter=self._look_threads)

    @contextmanager
    def _looking(self) -> Iterator[None]:
        try:
            yield
        except PermissionError as exc:
            self._can_look = False
            log.warning(
                "what is mounted in this filesystem can be lost when others change names, and programs may not "
                "know where they are: the daemon may not open its own directories (%s; it needs "
                "CAP_DAC_READ_SEARCH)", exc.strerror
            )  # fmt: skip

    async def delete_entry(self, parent: NodeId, child: NodeId, name: bytes) -> None:
        assert self.notifier is not None
        log.debug("delete %r, inode %d, in directory %d", name, child, parent)
        await self.notifier.delete(parent, child, name)

    async def distrust_entries(self) -> None:
        assert self.notifier is not None
        if not self._epochs:
            return  # no name is believed: see `Operations.trust_names`
        log.debug("a new epoch for all names")
        notified = await self.notifier.inc_epoch()
        assert notified.done, "the kernel had epochs before"

    async def has_epochs(self) -> bool:
        """Whether `distrust_entries` can be done: Linux 6.16 and later."""
        assert self.notifier is not None
        self._epochs = (await self.notifier.inc_epoch()).done
        return self._epochs
