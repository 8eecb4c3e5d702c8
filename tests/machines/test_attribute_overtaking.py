"""What a client knows of attributes when replies come in another order than they were made."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nfsfuse.machines.attribute_cache import AttributeCache
from nfsfuse.machines.tellings import Age
from nfsfuse.protocol.tokens import TokenMode
from nfsfuse.protocol.types import Attributes

EMPTY = Attributes(2, 0o100644, 1, 0, 0, 0, 0, 0, 1, 1, 1, 1)


def test_the_size_does_not_shrink_when_replies_to_write_backs_overtake_one_another() -> None:
    cache = AttributeCache()
    cache.granted(TokenMode.EXCLUSIVE)
    cache.learned(EMPTY)
    cache.written(8)
    cache.written(16)
    first, second = replace(EMPTY, size=8, ctime_ns=2), replace(EMPTY, size=16, ctime_ns=3)
    cache.written_back(second, Age.NEWEST, all_of_it=False)
    cache.written_back(first, Age.OLDER, all_of_it=True)
    assert cache.known == second
    assert not cache.changed_here


@pytest.mark.parametrize("writes_changed_size", [False, True])
def test_a_write_back_may_lack_what_was_told_before_its_reply(writes_changed_size: bool) -> None:
    """A chmod(2), say: the write was made before it, in a thread, and answered after it."""
    cache = AttributeCache()
    cache.granted(TokenMode.EXCLUSIVE)
    cache.learned(EMPTY)
    if writes_changed_size:
        cache.written(8)
    changed = replace(EMPTY, mode=0o100600, ctime_ns=3)
    cache.learned(changed)
    assert cache.known is not None
    assert cache.known.mode == 0o100600
    assert cache.written_back(replace(EMPTY, size=8, ctime_ns=2), Age.OLDER, all_of_it=True)
    assert cache.known is None, "only the server knows"


def test_the_newest_of_several_write_backs_may_lack_what_was_told_since_its_reply() -> None:
    cache = AttributeCache()
    cache.granted(TokenMode.EXCLUSIVE)
    cache.learned(EMPTY)
    cache.written(16)
    cache.written_back(replace(EMPTY, size=16, ctime_ns=3), Age.NEWEST, all_of_it=False)
    cache.learned(replace(EMPTY, mode=0o100600, size=16, ctime_ns=4))
    cache.written_back(replace(EMPTY, size=8, ctime_ns=2), Age.OLDER, all_of_it=True)
    assert cache.known is None
    cache.learned(replace(EMPTY, mode=0o100600, size=16, ctime_ns=4))
    assert cache.size() == 16
