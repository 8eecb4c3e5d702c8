"""What is known of one open file of this mount."""

from __future__ import annotations

import os
from dataclasses import dataclass

from nfsfuse.engine.cached_file import CachedFile


def is_writing(flags: int) -> bool:
    """Whether a file that is opened with *flags* may be written, also through a mapping."""
    return flags & os.O_ACCMODE != os.O_RDONLY


@dataclass(slots=True, eq=False)
class OpenFile:
    """One open file of this mount. *flags* as of open(2). *errors_told*: how many of `WriteErrors.reports`."""

    file: CachedFile
    flags: int
    errors_told: int

    @property
    def writing(self) -> bool:
        """Whether it may write, also through a mapping."""
        return is_writing(self.flags)

    direct: bool = False
    """Whether the kernel bypasses its page cache in read(2) and write(2); mappings use it all the same. For
    all that may write (see `Files.write_directly`), and for O_DIRECT."""

    lost_lock: bool = False
    """A lock that was taken through it went with a session that is over: whoever relied on it is told EIO at
    every use until it is closed (as Linux's NFS does, NFS_LOCK_LOST)."""
