"""The core of the memory storage: its inodes, and what a power failure leaves of them.

The model of durability is that of a journalling filesystem: metadata (names, link counts, owners, modes,
times, extended attributes) is committed as a whole, in order, by any fsync or fsync_dir; a file's content and
size by the fsync of that file only. `crash` goes back to what was committed.
"""

from __future__ import annotations

import errno
import functools
import stat
import threading
from collections.abc import Callable
from typing import Concatenate, Final, ParamSpec, TypeVar

from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.types import InodeHandle, Node
from nfsfuse_server.storage.checks import check_name, check_reserved
from tests.helpers.memory_inode import Entries, MemoryInode, Metadata

Clock = Callable[[], int]
"""Nanoseconds since the epoch."""

Fault = Callable[[str, InodeHandle | None], None]
"""Called with the operation's name and its first argument, if that is a handle, before it does anything; may
raise FsError instead."""

ROOT_INO: Final = 1
_HANDLE_PREFIX: Final = b"memory:"

_P = ParamSpec("_P")
_R = TypeVar("_R")
_S = TypeVar("_S", bound="MemoryBase")


def operation(method: Callable[Concatenate[_S, _P], _R]) -> Callable[Concatenate[_S, _P], _R]:
    """One operation at a time, and the fault hook first."""

    @functools.wraps(method)
    def call(self: _S, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        with self._lock:
            first = args[0] if args else None
            self._fault(method.__name__, InodeHandle(first) if isinstance(first, bytes) else None)
            return method(self, *args, **kwargs)

    return call


def no_fault(operation: str, handle: InodeHandle | None) -> None:
    """The fault hook that injects nothing."""


class MemoryBase:
    """Inodes by number, numbers counted up and never used again."""

    def __init__(self, clock: Clock, fault: Fault) -> None:
        self._lock = threading.RLock()
        self._clock = clock
        self._fault = fault
        self._inodes: dict[int, MemoryInode] = {}
        self._next_ino = ROOT_INO
        self._dirty: set[int] = set()  # whose metadata is not committed
        self._freed: dict[int, MemoryInode] = {}  # gone, but not yet for a power failure
        root = self._new_inode(stat.S_IFDIR | 0o755, 0, 0)
        root.meta.nlink = 2
        root.parent = root.ino
        self._commit()

    def crash(self) -> None:
        """A power failure and the restart after it: what was not made durable is gone, and so are all pins.
        Handles of inodes that are left stay valid."""
        with self._lock:
            for ino, inode in self._freed.items():
                self._inodes[ino] = inode
            for ino, inode in list(self._inodes.items()):
                if inode.durable is None or not (inode.durable.nlink or inode.durable.orphan):
                    del self._inodes[ino]
                    continue
                inode.meta = inode.durable.copy()
                inode.data = inode.durable_data.copy()
                inode.pins = 0
            self._freed.clear()
            self._dirty.clear()
            for inode in self._inodes.values():
                if inode.meta.entries is not None:
                    for child in inode.meta.entries.inodes():
                        self._inodes[child].parent = inode.ino

    def restart(self) -> None:
        """The server's death, without a power failure: all pins are gone, orphans are not."""
        with self._lock:
            for inode in list(self._inodes.values()):
                inode.pins = 0
                self._free_if_unused(inode)

    def check(self) -> None:
        """The tree's invariants, for tests: link counts are those that the names add up to."""
        with self._lock:
            links = dict.fromkeys(self._inodes, 0)
            for inode in self._inodes.values():
                if inode.meta.entries is not None and inode.meta.nlink:
                    links[inode.ino] += 2
                    for ino in inode.meta.entries.inodes():
                        child = self._inodes[ino]
                        if child.kind == stat.S_IFDIR:
                            assert child.parent == inode.ino
                            links[inode.ino] += 1
                        else:
                            links[ino] += 1
            for inode in self._inodes.values():
                assert inode.meta.nlink == links[inode.ino], (inode.ino, links[inode.ino])
                assert inode.meta.nlink or inode.pins or inode.meta.orphan, inode.ino
                assert not (inode.meta.nlink and inode.meta.orphan), inode.ino

    def close(self) -> None:
        with self._lock:
            self._inodes.clear()
            self._freed.clear()

    def pin(self, handle: InodeHandle) -> None:
        with self._lock:
            self._fault("pin", handle)
            self._get(handle).pins += 1

    def unpin_nowait(self, handle: InodeHandle) -> bool:
        with self._lock:
            inode = self._find(handle)
            if inode is not None and inode.pins == 1 and inode.meta.nlink == 0:
                return False
            self.unpin(handle)
            return True

    def unpin(self, handle: InodeHandle) -> None:
        with self._lock:
            inode = self._find(handle)
            assert inode is not None, "unpin without pin"
            assert inode.pins > 0, "unpin without pin"
            inode.pins -= 1
            if inode.pins == 0:
                self._let_go(inode)

    def orphans(self) -> list[InodeHandle]:
        with self._lock:
            return [self._node(inode).handle for inode in self._inodes.values() if inode.meta.orphan]

    @operation
    def sweep(self) -> None:
        for inode in list(self._inodes.values()):
            if inode.pins == 0:
                self._let_go(inode)

    def _let_go(self, inode: MemoryInode) -> None:
        """Nobody has the inode open: an orphan ends."""
        if inode.meta.orphan:
            inode.meta.orphan = False
            self._dirty.add(inode.ino)
        self._free_if_unused(inode)

    def _get(self, handle: InodeHandle) -> MemoryInode:
        inode = self._find(handle)
        if inode is None:
            raise FsError(errno.ESTALE)
        return inode

    def _find(self, handle: InodeHandle) -> MemoryInode | None:
        number = handle[len(_HANDLE_PREFIX) :]
        if not handle.startswith(_HANDLE_PREFIX) or len(number) != 8:
            return None
        return self._inodes.get(int.from_bytes(number, "big"))

    def _directory(self, handle: InodeHandle) -> tuple[MemoryInode, Entries]:
        inode = self._get(handle)
        if inode.meta.entries is None:
            raise FsError(errno.ENOTDIR)
        return inode, inode.meta.entries

    def _file(self, handle: InodeHandle) -> MemoryInode:
        inode = self._get(handle)
        if inode.kind != stat.S_IFREG:
            raise FsError(errno.EISDIR if inode.kind == stat.S_IFDIR else errno.EINVAL)
        return inode

    def _node(self, inode: MemoryInode) -> Node:
        return Node(self._handle(inode.ino), inode.attributes(), not inode.meta.xattrs)

    def _handle(self, ino: int) -> InodeHandle:
        return InodeHandle(_HANDLE_PREFIX + ino.to_bytes(8, "big"))

    def _check_name(self, parent: InodeHandle, name: bytes, reserved: int) -> None:
        """Whether *name* may be used in *parent*; *reserved* is the errno for the server's own name there."""
        check_name(name)
        check_reserved(self._find(parent) is self._inodes.get(ROOT_INO), name, reserved)

    def _new_inode(self, mode: int, uid: int, gid: int, rdev: int = 0) -> MemoryInode:
        now = self._clock()
        entries = Entries() if stat.S_ISDIR(mode) else None
        inode = MemoryInode(
            self._next_ino, Metadata(mode, uid, gid, rdev, 0, now, now, now, now, entries=entries)
        )
        self._next_ino += 1
        self._inodes[inode.ino] = inode
        self._dirty.add(inode.ino)
        return inode

    def _touch(self, inode: MemoryInode, modified: bool = False) -> None:
        """The inode changed now (ctime); with *modified*, its content or its names did (mtime)."""
        now = self._clock()
        inode.meta.ctime_ns = now
        if modified:
            inode.meta.mtime_ns = now
        self._dirty.add(inode.ino)

    def _free_if_unused(self, inode: MemoryInode) -> None:
        if inode.meta.nlink == 0 and inode.pins == 0 and not inode.meta.orphan:
            del self._inodes[inode.ino]
            self._freed[inode.ino] = inode

    def _commit(self) -> None:
        """Makes all metadata durable."""
        for ino in self._dirty:
            inode = self._inodes.get(ino)
            if inode is not None:
                inode.durable = inode.meta.copy()
        self._dirty.clear()
        self._freed.clear()
