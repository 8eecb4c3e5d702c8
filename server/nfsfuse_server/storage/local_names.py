"""Names in a local directory: lookup, creation, removal, rename.

Changes of one directory are serialized by a lock of this process (the kernel serializes them anyway), so that
the inode reported as removed or overwritten is the one that was, and a new inode is not found before it has
its owner. Programs on the server that change the same directory at the same instant are not held off by it.
"""

from __future__ import annotations

import errno
import os
import stat
from functools import partial
from typing import Final

from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.types import (
    ACL_DEFAULT,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    Attributes,
    Credentials,
    InodeHandle,
    Node,
)
from nfsfuse_server.storage import syscalls
from nfsfuse_server.storage.checks import (
    check_credentials,
    check_name,
    check_rename_flags,
    check_reserved,
    check_target,
)
from nfsfuse_server.storage.descriptors import Descriptor, OpenInode, by_proc
from nfsfuse_server.storage.interface import Renamed
from nfsfuse_server.storage.local_base import LocalBase, translated
from nfsfuse_server.storage.syscalls import attributes_of

_OPEN_PATH: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_DEFAULT: Final = os.fsdecode(ACL_DEFAULT)
_SPECIAL: Final = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX


class LocalNames(LocalBase):
    """The methods of `Storage` that deal in names."""

    @translated
    def root(self) -> Node:
        return self._node(self._root)

    @translated
    def lookup(self, parent: InodeHandle, name: bytes) -> Node:
        self._check_name(parent, name, errno.ENOENT)
        return self._node(self._find(self._directory(parent), name))

    @translated
    def symlink(self, parent: InodeHandle, name: bytes, target: bytes, creds: Credentials) -> Node:
        check_target(target)
        directory = self._parent(parent, name, creds)
        with self._lock(directory):
            os.symlink(target, name, dir_fd=directory.path.number)
            return self._finish(directory, name, stat.S_IFLNK | 0o777, creds)

    @translated
    def mknod(self, parent: InodeHandle, name: bytes, mode: int, rdev: int, creds: Credentials) -> Node:
        if not 0 <= rdev < 2**64:
            raise FsError(errno.EINVAL, "device number")
        directory = self._parent(parent, name, creds)
        kind = stat.S_IFMT(mode) or stat.S_IFREG
        with self._lock(directory):
            masked, bare = self._masked(directory, mode, creds)
            os.mknod(name, kind | masked & 0o777, rdev, dir_fd=directory.path.number)
            return self._finish(directory, name, kind | masked & 0o7777, creds, bare=bare)

    @translated
    def mkdir(self, parent: InodeHandle, name: bytes, mode: int, creds: Credentials) -> Node:
        directory = self._parent(parent, name, creds)
        with self._lock(directory):
            masked, bare = self._masked(directory, mode, creds)
            os.mkdir(name, masked & 0o777, dir_fd=directory.path.number)
            return self._finish(directory, name, stat.S_IFDIR | masked & 0o7777, creds, bare=bare)

    @translated
    def create(self, parent: InodeHandle, name: bytes, mode: int, creds: Credentials) -> Node:
        directory = self._parent(parent, name, creds)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOATIME
        with self._lock(directory):
            masked, bare = self._masked(directory, mode, creds)
            writer = Descriptor(os.open(name, flags, masked & 0o777, dir_fd=directory.path.number))
            return self._finish(directory, name, stat.S_IFREG | masked & 0o7777, creds, writer, bare=bare)

    @translated
    def tmpfile(self, parent: InodeHandle, mode: int, creds: Credentials) -> Node:
        check_credentials(creds)
        directory = self._directory(parent)
        flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC | os.O_NOATIME
        masked, _ = self._masked(directory, mode, creds)
        writer = Descriptor(os.open(b".", flags, masked & 0o777, dir_fd=directory.path.number))
        path = Descriptor(os.open(by_proc(writer), os.O_PATH | os.O_CLOEXEC))
        self._own(path, directory, attributes_of(path.number), stat.S_IFREG | masked & 0o7777, creds)
        inode = self._orphans.begin(path, self._locator.adopt)
        self._cache.attach(inode, writer, writable=True)
        return self._node(inode)

    @translated
    def link(self, handle: InodeHandle, parent: InodeHandle, name: bytes) -> Node:
        self._check_name(parent, name, errno.EPERM)
        inode, directory = self._inode(handle), self._directory(parent)
        with self._lock(directory), self._link_lock(handle):
            kept = handle in self._orphans and self._told(inode).nlink == 0
            if kept and not self._orphans.may_be_named(handle):
                raise FsError(errno.ENOENT, "no link is left")
            # By /proc, since linkat(AT_EMPTY_PATH) takes CAP_DAC_READ_SEARCH.
            os.link(by_proc(inode.path), name, dst_dir_fd=directory.path.number)
            self._orphans.named(handle)
        return self._node(inode)

    @translated
    def unlink(self, parent: InodeHandle, name: bytes) -> Node:
        self._check_name(parent, name, errno.ENOENT)
        directory = self._directory(parent)
        with self._lock(directory):
            inode = self._victim(directory, name)
            return self._unname(inode, lambda: os.unlink(name, dir_fd=directory.path.number))

    @translated
    def rmdir(self, parent: InodeHandle, name: bytes) -> Node:
        self._check_name(parent, name, errno.ENOENT)
        directory = self._directory(parent)
        with self._lock(directory):
            inode = self._victim(directory, name)
            return self._unname(inode, lambda: os.rmdir(name, dir_fd=directory.path.number))

    @translated
    def rename(
        self, parent: InodeHandle, name: bytes, new_parent: InodeHandle, new_name: bytes, flags: int
    ) -> Renamed:
        check_rename_flags(flags)
        self._check_name(parent, name, errno.ENOENT)
        self._check_name(new_parent, new_name, errno.EPERM)
        source, target = self._directory(parent), self._directory(new_parent)
        with self._both_locked(source, target):
            moved = self._victim(source, name)
            other: OpenInode | None
            try:
                other = self._victim(target, new_name)
            except FileNotFoundError:
                other = None
            change = partial(
                syscalls.renameat2, source.path.number, name, target.path.number, new_name, flags
            )
            replaces = not flags & (RENAME_EXCHANGE | RENAME_NOREPLACE)
            if other is not None and other.handle != moved.handle and replaces:
                overwritten = self._unname(other, change)
                return Renamed(self._node(moved), overwritten)
            change()
        if other is not None and other.handle == moved.handle:
            return Renamed(self._node(moved), None, unchanged=True)
        return Renamed(self._node(moved), self._node(other) if other else None)

    def _parent(self, parent: InodeHandle, name: bytes, creds: Credentials) -> OpenInode:
        self._check_name(parent, name, errno.EPERM)
        check_credentials(creds)
        return self._directory(parent)

    def _masked(self, directory: OpenInode, mode: int, creds: Credentials) -> tuple[int, bool]:
        """*mode* without what the umask takes, or whole where a default ACL does so when the inode is made; and
        whether that will have no extended attributes. (Security modules label what is made as they have
        labelled the directory, or not at all.)

        The kernel decides this itself by the umask of a process, but it has none for each request."""
        try:
            names = self._xattr_names(directory)
        except OSError as exc:
            if exc.errno != errno.EOPNOTSUPP:
                raise
            return mode & ~creds.umask, False
        return (mode if _DEFAULT in names else mode & ~creds.umask), not names

    def _check_name(self, parent: InodeHandle, name: bytes, reserved: int) -> None:
        """Whether *name* may be used in *parent*; *reserved* is the errno for the server's own name there."""
        check_name(name)
        check_reserved(parent == self._root.handle, name, reserved)

    def _victim(self, directory: OpenInode, name: bytes) -> OpenInode:
        """What *name* leads to now, opened before the name goes, so that its handle can be told
        afterwards."""
        try:
            return self._locator.find(directory.path.number, name)
        except FsError as exc:
            if exc.errno != errno.EXDEV:
                raise
            raise FsError(errno.EBUSY, "a filesystem is mounted there") from exc

    def _finish(
        self,
        directory: OpenInode,
        name: bytes,
        mode: int,
        creds: Credentials,
        writer: Descriptor | None = None,
        *,
        bare: bool = False,
    ) -> Node:
        """Gives the inode just made as *name* its owner and its mode; takes the name back if that fails.

        It was made without the special bits, so that no set-user-ID file of root's ever exists; and with all
        others, so that the kernel combined them with the directory's default ACL.
        """
        try:
            descriptor = writer or Descriptor(os.open(name, _OPEN_PATH, dir_fd=directory.path.number))
            attributes = attributes_of(descriptor.number)
            self._check_new(attributes, mode)
            attributes = self._own(descriptor, directory, attributes, mode, creds)
            inode = self._locator.adopt(descriptor)
        except BaseException:
            remove = os.rmdir if stat.S_ISDIR(mode) else os.unlink
            remove(name, dir_fd=directory.path.number)
            raise
        if writer is not None:
            self._cache.attach(inode, writer, writable=True)
        return Node(inode.handle, attributes, bare)

    def _check_new(self, attributes: Attributes, mode: int) -> None:
        """A program on the server may have put something else there meanwhile: that must not change owner."""
        links_max = 2 if stat.S_ISDIR(mode) else 1
        if stat.S_IFMT(attributes.mode) != stat.S_IFMT(mode) or attributes.nlink > links_max:
            raise FsError(errno.EBUSY, "a program on the server replaced it")

    def _own(
        self, path: Descriptor, directory: OpenInode, attributes: Attributes, mode: int, creds: Credentials
    ) -> Attributes:
        """Owner, then special mode bits (chown clears them). The attributes afterwards."""
        changed = False
        if self._privileged:
            gid = creds.gid
            if gid != attributes.gid and attributes_of(directory.path.number).mode & stat.S_ISGID:
                gid = attributes.gid  # the kernel has set it from the directory
            if (creds.uid, gid) != (attributes.uid, attributes.gid):
                syscalls.chown(path.number, creds.uid, gid)
                changed = True
        missing = mode & _SPECIAL & ~attributes.mode
        if missing and not stat.S_ISLNK(mode):
            os.chmod(by_proc(path), stat.S_IMODE(attributes.mode) | missing)
            changed = True
        return attributes_of(path.number) if changed else attributes
