"""Having the kernel learn a file's size, and looking whether it has.

The kernel ignores the attributes in an answer that an invalidation has overtaken (fuse_change_attributes
compares attr_version, fuse_reverse_inval_inode raises it), and does not ask again: a read(2) through the page
cache then ends where the file used to end. What it believes can be seen by statx(2): once with a question to
the daemon, then without one, which gives the inode's own i_size.
"""

from __future__ import annotations

import ctypes
import os
import struct
from contextlib import suppress
from typing import Final

from nfsfuse.fuse.notifications.own_mount import OwnMount, checked, libc

AT_EMPTY_PATH: Final = 0x1000
AT_STATX_FORCE_SYNC: Final = 0x2000
AT_STATX_DONT_SYNC: Final = 0x4000
STATX_SIZE: Final = 0x200
STATX_BYTES: Final = 256
STX_SIZE_OFFSET: Final = 40  # struct statx, include/uapi/linux/stat.h

libc.statx.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p]


def learn_size(mount: OwnMount, node_id: int, generation: int) -> int:
    """Have the kernel ask the daemon for the attributes; the size, in bytes, that it believes afterwards. To be
    run in a thread. Raises OSError: the daemon may not open files of its own mount."""
    with mount.opened(node_id, generation, os.O_PATH) as descriptor:
        with suppress(BlockingIOError):  # they have been recalled, and the daemon cannot tell them now
            _statx(descriptor, AT_STATX_FORCE_SYNC)
        return _statx(descriptor, AT_STATX_DONT_SYNC)


def believed_size(mount: OwnMount, node_id: int, generation: int) -> int:
    """The size, in bytes, that the kernel believes; the daemon is asked nothing. To be run in a thread. Raises
    OSError: the daemon may not open files of its own mount."""
    with mount.opened(node_id, generation, os.O_PATH) as descriptor:
        return _statx(descriptor, AT_STATX_DONT_SYNC)


def _statx(descriptor: int, flags: int) -> int:
    buffer = ctypes.create_string_buffer(STATX_BYTES)
    checked(libc.statx(descriptor, b"", AT_EMPTY_PATH | flags, STATX_SIZE, buffer))
    size: int
    (size,) = struct.unpack_from("=Q", buffer.raw, STX_SIZE_OFFSET)
    return size
