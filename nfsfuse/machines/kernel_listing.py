"""What the kernel has cached of one directory's listing (FOPEN_CACHE_DIR): a pure machine.

Whoever reads a directory that was opened with the flag fills the cache, page by page, and the answer that
nothing follows completes it (fs/fuse/readdir.c). From then on a listing costs no READDIR, until its pages are
dropped, or an operation of the kernel's own has changed the directory: it compares iversion and mtime.

Changes made elsewhere the kernel cannot tell, and an answer that was on its way meanwhile, or goes on with a
listing that was begun before, it puts into the cache like any other. So after a change elsewhere the flag is
given to nobody until all are closed that had it before; and before those are told more, what they have brought
is dropped again.

(One thing only costs time: if the pages of a listing that was not read to its end are dropped, the kernel
caches none of this directory until it has forgotten it.)
"""

from __future__ import annotations


class KernelListing:
    """One directory. *version* is `DirectoryCache.changes`."""

    __slots__ = ("_drops", "_filled_at", "_outdated", "_users")

    def __init__(self) -> None:
        self._users: dict[int, int] = {}  # open directories with the flag; the drops when they were opened
        self._outdated = 0  # of them were opened before the last drop
        self._drops = 0
        self._filled_at: int | None = None  # the version of what the kernel may have

    def opened(self, number: int, version: int) -> tuple[bool, bool]:
        """The directory is opened: whether with FOPEN_CACHE_DIR, and whether with FOPEN_KEEP_CACHE. Without the
        latter the kernel drops what it has."""
        if self._outdated:
            return False, False
        self._users[number] = self._drops
        # After a change by the kernel itself too, which it may not know of: its program may have been killed.
        kept = self._filled_at == version
        self._filled_at = version
        return True, kept

    def must_drop(self, number: int) -> bool:
        """*number* goes on reading: whether what it has brought so far must be dropped first."""
        return self._users.get(number, self._drops) != self._drops

    def released(self, number: int) -> None:
        """The directory was closed."""
        drops = self._users.pop(number, None)
        if drops is not None and drops != self._drops:
            self._outdated -= 1

    def changed_elsewhere(self) -> bool:
        """Whether the pages must be dropped in the kernel, as somebody else changes the directory."""
        may_exist = self._filled_at is not None or bool(self._users)
        self._filled_at = None
        self._outdated = len(self._users)
        self._drops += 1
        return may_exist
