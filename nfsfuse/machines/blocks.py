"""The memory of the client's page cache, in pieces of one size."""

from __future__ import annotations

import ctypes
import mmap
from typing import Final

from nfsfuse.protocol.pages import page_start

BLOCK_SIZE: Final = 64 * 1024
"""Bytes. Small enough that a small file does not waste much, large enough that a large write is few pieces."""

UNUSABLE: Final = 0
READABLE: Final = mmap.PROT_READ
WRITABLE: Final = mmap.PROT_READ | mmap.PROT_WRITE
"""Protections of a block's pages, for mprotect(2)."""


class Block:
    """One piece of memory. *whole*: all of it is about to be filled, so it is faulted in at once: page by page
    takes as long as the copy."""

    __slots__ = ("_address", "_map", "view")

    def __init__(self, *, whole: bool = False) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | (mmap.MAP_POPULATE if whole else 0)
        self._map = mmap.mmap(-1, BLOCK_SIZE, flags=flags)
        self.view = memoryview(self._map)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    def protect(self, start: int, end: int, protection: int) -> None:
        """mprotect(2) the pages of ``[start, end)`` of the block."""
        start = page_start(start)
        if _libc.mprotect(ctypes.c_void_p(self._address + start), end - start, protection) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")


_libc: Final = ctypes.CDLL(None, use_errno=True)
