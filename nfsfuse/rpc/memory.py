"""Buffers of large transfers: taken from the C library's heap again, not mapped anew each time.

glibc maps what is larger than M_MMAP_THRESHOLD (128 KiB at first) and unmaps it when it is freed, and gives the
top of its heap back beyond M_TRIM_THRESHOLD. A buffer of 1 MiB then costs 256 page faults each time, as much as
copying it several times.
"""

from __future__ import annotations

import ctypes
import logging
from typing import Final

from nfsfuse.protocol.limits import PAYLOAD_SIZE_MAX

log = logging.getLogger(__name__)

_M_TRIM_THRESHOLD: Final = -1  # malloc.h
_M_MMAP_THRESHOLD: Final = -3

MAPPED_BYTES_MIN: Final = 2 * PAYLOAD_SIZE_MAX
"""From here on a buffer is mapped by itself: above the largest frame, which is what comes again and again."""

KEPT_BYTES_MAX: Final = 64 << 20
"""Free memory at the heap's top that is kept: as much as may be dirty in a mount, or on its way in a server."""


def keep_freed_buffers() -> None:
    """To be called once, before there is much to transfer. Without glibc nothing is done: it is for speed."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        log.debug("this C library has no mallopt(3)")
        return
    for parameter, value in ((_M_MMAP_THRESHOLD, MAPPED_BYTES_MIN), (_M_TRIM_THRESHOLD, KEPT_BYTES_MAX)):
        if mallopt(parameter, value) != 1:
            log.debug("mallopt(%d, %d) was refused", parameter, value)
