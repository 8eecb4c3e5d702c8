"""Guard mode: memory protection catches stores into what is under write-back, and nothing else."""

from __future__ import annotations

from nfsfuse.machines.page_cache import PageCache
from nfsfuse.protocol.intervals import IntervalSet
from nfsfuse.protocol.types import PAGE_SIZE


def test_bytes_beside_an_extent_under_write_back_can_be_stored() -> None:
    pages = PageCache(1 << 20, guard=True).file()
    pages.write(8, b"12345678", 0.0)
    pages.begin_write_back(8, 16)
    pages.fill(0, bytes(PAGE_SIZE), IntervalSet())  # the rest of the page comes from the server
    pages.write(24, b"abcdefgh", 0.0)
    pages.end_write_back(8, 16, clean=True)
    assert bytes(pages.read(0, 32) or b"") == bytes(8) + b"12345678" + bytes(8) + b"abcdefgh"
    pages.check()


def test_a_write_back_cut_by_a_truncation_leaves_the_rest_writable() -> None:
    pages = PageCache(1 << 20, guard=True).file()
    pages.write(0, bytes(3 * PAGE_SIZE), 0.0)
    pages.begin_write_back(0, 3 * PAGE_SIZE)
    pages.end_write_back(100, 3 * PAGE_SIZE, clean=True)
    pages.drop(100, 3 * PAGE_SIZE)
    pages.end_write_back(0, 3 * PAGE_SIZE, clean=True)
    pages.write(0, b"new", 0.0)
    pages.write(2 * PAGE_SIZE, b"new", 0.0)
    assert bytes(pages.read(0, 4) or b"") == b"new\0"
    pages.check()


def test_a_write_back_ends_although_a_truncation_has_dropped_all_of_it() -> None:
    pages = PageCache(1 << 20, guard=True).file()
    pages.write(PAGE_SIZE, bytes(PAGE_SIZE), 0.0)
    pages.begin_write_back(PAGE_SIZE, 2 * PAGE_SIZE)
    pages.end_write_back(PAGE_SIZE, 2 * PAGE_SIZE, clean=True)
    pages.drop(0, 2 * PAGE_SIZE)
    pages.end_write_back(PAGE_SIZE, 2 * PAGE_SIZE, clean=True)
    pages.check()
