"""Where storage calls run: on the event loop while they are quick, in threads when they are not.

A metadata call on a warm cache takes some 10 microseconds, a hop to a thread and back five times that. So
calls that do not usually touch the disk (`quick`) run inline, as long as they prove quick: one that took
longer than INLINE_SECONDS_MAX, and waited for something, shows a cold or busy disk, and sends all that follow
to threads, until for COLD_SECONDS none of them has taken so long. (One that took long without waiting only had
to share its processor, which threads would make worse.) Calls that wait for the disk by nature (`slow`: fsync,
cold reads, large writes) always go to a thread. The event loop is thus held up by one call now and then, never
by a queue of them; and a disk that had to be waited for once, as a journal or a bitmap is now and then by who
makes many files, costs little.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final, TypeVar

import trio

INLINE_SECONDS_MAX: Final = 0.002
"""Longest inline call that is taken for a cache hit: beyond any warm call, below any seek of a disk."""

COLD_SECONDS: Final = 0.03
"""How long after a long call the disk is taken for cold: several seeks, so that who reads through what is not
cached holds the event loop up once, and then again only after a pause."""

THREADS_MAX: Final = 16
"""Calls waiting for the disk at once: enough to keep a disk's queue full."""

T = TypeVar("T")


def waits_of_this_thread() -> int:
    """How often this thread has given its processor away to wait: for a disk, in a storage call."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


class Disk:
    """Decides where a storage call runs. *waits* counts how often the calling thread has waited so far."""

    def __init__(self, waits: Callable[[], int] = waits_of_this_thread) -> None:
        self._waits = waits
        self._limiter = trio.CapacityLimiter(THREADS_MAX)
        self._cold_until = 0.0
        self.inline_calls = 0
        self.thread_calls = 0

    def quick(self, call: Callable[[], T]) -> T | Coroutine[Any, Any, T]:
        """Run *call* now and return its result, or return a coroutine that runs it in a thread."""
        started = trio.current_time()
        if started < self._cold_until:
            return self._while_cold(call)
        self.inline_calls += 1
        waits = self._waits()
        try:
            return call()
        finally:
            ended = trio.current_time()
            if ended - started > INLINE_SECONDS_MAX and self._waits() > waits:
                self._cold_until = ended + COLD_SECONDS

    async def _while_cold(self, call: Callable[[], T]) -> T:
        started = trio.current_time()
        try:
            return await self.slow(call)
        finally:
            ended = trio.current_time()
            # With the wait for a thread: who has a queue for the disk had better stay away from it, too.
            if ended - started > INLINE_SECONDS_MAX:
                self._cold_until = ended + COLD_SECONDS

    async def slow(self, call: Callable[[], T]) -> T:
        """Run *call* in a thread. Not cancelled half-way: what was begun on the disk is finished."""
        self.thread_calls += 1
        return await trio.to_thread.run_sync(partial(call), limiter=self._limiter)
