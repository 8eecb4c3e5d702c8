"""What the client knows of an inode's attributes, while its own writes are on their way."""

from __future__ import annotations

from nfsfuse.machines.attribute_cache import AttributeCache
from nfsfuse.protocol.tokens import TokenMode
from nfsfuse.protocol.types import Attributes


def attributes(size: int, ctime_ns: int) -> Attributes:
    return Attributes(7, 0o100644, 1, 0, 0, 0, size, 8, 1, ctime_ns, ctime_ns, 1)


def written_to(size: int) -> AttributeCache:
    cache = AttributeCache()
    cache.granted(TokenMode.EXCLUSIVE)
    cache.learned(attributes(4096, 10))
    cache.written(size, 1000)
    return cache


def test_parallel_write_backs_are_answered_in_any_order() -> None:
    """SQLite on one mount: "database disk image is malformed", as the last page was beyond the end of the file.
    Two writes ran in two threads of the server; the one that did not extend the file was answered last."""
    cache = written_to(8192)
    assert not cache.written_back(attributes(8192, 21), all_of_it=False)
    assert cache.written_back(attributes(4096, 20), all_of_it=True)
    assert cache.known == attributes(8192, 21)
    assert not cache.changed_here


def test_the_size_is_this_clients_own_while_it_writes_back() -> None:
    """The server's clock ticks too slowly to tell which of two answers is the newer."""
    cache = written_to(8192)
    cache.written_back(attributes(8192, 20), all_of_it=False)
    cache.written_back(attributes(4096, 20), all_of_it=True)
    assert cache.size() == 8192


def test_the_servers_times_replace_this_clients() -> None:
    cache = written_to(8192)
    assert cache.written_back(attributes(8192, 20), all_of_it=True)
    assert cache.known == attributes(8192, 20)
