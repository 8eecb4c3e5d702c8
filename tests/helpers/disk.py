"""Disks without threads, which a simulated clock could not wait for."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, TypeVar

import trio

from nfsfuse_server.service.disk import Disk

T = TypeVar("T")


class InlineDisk(Disk):
    """Slow calls take a turn of the scheduler, and are made here."""

    async def slow(self, call: Callable[[], T]) -> T:
        await trio.lowlevel.checkpoint()
        return call()


class SlowDisk(Disk):
    """A disk without threads: every call takes its time, before and after it has its effect, so that requests
    overtake one another; or is answered at once, as *inline* of the quick ones are."""

    def __init__(self, random: Random, *, inline: float = 0.9, seconds_max: float = 0.001) -> None:
        super().__init__()
        self._random = random
        self._inline = inline
        self._seconds_max = seconds_max

    def quick(self, call: Callable[[], T]) -> T | Coroutine[Any, Any, T]:
        if self._random.random() < self._inline:
            self.inline_calls += 1
            return call()
        return self.slow(call)

    async def slow(self, call: Callable[[], T]) -> T:
        self.thread_calls += 1
        await trio.sleep(self._random.random() * self._seconds_max)
        result = call()
        await trio.sleep(self._random.random() * self._seconds_max)
        return result
