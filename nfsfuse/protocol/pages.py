"""Rounding to pages: offsets and ranges of bytes to those of whole pages, of PAGE_SIZE bytes.

Which way to round decides what is coherent: a token must *contain* the bytes that are used under it, and what
the kernel is said to have whole must lie *within* the bytes that were written. So each way has a name, and
stands here alone (``tests/protocol/test_pages.py`` finds it elsewhere).

Offsets are in bytes and not negative, ranges half-open.
"""

from __future__ import annotations

from nfsfuse.protocol.intervals import Interval
from nfsfuse.protocol.tokens import RANGE_END
from nfsfuse.protocol.types import PAGE_SIZE


def page_start(offset: int) -> int:
    """*offset* rounded down to where a page begins."""
    return offset // PAGE_SIZE * PAGE_SIZE


def page_end(offset: int) -> int:
    """*offset* rounded up to where a page begins: where the last page ends that has bytes before *offset*."""
    return -(-offset // PAGE_SIZE) * PAGE_SIZE


def pages_around(start: int, end: int) -> Interval:
    """The smallest range of whole pages that contains ``[start, end)``."""
    return start // PAGE_SIZE * PAGE_SIZE, -(-end // PAGE_SIZE) * PAGE_SIZE


def pages_within(start: int, end: int) -> Interval:
    """The largest range of whole pages in ``[start, end)``. If there is none, its end is not past its start."""
    return -(-start // PAGE_SIZE) * PAGE_SIZE, end // PAGE_SIZE * PAGE_SIZE


def pages_of(offset: int, size: int) -> Interval:
    """The range of whole pages that a token for *size* bytes at *offset* needs. A request may ask for more
    than a file can have: the range ends at RANGE_END at the latest."""
    return offset // PAGE_SIZE * PAGE_SIZE, min(-(-(offset + size) // PAGE_SIZE) * PAGE_SIZE, RANGE_END)


def is_page_range(start: int, end: int) -> bool:
    """Whether ``[start, end)`` is a range of a DATA token: whole pages, at least one, before RANGE_END."""
    return 0 <= start < end <= RANGE_END and start % PAGE_SIZE == end % PAGE_SIZE == 0
