"""Kernel write-back in bulk: a range of dirty mapped pages in a few large FUSE_WRITEs.

An invalidation launders page by page, one FUSE_WRITE of 4 KiB each (fs/fuse/file.c, fuse_launder_folio). The
kernel's own write-back gathers up to max_pages of them in one request; sync_file_range(2) starts it. Where the
daemon may not open files of its own mount, the invalidation launders page by page.
"""

from __future__ import annotations

import ctypes
import logging
import os
from typing import Final

from nfsfuse.fuse.notifications.own_mount import OwnMount, checked, libc

log = logging.getLogger(__name__)

SYNC_FILE_RANGE_WRITE: Final = 2

libc.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]


def start_write_back(mount: OwnMount, node_id: int, generation: int, start: int, end: int) -> None:
    """Start writing back the dirty pages of ``[start, end)``; to be run in a thread. Failure costs time only,
    so it is logged at debug level."""
    try:
        with mount.opened(node_id, generation, os.O_RDONLY) as descriptor:
            checked(libc.sync_file_range(descriptor, start, end - start, SYNC_FILE_RANGE_WRITE))
    except OSError as exc:
        log.debug("no write-back in bulk of inode %d: %s", node_id, exc)
