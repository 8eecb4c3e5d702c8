"""When a read changes the time of the last access."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nfsfuse.machines.access_times import DAY_NS, AccessTimes, access_times, after_access
from nfsfuse.machines.attribute_cache import AttributeCache
from nfsfuse.protocol.tokens import TokenMode
from nfsfuse.protocol.types import Attributes

NONE, RELATIVE, STRICT = AccessTimes.NONE, AccessTimes.RELATIVE, AccessTimes.STRICT

CHANGED = 10**18
FILE = Attributes(9, 0o100644, 1, 0, 0, 0, 100, 8, CHANGED, CHANGED, CHANGED, 0)


@pytest.mark.parametrize(
    ("kept", "atime", "ctime", "now", "expected"),
    [
        (RELATIVE, CHANGED, CHANGED, CHANGED + 5, CHANGED + 5),
        (RELATIVE, CHANGED + 1, CHANGED, CHANGED + 5, None),
        (RELATIVE, CHANGED + 1, CHANGED + 2, CHANGED + 5, CHANGED + 5),
        (RELATIVE, CHANGED + 1, CHANGED, CHANGED + DAY_NS, None),
        (RELATIVE, CHANGED + 1, CHANGED, CHANGED + 1 + DAY_NS, CHANGED + 1 + DAY_NS),
        (RELATIVE, CHANGED - 1, CHANGED, CHANGED - 7, CHANGED + 1),  # this machine's clock is behind
        (STRICT, CHANGED + 1, CHANGED, CHANGED + 5, CHANGED + 5),
        (NONE, CHANGED, CHANGED, CHANGED + 5, None),
    ],
)
def test_when_a_read_counts(kept: AccessTimes, atime: int, ctime: int, now: int, expected: int | None) -> None:
    assert after_access(kept, replace(FILE, atime_ns=atime, ctime_ns=ctime), now) == expected


def test_once_it_has_counted_it_does_not_count_again() -> None:
    for now in (CHANGED - DAY_NS, CHANGED, CHANGED + DAY_NS):
        atime = after_access(RELATIVE, FILE, now)
        assert atime is not None
        assert after_access(RELATIVE, replace(FILE, atime_ns=atime), now + 1) is None


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ((), RELATIVE),
        (("nodev", "atime"), RELATIVE),
        (("noatime",), NONE),
        (("ro",), NONE),
        (("relatime", "strictatime"), STRICT),
        (("strictatime", "relatime"), RELATIVE),
    ],
)
def test_the_options_of_a_mount(options: tuple[str, ...], kept: AccessTimes) -> None:
    assert access_times(options) is kept


def test_what_is_known_of_a_file_has_the_access_in_it() -> None:
    cache = AttributeCache()
    assert not cache.accessed(RELATIVE, CHANGED + 5)
    cache.granted(TokenMode.EXCLUSIVE)
    cache.learned(FILE)
    assert cache.accessed(RELATIVE, CHANGED + 5)
    assert cache.known == replace(FILE, atime_ns=CHANGED + 5)
    assert not cache.accessed(RELATIVE, CHANGED + 6)
    cache.written(200)
    assert not cache.accessed(STRICT, CHANGED + 7), "the times are not known"
