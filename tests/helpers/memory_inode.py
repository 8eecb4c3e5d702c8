"""The parts of the memory storage: sparse contents, ordered directories, inodes with a durable image."""

from __future__ import annotations

import stat
from bisect import bisect_right
from dataclasses import dataclass, field, replace
from typing import Final

from nfsfuse.protocol.pages import page_end, pages_within
from nfsfuse.protocol.types import PAGE_SIZE, Attributes

_ZERO_PAGE: Final = bytes(PAGE_SIZE)
_SECTOR_SIZE: Final = 512

DIRECTORY_SIZE: Final = 4096
"""Bytes that every directory claims to have, as ext4's small ones do."""


def _page_number(offset: int) -> int:
    return offset // PAGE_SIZE


class SparseBytes:
    """A file's content: pages by number, holes left out. Pages are immutable, so a copy shares them."""

    __slots__ = ("pages", "size")

    def __init__(self) -> None:
        self.pages: dict[int, bytes] = {}
        self.size = 0

    def copy(self) -> SparseBytes:
        """An independent content, cheaply."""
        other = SparseBytes()
        other.pages, other.size = dict(self.pages), self.size
        return other

    def read(self, offset: int, size: int) -> bytes:
        """What there is of *size* bytes."""
        size = max(0, min(size, self.size - offset))
        parts = []
        while size:
            number, start = divmod(offset, PAGE_SIZE)
            part = self.pages.get(number, _ZERO_PAGE)[start : start + size]
            parts.append(part)
            offset += len(part)
            size -= len(part)
        return b"".join(parts)

    def write(self, offset: int, data: bytes) -> None:
        """Puts *data* there, growing the file."""
        self._put(offset, data)
        if data:
            self.size = max(self.size, offset + len(data))

    def truncate(self, size: int) -> None:
        """Cuts, or grows by a hole."""
        if size < self.size:
            self.punch(size, self.size - size)
        self.size = size

    def punch(self, offset: int, length: int) -> None:
        """Makes a range read as zeros, freeing whole pages. The size stays.

        The bounds are widened to the end of the page where the file ends: nothing lies behind its size.
        """
        end = offset + length
        if end >= self.size:
            end = page_end(max(end, self.size))
        first, last = pages_within(offset, end)
        for number in [page for page in self.pages if first <= page * PAGE_SIZE < last]:
            del self.pages[number]
        if first > last:  # within one page
            self._zero(offset, end)
        else:
            self._zero(offset, first)
            self._zero(last, end)

    def allocate(self, offset: int, length: int) -> None:
        """Turns holes into pages of zeros."""
        for number in range(_page_number(offset), _page_number(page_end(offset + length))):
            self.pages.setdefault(number, _ZERO_PAGE)

    def seek_data(self, offset: int) -> int | None:
        """The first offset from there on that is in a page; None if there is none."""
        if _page_number(offset) in self.pages and offset < self.size:
            return offset
        starts = (number * PAGE_SIZE for number in self.pages)
        return min((start for start in starts if offset < start < self.size), default=None)

    def seek_hole(self, offset: int) -> int:
        """The first offset from there on that is in no page; at the latest the size."""
        while offset < self.size and _page_number(offset) in self.pages:
            offset = page_end(offset + 1)
        return min(offset, self.size)

    def _zero(self, start: int, end: int) -> None:
        if start < end and _page_number(start) in self.pages:
            self._put(start, bytes(end - start))

    def _put(self, offset: int, data: bytes) -> None:
        done = 0
        while done < len(data):
            number, start = divmod(offset + done, PAGE_SIZE)
            part = data[done : done + PAGE_SIZE - start]
            page = self.pages.get(number, _ZERO_PAGE)
            self.pages[number] = page[:start] + part + page[start + len(part) :]
            done += len(part)


class Entries:
    """A directory's names in the order they came; each has a cookie that grows and is never used again."""

    __slots__ = ("_by_cookie", "_by_name", "_cookies", "_next")

    def __init__(self) -> None:
        self._by_name: dict[bytes, tuple[int, int]] = {}
        self._by_cookie: dict[int, bytes] = {}
        self._cookies: list[int] = []  # ascending
        self._next = 1

    def __len__(self) -> int:
        return len(self._by_name)

    def copy(self) -> Entries:
        """An independent directory with the same cookies."""
        other = Entries()
        other._by_name, other._by_cookie = dict(self._by_name), dict(self._by_cookie)
        other._cookies, other._next = list(self._cookies), self._next
        return other

    def get(self, name: bytes) -> int | None:
        """The inode number."""
        found = self._by_name.get(name)
        return None if found is None else found[0]

    def put(self, name: bytes, ino: int) -> None:
        """Adds a name, or lets it lead to another inode (its place in the listing stays)."""
        if name in self._by_name:
            self._by_name[name] = (ino, self._by_name[name][1])
            return
        self._by_name[name] = (ino, self._next)
        self._by_cookie[self._next] = name
        self._cookies.append(self._next)
        self._next += 1

    def remove(self, name: bytes) -> None:
        """Takes a name out."""
        _, cookie = self._by_name.pop(name)
        del self._by_cookie[cookie]
        del self._cookies[bisect_right(self._cookies, cookie) - 1]

    def after(self, cookie: int, limit: int) -> tuple[list[tuple[bytes, int, int]], bool]:
        """Up to *limit* of (name, cookie, inode number) behind *cookie*, and whether that is all."""
        start = bisect_right(self._cookies, cookie)
        found = []
        for number in self._cookies[start : start + limit]:
            name = self._by_cookie[number]
            found.append((name, number, self._by_name[name][0]))
        return found, start + limit >= len(self._cookies)

    def inodes(self) -> list[int]:
        """The inode number of every name."""
        return [ino for ino, _ in self._by_name.values()]


@dataclass(slots=True)
class Metadata:
    """What of an inode the journal carries."""

    mode: int
    uid: int
    gid: int
    rdev: int
    nlink: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int
    target: bytes = b""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    entries: Entries | None = None
    orphan: bool = False  # kept without a name
    flags: int = 0  # FS_IOC_GETFLAGS
    project: int = 0
    nameless: bool = False  # never had one, and may be given one

    def copy(self) -> Metadata:
        """An independent image."""
        entries = None if self.entries is None else self.entries.copy()
        return replace(self, xattrs=dict(self.xattrs), entries=entries)


@dataclass(slots=True)
class MemoryInode:
    """An inode: as it is, and as it would be after a power failure (*durable*, *durable_data*)."""

    ino: int
    meta: Metadata
    data: SparseBytes = field(default_factory=SparseBytes)
    durable: Metadata | None = None
    durable_data: SparseBytes = field(default_factory=SparseBytes)
    parent: int = 0  # of a directory: to refuse a rename into its own subtree
    pins: int = 0

    @property
    def kind(self) -> int:
        """S_IFMT of the mode."""
        return stat.S_IFMT(self.meta.mode)

    def attributes(self) -> Attributes:
        """What stat(2) tells."""
        meta = self.meta
        match self.kind:
            case stat.S_IFDIR:
                size = DIRECTORY_SIZE
            case stat.S_IFLNK:
                size = len(meta.target)
            case _:
                size = self.data.size
        return Attributes(
            ino=self.ino,
            mode=meta.mode,
            nlink=meta.nlink,
            uid=meta.uid,
            gid=meta.gid,
            rdev=meta.rdev,
            size=size,
            blocks=len(self.data.pages) * PAGE_SIZE // _SECTOR_SIZE,
            atime_ns=meta.atime_ns,
            mtime_ns=meta.mtime_ns,
            ctime_ns=meta.ctime_ns,
            btime_ns=meta.btime_ns,
        )
