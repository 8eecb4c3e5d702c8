"""Open files and their data on the client."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass

from nfsfuse.engine.names import Found, Names
from nfsfuse.machines.inodes import Inode, InodeTable
from nfsfuse.ports.remote import Remote
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.types import Credentials, OpenId


@dataclass(slots=True, eq=False)
class OpenFile:
    """One open file of this mount. *flags* as of open(2)."""

    inode: Inode
    open_id: OpenId
    flags: int


class Files:
    """Open files of a mount. Raises FsError."""

    def __init__(self, remote: Remote, inodes: InodeTable, names: Names) -> None:
        self._remote = remote
        self._inodes = inodes
        self._names = names
        self._open: dict[int, OpenFile] = {}
        self._ids = itertools.count(1)

    async def open(self, node_id: int, flags: int) -> int:
        inode = self._inodes[node_id]
        reply, _ = await self._remote.call(m.Open(inode.handle, flags))
        return self._number(OpenFile(inode, reply.open_id, flags))

    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, creds: Credentials
    ) -> tuple[int, Found]:
        message = m.Create(self._inodes[parent].handle, name, mode, flags, creds)
        reply, _ = await self._remote.call(message)
        found = self._names.found(reply.node)
        return self._number(OpenFile(found.inode, reply.open_id, flags)), found

    def _number(self, file: OpenFile) -> int:
        number = next(self._ids)
        self._open[number] = file
        return number

    async def read(self, number: int, offset: int, size: int) -> bytes | bytearray:
        _, data = await self._remote.call(m.Read(self._open[number].inode.handle, offset, size))
        return data

    async def write(self, number: int, offset: int, data: bytes) -> int:
        file = self._open[number]
        append = bool(file.flags & os.O_APPEND)
        await self._remote.call(m.Write(file.inode.handle, offset, append), data)
        return len(data)

    async def fsync(self, number: int, data_only: bool) -> None:
        await self._remote.call(m.Fsync(self._open[number].inode.handle, data_only))

    async def flush(self, number: int) -> None:
        """close(2) of one descriptor: everything written is at the server already."""

    async def release(self, number: int) -> None:
        file = self._open.pop(number)
        await self._remote.call(m.Release(file.open_id))
