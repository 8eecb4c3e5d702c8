"""How large a file may become on a filesystem."""

from __future__ import annotations

import errno
import logging
import os

from nfsfuse.protocol.types import OFFSET_MAX

log = logging.getLogger(__name__)


def file_size_max(directory_fd: int) -> int:
    """The largest size, in bytes, that a file in this directory can be given: the filesystem's s_maxbytes, or
    this process's RLIMIT_FSIZE. No system call tells it, so a file without a name is made as large as can be,
    which takes no room. OFFSET_MAX where no such file can be made (a read-only filesystem; one without
    O_TMPFILE): writes that are too large then fail when they are written back."""
    try:
        # O_TMPFILE changes nothing in the directory, not even its times.
        descriptor = os.open(f"/proc/self/fd/{directory_fd}", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        log.info("how large a file may become is not known: %s", exc.strerror)
        return OFFSET_MAX
    try:
        return _search(descriptor)
    finally:
        os.close(descriptor)


def _search(descriptor: int) -> int:
    """The largest size that ftruncate(2) gives: by halves, 64 calls at most."""
    possible, too_large = 0, OFFSET_MAX + 1
    size = OFFSET_MAX
    while possible + 1 < too_large:
        try:
            os.ftruncate(descriptor, size)
        except OSError as exc:
            if exc.errno not in (errno.EFBIG, errno.EINVAL):  # EINVAL: Linux has no larger offset
                log.info("how large a file may become is not known: %s", exc.strerror)
                return OFFSET_MAX
            too_large = size
        else:
            possible = size
        size = (possible + too_large) // 2
    return possible
