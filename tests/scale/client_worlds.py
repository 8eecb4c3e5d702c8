"""The client's machines with *n* of something, and a step each, which leaves them as it found them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from nfsfuse.machines.data_tokens import DataTokens
from nfsfuse.machines.directory_cache import DirectoryCache
from nfsfuse.machines.kernel_listing import KernelListing
from nfsfuse.machines.page_cache import FilePages, PageCache
from nfsfuse.machines.point_index import PointIndex
from nfsfuse.machines.tellings import Tellings
from nfsfuse.protocol.tokens import RANGE_END, TokenMode, name_point
from nfsfuse.protocol.types import PAGE_SIZE, Attributes, InodeHandle, RequestId
from nfsfuse.rpc.exchange import Answering

Step = Callable[[], object]

HANDLE: Final = InodeHandle(b"inode")
OTHER: Final = InodeHandle(b"another")


def attributes(ctime: int = 0) -> Attributes:
    return Attributes(1, 0o100644, 1, 0, 0, 0, 0, 0, 0, 0, ctime, 0)


def scattered(n: int) -> FilePages:
    """A file with *n* dirty extents."""
    pages = PageCache(1 << 30, guard=False).file()
    for at in range(n):
        pages.write(at * PAGE_SIZE, b"some", 0.0)
    return pages


def write_among_dirty_extents(n: int) -> Step:
    pages = scattered(n)
    at = n // 2 * PAGE_SIZE + 100

    def step() -> None:
        pages.write(at, b"more", 1.0)
        assert pages.fresh_bytes + pages.fresh_extents > 0
        pages.drop(at, at + 4)

    return step


def write_back_among_dirty_extents(n: int) -> Step:
    pages = scattered(n)

    def step() -> None:
        begun = [pages.begin_write_back(*extent) for extent in pages.gather(0, RANGE_END, 1 << 20, 16)]
        assert len(begun) == 16
        for outgoing in begun:
            pages.end_write_back(outgoing, clean=True)
            pages.write(outgoing.start, outgoing.data, 1.0)

    return step


def find_what_is_not_on_its_way(n: int) -> Step:
    """Behind all that is."""
    pages = scattered(n)
    for at in range(n - 1):
        pages.begin_write_back(at * PAGE_SIZE, at * PAGE_SIZE + 4)
    return lambda: pages.to_write_back(0, RANGE_END, 1 << 20)


def read_among_extents(n: int) -> Step:
    pages = scattered(n)
    return lambda: pages.read(n // 2 * PAGE_SIZE, n // 2 * PAGE_SIZE + 4)


def directory_of(n: int) -> DirectoryCache:
    cache = DirectoryCache()
    cache.granted(0, RANGE_END)
    for number in range(n):
        cache.learned(b"name %d" % number, HANDLE)
    return cache


def recall_a_name(n: int) -> Step:
    cache = directory_of(n)
    name = b"name %d" % (n // 2)
    point = name_point(name)

    def step() -> None:
        assert cache.revoke(point, point + 1) == [name]
        cache.revoked(point, point + 1, [name])
        cache.granted(point, point + 1)
        cache.learned(name, HANDLE)

    return step


def change_a_name(n: int) -> Step:
    cache = directory_of(n)

    def step() -> None:
        cache.changed(b"name 7", None)
        cache.changed(b"name 7", HANDLE)
        cache.find(b"name 8")

    return step


def go_on_in_a_listing(n: int) -> Step:
    cache = directory_of(n)
    entries = [(b"name %d" % number, number + 1, HANDLE) for number in range(n)]
    for at in range(0, n, 64):
        cache.listed(at, tuple(entries[at : at + 64]), at + 64 >= n, cache.changes)
    return lambda: cache.listing(n // 2 + 3, 16)


def add_to_an_index(n: int) -> Step:
    index = PointIndex()
    for number in range(n):
        index.add(b"name %d" % number)

    def step() -> None:
        for number in range(40):
            index.add(b"more %d" % number)
            index.discard(b"more %d" % number)

    return step


def open_a_directory(n: int) -> Step:
    listing = KernelListing()
    for number in range(n):
        listing.opened(number, 0)

    def step() -> None:
        listing.opened(n, 0)
        listing.released(n)

    return step


def recall_among_extents(n: int) -> Step:
    """Of a file that is held in *n* pieces, of which the kernel has a page each."""
    tokens = DataTokens()
    for at in range(0, 2 * n, 2):
        tokens.granted(at * PAGE_SIZE, (at + 1) * PAGE_SIZE, TokenMode.EXCLUSIVE)
        tokens.answered(at * PAGE_SIZE, (at + 1) * PAGE_SIZE)
    start = n // 2 * 2 * PAGE_SIZE
    end = start + PAGE_SIZE

    def step() -> None:
        revocation = tokens.revoke(start, end, TokenMode.NONE)
        assert tokens.may_begin(revocation)
        assert tokens.invalidate(revocation) == [(start, end)]
        assert not tokens.invalidate(revocation)
        tokens.reduce(start, end, TokenMode.NONE)
        tokens.revoked(revocation)
        tokens.granted(start, end, TokenMode.EXCLUSIVE)
        tokens.answered(start, end)

    return step


def recall_beside_others(n: int) -> Step:
    """Of one page, while *n* other pages of the file are being recalled."""
    tokens = DataTokens()
    tokens.granted(0, (n + 2) * PAGE_SIZE, TokenMode.EXCLUSIVE)
    for at in range(n):
        tokens.revoke(at * PAGE_SIZE, (at + 1) * PAGE_SIZE, TokenMode.NONE)
    start, end = (n + 1) * PAGE_SIZE, (n + 2) * PAGE_SIZE

    def step() -> None:
        revocation = tokens.revoke(start, end, TokenMode.NONE)
        assert tokens.may_begin(revocation)
        tokens.invalidate(revocation)
        tokens.reduce(start, end, TokenMode.NONE)
        tokens.revoked(revocation)
        tokens.granted(start, end, TokenMode.EXCLUSIVE)

    return step


def write_beside_dirty_files(n: int) -> Step:
    cache = PageCache(1 << 30, guard=False)
    files = [cache.file() for _ in range(n)]
    for pages in files:
        pages.write(0, b"some", 0.0)
    another = cache.file()

    def step() -> None:
        another.write(0, b"more", 1.0)
        for extent in another.gather(0, RANGE_END, 1 << 20, 16):
            another.end_write_back(another.begin_write_back(*extent), clean=True)
        another.drop(0, 4)
        assert len(files) == n, "they stay"

    return step


def tell_attributes(n: int) -> Step:
    """While *n* inodes are remembered of which answers are under way."""
    tellings = Tellings(2 * n)
    for number in range(n):
        answering = Answering(RequestId(number + 1), RequestId(1), RequestId(number + 2))
        tellings.tells(InodeHandle(b"%d" % number), attributes(), answering)
    answering = Answering(RequestId(n + 3), RequestId(1), RequestId(n + 4))
    return lambda: tellings.tells(OTHER, attributes(), answering)


CLIENT: Final[dict[str, Callable[[int], Step]]] = {
    "dirty extents: a write": write_among_dirty_extents,
    "dirty extents: a write-back": write_back_among_dirty_extents,
    "extents on their way: what is next": find_what_is_not_on_its_way,
    "extents: a read": read_among_extents,
    "names of a directory: a recall of one": recall_a_name,
    "names of a directory: a change of one": change_a_name,
    "names of a listing: going on anywhere": go_on_in_a_listing,
    "names of an index: one more": add_to_an_index,
    "open directories: one more": open_a_directory,
    "extents held: a recall of one": recall_among_extents,
    "recalls under way in a file: one more": recall_beside_others,
    "dirty files: a write to one more, and its write-back": write_beside_dirty_files,
    "inodes told of: one more": tell_attributes,
}
