"""The operations that pyfuse3 lacks: locks, fallocate, lseek, copy_file_range, ioctl, statx, tmpfile, plain
readdir, and setxattr with all of its flags.

Their messages do not reach libfuse. Each runs as a task of its own, in a nursery and not in a pyfuse3 worker,
so that any number of programs can wait for locks; we write the raw reply.
"""

from __future__ import annotations

import errno
import fcntl
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import trio

from nfsfuse.fuse.binding import abi
from nfsfuse.fuse.binding.abi import Opcode
from nfsfuse.fuse.binding.libraries import Request, pyfuse3
from nfsfuse.fuse.upcalls.interrupt import Interrupts
from nfsfuse.fuse.upcalls.later import Replies
from nfsfuse.fuse.upcalls.replies import (
    DirectoryEntry,
    StatxReply,
    pack_directory,
    pack_entry,
    pack_open,
    pack_statx,
)
from nfsfuse.protocol.record import record
from nfsfuse.protocol.types import LockOwner

log = logging.getLogger(__name__)


@record(frozen=True, slots=True)
class FileLock:
    """``fuse_file_lock``. *start* and *end* are bytes, both inclusive; ``OFFSET_MAX`` is to the end of the
    file. *type* is F_RDLCK, F_WRLCK or F_UNLCK. *pid* is the process that asks (0 when it unlocks), in
    GETLK's answer the holder's. For flock(2) the range is the whole file."""

    start: int
    end: int
    type: int
    pid: int


class ExtraOperations:
    """Derive and override what you implement; what is not overridden the kernel is told to be ENOSYS, once,
    and it then does without (a file copy by read and write, no birth time, EOPNOTSUPP for O_TMPFILE).

    Every method may wait as long as it likes and raises `pyfuse3.FUSEError`. When its program is killed (for
    ``setlk`` with *wait*: gets any signal) it is cancelled and the program sees EINTR: a method that has
    changed something by then has to undo or shield it.
    """

    async def getlk(
        self, request: Request, nodeid: int, fh: int, owner: LockOwner, lock: FileLock
    ) -> FileLock | None:
        """F_GETLK: a lock that is in *lock*'s way, or None."""
        raise pyfuse3.FUSEError(errno.ENOSYS)

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
        """Set or, for F_UNLCK, remove a lock; without *wait* EAGAIN if another's is in the way.

        The kernel unlocks POSIX locks through FLUSH (its `Request.lock_owner`), flock through RELEASE (the
        same). For **OFD locks it sends nothing**: what was locked through *fh* and is still held at RELEASE
        of *fh* is an OFD lock and ends there.
        """
        raise pyfuse3.FUSEError(errno.ENOSYS)

    async def fallocate(
        self, request: Request, nodeid: int, fh: int, offset: int, length: int, mode: int
    ) -> None:
        """fallocate(2); *mode* is FALLOC_FL_*."""
        raise pyfuse3.FUSEError(errno.ENOSYS)

    async def lseek(self, request: Request, nodeid: int, fh: int, offset: int, whence: int) -> int:
        """SEEK_DATA and SEEK_HOLE only; ENXIO if there is none."""
        raise pyfuse3.FUSEError(errno.ENOSYS)

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
        """copy_file_range(2) within this mount. The kernel has written back the source's and the target's
        dirty pages before. Returns the number of bytes copied."""
        raise pyfuse3.FUSEError(errno.ENOSYS)

    async def setxattr(
        self, request: Request, nodeid: int, name: bytes, value: bytes, flags: int, *, kill_sgid: bool
    ) -> None:
        """setxattr(2); *flags* is XATTR_CREATE, XATTR_REPLACE or 0. *kill_sgid*: if it is an ACL, who sets it
        may not leave the inode set-group-ID. Overridden, pyfuse3's is not asked, which
        keeps the flags to itself and probes by getxattr: somebody else may make or remove it in between, and
        what pyfuse3 says of the request after that wait may be another one's."""
        raise pyfuse3.FUSEError(errno.ENOSYS)

    async def get_flags(self, request: Request, nodeid: int, *, extended: bool) -> tuple[int, ...]:
        """ioctl(2) FS_IOC_GETFLAGS, one number; if *extended* FS_IOC_FSGETXATTR, the five of `abi.FSXATTR`.
        """
        raise pyfuse3.FUSEError(errno.ENOTTY)

    async def set_flags(
        self, request: Request, nodeid: int, numbers: tuple[int, ...], *, extended: bool
    ) -> None:
        """ioctl(2) FS_IOC_SETFLAGS or FS_IOC_FSSETXATTR."""
        raise pyfuse3.FUSEError(errno.ENOTTY)

    async def statx(self, request: Request, nodeid: int, fh: int | None, flags: int, mask: int) -> StatxReply:
        """statx(2) with more in *mask* than STATX_BASIC_STATS, that is STATX_BTIME; else getattr is asked."""
        raise pyfuse3.FUSEError(errno.ENOSYS)

    async def tmpfile(
        self, request: Request, parent: int, mode: int, flags: int, umask: int
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        """open(2) with O_TMPFILE: an inode without a name, open. Counts as a lookup of it, like create."""
        raise pyfuse3.FUSEError(errno.ENOSYS)

    async def readdir(
        self, request: Request, nodeid: int, fh: int, cookie: int, size: int
    ) -> Iterable[DirectoryEntry]:
        """Names after *cookie* (0: from the start) without looking them up, at most *size* bytes of
        ``fuse_dirent``; what does not fit is dropped. Asked only with `InitOptions.readdirplus_auto`."""
        raise pyfuse3.FUSEError(errno.ENOSYS)


Call = Callable[[ExtraOperations, Request, bytes], Awaitable[bytes]]


async def _getlk(operations: ExtraOperations, request: Request, body: bytes) -> bytes:
    fh, owner, start, end, kind, pid, _flags, _ = abi.LK_IN.unpack_from(body)
    lock = FileLock(start, end, kind, pid)
    other = await operations.getlk(request, request.nodeid, fh, LockOwner(owner), lock)
    if other is None:
        return abi.LK_OUT.pack(start, end, fcntl.F_UNLCK, 0)
    return abi.LK_OUT.pack(other.start, other.end, other.type, other.pid)


async def _setlk(operations: ExtraOperations, request: Request, body: bytes) -> bytes:
    fh, owner, start, end, kind, pid, flags, _ = abi.LK_IN.unpack_from(body)
    await operations.setlk(
        request,
        request.nodeid,
        fh,
        LockOwner(owner),
        FileLock(start, end, kind, pid),
        is_flock=bool(flags & abi.LK_FLOCK),
        wait=request.opcode == Opcode.SETLKW,
    )
    return b""


async def _fallocate(operations: ExtraOperations, request: Request, body: bytes) -> bytes:
    fh, offset, length, mode, _ = abi.FALLOCATE_IN.unpack_from(body)
    await operations.fallocate(request, request.nodeid, fh, offset, length, mode)
    return b""


async def _lseek(operations: ExtraOperations, request: Request, body: bytes) -> bytes:
    fh, offset, whence, _ = abi.LSEEK_IN.unpack_from(body)
    return abi.LSEEK_OUT.pack(await operations.lseek(request, request.nodeid, fh, offset, whence))


async def _copy_file_range(operations: ExtraOperations, request: Request, body: bytes) -> bytes:
    fh_in, offset_in, nodeid_out, fh_out, offset_out, length, _ = abi.COPY_FILE_RANGE_IN.unpack_from(body)
    copied = await operations.copy_file_range(
        request, request.nodeid, fh_in, offset_in, nodeid_out, fh_out, offset_out, length
    )
    if request.opcode == Opcode.COPY_FILE_RANGE_64:
        return abi.COPY_FILE_RANGE_OUT.pack(copied)
    return abi.WRITE_OUT.pack(copied, 0)


async def _setxattr(operations: ExtraOperations, request: Request, body: bytes) -> bytes:
    size, flags, more_flags, _ = abi.SETXATTR_IN.unpack_from(body)
    name, _, value = body[abi.SETXATTR_IN.size :].partition(b"\0")
    if len(value) != size:
        raise ValueError(f"a value of {len(value)} bytes, not {size}")
    kill_sgid = bool(more_flags & abi.SETXATTR_ACL_KILL_SGID)
    await operations.setxattr(request, request.nodeid, name, value, flags, kill_sgid=kill_sgid)
    return b""


async def _ioctl(operations: ExtraOperations, request: Request, body: bytes) -> bytes:
    _fh, _flags, command, _arg, _in_size, out_size = abi.IOCTL_IN.unpack_from(body)
    data = body[abi.IOCTL_IN.size :]
    told = b""
    match command:
        case abi.FS_IOC_GETFLAGS | abi.FS_IOC_FSGETXATTR:
            extended = command == abi.FS_IOC_FSGETXATTR
            numbers = await operations.get_flags(request, request.nodeid, extended=extended)
            told = (abi.FSXATTR if extended else abi.FLAGS).pack(*numbers)
        case abi.FS_IOC_SETFLAGS | abi.FS_IOC_FSSETXATTR:
            extended = command == abi.FS_IOC_FSSETXATTR
            numbers = (abi.FSXATTR if extended else abi.FLAGS).unpack(data)
            await operations.set_flags(request, request.nodeid, numbers, extended=extended)
        case _:
            raise pyfuse3.FUSEError(errno.ENOTTY)
    if len(told) != out_size:
        raise ValueError(f"an answer of {len(told)} bytes, not {out_size}, to ioctl {command:#x}")
    return abi.IOCTL_OUT.pack(0, 0, 0, 0) + told


async def _statx(operations: ExtraOperations, request: Request, body: bytes) -> bytes:
    getattr_flags, _, fh, flags, mask = abi.STATX_IN.unpack_from(body)
    known_fh = fh if getattr_flags & abi.GETATTR_FH else None
    return pack_statx(await operations.statx(request, request.nodeid, known_fh, flags, mask))


async def _tmpfile(operations: ExtraOperations, request: Request, body: bytes) -> bytes:
    flags, mode, umask, _open_flags = abi.CREATE_IN.unpack_from(body)
    info, entry = await operations.tmpfile(request, request.nodeid, mode, flags, umask)
    return pack_entry(entry) + pack_open(info)


async def _readdir(operations: ExtraOperations, request: Request, body: bytes) -> bytes:
    fh, offset, size, *_ = abi.READ_IN.unpack_from(body)
    return pack_directory(await operations.readdir(request, request.nodeid, fh, offset, size), size)


CALLS: Final[dict[Opcode, tuple[str, Call]]] = {
    Opcode.GETLK: ("getlk", _getlk),
    Opcode.SETLK: ("setlk", _setlk),
    Opcode.SETLKW: ("setlk", _setlk),
    Opcode.IOCTL: ("get_flags", _ioctl),
    Opcode.FALLOCATE: ("fallocate", _fallocate),
    Opcode.LSEEK: ("lseek", _lseek),
    Opcode.COPY_FILE_RANGE: ("copy_file_range", _copy_file_range),
    Opcode.COPY_FILE_RANGE_64: ("copy_file_range", _copy_file_range),
    Opcode.SETXATTR: ("setxattr", _setxattr),
    Opcode.STATX: ("statx", _statx),
    Opcode.TMPFILE: ("tmpfile", _tmpfile),
    Opcode.READDIR: ("readdir", _readdir),
}


def implemented(operations: ExtraOperations) -> frozenset[Opcode]:
    """The opcodes whose method *operations* overrides."""
    own = type(operations)
    return frozenset(
        opcode
        for opcode, (name, _) in CALLS.items()
        if getattr(own, name) is not getattr(ExtraOperations, name)
    )


class Dispatcher:
    """Runs the messages that `_supplement` hands over, and answers them."""

    def __init__(self, operations: ExtraOperations, interrupts: Interrupts, replies: Replies) -> None:
        self._operations = operations
        self._interrupts = interrupts
        self._replies = replies
        self.nursery: trio.Nursery | None = None
        self.short_setxattr = False
        """The kernel has no FUSE_SETXATTR_EXT (it came with Linux 5.14), and its SETXATTR no flags of that."""

    def on_message(self, request: Request, body: bytes) -> None:
        """Called inside pyfuse3's loop, right after the message was read. Whatever it raises would be
        printed by `_supplement` and answered EIO there."""
        if request.opcode == Opcode.INTERRUPT:
            (unique,) = abi.INTERRUPT_IN.unpack_from(body)
            self._interrupts.interrupt(unique)
            return
        if request.opcode == Opcode.SETXATTR and self.short_setxattr:
            short = abi.SETXATTR_IN_SHORT.size
            body = body[:short] + bytes(abi.SETXATTR_IN.size - short) + body[short:]
        assert self.nursery is not None
        # Registered here and not in the task: an interrupt may be the very next message.
        any_signal = request.opcode == Opcode.SETLKW
        scope = self._interrupts.register(request.unique, request.pid, any_signal=any_signal)
        self.nursery.start_soon(self._answer, request, body, scope)

    async def _answer(self, request: Request, body: bytes, scope: trio.CancelScope) -> None:
        """The errno boundary of these operations. A task that is cancelled from outside (the mount ends)
        answers EIO, so that no program is left waiting."""
        error, payload = errno.EIO, b""
        _, call = CALLS[Opcode(request.opcode)]
        try:
            with scope:
                payload = await call(self._operations, request, body)
                error = 0
            if scope.cancelled_caught:
                error = self._interrupts.errno
        except pyfuse3.FUSEError as exc:
            error = exc.errno
        except Exception:
            log.exception("%r failed", request)
        finally:
            self._interrupts.forget(request.unique)
            self._replies.send(request, error or payload)
