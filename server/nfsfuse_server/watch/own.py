"""A local directory whose storage tells an `EventQueue` what it is about to change."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager

from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.types import AttributeChanges, Attributes, Credentials, InodeHandle, Node
from nfsfuse_server.storage.descriptors import by_proc
from nfsfuse_server.storage.interface import Renamed
from nfsfuse_server.storage.local import LocalStorage
from nfsfuse_server.watch.queue import EventQueue, Key, Name

log = logging.getLogger(__name__)


class NotingStorage(LocalStorage):
    """As `LocalStorage`. Whatever changes anything does so inside `EventQueue.touching`."""

    def __init__(self, path: str | os.PathLike[str], secret: bytes | None, queue: EventQueue) -> None:
        self._queue = queue
        super().__init__(path, secret)

    def symlink(self, parent: InodeHandle, name: bytes, target: bytes, creds: Credentials) -> Node:
        return self._making(parent, name, lambda: LocalStorage.symlink(self, parent, name, target, creds))

    def mknod(self, parent: InodeHandle, name: bytes, mode: int, rdev: int, creds: Credentials) -> Node:
        return self._making(parent, name, lambda: LocalStorage.mknod(self, parent, name, mode, rdev, creds))

    def mkdir(self, parent: InodeHandle, name: bytes, mode: int, creds: Credentials) -> Node:
        return self._making(parent, name, lambda: LocalStorage.mkdir(self, parent, name, mode, creds))

    def link(self, handle: InodeHandle, parent: InodeHandle, name: bytes) -> Node:
        return self._making(parent, name, lambda: LocalStorage.link(self, handle, parent, name))

    def create(self, parent: InodeHandle, name: bytes, mode: int, creds: Credentials) -> Node:
        return self._making(parent, name, lambda: LocalStorage.create(self, parent, name, mode, creds))

    def tmpfile(self, parent: InodeHandle, mode: int, creds: Credentials) -> Node:
        with self._touching(parent) as touched:
            node = super().tmpfile(parent, mode, creds)
            touched.append(node.handle)
            return node

    def unlink(self, parent: InodeHandle, name: bytes) -> Node:
        with self._touching((parent, name)):
            return super().unlink(parent, name)

    def rmdir(self, parent: InodeHandle, name: bytes) -> Node:
        with self._touching((parent, name)):
            return super().rmdir(parent, name)

    def rename(
        self, parent: InodeHandle, name: bytes, new_parent: InodeHandle, new_name: bytes, flags: int
    ) -> Renamed:
        with self._touching((parent, name), (new_parent, new_name)):
            return super().rename(parent, name, new_parent, new_name, flags)

    def setattr(self, handle: InodeHandle, changes: AttributeChanges) -> Attributes:
        with self._touching(handle):
            return super().setattr(handle, changes)

    def set_flags(self, handle: InodeHandle, numbers: tuple[int, ...], extended: bool) -> Attributes:
        with self._touching(handle):
            return super().set_flags(handle, numbers, extended)

    def setxattr(self, handle: InodeHandle, name: bytes, value: bytes, flags: int) -> Attributes:
        with self._touching(handle):
            return super().setxattr(handle, name, value, flags)

    def removexattr(self, handle: InodeHandle, name: bytes) -> Attributes:
        with self._touching(handle):
            return super().removexattr(handle, name)

    def write(self, handle: InodeHandle, offset: int, data: bytes | memoryview) -> Attributes:
        with self._touching(handle):
            return super().write(handle, offset, data)

    def fallocate(self, handle: InodeHandle, mode: int, offset: int, length: int) -> Attributes:
        with self._touching(handle):
            return super().fallocate(handle, mode, offset, length)

    def copy_range(
        self, source: InodeHandle, source_offset: int, target: InodeHandle, target_offset: int, length: int
    ) -> int:
        with self._touching(target):
            return super().copy_range(source, source_offset, target, target_offset, length)

    def proc_path(self, handle: InodeHandle) -> bytes:
        """A path to the inode, for as long as it is pinned."""
        return by_proc(self._inode(handle).path)

    def leads_to(self, name: Name) -> InodeHandle | None:
        """The inode, or None if there is none, or none of the export's."""
        try:
            return self.lookup(*name).handle
        except FsError as exc:
            log.debug("%r cannot be looked up: %s", name[1], exc)
            return None

    def _touching(self, *keys: Key) -> AbstractContextManager[list[Key]]:
        return self._queue.touching(*keys, leads_to=self.leads_to)

    def _making(self, parent: InodeHandle, name: bytes, make: Callable[[], Node]) -> Node:
        with self._touching((parent, name)) as touched:
            node = make()
            touched.append(node.handle)
            return node
