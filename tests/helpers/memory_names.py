"""Names in the memory storage. Errors and their order are those of Linux (fs/namei.c)."""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator

from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.types import (
    OFFSET_MAX,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    Credentials,
    InodeHandle,
    Node,
)
from nfsfuse_server.storage.checks import check_credentials, check_rename_flags, check_target
from nfsfuse_server.storage.interface import WHITEOUT_MODE, Listed, Renamed
from tests.helpers.memory_base import ROOT_INO, MemoryBase, operation
from tests.helpers.memory_inode import Entries, MemoryInode

_CREATABLE = frozenset({stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK})


class MemoryNames(MemoryBase):
    """The methods of `Storage` that deal in names."""

    @operation
    def root(self) -> Node:
        return self._node(self._inodes[ROOT_INO])

    @operation
    def lookup(self, parent: InodeHandle, name: bytes) -> Node:
        self._check_name(parent, name, errno.ENOENT)
        _, entries = self._directory(parent)
        return self._node(self._existing(entries, name))

    @operation
    def symlink(self, parent: InodeHandle, name: bytes, target: bytes, creds: Credentials) -> Node:
        check_target(target)
        inode = self._make(parent, name, stat.S_IFLNK | 0o777, creds)
        inode.meta.target = target
        return self._node(inode)

    @operation
    def mknod(self, parent: InodeHandle, name: bytes, mode: int, rdev: int, creds: Credentials) -> Node:
        kind = stat.S_IFMT(mode) or stat.S_IFREG
        if not 0 <= rdev < 2**64:
            raise FsError(errno.EINVAL, "device number")
        if kind not in _CREATABLE:
            raise FsError(errno.EPERM if kind == stat.S_IFDIR else errno.EINVAL)
        device = rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0
        return self._node(self._make(parent, name, kind | mode & 0o7777, creds, device))

    @operation
    def mkdir(self, parent: InodeHandle, name: bytes, mode: int, creds: Credentials) -> Node:
        return self._node(self._make(parent, name, stat.S_IFDIR | mode & 0o7777, creds))

    @operation
    def create(self, parent: InodeHandle, name: bytes, mode: int, creds: Credentials) -> Node:
        self._check_name(parent, name, errno.EPERM)
        check_credentials(creds)
        return self._node(self._make(parent, name, stat.S_IFREG | mode & 0o7777, creds))

    @operation
    def tmpfile(self, parent: InodeHandle, mode: int, creds: Credentials) -> Node:
        check_credentials(creds)
        directory, _ = self._directory(parent)
        if directory.meta.nlink == 0:
            raise FsError(errno.ENOENT)
        gid = directory.meta.gid if directory.meta.mode & stat.S_ISGID else creds.gid
        inode = self._new_inode(stat.S_IFREG | mode & 0o7777 & ~creds.umask, creds.uid, gid)
        inode.meta.orphan = inode.meta.nameless = True
        return self._node(inode)

    @operation
    def link(self, handle: InodeHandle, parent: InodeHandle, name: bytes) -> Node:
        self._check_name(parent, name, errno.EPERM)
        inode = self._get(handle)
        directory, entries = self._directory(parent)
        if entries.get(name) is not None:
            raise FsError(errno.EEXIST)
        if directory.meta.nlink == 0:
            raise FsError(errno.ENOENT)
        if inode.kind == stat.S_IFDIR:
            raise FsError(errno.EPERM)
        if inode.meta.nlink == 0 and not inode.meta.nameless:
            raise FsError(errno.ENOENT)
        self._attach(directory, entries, name, inode)
        inode.meta.orphan = inode.meta.nameless = False
        self._touch(inode)
        return self._node(inode)

    @operation
    def unlink(self, parent: InodeHandle, name: bytes) -> Node:
        self._check_name(parent, name, errno.ENOENT)
        directory, entries = self._directory(parent)
        inode = self._existing(entries, name)
        if inode.kind == stat.S_IFDIR:
            raise FsError(errno.EISDIR)
        self._detach(directory, entries, name, inode)
        return self._removed(inode)

    @operation
    def rmdir(self, parent: InodeHandle, name: bytes) -> Node:
        self._check_name(parent, name, errno.ENOENT)
        directory, entries = self._directory(parent)
        inode = self._existing(entries, name)
        if inode.meta.entries is None:
            raise FsError(errno.ENOTDIR)
        if len(inode.meta.entries):
            raise FsError(errno.ENOTEMPTY)
        self._detach(directory, entries, name, inode)
        return self._removed(inode)

    @operation
    def rename(
        self, parent: InodeHandle, name: bytes, new_parent: InodeHandle, new_name: bytes, flags: int
    ) -> Renamed:
        check_rename_flags(flags)
        self._check_name(parent, name, errno.ENOENT)
        self._check_name(new_parent, new_name, errno.EPERM)
        source, source_entries = self._directory(parent)
        target, target_entries = self._directory(new_parent)
        moved = self._existing(source_entries, name)
        number = target_entries.get(new_name)
        other = None if number is None else self._inodes[number]
        self._check_rename(source, target, moved, other, flags)
        if other is moved:
            return Renamed(self._node(moved), None, unchanged=True)
        self._detach(source, source_entries, name, moved, keep_place=flags == RENAME_EXCHANGE)
        if other is not None:
            self._detach(target, target_entries, new_name, other, keep_place=True)
        self._attach(target, target_entries, new_name, moved)
        if flags & RENAME_WHITEOUT:
            self._attach(source, source_entries, name, self._new_inode(WHITEOUT_MODE, 0, 0))
        if other is not None and flags == RENAME_EXCHANGE:
            self._attach(source, source_entries, name, other)
            self._touch(other)
        self._touch(moved)
        if other is None or flags == RENAME_EXCHANGE:
            return Renamed(self._node(moved), None if other is None else self._node(other))
        return Renamed(self._node(moved), self._removed(other))

    @operation
    def readdir(self, handle: InodeHandle, cookie: int, limit: int) -> tuple[list[Listed], bool]:
        if limit < 1 or not 0 <= cookie <= OFFSET_MAX:
            raise FsError(errno.EINVAL, "readdir")
        directory, entries = self._directory(handle)
        if directory.meta.nlink == 0:
            raise FsError(errno.ENOENT)
        found, eof = entries.after(cookie, limit)
        return [Listed(name, place, self._handle(ino)) for name, place, ino in found], eof

    @operation
    def number_above(self, handle: InodeHandle) -> int:
        directory, _ = self._directory(handle)
        return 0 if directory.ino == ROOT_INO else directory.parent

    @operation
    def parent(self, handle: InodeHandle) -> Node:
        directory, _ = self._directory(handle)
        if directory.meta.nlink == 0:
            raise FsError(errno.ESTALE)
        return self._node(self._inodes[directory.parent])

    @operation
    def search(self, number: int) -> Iterator[Node | None]:
        inode = self._inodes.get(number)
        found = None if inode is None or inode.meta.nlink == 0 else self._node(inode)
        return iter((None, found))

    def _check_rename(
        self,
        source: MemoryInode,
        target: MemoryInode,
        moved: MemoryInode,
        other: MemoryInode | None,
        flags: int,
    ) -> None:
        if other is not None and flags & RENAME_NOREPLACE:
            raise FsError(errno.EEXIST)
        if other is None and flags == RENAME_EXCHANGE:
            raise FsError(errno.ENOENT)
        if self._is_below(target, moved):
            raise FsError(errno.EINVAL, "into its own subtree")
        if other is not None and self._is_below(source, other):
            raise FsError(errno.EINVAL if flags == RENAME_EXCHANGE else errno.ENOTEMPTY)
        if target.meta.nlink == 0:
            raise FsError(errno.ENOENT)
        if other is None or other is moved or flags == RENAME_EXCHANGE:
            return
        if other.meta.entries is not None:
            if moved.meta.entries is None:
                raise FsError(errno.EISDIR)
            if len(other.meta.entries):
                raise FsError(errno.ENOTEMPTY)
        elif moved.meta.entries is not None:
            raise FsError(errno.ENOTDIR)

    def _is_below(self, inode: MemoryInode, ancestor: MemoryInode) -> bool:
        """Whether *inode*, a directory, is *ancestor* or somewhere in it."""
        while inode is not ancestor:
            if inode.ino == ROOT_INO or inode.meta.nlink == 0:
                return False
            inode = self._inodes[inode.parent]
        return True

    def _existing(self, entries: Entries, name: bytes) -> MemoryInode:
        number = entries.get(name)
        if number is None:
            raise FsError(errno.ENOENT)
        return self._inodes[number]

    def _make(
        self, parent: InodeHandle, name: bytes, mode: int, creds: Credentials, rdev: int = 0
    ) -> MemoryInode:
        self._check_name(parent, name, errno.EPERM)
        check_credentials(creds)
        directory, entries = self._directory(parent)
        if entries.get(name) is not None:
            raise FsError(errno.EEXIST)
        if directory.meta.nlink == 0:
            raise FsError(errno.ENOENT)
        gid = creds.gid
        if not stat.S_ISLNK(mode):
            mode &= ~(creds.umask & 0o777)
        if directory.meta.mode & stat.S_ISGID:
            gid = directory.meta.gid
            mode |= stat.S_ISGID if stat.S_ISDIR(mode) else 0
        inode = self._new_inode(mode, creds.uid, gid, rdev)
        self._attach(directory, entries, name, inode)
        return inode

    def _attach(self, directory: MemoryInode, entries: Entries, name: bytes, inode: MemoryInode) -> None:
        entries.put(name, inode.ino)
        if inode.kind == stat.S_IFDIR:
            inode.meta.nlink = max(inode.meta.nlink, 2)
            inode.parent = directory.ino
            directory.meta.nlink += 1
        else:
            inode.meta.nlink += 1
        self._touch(directory, modified=True)

    def _detach(
        self,
        directory: MemoryInode,
        entries: Entries,
        name: bytes,
        inode: MemoryInode,
        keep_place: bool = False,
    ) -> None:
        """Takes the name from the inode; with *keep_place*, `_attach` gives it to another at once."""
        if not keep_place:
            entries.remove(name)
        if inode.kind == stat.S_IFDIR:
            directory.meta.nlink -= 1
        else:
            inode.meta.nlink -= 1
        self._touch(directory, modified=True)

    def _removed(self, inode: MemoryInode) -> Node:
        """The inode lost a name for good."""
        if inode.kind == stat.S_IFDIR:
            inode.meta.nlink = 0
        elif inode.meta.nlink == 0 and inode.pins:
            inode.meta.orphan = True
        self._touch(inode)
        node = self._node(inode)
        self._free_if_unused(inode)
        return node
