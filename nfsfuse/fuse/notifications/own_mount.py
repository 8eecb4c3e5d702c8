"""The daemon as a client of its own mount.

A few things the kernel does only for whoever has a descriptor of a file: start a write-back in bulk, take
the answer to a GETATTR. The file is opened by its node id (fuse_encode_fh), in a thread that lives for this
call, and closed at once: a descriptor kept would make the mount busy. That needs CAP_DAC_READ_SEARCH (EPERM).

`threads` tells the requests of these threads from those of programs. They are answered at once from what is
known here, or fail with EAGAIN: what waits for them must not wait for the server (K6).
"""

from __future__ import annotations

import ctypes
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from nfsfuse.protocol.types import Attributes

FILEID_INO64_GEN: Final = 0x81  # include/linux/exportfs.h

_FILE_HANDLE: Final = struct.Struct("=IiIII")
"""struct file_handle: size, type; then what fuse_encode_fh puts: node id high and low, generation."""

libc: Final = ctypes.CDLL(None, use_errno=True)
libc.open_by_handle_at.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int]


@dataclass(slots=True, eq=False)
class Look:
    """One look of a thread of ours at *name* in the directory *parent*. *child* is what to answer, with its
    *attributes*; without them, with what the kernel has of them when it is answered, which *descriptor*
    (O_PATH) tells; None: there is nothing. *refused*: with which errno it failed, if it did."""

    parent: int
    parent_generation: int
    name: bytes
    child: tuple[int, int] | None
    attributes: Attributes | None
    descriptor: int = -1
    of_parent: Attributes | None = None
    told_stale: bool = False
    asked_again: bool = False
    over: threading.Event = field(default_factory=threading.Event)
    thread: int = 0
    refused: int = 0


class OwnMount:
    """The mount at *mountpoint*, served by this process. Only ever used in threads."""

    def __init__(self, mountpoint: str) -> None:
        self._mountpoint = mountpoint
        self.threads: set[int] = set()
        """Native ids of the threads that are at it now."""
        self.looks: dict[int, Look] = {}
        """Those of them that look at a name: see `nfsfuse.fuse.notifications.looks`."""

    @contextmanager
    def opened(self, node_id: int, generation: int, flags: int) -> Iterator[int]:
        """A descriptor of the inode. Raises OSError."""
        thread = threading.get_native_id()
        self.threads.add(thread)
        try:
            with self.opened_besides(node_id, generation, flags) as descriptor:
                yield descriptor
        finally:
            self.threads.discard(thread)

    @contextmanager
    def opened_besides(self, node_id: int, generation: int, flags: int) -> Iterator[int]:
        """As `opened`, in a thread that has another inode open so."""
        descriptor = self._open(node_id, generation, flags)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _open(self, node_id: int, generation: int, flags: int) -> int:
        """The mount is given to open_by_handle_at(2) by a descriptor of its root, which is opened by the path
        of the mountpoint. That waits for nothing that waits for this thread:

        * The directories above are not of this mount.
        * Of the root, which is no name that is looked up in this mount, the kernel asks GETATTR and an ACL, to
          see whether it may be opened, and OPENDIR: all answered at once (`Operations`, `Quick`).

        An O_PATH descriptor, for which nothing is asked, will not do: open_by_handle_at(2) refuses it (EBADF).
        Nor one that is kept from the mount on: it makes the mount busy; of a copy of the mount (open_tree(2)
        with OPEN_TREE_CLONE) it would keep the filesystem alive, and the daemon would not hear that it is
        unmounted."""
        handle = _FILE_HANDLE.pack(12, FILEID_INO64_GEN, node_id >> 32, node_id & 0xFFFFFFFF, generation)
        mount = os.open(self._mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return checked(libc.open_by_handle_at(mount, handle, flags | os.O_CLOEXEC))
        finally:
            os.close(mount)


def checked(result: int) -> int:
    """*result* of a C function; raises OSError if it is negative."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
