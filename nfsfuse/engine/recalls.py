"""The server's callbacks: somebody else needs what this client holds."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import trio

from nfsfuse.engine.cached_directory import CachedDirectory
from nfsfuse.engine.cached_file import CachedFile
from nfsfuse.engine.distrust import distrust_attributes, distrust_when_known
from nfsfuse.engine.growths import Growths
from nfsfuse.engine.holdings import Holdings
from nfsfuse.engine.name_drops import NameDrops
from nfsfuse.engine.page_protocol import PageProtocol
from nfsfuse.engine.pinning import open_on_server
from nfsfuse.engine.write_back import WriteBack
from nfsfuse.machines.data_tokens import Revocation
from nfsfuse.machines.inodes import Inode, InodeTable
from nfsfuse.ports.kernel import Kernel
from nfsfuse.ports.remote import Remote
from nfsfuse.ports.session_owner import Callback
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.tokens import RANGE_END, Resource, Token, TokenMode

log = logging.getLogger(__name__)

Acknowledge = Callable[[m.Recalled | m.Done], None]


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
        name_drops: NameDrops,
        growths: Growths,
    ) -> None:
        self._remote = remote
        self._inodes = inodes
        self._holdings = holdings
        self._kernel = kernel
        self._write_back = write_back
        self._page_protocol = page_protocol
        self._name_drops = name_drops
        self._growths = growths
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry out recalls until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = self._name_drops.nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    def arrived(self, callback: Callback, acknowledge: Acknowledge) -> None:
        """A callback of the server's has come; *acknowledge* is called once, when it is carried out."""
        match callback:
            case m.Recall():
                self._recalled(callback, acknowledge)
            case m.Gone():
                self._name_drops.gone(callback)
                acknowledge(m.Done())
            case m.Moved():
                self._name_drops.moved(callback, acknowledge)
            case m.Grew():
                self._grew(callback, acknowledge)

    def _recalled(self, recall: m.Recall, acknowledge: Acknowledge) -> None:
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

    def _grew(self, growth: m.Grew, acknowledge: Acknowledge) -> None:
        """Another client has made a file longer that this one has open, or had when it was asked."""
        assert self._nursery is not None
        inode = self._inodes.by_handle(growth.handle)
        file = self._holdings.existing_file(growth.handle)
        if inode is not None and file is not None and file.open_count:
            self._nursery.start_soon(self._tell_growth, inode, growth.size, acknowledge)
        else:
            acknowledge(m.Done())  # the next open looks by itself

    async def _tell_growth(self, inode: Inode, size: int, acknowledge: Acknowledge) -> None:
        if not await self._growths.tell_kernel(inode, size):
            assert self._nursery is not None
            self._nursery.start_soon(self._growths.tell_kernel_when_known, inode, size)
        acknowledge(m.Done())

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
        if token.mode is TokenMode.NONE and (file is None or not file.open_count):
            inode.kernel_size.behind = True
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
        for name in names:
            await self._name_drops.drop(directory, name)
        if directory.kernel_listing.changed_elsewhere():
            await self._kernel.invalidate_pages(directory.inode.node_id, 0, RANGE_END)
        directory.cache.revoked(token.start, token.end, names)
        acknowledge(m.Recalled((replace(token, mode=TokenMode.NONE),) if token.mode else ()))
