"""What a client knows of attributes when replies come in another order than they were made."""

from __future__ import annotations

from dataclasses import replace

from nfsfuse.machines.attribute_cache import AttributeCache
from nfsfuse.protocol.tokens import TokenMode
from nfsfuse.protocol.types import Attributes

EMPTY = Attributes(2, 0o100644, 1, 0, 0, 0, 0, 0, 1, 1, 1, 1)


def test_the_size_does_not_shrink_when_replies_to_write_backs_overtake_one_another() -> None:
    cache = AttributeCache()
    cache.granted(TokenMode.EXCLUSIVE)
    cache.learned(EMPTY)
    cache.written(8, 100)
    cache.written(16, 101)
    first, second = replace(EMPTY, size=8, ctime_ns=2), replace(EMPTY, size=16, ctime_ns=3)
    cache.written_back(second, all_of_it=False)
    cache.written_back(first, all_of_it=True)
    assert cache.known == second
    assert not cache.changed_here
