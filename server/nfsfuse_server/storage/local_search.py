"""Finding inodes of a local directory by nothing but their number, and what a directory is in.

No filesystem of Linux finds an inode by its number for a program, but by walking; and what its handles name
can be outside the export. So this walks, inside the export and nowhere else.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Final

from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.types import InodeHandle, Node
from nfsfuse_server.storage.descriptors import Descriptor
from nfsfuse_server.storage.interface import ORPHANS_NAME
from nfsfuse_server.storage.local_base import LocalBase, translated

DEPTH_MAX: Final = 2048
"""Directories in one another: half of PATH_MAX, as each has a name and a slash in a path."""

STEP_NAMES: Final = 4096
"""Looked at in one step: a few milliseconds, after which others may use the thread."""

DIRECTORY_NAMES: Final = 16
"""Names that take as long as it takes to open a directory."""

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV, errno.ESTALE})
"""Removed or replaced meanwhile, or the place of another filesystem."""


class _End:
    """What follows the last step."""


_END: Final = _End()


class LocalSearch(LocalBase):
    """`Storage.search` and `Storage.parent`."""

    def search(self, number: int) -> Iterator[Node | None]:
        steps = self._search(number)
        step = translated(lambda: next(steps, _END))
        while not isinstance(found := step(), _End):
            yield found

    def _search(self, number: int) -> Iterator[Node | None]:
        root = self._node(self._root)
        if root.attributes.ino == number:
            yield root
            return
        for place in self._walk(number):
            if place is None:
                yield None
                continue
            directory, name = place
            try:
                node = self._node(self._find(self._locator.adopt(directory), name))
            except (OSError, FsError) as exc:
                if exc.errno not in _GONE:
                    raise
            else:
                if node.attributes.ino == number:
                    yield node
                    return

    def _walk(self, number: int) -> Iterator[tuple[Descriptor, bytes] | None]:
        """The directories and the names in them that lead to inode *number*; None now and then. A directory is
        opened when its turn comes, so that no more are open than there are in one path."""
        pending: list[tuple[Descriptor, bytes]] = [(self._root.path, b".")]
        looked_at = 0
        while pending:
            if looked_at > STEP_NAMES:
                looked_at = 0
                yield None
            parent, name = pending.pop()
            looked_at += DIRECTORY_NAMES
            try:
                directory = Descriptor(os.open(name, _DIRECTORY, dir_fd=parent.number))
                self._locator.check_place(directory)
            except (OSError, FsError) as exc:
                if exc.errno not in _GONE:
                    raise
                continue
            below: list[tuple[Descriptor, bytes]] = []
            in_root = parent is self._root.path and name == b"."
            with os.scandir(directory.number) as entries:
                for entry in entries:
                    looked_at += 1
                    entry_name = os.fsencode(entry.name)
                    if in_root and entry_name == ORPHANS_NAME:
                        continue
                    if entry.inode() == number:
                        yield directory, entry_name
                    if entry.is_dir(follow_symlinks=False):
                        below.append((directory, entry_name))
            pending += below

    @translated
    def parent(self, handle: InodeHandle) -> Node:
        directory = self._directory(handle)
        if directory is self._root or handle == self._root.handle:
            return self._node(self._root)
        if os.fstat(directory.path.number).st_nlink == 0:
            raise FsError(errno.ESTALE)
        parent = above = self._above(directory.path)
        for _ in range(DEPTH_MAX):
            if self._is_root(above):
                return self._node(self._locator.adopt(parent))
            below, above = above, self._above(above)
            if os.path.sameopenfile(below.number, above.number):
                break  # the root of the filesystem, or of this process
        raise FsError(errno.ESTALE, "moved out of the export")

    def _above(self, directory: Descriptor) -> Descriptor:
        above = Descriptor(os.open(b"..", _DIRECTORY | os.O_PATH, dir_fd=directory.number))
        self._locator.check_place(above)
        return above

    def _is_root(self, directory: Descriptor) -> bool:
        found, root = os.fstat(directory.number), os.fstat(self._root.path.number)
        return (found.st_dev, found.st_ino) == (root.st_dev, root.st_ino)
