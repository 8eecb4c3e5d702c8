"""The guard of the page cache: real memory protection, for exactly what must not be stored to.

A store to protected memory is SIGSEGV: whatever is done here with the guard on would end the test run.
"""

from __future__ import annotations

import signal
import subprocess
import sys

from nfsfuse.machines.page_cache import FilePages, PageCache
from nfsfuse.protocol.intervals import IntervalSet
from nfsfuse.protocol.types import PAGE_SIZE

STORE_PAST_THE_LOCK = """
from nfsfuse.machines.page_cache import PageCache
from nfsfuse.protocol.types import PAGE_SIZE
pages = PageCache(1 << 20, guard=True).file()
pages.write(0, bytes(PAGE_SIZE), 0.0)
view = pages.read(0, PAGE_SIZE)
pages.begin_write_back(0, PAGE_SIZE)
view[0] = 1
"""


def guarded() -> FilePages:
    return PageCache(1 << 20, guard=True).file()


def test_a_store_into_a_page_under_write_back_is_a_crash() -> None:
    ran = subprocess.run([sys.executable, "-c", STORE_PAST_THE_LOCK], capture_output=True)
    assert ran.returncode == -signal.SIGSEGV, ran


def test_the_rest_of_a_page_takes_stores_while_some_bytes_are_written_back() -> None:
    pages = guarded()
    pages.write(0, b"12345678", 0.0)
    assert pages.begin_write_back(0, 8) == b"12345678"
    pages.write(64, b"abc", 0.0)
    pages.end_write_back(0, 8, clean=True)
    assert pages.read(64, 67) == b"abc"
    assert pages.dirty.intervals() == [(64, 67)]


def test_the_rest_of_a_page_is_filled_while_some_bytes_are_written_back() -> None:
    pages = guarded()
    pages.write(8, b"new", 0.0)
    pages.begin_write_back(8, 11)
    pages.fill(0, b"o" * PAGE_SIZE, IntervalSet())
    assert pages.read(0, 16) == b"oooooooonewooooo"
    pages.end_write_back(8, 11, clean=True)


def test_a_page_cut_by_a_truncation_under_write_back_takes_stores_beyond_the_cut() -> None:
    pages = guarded()
    pages.write(0, bytes(2 * PAGE_SIZE), 0.0)
    pages.begin_write_back(0, 2 * PAGE_SIZE)
    pages.end_write_back(100, 2 * PAGE_SIZE, clean=True)
    pages.drop(100, 2 * PAGE_SIZE)
    pages.write(200, b"beyond", 0.0)
    assert pages.read(200, 206) == b"beyond"
    pages.end_write_back(0, 100, clean=True)
    pages.check()
