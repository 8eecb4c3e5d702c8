"""Attributes, extended attributes and symbolic links of a local directory's inodes.

Calls that take no O_PATH descriptor get its path below /proc, which leads to the inode itself, also where
that is a symbolic link.
"""

from __future__ import annotations

import errno
import os
import stat

from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.types import AttributeChanges, Attributes, FilesystemStatistics, InodeHandle
from nfsfuse_server.storage import inode_flags, syscalls
from nfsfuse_server.storage.checks import check_changes, check_xattr_name
from nfsfuse_server.storage.descriptors import Descriptor, OpenInode, by_proc
from nfsfuse_server.storage.local_base import LocalBase, translated
from nfsfuse_server.storage.syscalls import UTIME_NOW, UTIME_OMIT, attributes_of


def _timespec(time_ns: int | None, now: bool) -> tuple[int, int]:
    """For utimensat(2): seconds and nanoseconds, the latter never negative."""
    if now:
        return 0, UTIME_NOW
    if time_ns is None:
        return 0, UTIME_OMIT
    return divmod(time_ns, 1_000_000_000)


class LocalAttributes(LocalBase):
    """The methods of `Storage` that deal in attributes."""

    @translated
    def getattr(self, handle: InodeHandle) -> Attributes:
        inode = self._inode(handle)
        attributes = attributes_of(inode.path.number)
        if attributes.nlink == 0 and not self._cache.pinned(handle):
            self._cache.forget(inode)  # removed by a program on the server
            raise FsError(errno.ESTALE)
        return self._orphans.told(handle, attributes)

    @translated
    def setattr(self, handle: InodeHandle, changes: AttributeChanges) -> Attributes:
        check_changes(changes)
        inode = self._inode(handle)
        path = inode.path
        if changes.size is not None and inode.kind != stat.S_IFREG:
            raise FsError(errno.EISDIR if inode.kind == stat.S_IFDIR else errno.EINVAL)
        if changes.mode is not None and inode.kind == stat.S_IFLNK:
            raise FsError(errno.EOPNOTSUPP, "a symbolic link has no mode of its own")
        if changes.uid is not None or changes.gid is not None:
            syscalls.chown(path.number, changes.uid, changes.gid)
        if changes.mode is not None:
            os.chmod(by_proc(path), stat.S_IMODE(changes.mode))
        if changes.size is not None:
            writer = self._writer(inode)
            os.ftruncate(writer.number, changes.size)
        atime = _timespec(changes.atime_ns, changes.atime_now)
        mtime = _timespec(changes.mtime_ns, changes.mtime_now)
        if atime[1] != UTIME_OMIT or mtime[1] != UTIME_OMIT:
            syscalls.utimens(by_proc(path), atime, mtime)
        return self._told(inode)

    @translated
    def get_flags(self, handle: InodeHandle, extended: bool) -> tuple[int, ...]:
        return inode_flags.get_flags(self._for_ioctl(handle).number, extended)

    @translated
    def set_flags(self, handle: InodeHandle, numbers: tuple[int, ...], extended: bool) -> Attributes:
        inode_flags.check_flags(numbers, extended)
        inode_flags.set_flags(self._for_ioctl(handle).number, numbers, extended)
        return self._told(self._inode(handle))

    @translated
    def check_open(self, handle: InodeHandle, flags: int) -> None:
        path = self._inode(handle).path
        inode_flags.check_protected(flags, syscalls.protection_of(path.number))

    def _for_ioctl(self, handle: InodeHandle) -> Descriptor:
        inode = self._inode(handle)
        match inode.kind:
            case stat.S_IFDIR:
                return self._lister(inode)
            case stat.S_IFREG:
                return self._reader(inode)
        raise FsError(errno.ENOTTY)

    @translated
    def readlink(self, handle: InodeHandle) -> bytes:
        inode = self._inode(handle)
        if inode.kind != stat.S_IFLNK:
            raise FsError(errno.EINVAL, "no symbolic link")
        return os.readlink(b"", dir_fd=inode.path.number)

    @translated
    def getxattr(self, handle: InodeHandle, name: bytes) -> bytes:
        return os.getxattr(by_proc(self._named(handle, name).path), name)

    @translated
    def setxattr(self, handle: InodeHandle, name: bytes, value: bytes, flags: int) -> Attributes:
        inode = self._named(handle, name)
        if flags not in (0, os.XATTR_CREATE, os.XATTR_REPLACE):
            raise FsError(errno.EINVAL, "setxattr flags")
        os.setxattr(by_proc(inode.path), name, value, flags)
        return self._told(inode)

    @translated
    def listxattr(self, handle: InodeHandle) -> list[bytes]:
        return sorted(map(os.fsencode, self._xattr_names(self._inode(handle))))

    @translated
    def removexattr(self, handle: InodeHandle, name: bytes) -> Attributes:
        inode = self._named(handle, name)
        os.removexattr(by_proc(inode.path), name)
        return self._told(inode)

    @translated
    def statfs(self) -> FilesystemStatistics:
        found = os.fstatvfs(self._root_descriptor.number)
        return FilesystemStatistics(
            block_size=found.f_bsize,
            fragment_size=found.f_frsize,
            blocks=found.f_blocks,
            blocks_free=found.f_bfree,
            blocks_available=found.f_bavail,
            files=found.f_files,
            files_free=found.f_ffree,
            files_available=found.f_favail,
            name_size_max=found.f_namemax,
        )

    def _named(self, handle: InodeHandle, name: bytes) -> OpenInode:
        check_xattr_name(name)
        return self._inode(handle)
