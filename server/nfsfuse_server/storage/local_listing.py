"""Listing a local directory.

Cookies are the d_off of getdents64(2): ext4, XFS and btrfs derive them from the name or keep them in the
directory, tmpfs does since Linux 6.6; older tmpfs counts positions, so that removals during a listing may
hide names there.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.types import OFFSET_MAX, InodeHandle
from nfsfuse_server.storage.descriptors import OpenInode
from nfsfuse_server.storage.interface import ORPHANS_NAME, Listed
from nfsfuse_server.storage.local_base import LocalBase, translated
from nfsfuse_server.storage.syscalls import RawEntry, getdents

_BUFFER_SIZE_MAX: Final = 64 * 1024
"""Bytes: about 2,000 entries of short names in one call."""

_ENTRY_SIZE: Final = 40
"""Bytes that a name of 16 takes in struct linux_dirent64: what a listing's limit is turned into."""

_NO_NODE: Final = frozenset({errno.ENOENT, errno.ESTALE, errno.EXDEV, errno.ENOTCONN})
"""Vanished meanwhile, or the place of another filesystem (ENOTCONN: of a FUSE mount whose daemon died)."""


class LocalListing(LocalBase):
    """`Storage.readdir`."""

    @translated
    def readdir(self, handle: InodeHandle, cookie: int, limit: int) -> tuple[list[Listed], bool]:
        if limit < 1 or not 0 <= cookie <= OFFSET_MAX:
            raise FsError(errno.EINVAL, "readdir")
        directory = self._directory(handle)
        found, eof = self._names(directory, cookie, limit)
        return [Listed(name, after, self._handle(directory, name)) for name, after, _ in found], eof

    @translated
    def number_above(self, handle: InodeHandle) -> int:
        return 0 if handle == self._root.handle else self._directory(handle).above

    def _names(self, directory: OpenInode, cookie: int, limit: int) -> tuple[list[RawEntry], bool]:
        file = self._lister(directory)
        hidden = (b".", b"..", ORPHANS_NAME) if directory.handle == self._root.handle else (b".", b"..")
        found: list[RawEntry] = []
        with self._lock(directory):  # of the descriptor's position
            os.lseek(file.number, cookie, os.SEEK_SET)
            while len(found) < limit:
                size = min(max((limit - len(found)) * _ENTRY_SIZE, 1024), _BUFFER_SIZE_MAX)
                entries = getdents(file.number, size)
                if not entries:
                    return found, True
                if cookie == 0 and not found:
                    above = next((entry.ino for entry in entries if entry.name == b".."), 0)
                    self._directory(directory.handle).above = above  # which `_lister` may have replaced
                found += [entry for entry in entries if entry.name not in hidden]
        return found[:limit], False

    def _handle(self, directory: OpenInode, name: bytes) -> InodeHandle | None:
        """The entry's inode; None if it vanished meanwhile or another filesystem is mounted there."""
        try:
            return self._locator.handle_at(directory.path.number, name)
        except (OSError, FsError) as exc:
            if exc.errno in _NO_NODE:
                return None
            raise
