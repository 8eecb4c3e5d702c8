"""What the parts of the local directory's storage share: open inodes, locks, translation of errors."""

from __future__ import annotations

import errno
import functools
import os
import stat
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, ParamSpec, TypeVar

from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.types import Attributes, InodeHandle, Node
from nfsfuse_server.storage.descriptors import (
    DESCRIPTORS_CACHED_MAX,
    Descriptor,
    DescriptorCache,
    OpenInode,
    by_proc,
    raise_descriptor_limit,
)
from nfsfuse_server.storage.handles import Locator, PersistentLocator, VolatileLocator
from nfsfuse_server.storage.interface import StorageError
from nfsfuse_server.storage.largest_file import file_size_max
from nfsfuse_server.storage.orphans import Orphans
from nfsfuse_server.storage.syscalls import attributes_of

_P = ParamSpec("_P")
_R = TypeVar("_R")

LOCK_STRIPES: Final = 256
"""Locks that inodes share by hash: a lock per inode would have to outlive its place in the cache."""


def let_go(failure: BaseException) -> None:
    """Empties all calls that *failure* came through, which have ended, of what they were using."""
    pending: list[BaseException | None] = [failure]
    while pending:
        one = pending.pop()
        if one is not None:
            traceback.clear_frames(one.__traceback__)
            pending += (one.__cause__, one.__context__)


def translated(method: Callable[_P, _R]) -> Callable[_P, _R]:
    """OSError of the server's kernel becomes the application's FsError: the boundary of this storage. No
    failure takes a descriptor over it: see descriptors.py."""

    @functools.wraps(method)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return method(*args, **kwargs)
        except BaseException as exc:
            let_go(exc)
            if not isinstance(exc, OSError):
                raise
            if exc.errno == errno.EMFILE:  # this process's limit, but to the client the server's
                raise FsError(errno.ENFILE, "the server is out of descriptors") from exc
            raise FsError.from_os(exc) from exc

    return call


class LocalBase:
    """An exported directory and its open inodes.

    Sets the umask of the process to 0 (the program's comes with the request) and raises its limit of
    descriptors. *descriptors_max* bounds the cache: see `DescriptorCache`.
    """

    def __init__(
        self, path: str | os.PathLike[str], secret: bytes | None, descriptors_max: int | None
    ) -> None:
        os.umask(0)
        limit = raise_descriptor_limit()
        if not os.path.isdir("/proc/self/fd"):
            raise StorageError("/proc is not mounted: the storage needs /proc/self/fd")
        try:
            # Not O_PATH: open_by_handle_at(2) refuses such a descriptor as its mount.
            root = Descriptor(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        except OSError as exc:
            raise StorageError(f"cannot export {os.fspath(path)}: {exc.strerror}") from exc
        self._privileged = os.geteuid() == 0
        self._root_descriptor = root
        self._locks = [threading.RLock() for _ in range(LOCK_STRIPES)]
        self._link_locks = [threading.RLock() for _ in range(LOCK_STRIPES)]
        self._cache = DescriptorCache(
            min(limit, DESCRIPTORS_CACHED_MAX) if descriptors_max is None else descriptors_max,
            self._dropped,
            # Who is not root might be refused what is open, its permissions having changed since.
            reopens=secret is not None and self._privileged,
        )
        self._volatile: VolatileLocator | None = None
        self._locator: Locator
        if secret is None:
            self._locator = self._volatile = VolatileLocator(root.number, self._cache)
        else:
            self._locator = PersistentLocator(root.number, self._cache, secret)
        self._root = self._locator.adopt(root)
        self._cache.pin(self._root, always=True)
        self.file_size_max = file_size_max(root.number)
        self.keeps_access_times = not os.fstatvfs(root.number).f_flag & (os.ST_NOATIME | os.ST_RDONLY)
        self._orphans = Orphans(root.number, self._root.handle, self._locator, claimable=secret is not None)

    def _dropped(self, inode: OpenInode) -> None:
        if self._volatile is not None:
            self._volatile.forget(inode)

    def close(self) -> None:
        self._cache.clear()
        self._orphans.close()
        del self._root, self._root_descriptor

    def _inode(self, handle: InodeHandle) -> OpenInode:
        return self._cache.get(handle) or self._locator.open(handle)

    def _directory(self, handle: InodeHandle) -> OpenInode:
        inode = self._inode(handle)
        if inode.kind != stat.S_IFDIR:
            raise FsError(errno.ENOTDIR)
        return inode

    def _find(self, directory: OpenInode, name: bytes) -> OpenInode:
        """A name's inode. What is not in the cache may be in the middle of being created (its owner not yet
        set): only such a lookup takes the directory's lock."""
        inode = self._locator.find_cached(directory.path.number, name)
        if inode is not None:
            return inode
        with self._lock(directory):
            return self._locator.find(directory.path.number, name)

    def _node(self, inode: OpenInode) -> Node:
        return Node(inode.handle, self._told(inode))

    def _told(self, inode: OpenInode, descriptor: Descriptor | None = None) -> Attributes:
        """An inode's attributes, as *descriptor* of it has them, for clients."""
        descriptor = descriptor or inode.path
        return self._orphans.told(inode.handle, attributes_of(descriptor.number))

    def _xattr_names(self, inode: OpenInode) -> list[str]:
        """Of its extended attributes. What is open already is faster than the way by /proc."""
        opened = inode.writer or inode.reader
        return os.listxattr(by_proc(inode.path) if opened is None else opened.number)

    def _reader(self, inode: OpenInode) -> Descriptor:
        """A file's descriptor for reading: the writer if there is one, so that fsync sees its write-back
        errors."""
        self._check_file(inode)
        return inode.writer or inode.reader or self._open(inode, os.O_RDONLY)

    def _writer(self, inode: OpenInode) -> Descriptor:
        self._check_file(inode)
        return inode.writer or self._open(inode, os.O_RDWR)

    def _lister(self, directory: OpenInode) -> Descriptor:
        """A directory's descriptor for listing and for fsync."""
        return directory.reader or self._open(directory, os.O_RDONLY | os.O_DIRECTORY)

    def _check_file(self, inode: OpenInode) -> None:
        """Only regular files are opened for I/O: a FIFO would block, a device would act."""
        if inode.kind != stat.S_IFREG:
            raise FsError(errno.EISDIR if inode.kind == stat.S_IFDIR else errno.EINVAL)

    def _open(self, inode: OpenInode, flags: int) -> Descriptor:
        path, opened = by_proc(inode.path), flags | os.O_CLOEXEC
        try:
            # What is read ahead is no access: see `LocalData.accessed`.
            descriptor = Descriptor(os.open(path, opened | os.O_NOATIME))
        except PermissionError:  # for a server that is not root: another user's file
            descriptor = Descriptor(os.open(path, opened))
        return self._cache.attach(inode, descriptor, flags == os.O_RDWR)

    def _lock(self, inode: OpenInode) -> threading.RLock:
        """Held while names in a directory change, while a listing moves its descriptor, while a file is
        appended."""
        return self._locks[hash(inode.handle) % LOCK_STRIPES]

    def _link_lock(self, handle: InodeHandle) -> threading.RLock:
        """Held while an inode loses a name, and while it is pinned or let go: either the pin is seen, and the
        inode kept as an orphan, or the pin finds that it is gone. The last lock to be taken."""
        return self._link_locks[hash(handle) % LOCK_STRIPES]

    def _unname(self, inode: OpenInode, remove: Callable[[], None]) -> Node:
        """Takes a name from *inode* by *remove*; the inode as it is then. If that is the last name of a
        pinned inode, it is an orphan first."""
        with self._link_lock(inode.handle):
            kept = False
            pinned = self._cache.pinned(inode.handle)
            if pinned and inode.kind != stat.S_IFDIR and self._told(inode).nlink == 1:
                kept = self._orphans.keep(inode)
            try:
                remove()
            except BaseException:
                if kept:
                    self._orphans.discard(inode.handle)
                raise
            node = self._node(inode)
            if node.attributes.nlink == 0:
                if not pinned:
                    self._orphans.discard(inode.handle)  # there by a crash between the two links
                self._cache.forget(inode, orphan=inode.handle in self._orphans)
            return node

    @contextmanager
    def _both_locked(self, first: OpenInode, second: OpenInode) -> Iterator[None]:
        """Both locks, in the order of their numbers: two renames in opposite directions cannot deadlock."""
        low, high = sorted(hash(inode.handle) % LOCK_STRIPES for inode in (first, second))
        with self._locks[low], self._locks[high]:
            yield
