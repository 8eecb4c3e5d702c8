"""Requests that are answered where they are read: from caches, without waiting.

Each of these asks the engine for what it may tell at once (``..._at_once``), by the same decision that the
waiting operation begins with. If that is nothing, None is returned and the request goes the long way, to
libfuse, pyfuse3 and `operations.Operations` (or `extras.Extras`), as if it had not been looked at. Nothing else
runs between the decision and the answer, and nobody can interrupt it: so no cancel scope, no task and no
coroutine is needed, which cost more than the answers. A read of pages that the server has to be asked for is
answered where they arrive (`nfsfuse.fuse.upcalls.later`).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from typing import Final

from nfsfuse.engine.filesystem import Filesystem
from nfsfuse.fuse.binding import abi
from nfsfuse.fuse.binding.abi import Opcode
from nfsfuse.fuse.binding.libraries import Request, _supplement
from nfsfuse.fuse.notifications.own_mount import OwnMount
from nfsfuse.fuse.upcalls import convert
from nfsfuse.fuse.upcalls.boundary import Answer, QuickAnswer, at_once
from nfsfuse.fuse.upcalls.interrupt import INTERRUPTS
from nfsfuse.fuse.upcalls.later import Replies, Waiter
from nfsfuse.fuse.upcalls.operations import Operations
from nfsfuse.fuse.upcalls.replies import (
    OpenDirectory,
    pack_entry,
    pack_getattr,
    pack_open,
    pack_open_directory,
    pack_xattr,
)
from nfsfuse.protocol.types import ACLS, LockOwner, Sync
from nfsfuse.rpc.memory import keep_freed_buffers

LARGE_BYTES_MIN: Final = 128 << 10
"""What glibc would map by itself (M_MMAP_THRESHOLD): see `nfsfuse.rpc.memory`."""


IOCTLS: Final = frozenset(
    (abi.FS_IOC_GETFLAGS, abi.FS_IOC_SETFLAGS, abi.FS_IOC_FSGETXATTR, abi.FS_IOC_FSSETXATTR)
)
"""Commands of ioctl(2) that there are: see `extra`."""


class Quick:
    """The quick answers of a mount: `loop.QuickAnswers`."""

    def __init__(
        self, filesystem: Filesystem, operations: Operations, own_mount: OwnMount, replies: Replies
    ) -> None:
        self._replies = replies
        self._fs = filesystem
        self._operations = operations
        self._own_mount = own_mount
        self._answers: Mapping[int, Callable[[Request, memoryview], QuickAnswer]] = {
            Opcode.LOOKUP: self.lookup,
            Opcode.GETATTR: self.getattr,
            Opcode.GETXATTR: self.getxattr,
            Opcode.LISTXATTR: self.listxattr,
            Opcode.OPEN: self.open,
            Opcode.READ: self.read,
            Opcode.WRITE: self.write,
            Opcode.FLUSH: self.flush,
            Opcode.RELEASE: self.release,
            Opcode.OPENDIR: self.opendir,
            Opcode.RELEASEDIR: self.releasedir,
            Opcode.IOCTL: self.ioctl,
        }
        self.opcodes = frozenset(map(Opcode, self._answers))
        self._transfers_much = False

    def answer(self, request: Request, body: memoryview) -> QuickAnswer:
        """See `loop.QuickAnswers`."""
        return self._answers[request.opcode](request, body)

    # --- names and attributes ---

    @at_once
    def lookup(self, request: Request, body: memoryview) -> Answer | None:
        if request.pid in self._own_mount.looks:
            return None
        name = bytes(body[:-1])
        if name in (b".", b".."):
            return None  # of an inode by its number, which the table may not have
        found = self._fs.names.lookup_at_once(request.nodeid, name, request.pid)
        return None if found is None else pack_entry(self._operations.found(found))

    @at_once
    def getattr(self, request: Request, body: memoryview) -> Answer | None:
        if request.pid in self._own_mount.threads:
            return None
        inode = self._fs.inodes[request.nodeid]
        size_only = bool(request.operation_flags & abi.GETATTR_FH)
        attributes = self._fs.attributes_at_once(inode, size_only=size_only)
        if attributes is None:
            return None
        return pack_getattr(self._operations.told_attributes(inode, attributes))

    @at_once
    def getxattr(self, request: Request, body: memoryview) -> Answer | None:
        size, _ = abi.GETXATTR_IN.unpack_from(body)
        name = bytes(body[abi.GETXATTR_IN.size : -1])
        at_once = self._fs.acls.at_once if name in ACLS else self._fs.xattrs.get_at_once
        value = at_once(request.nodeid, name)
        return None if value is None else pack_xattr(value, size)

    @at_once
    def listxattr(self, request: Request, body: memoryview) -> Answer | None:
        size, _ = abi.GETXATTR_IN.unpack_from(body)
        return pack_xattr(b"", size) if self._fs.xattrs.has_none_at_once(request.nodeid) else None

    # --- files ---

    @at_once
    def open(self, request: Request, body: memoryview) -> Answer | None:
        if request.kill_suidgid or request.pid in self._own_mount.threads:
            return None
        number = self._fs.files.open_at_once(request.nodeid, request.flags)
        return None if number is None else pack_open(self._operations.opened(number))

    def _transfers(self, size: int) -> None:
        """Data of *size* bytes come or go. A mount that is only looked at keeps no memory for them."""
        if size >= LARGE_BYTES_MIN and not self._transfers_much:
            self._transfers_much = True
            keep_freed_buffers()

    @at_once
    def read(self, request: Request, body: memoryview) -> QuickAnswer:
        assert request.fh is not None
        number, offset, size = request.fh, request.offset, request.size
        self._transfers(size)
        # Only a read past the page cache tells its owner (fuse_direct_io; FUSE_READ_LOCKOWNER).
        cached = request.lock_owner is None
        data = self._fs.files.read_at_once(number, offset, size, cached=cached)
        if data is not None or not cached:
            return data
        waiter = Waiter(request, self._replies, INTERRUPTS)
        give_up = self._fs.files.read_later(number, offset, size, request.pid, waiter.answered)
        if give_up is None:
            return None
        waiter.waits(give_up)
        return _supplement.LATER

    @at_once
    def write(self, request: Request, body: memoryview) -> Answer | None:
        assert request.fh is not None
        self._transfers(request.size)
        if request.kill_suidgid or convert.sync(request.flags) is not Sync.NONE:
            return None
        with body[abi.WRITE_IN.size :] as data:
            page = request.is_write_back
            written = self._fs.files.write_at_once(request.fh, request.offset, data, page=page)
        # Of an asynchronous O_DIRECT write the kernel forgets nothing (fuse_direct_IO).
        if written is not None and not page and not request.flags & os.O_DIRECT:
            self._fs.inodes[request.nodeid].attributes.written_by_kernel()
        return None if written is None else abi.WRITE_OUT.pack(written, 0)

    @at_once
    def flush(self, request: Request, body: memoryview) -> Answer | None:
        assert request.fh is not None
        owner = request.lock_owner
        locked = owner is not None and self._fs.locks.has_any(request.nodeid, LockOwner(owner))
        return b"" if not locked and self._fs.files.is_flushed(request.fh) else None

    @at_once
    def release(self, request: Request, body: memoryview) -> Answer | None:
        assert request.fh is not None
        owner = None if request.lock_owner is None else LockOwner(request.lock_owner)
        self._fs.locks.release(request.nodeid, request.fh, owner)
        self._fs.files.release(request.fh)
        return b""

    @at_once
    def ioctl(self, request: Request, body: memoryview) -> Answer | None:
        """Whether a file is a terminal is asked of each that stdio opens."""
        _, _, command, *_ = abi.IOCTL_IN.unpack_from(body)
        return None if command in IOCTLS else errno.ENOTTY

    # --- directories ---

    @at_once
    def opendir(self, request: Request, body: memoryview) -> Answer | None:
        opening = self._fs.directories.opendir(request.nodeid)
        return pack_open_directory(OpenDirectory(opening.number, opening.cached, opening.kept))

    @at_once
    def releasedir(self, request: Request, body: memoryview) -> Answer | None:
        assert request.fh is not None
        self._fs.directories.releasedir(request.fh)
        return b""
