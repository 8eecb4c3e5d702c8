"""The operations that pyfuse3 lacks, as the mount has them: each translates, asks the engine, and translates
back.
"""

from __future__ import annotations

import fcntl
from typing import Final

from nfsfuse.engine.cached_file import CachedFile
from nfsfuse.engine.filesystem import Filesystem
from nfsfuse.engine.locks import LockRequest
from nfsfuse.fuse.binding.libraries import Request, pyfuse3
from nfsfuse.fuse.upcalls.boundary import translated
from nfsfuse.fuse.upcalls.dispatcher import ExtraOperations, FileLock
from nfsfuse.fuse.upcalls.operations import Operations
from nfsfuse.fuse.upcalls.replies import StatxReply
from nfsfuse.protocol.locks import LockKind, LockMode, LockRange
from nfsfuse.protocol.types import Credentials, LockOwner

_MODES: Final = {
    fcntl.F_RDLCK: LockMode.READ,
    fcntl.F_WRLCK: LockMode.WRITE,
    fcntl.F_UNLCK: LockMode.UNLOCK,
}
_TYPES: Final = {mode: kind for kind, mode in _MODES.items()}


def _request(
    node_id: int, fh: int, owner: LockOwner, lock: FileLock, *, kind: LockKind = LockKind.POSIX
) -> LockRequest:
    span = LockRange(lock.start, lock.end)
    return LockRequest(node_id, fh, owner, kind, _MODES[lock.type], span, lock.pid)


class Extras(ExtraOperations):
    """The mount's locks, ranges, extended attributes, birth times and files without a name. *operations* tell
    the kernel what it is told by both."""

    def __init__(self, filesystem: Filesystem, operations: Operations) -> None:
        self._fs = filesystem
        self._operations = operations

    @translated
    async def getlk(
        self, request: Request, nodeid: int, fh: int, owner: LockOwner, lock: FileLock
    ) -> FileLock | None:
        found = await self._fs.locks.find(_request(nodeid, fh, owner, lock))
        return None if found is None else FileLock(found.start, found.end, _TYPES[found.mode], found.pid)

    @translated
    async def setlk(
        self,
        request: Request,
        nodeid: int,
        fh: int,
        owner: LockOwner,
        lock: FileLock,
        *,
        is_flock: bool,
        wait: bool,
    ) -> None:
        kind = LockKind.FLOCK if is_flock else LockKind.POSIX
        await self._fs.locks.set(_request(nodeid, fh, owner, lock, kind=kind), wait=wait)

    @translated
    async def fallocate(
        self, request: Request, nodeid: int, fh: int, offset: int, length: int, mode: int
    ) -> None:
        file = self._fs.files[fh].file
        await self._drop_privileges(file, request)
        await self._fs.ranges.fallocate(file, mode, offset, length)

    async def _drop_privileges(self, file: CachedFile, request: Request) -> None:
        """What a program may not leave set-user-ID the kernel leaves to us, but says only of a write(2) whether
        this one may (CAP_FSETID). Here it goes by the user."""
        if request.uid != 0:
            await self._fs.ranges.drop_privileges(file, request.gid)

    @translated
    async def lseek(self, request: Request, nodeid: int, fh: int, offset: int, whence: int) -> int:
        return await self._fs.ranges.seek(self._fs.files[fh].file, offset, whence)

    @translated
    async def copy_file_range(
        self,
        request: Request,
        nodeid_in: int,
        fh_in: int,
        offset_in: int,
        nodeid_out: int,
        fh_out: int,
        offset_out: int,
        length: int,
    ) -> int:
        source, target = self._fs.files[fh_in].file, self._fs.files[fh_out].file
        await self._drop_privileges(target, request)
        return await self._fs.ranges.copy(source, offset_in, target, offset_out, length)

    @translated
    async def setxattr(
        self, request: Request, nodeid: int, name: bytes, value: bytes, flags: int, *, kill_sgid: bool
    ) -> None:
        self._fs.acls.check(name)
        await self._fs.xattrs.set(nodeid, name, value, flags, kill_sgid=kill_sgid)

    @translated
    async def get_flags(self, request: Request, nodeid: int, *, extended: bool) -> tuple[int, ...]:
        return await self._fs.inode_flags.get(nodeid, extended=extended)

    @translated
    async def set_flags(
        self, request: Request, nodeid: int, numbers: tuple[int, ...], *, extended: bool
    ) -> None:
        await self._fs.inode_flags.set(nodeid, numbers, extended=extended)

    @translated
    async def statx(self, request: Request, nodeid: int, fh: int | None, flags: int, mask: int) -> StatxReply:
        attributes = await self._fs.names.getattr(nodeid)
        entry = self._operations.told(self._fs.inodes[nodeid], attributes, 0.0)
        return StatxReply(entry, attributes.btime_ns or None)

    @translated
    async def tmpfile(
        self, request: Request, parent: int, mode: int, flags: int, umask: int
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        creds = Credentials(request.uid, request.gid, umask & 0o777)  # FUSE_DONT_MASK
        number, found = await self._fs.files.create(parent, None, mode, flags, creds)
        return self._operations.opened(number), self._operations.made(found)
