"""A tree in memory as storage: deterministic, and able to lose power.

The pieces: names (memory_names.py), attributes and data (here), over inodes (memory_inode.py) and their
durability (memory_base.py). atime does not follow reads.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
from typing import Final

from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.types import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_ZERO_RANGE,
    NAME_SIZE_MAX,
    OFFSET_MAX,
    PAGE_SIZE,
    AttributeChanges,
    Attributes,
    FilesystemStatistics,
    InodeHandle,
)
from nfsfuse_server.storage.checks import check_changes, check_read, check_write, check_xattr_name
from nfsfuse_server.storage.inode_flags import check_flags, check_protected
from nfsfuse_server.storage.interface import Storage
from tests.helpers.memory_base import Clock, Fault, no_fault, operation
from tests.helpers.memory_flags import flags_of, flags_of_protection, xflags_of
from tests.helpers.memory_inode import MemoryInode
from tests.helpers.memory_names import MemoryNames

ALLOCATE_SIZE_MAX: Final = 1 << 30
"""Bytes that one fallocate may take; more is ENOSPC. A bound for tests, not for the machine."""

XATTR_VALUE_SIZE_MAX: Final = 65536
"""Bytes: XATTR_SIZE_MAX of <linux/limits.h>."""

_PAGES_TOTAL: Final = 1 << 40
_INODES_TOTAL: Final = 1 << 32


class MemoryStorage(MemoryNames, Storage):
    """*clock* gives every timestamp (default: counts nanoseconds from 1 on); *fault* may make operations
    fail."""

    def __init__(self, clock: Clock | None = None, fault: Fault = no_fault) -> None:
        super().__init__(itertools.count(1).__next__ if clock is None else clock, fault)

    @operation
    def getattr(self, handle: InodeHandle) -> Attributes:
        return self._get(handle).attributes()

    @operation
    def setattr(self, handle: InodeHandle, changes: AttributeChanges) -> Attributes:
        check_changes(changes)
        inode = self._get(handle)
        meta = inode.meta
        if changes.size is not None:
            self._file(handle)
        if changes.mode is not None and inode.kind == stat.S_IFLNK:
            raise FsError(errno.EOPNOTSUPP)
        if changes == AttributeChanges():
            return inode.attributes()
        if changes.uid is not None or changes.gid is not None:
            meta.uid = meta.uid if changes.uid is None else changes.uid
            meta.gid = meta.gid if changes.gid is None else changes.gid
            if inode.kind != stat.S_IFDIR:
                group_executable = meta.mode & stat.S_IXGRP
                meta.mode &= ~(stat.S_ISUID | (stat.S_ISGID if group_executable else 0))
        if changes.mode is not None:
            meta.mode = inode.kind | stat.S_IMODE(changes.mode)
        if changes.size is not None:
            inode.data.truncate(changes.size)
        self._touch(inode, modified=changes.size is not None)
        if changes.atime_now or changes.atime_ns is not None:
            meta.atime_ns = self._clock() if changes.atime_now else changes.atime_ns or 0
        if changes.mtime_now or changes.mtime_ns is not None:
            meta.mtime_ns = self._clock() if changes.mtime_now else changes.mtime_ns or 0
        return inode.attributes()

    @operation
    def accessed(self, handle: InodeHandle) -> None:
        meta = self._file(handle).meta
        if meta.atime_ns <= max(meta.mtime_ns, meta.ctime_ns):  # relatime
            meta.atime_ns = self._clock()

    @operation
    def get_flags(self, handle: InodeHandle, extended: bool) -> tuple[int, ...]:
        meta = self._flagged(handle).meta
        return (xflags_of(meta.flags), 0, 0, meta.project, 0) if extended else (meta.flags,)

    @operation
    def set_flags(self, handle: InodeHandle, numbers: tuple[int, ...], extended: bool) -> Attributes:
        check_flags(numbers, extended)
        inode = self._flagged(handle)
        if extended:
            inode.meta.flags, inode.meta.project = flags_of(numbers[0]), numbers[3]
        else:
            inode.meta.flags = numbers[0]
        self._touch(inode)
        return inode.attributes()

    @operation
    def check_open(self, handle: InodeHandle, flags: int) -> None:
        check_protected(flags, flags_of_protection(self._get(handle).meta.flags))

    def _flagged(self, handle: InodeHandle) -> MemoryInode:
        inode = self._get(handle)
        if inode.kind not in (stat.S_IFREG, stat.S_IFDIR):
            raise FsError(errno.ENOTTY)
        return inode

    @operation
    def readlink(self, handle: InodeHandle) -> bytes:
        inode = self._get(handle)
        if inode.kind != stat.S_IFLNK:
            raise FsError(errno.EINVAL)
        return inode.meta.target

    @operation
    def getxattr(self, handle: InodeHandle, name: bytes) -> bytes:
        inode = self._with_xattr(handle, name, errno.ENODATA)
        if name not in inode.meta.xattrs:
            raise FsError(errno.ENODATA)
        return inode.meta.xattrs[name]

    @operation
    def setxattr(self, handle: InodeHandle, name: bytes, value: bytes, flags: int) -> Attributes:
        inode = self._with_xattr(handle, name, errno.EPERM)
        if flags not in (0, os.XATTR_CREATE, os.XATTR_REPLACE):
            raise FsError(errno.EINVAL)
        if len(value) > XATTR_VALUE_SIZE_MAX:
            raise FsError(errno.E2BIG)
        if flags == os.XATTR_CREATE and name in inode.meta.xattrs:
            raise FsError(errno.EEXIST)
        if flags == os.XATTR_REPLACE and name not in inode.meta.xattrs:
            raise FsError(errno.ENODATA)
        inode.meta.xattrs[name] = bytes(value)
        self._touch(inode)
        return inode.attributes()

    @operation
    def listxattr(self, handle: InodeHandle) -> list[bytes]:
        return sorted(self._get(handle).meta.xattrs)

    @operation
    def removexattr(self, handle: InodeHandle, name: bytes) -> Attributes:
        inode = self._with_xattr(handle, name, errno.EPERM)
        if name not in inode.meta.xattrs:
            raise FsError(errno.ENODATA)
        del inode.meta.xattrs[name]
        self._touch(inode)
        return inode.attributes()

    @operation
    def statfs(self) -> FilesystemStatistics:
        pages = _PAGES_TOTAL - sum(len(inode.data.pages) for inode in self._inodes.values())
        inodes = _INODES_TOTAL - len(self._inodes)
        return FilesystemStatistics(
            block_size=PAGE_SIZE,
            fragment_size=PAGE_SIZE,
            blocks=_PAGES_TOTAL,
            blocks_free=pages,
            blocks_available=pages,
            files=_INODES_TOTAL,
            files_free=inodes,
            files_available=inodes,
            name_size_max=NAME_SIZE_MAX,
        )

    @operation
    def read(self, handle: InodeHandle, offset: int, size: int) -> bytes:
        check_read(offset, size)
        return self._file(handle).data.read(offset, size)

    @operation
    def read_nowait(self, handle: InodeHandle, offset: int, size: int) -> bytes | None:
        check_read(offset, size)
        return self._file(handle).data.read(offset, size)

    @operation
    def write(self, handle: InodeHandle, offset: int, data: bytes | memoryview) -> Attributes:
        content = bytes(data)
        check_write(offset, len(content))
        return self._write(self._file(handle), offset, content)

    @operation
    def fsync(self, handle: InodeHandle, datasync: bool) -> None:
        inode = self._get(handle)
        if inode.kind != stat.S_IFDIR:
            self._file(handle)
        inode.durable_data = inode.data.copy()
        self._commit()

    @operation
    def fsync_dir(self, handle: InodeHandle) -> None:
        self._directory(handle)
        self._commit()

    @operation
    def fallocate(self, handle: InodeHandle, mode: int, offset: int, length: int) -> Attributes:
        if not 0 <= offset <= OFFSET_MAX or not 0 < length <= OFFSET_MAX:
            raise FsError(errno.EINVAL)
        check_write(offset, length)
        inode = self._file(handle)
        match mode & ~FALLOC_FL_KEEP_SIZE:
            case 0:
                self._allocate(inode, offset, length)
            case n if n == FALLOC_FL_ZERO_RANGE:
                inode.data.punch(offset, length)
                self._allocate(inode, offset, length)
            case n if n == FALLOC_FL_PUNCH_HOLE and mode & FALLOC_FL_KEEP_SIZE:
                inode.data.punch(offset, length)
            case _:
                raise FsError(errno.EOPNOTSUPP)
        if not mode & FALLOC_FL_KEEP_SIZE:
            inode.data.size = max(inode.data.size, offset + length)
        self._touch(inode, modified=True)
        return inode.attributes()

    @operation
    def seek(self, handle: InodeHandle, offset: int, whence: int) -> int:
        check_read(offset, 0)
        inode = self._file(handle)
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise FsError(errno.EINVAL)
        if offset >= inode.data.size:
            raise FsError(errno.ENXIO)
        if whence == os.SEEK_HOLE:
            return inode.data.seek_hole(offset)
        found = inode.data.seek_data(offset)
        if found is None:
            raise FsError(errno.ENXIO)
        return found

    @operation
    def copy_range(
        self, source: InodeHandle, source_offset: int, target: InodeHandle, target_offset: int, length: int
    ) -> int:
        check_read(source_offset, length)
        check_write(target_offset, length)
        self._get(source), self._get(target)  # ESTALE of either comes before any other error
        from_inode, to_inode = self._file(source), self._file(target)
        content = from_inode.data.read(
            source_offset, length
        )  # first, as Linux: what overlaps is what there is
        if from_inode is to_inode and abs(source_offset - target_offset) < len(content):
            raise FsError(errno.EINVAL, "overlapping ranges")
        self._write(to_inode, target_offset, content)
        return len(content)

    def _write(self, inode: MemoryInode, offset: int, content: bytes) -> Attributes:
        if content:
            inode.data.write(offset, content)
            self._touch(inode, modified=True)
        return inode.attributes()

    def _allocate(self, inode: MemoryInode, offset: int, length: int) -> None:
        if length > ALLOCATE_SIZE_MAX:
            raise FsError(errno.ENOSPC)
        inode.data.allocate(offset, length)

    def _with_xattr(self, handle: InodeHandle, name: bytes, refusal: int) -> MemoryInode:
        """The inode, if it may have such an attribute (`xattr_permission` of fs/xattr.c)."""
        check_xattr_name(name)
        inode = self._get(handle)
        namespace, dot, rest = name.partition(b".")
        if not dot or namespace not in (b"user", b"trusted", b"security"):
            raise FsError(errno.EOPNOTSUPP)
        if not rest:
            raise FsError(errno.EINVAL)
        if namespace == b"user" and inode.kind not in (stat.S_IFREG, stat.S_IFDIR):
            raise FsError(refusal)
        return inode
