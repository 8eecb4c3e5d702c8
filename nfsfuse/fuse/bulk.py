"""Kernel write-back in bulk: a range of dirty mapped pages in a few large FUSE_WRITEs.

An invalidation launders page by page, one FUSE_WRITE of 4 KiB each (fs/fuse/file.c, fuse_launder_folio). The
kernel's own write-back gathers up to max_pages of them in one request; sync_file_range(2) starts it, for
which a descriptor of the file is needed. It is opened by its node id (fuse_encode_fh) in a thread that lives
for this call, and closed at once: a descriptor kept would make the mount busy.

The daemon thus becomes a client of its own mount. `threads` tells its requests from those of programs: they
must be answered from what is known here, as the recall behind them must not wait for a grant (K6). Where that
is not possible they fail, and the invalidation launders page by page.
"""

from __future__ import annotations

import ctypes
import logging
import os
import struct
import threading
from typing import Final

log = logging.getLogger(__name__)

FILEID_INO64_GEN: Final = 0x81  # include/linux/exportfs.h
SYNC_FILE_RANGE_WRITE: Final = 2

_FILE_HANDLE: Final = struct.Struct("=IiIII")
"""struct file_handle: size, type; then what fuse_encode_fh puts: node id high and low, generation."""

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.open_by_handle_at.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
_libc.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]


class BulkWriteBack:
    """Starts write-backs on the mount at *mountpoint*."""

    def __init__(self, mountpoint: str) -> None:
        self._mountpoint = mountpoint
        self.threads: set[int] = set()
        """Native ids of the threads that are at it now."""
        self.started = 0

    def start(self, node_id: int, generation: int, start: int, end: int) -> None:
        """Start writing back the dirty pages of ``[start, end)``; to be run in a thread. Failure costs time
        only, so it is logged at debug level."""
        thread = threading.get_native_id()
        self.threads.add(thread)
        try:
            self._start(node_id, generation, start, end)
            self.started += 1
        except OSError as exc:
            log.debug("no write-back in bulk of inode %d: %s", node_id, exc)
        finally:
            self.threads.discard(thread)

    def _start(self, node_id: int, generation: int, start: int, end: int) -> None:
        handle = _FILE_HANDLE.pack(12, FILEID_INO64_GEN, node_id >> 32, node_id & 0xFFFFFFFF, generation)
        mount = os.open(self._mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            file = _checked(_libc.open_by_handle_at(mount, handle, os.O_RDONLY | os.O_CLOEXEC))
            try:
                _checked(_libc.sync_file_range(file, start, end - start, SYNC_FILE_RANGE_WRITE))
            finally:
                os.close(file)
        finally:
            os.close(mount)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
