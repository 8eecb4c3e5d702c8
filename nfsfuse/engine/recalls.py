"""The server's callbacks: somebody else needs what this client holds."""

from __future__ import annotations

import logging
import stat
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import trio

from nfsfuse.engine.cached_directory import CachedDirectory
from nfsfuse.engine.cached_file import CachedFile
from nfsfuse.engine.distrust import distrust_attributes, distrust_when_known
from nfsfuse.engine.holdings import Holdings
from nfsfuse.engine.page_protocol import PageProtocol
from nfsfuse.engine.pinning import open_on_server
from nfsfuse.engine.write_back import WriteBack
from nfsfuse.machines.data_tokens import Revocation
from nfsfuse.machines.inodes import Inode, InodeTable, NodeId
from nfsfuse.ports.kernel import Kernel
from nfsfuse.ports.remote import Remote
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.tokens import RANGE_END, Resource, Token, TokenMode

log = logging.getLogger(__name__)

NAMES_DROPPED_MAX: Final = 64
"""Names dropped one by one; for more a new epoch is cheaper, although every name is then looked up again."""

DROP_SECONDS_MAX: Final = 0.005
"""How long a name's invalidation may take before a new epoch is made instead. It takes some 50 us if the
directory's lock is free."""

DROPS_MAX: Final = 16
"""Invalidations of names that may wait for a lock at once: each has a thread, which pages need too."""

Acknowledge = Callable[[m.Recalled], None]


class Recalls:
    """Carries out recalls. `arrived` decides at once, in the order received; the rest is a task of its own
    that waits for nothing the server could grant (K6)."""

    def __init__(
        self,
        remote: Remote,
        inodes: InodeTable,
        holdings: Holdings,
        kernel: Kernel,
        write_back: WriteBack,
        page_protocol: PageProtocol,
    ) -> None:
        self._remote = remote
        self._inodes = inodes
        self._holdings = holdings
        self._kernel = kernel
        self._write_back = write_back
        self._page_protocol = page_protocol
        self._nursery: trio.Nursery | None = None
        self._drops = 0  # invalidations of names under way
        self._drop_ended = trio.lowlevel.ParkingLot()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry out recalls until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    def arrived(self, recall: m.Recall, acknowledge: Acknowledge) -> None:
        """A recall has come; *acknowledge* is called once, when it is carried out."""
        assert self._nursery is not None
        token = recall.token
        inode = self._inodes.by_handle(token.handle)
        file = self._holdings.existing_file(token.handle)
        directory = self._holdings.existing_directory(token.handle)
        if token.resource is Resource.DATA and file is not None:
            revocation = file.tokens.revoke(token.start, token.end, token.mode)
            file.turns.recalled(trio.current_time())
            self._nursery.start_soon(self._revoke_data, file, revocation, token, acknowledge)
        elif token.resource is Resource.ATTR and inode is not None:
            inode.attributes.recalls += 1
            self._nursery.start_soon(self._revoke_attributes, inode, file, token, acknowledge)
        elif token.resource is Resource.DIR and directory is not None:
            names = directory.cache.revoke(token.start, token.end)
            self._nursery.start_soon(self._revoke_names, directory, names, recall, acknowledge)
        else:
            acknowledge(m.Recalled(()))  # given up already: the recall crossed with its return

    async def _revoke_data(
        self, file: CachedFile, revocation: Revocation, token: Token, acknowledge: Acknowledge
    ) -> None:
        await open_on_server(file, self._remote)
        kept = await self._page_protocol.revoke(file, revocation)
        returned = Token(token.handle, token.resource, token.start, token.end, kept)
        acknowledge(m.Recalled((returned,) if kept < token.mode else ()))

    async def _revoke_attributes(
        self, inode: Inode, file: CachedFile | None, token: Token, acknowledge: Acknowledge
    ) -> None:
        attributes = inode.attributes
        if file is not None:
            await open_on_server(file, self._remote)
            waits_for = set(file.attr_entitled)
            while waits_for & file.attr_entitled:
                await file.changed()
            if attributes.mode is TokenMode.EXCLUSIVE and attributes.changed_here:
                await self._tell_all(file)
        if token.mode is TokenMode.NONE and (attributes.kernel_believes or attributes.distrusting):
            attributes.kernel_is_told()
            if not await distrust_attributes(self._kernel, inode):
                assert self._nursery is not None
                attributes.distrusting += 1
                self._nursery.start_soon(self._distrust_later, inode)
        attributes.reduced(token.mode)
        attributes.recalls -= 1
        if file is not None:
            file.wake()
        acknowledge(m.Recalled(()))

    async def _distrust_later(self, inode: Inode) -> None:
        """The recall is over, as it may be what the kernel waits for. Programs might see attributes that are
        out of date from when the kernel goes on until it is told, which is at once."""
        await distrust_when_known(self._kernel, inode)
        inode.attributes.distrusting -= 1

    async def _tell_all(self, file: CachedFile) -> None:
        """The server is to know size and times: it does when it has the data. More may be written meanwhile
        without changing the size; that is told like any write under no ATTR token."""
        try:
            await self._write_back.write_back(file)
        except FsError as exc:
            log.error("%s: the server does not take its size: %s", file.inode, exc)
        file.attributes.changed_here = False
        file.attributes.forget_value()

    async def _revoke_names(
        self, directory: CachedDirectory, names: list[bytes], recall: m.Recall, acknowledge: Acknowledge
    ) -> None:
        token = recall.token
        if len(names) > NAMES_DROPPED_MAX:
            await self._kernel.distrust_entries()
        else:
            for name in names:
                removed = self._removed(directory, name) if recall.removal and len(names) == 1 else None
                if not await self._is_dropped(directory, name, removed):
                    await self._kernel.distrust_entries()
                    break
        if directory.kernel_listing.changed_elsewhere():
            await self._kernel.invalidate_pages(directory.inode.node_id, 0, RANGE_END)
        directory.cache.revoked(token.start, token.end, names)
        acknowledge(m.Recalled((replace(token, mode=TokenMode.NONE),) if token.mode else ()))

    async def _tell_removed(self, parent: NodeId, removed: Inode, name: bytes) -> None:
        """The kernel drops *name*, and tells who watches the file that it is gone. It then has no link, as the
        kernel counts them: before it is so, and it may fail. So that no program is told that, the attributes
        are to be asked for, from before the kernel counts down until the next answer."""
        removed.attributes.removing += 1
        await self._kernel.invalidate_attributes(removed.node_id)
        await self._kernel.delete_entry(parent, removed.node_id, name)
        removed.attributes.removing -= 1

    async def _distrust_again(self) -> None:
        """A new epoch once more, when some invalidation that waits for a lock has got it."""
        while self._drops >= DROPS_MAX:
            await self._drop_ended.park()
        await self._kernel.distrust_entries()

    def _removed(self, directory: CachedDirectory, name: bytes) -> Inode | None:
        """The file that loses its last name with *name*; None if it has others, or if that is not known."""
        entry = directory.cache.stood_for(name)
        inode = self._inodes.by_handle(entry) if isinstance(entry, bytes) else None
        if inode is None or inode.attributes.known is None or inode.attributes.revoking:
            return None
        known = inode.attributes.known
        return inode if known.nlink == 1 and not stat.S_ISDIR(known.mode) else None

    async def _is_dropped(
        self, directory: CachedDirectory, name: bytes, removed: Inode | None
    ) -> bool:
        """Have the kernel drop a name; whether it has. That takes the directory's lock, which whoever holds it
        may keep until the server has answered it: which may be waiting for this very recall. Then a new epoch
        must do it, which waits for nothing (deadlock 6). An unanswered operation in the directory is a sure
        sign of that, but none is no sign of the contrary: a rename holds the locks of two directories while it
        looks names up in one of them, or waits for the other's.

        While an answer to a listing is on its way, both are done: the kernel gives what it makes of that the
        epoch of then, not of when it asked. The invalidation follows as soon as the listing has unlocked the
        directory."""
        if directory.cache.pending and not directory.unread:
            return False
        if self._drops >= DROPS_MAX:
            if directory.unread:
                assert self._nursery is not None
                self._nursery.start_soon(self._distrust_again)
            return False
        dropped, late = trio.Event(), False
        parent = directory.inode.node_id

        async def invalidate() -> None:
            if removed is not None:
                await self._tell_removed(parent, removed, name)
                if late:  # the recall is over: it may have met another file of this name and inode number
                    await self._kernel.invalidate_attributes(removed.node_id)
            else:
                await self._kernel.invalidate_entry(parent, name)
            self._drops -= 1
            self._drop_ended.unpark_all()
            dropped.set()

        assert self._nursery is not None
        self._drops += 1
        self._nursery.start_soon(invalidate)
        with trio.move_on_after(DROP_SECONDS_MAX):
            await dropped.wait()
        late = not dropped.is_set()
        return not late
