"""The server's callbacks: somebody else needs what this client holds."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import trio

from nfsfuse.engine.cached_directory import CachedDirectory
from nfsfuse.engine.cached_file import CachedFile
from nfsfuse.engine.distrust import distrust_attributes
from nfsfuse.engine.holdings import Holdings
from nfsfuse.engine.page_protocol import PageProtocol
from nfsfuse.engine.write_back import WriteBack
from nfsfuse.machines.data_tokens import Revocation
from nfsfuse.machines.inodes import Inode, InodeTable
from nfsfuse.ports.kernel import Kernel
from nfsfuse.ports.remote import Remote
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.tokens import Resource, Token, TokenMode

log = logging.getLogger(__name__)

NAMES_DROPPED_MAX: Final = 64
"""Names dropped one by one; for more a new epoch is cheaper, although every name is then looked up again."""

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
            self._nursery.start_soon(self._revoke_data, file, revocation, token, acknowledge)
        elif token.resource is Resource.ATTR and inode is not None:
            inode.attributes.recalls += 1
            self._nursery.start_soon(self._revoke_attributes, inode, file, token, acknowledge)
        elif token.resource is Resource.DIR and directory is not None:
            names = directory.cache.revoke(token.start, token.end)
            self._nursery.start_soon(self._revoke_names, directory, names, token, acknowledge)
        else:
            acknowledge(m.Recalled(()))  # given up already: the recall crossed with its return

    async def _revoke_data(
        self, file: CachedFile, revocation: Revocation, token: Token, acknowledge: Acknowledge
    ) -> None:
        await self._keep_pinned(file)
        kept = await self._page_protocol.revoke(file, revocation)
        returned = Token(token.handle, token.resource, token.start, token.end, kept)
        acknowledge(m.Recalled((returned,) if kept < token.mode else ()))

    async def _revoke_attributes(
        self, inode: Inode, file: CachedFile | None, token: Token, acknowledge: Acknowledge
    ) -> None:
        attributes = inode.attributes
        if file is not None:
            await self._keep_pinned(file)
            waits_for = set(file.attr_entitled)
            while waits_for & file.attr_entitled:
                await file.changed()
            if attributes.mode is TokenMode.EXCLUSIVE and attributes.changed_here:
                await self._tell_all(file)
        if token.mode is TokenMode.NONE and (attributes.kernel_trusts or attributes.distrusting):
            attributes.kernel_trusts = False
            await distrust_attributes(self._kernel, inode)
        attributes.reduced(token.mode)
        attributes.recalls -= 1
        if file is not None:
            file.wake()
        acknowledge(m.Recalled(()))

    async def _tell_all(self, file: CachedFile) -> None:
        """The server is to know size and times: it does when it has the data. More may be written meanwhile
        without changing the size; that is told like any write under no ATTR token."""
        try:
            await self._write_back.write_back(file)
        except FsError as exc:
            log.error("%s: the server does not take its size: %s", file.inode, exc)
        file.attributes.changed_here = False
        file.attributes.forget_value()

    async def _keep_pinned(self, file: CachedFile) -> None:
        """A file that was opened under tokens alone is opened on the server before they go (promise 9)."""
        if file.open_count == 0 or file.open_ids:
            return
        try:
            reply, _ = await self._remote.call(m.Open(file.inode.handle, 0, False))
        except FsError as exc:
            log.error("%s: an open file was lost: %s", file.inode, exc)
        else:
            file.open_ids.append(reply.open_id)

    async def _revoke_names(
        self, directory: CachedDirectory, names: list[bytes], token: Token, acknowledge: Acknowledge
    ) -> None:
        if len(names) > NAMES_DROPPED_MAX:
            await self._kernel.distrust_entries()
        else:
            for name in names:
                await self._drop_name(directory, name)
        directory.cache.revoked(token.start, token.end, names)
        acknowledge(m.Recalled((replace(token, mode=TokenMode.NONE),) if token.mode else ()))

    async def _drop_name(self, directory: CachedDirectory, name: bytes) -> None:
        """Have the kernel drop a name. That takes the directory's lock, and any operation in the directory
        that is not answered yet may hold it, until the server has answered it: which may be waiting for this
        very recall. Then a new epoch does it, which waits for nothing (deadlock 6)."""
        dropped = trio.Event()

        async def invalidate() -> None:
            await self._kernel.invalidate_entry(directory.inode.node_id, name)
            dropped.set()
            directory.wake()

        if not directory.cache.pending:
            assert self._nursery is not None
            self._nursery.start_soon(invalidate)
        while not dropped.is_set():
            if directory.cache.pending:
                await self._kernel.distrust_entries()
                return
            await directory.changed()
