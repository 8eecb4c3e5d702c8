"""The client's page cache: what is evicted, what is guarded, what is counted."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nfsfuse.machines.blocks import BLOCK_SIZE
from nfsfuse.machines.page_cache import FREE_BLOCKS_MAX, FilePages, PageCache
from nfsfuse.protocol.intervals import IntervalSet
from nfsfuse.protocol.types import PAGE_SIZE

ROOT = Path(__file__).resolve().parent.parent.parent


def filled(cache: PageCache, blocks: int) -> FilePages:
    pages = cache.file()
    pages.fill(0, b"x" * blocks * BLOCK_SIZE, IntervalSet())
    return pages


def write_back(pages: FilePages) -> None:
    while (extent := pages.to_write_back(0, 1 << 62, 1 << 20)) is not None:
        pages.end_write_back(pages.begin_write_back(*extent), clean=True)


# --- the budget ---


def test_the_least_recently_used_block_is_evicted_first() -> None:
    cache = PageCache(3 * BLOCK_SIZE, guard=True)
    pages = filled(cache, 3)
    assert pages.read(0, 10) is not None  # now the second block is the oldest
    pages.fill(10 * BLOCK_SIZE, b"new", IntervalSet())
    assert pages.read(0, 10) is not None
    assert pages.read(BLOCK_SIZE, BLOCK_SIZE + 10) is None
    assert cache.evicted_blocks == 1


def test_dirty_blocks_are_never_evicted_and_clean_ones_go_instead() -> None:
    cache = PageCache(2 * BLOCK_SIZE, guard=True)
    pages = cache.file()
    pages.write(0, b"precious", 1.0)
    pages.fill(BLOCK_SIZE, bytes(6 * BLOCK_SIZE), IntervalSet())
    assert pages.read(0, 8) == b"precious"
    assert cache.used_bytes <= 3 * BLOCK_SIZE


def test_a_write_larger_than_the_budget_is_kept_whole() -> None:
    cache = PageCache(2 * BLOCK_SIZE, guard=True)
    pages = cache.file()
    data = bytes(range(250)) * 1300
    pages.write(0, data, 1.0)
    found = pages.read(0, len(data))
    assert found is not None
    assert bytes(found) == data
    pages.check()


def test_memory_is_back_within_the_budget_once_all_is_clean() -> None:
    cache = PageCache(2 * BLOCK_SIZE, guard=True)
    pages = cache.file()
    pages.write(0, bytes(8 * BLOCK_SIZE), 1.0)
    write_back(pages)
    for index in range(20, 30):  # whoever needs a block makes room
        pages.fill(index * BLOCK_SIZE, b"x", IntervalSet())
    assert len(pages.valid.intervals()) <= 2
    assert cache.dirty_bytes == 0


def test_many_dirty_blocks_at_the_old_end_do_not_keep_clean_ones_for_ever() -> None:
    cache = PageCache(4 * BLOCK_SIZE, guard=True)
    pages = cache.file()
    for index in range(40):
        pages.write(index * BLOCK_SIZE, b"dirty", 1.0)
    other = filled(cache, 100)
    # One look at the old end is bounded, so some clean blocks stay: half as many as are dirty.
    assert sum(end - start for start, end in other.valid.intervals()) <= 24 * BLOCK_SIZE


def test_blocks_are_used_again_and_not_hoarded() -> None:
    cache = PageCache((FREE_BLOCKS_MAX + 50) * BLOCK_SIZE, guard=True)
    pages = filled(cache, FREE_BLOCKS_MAX + 20)
    pages.drop(0, 1 << 62)
    assert cache.used_bytes == FREE_BLOCKS_MAX * BLOCK_SIZE
    pages.fill(0, bytes(FREE_BLOCKS_MAX * BLOCK_SIZE), IntervalSet())
    assert cache.used_bytes == FREE_BLOCKS_MAX * BLOCK_SIZE


def test_checking_does_not_count_as_use() -> None:
    cache = PageCache(2 * BLOCK_SIZE, guard=False)
    first, second = filled(cache, 1), filled(cache, 1)
    first.check()
    cache.file().fill(0, b"x", IntervalSet())
    assert first.read(0, 1) is None
    assert second.read(0, 1) is not None


# --- what came late ---


def test_a_fill_does_not_overwrite_what_is_here_or_has_changed_since() -> None:
    pages = PageCache(1 << 20, guard=True).file()
    pages.write(10, b"dirty", 1.0)
    changed = IntervalSet()
    changed.add(20, 25)  # written and dropped while the fill was under way
    pages.fill(0, b"s" * 30, changed)
    assert pages.read(0, 20) == b"s" * 10 + b"dirty" + b"s" * 5
    assert pages.read(20, 25) is None


def test_what_is_written_after_a_truncation_is_not_cleaned_by_an_older_write_back() -> None:
    """Found by reading: the answer to a write that was under way before the truncation cleaned what had been
    written in its place, which then never reached the server."""
    cache = PageCache(1 << 20, guard=True)
    pages = cache.file()
    pages.write(0, b"old" * 5000, 1.0)
    older = pages.begin_write_back(0, 15000)
    pages.cut(0)
    assert not pages.dirty
    pages.write(0, b"new" * 5000, 2.0)
    pages.end_write_back(older, clean=True)
    assert pages.dirty.intervals() == [(0, 15000)]
    assert cache.dirty_bytes == 15000
    newer = pages.begin_write_back(0, 15000)
    pages.end_write_back(older, clean=True)
    assert pages.writing
    assert newer.data == b"new" * 5000
    pages.end_write_back(newer, clean=True)
    assert not pages.dirty


def test_what_is_written_over_something_on_its_way_is_written_back_after_it() -> None:
    cache = PageCache(1 << 20, guard=True)
    pages = cache.file()
    pages.write(0, b"old" * PAGE_SIZE, 1.0)
    older = pages.begin_write_back(0, 3 * PAGE_SIZE)
    pages.write(PAGE_SIZE, b"newer", 2.0, over=True)
    assert older.data == b"old" * PAGE_SIZE
    assert pages.to_write_back(0, 1 << 20, 1 << 20) is None, "not before the older has arrived"
    pages.end_write_back(older, clean=True)
    assert pages.dirty.intervals() == [(PAGE_SIZE, PAGE_SIZE + 5)]
    assert cache.dirty_bytes == 5
    pages.check()


def test_the_answer_to_a_write_back_whose_blocks_are_gone_does_no_harm() -> None:
    pages = PageCache(1 << 20, guard=True).file()
    pages.write(0, bytes(3 * BLOCK_SIZE), 1.0)
    outgoing = pages.begin_write_back(0, 3 * BLOCK_SIZE)
    pages.cut(100)
    pages.end_write_back(outgoing, clean=True)
    assert pages.valid.intervals() == [(0, 100)]
    pages.check()


def test_a_refused_write_back_stays_dirty() -> None:
    pages = PageCache(1 << 20, guard=True).file()
    pages.write(0, b"again", 7.0)
    pages.end_write_back(pages.begin_write_back(0, 5), clean=False)
    assert pages.to_write_back(0, 100, 100) == (0, 5)
    assert pages.dirty_since == 7.0


# --- the guard ---


def test_a_store_into_an_extent_under_write_back_is_refused_by_its_state() -> None:
    pages = PageCache(1 << 20, guard=False).file()
    pages.write(0, b"x" * 100, 1.0)
    pages.begin_write_back(0, 100)
    with pytest.raises(AssertionError, match="under write-back"):
        pages.write(99, b"y", 2.0)
    with pytest.raises(AssertionError, match="not dropped"):
        pages.drop(0, 4096)


def test_stores_beside_an_extent_under_write_back_are_allowed_in_its_pages() -> None:
    """Found by this test: the guard protected whole pages, and such a store crashed the daemon."""
    pages = PageCache(1 << 20, guard=True).file()
    pages.write(100, b"x" * (2 * PAGE_SIZE), 1.0)
    outgoing = pages.begin_write_back(100, 100 + 2 * PAGE_SIZE)
    pages.write(0, b"y" * 100, 2.0)
    pages.write(100 + 2 * PAGE_SIZE, b"z", 2.0)
    pages.end_write_back(outgoing, clean=True)
    assert pages.read(0, 101) == b"y" * 100 + b"x"


SLIP = """
import faulthandler, sys
from nfsfuse.machines.page_cache import PageCache, _pieces
faulthandler.enable()
cache = PageCache(1 << 20, guard=sys.argv[1] == "guard")
pages = cache.file()
pages.write(0, bytes(3 * 4096), 1.0)
{before}
block = cache._blocks[pages.number, 0][1]
{between}
block.view[{at}:{at} + 1] = b"!"  # past the page lock
print("the store went through")
"""


def slip(guard: str, before: str, at: int, between: str = "") -> subprocess.CompletedProcess[str]:
    program = SLIP.format(before=before, at=at, between=between)
    return subprocess.run(
        [sys.executable, "-c", program, guard], capture_output=True, text=True, cwd=ROOT, timeout=60
    )


WRITE_BACK = "outgoing = pages.begin_write_back(0, 3 * 4096)"
DROP = "pages.drop(0, 1 << 40)"


def crashed(result: subprocess.CompletedProcess[str]) -> bool:
    if result.returncode == -signal.SIGSEGV:
        assert "Segmentation fault" in result.stderr
        assert "went through" not in result.stdout
        return True
    assert result.returncode == 0, result.stderr
    assert "went through" in result.stdout
    return False


@pytest.mark.parametrize("at", [0, 4096, 3 * 4096 - 1])
def test_guarded_a_store_past_the_lock_is_a_crash(at: int) -> None:
    assert crashed(slip("guard", WRITE_BACK, at))


def test_guarded_a_store_after_the_write_back_is_none() -> None:
    assert not crashed(slip("guard", WRITE_BACK + "; pages.end_write_back(outgoing, clean=True)", 4096))


def test_guarded_a_store_beyond_a_cut_is_none() -> None:
    assert not crashed(slip("guard", WRITE_BACK + "; pages.cut(4096 + 7)", 4096 + 8))


def test_guarded_a_store_below_a_cut_is_a_crash() -> None:
    assert crashed(slip("guard", WRITE_BACK + "; pages.cut(4096 + 7)", 17))


def test_guarded_a_store_into_a_block_that_holds_nothing_is_a_crash() -> None:
    assert crashed(slip("guard", "", 0, between=DROP))


def test_unguarded_nothing_crashes() -> None:
    assert not crashed(slip("no guard", WRITE_BACK, 0))


def test_what_is_gathered_ends_where_it_is_asked_to() -> None:
    """In the middle of a dirty extent: an empty one was found there, and a server refuses that."""
    pages = PageCache(1 << 20, guard=True).file()
    pages.write(0, bytes(100), 0.0)
    pages.write(200, bytes(100), 0.0)
    assert pages.gather(0, 250, 1 << 20, 10) == [(0, 100), (200, 250)]
    assert pages.gather(0, 300, 150, 10) == [(0, 100), (200, 250)]
    assert pages.gather(0, 300, 1 << 20, 1) == [(0, 100)]
    assert pages.gather(250, 250, 1 << 20, 10) == []
    pages.end_write_back(pages.begin_write_back(0, 100), clean=False)
    assert pages.gather(0, 300, 1 << 20, 10) == [(0, 100)], "alone: it would take the other with it"
    assert pages.gather(0, 300, 1 << 20, 10, again=False) == [(200, 300)]
