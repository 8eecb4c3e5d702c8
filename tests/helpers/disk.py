"""A disk without threads, which a simulated clock could not wait for."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, Final, TypeVar

import trio

from server.service.disk import Disk

T = TypeVar("T")


class InlineDisk(Disk):
    """Slow calls take a turn of the scheduler, and are made here."""

    async def slow(self, call: Callable[[], T]) -> T:
        await trio.lowlevel.checkpoint()
        return call()


BUSY_SECONDS_MAX: Final = 0.004
"""A few round trips in the simulated networks."""


class BusyDisk(InlineDisk):
    """Many calls take long, before and after they have their effect, so that their requests overtake one
    another."""

    def __init__(self, random: Random) -> None:
        super().__init__()
        self._random = random

    def quick(self, call: Callable[[], T]) -> T | Coroutine[Any, Any, T]:
        return self.slow(call) if self._random.random() < 0.5 else super().quick(call)

    async def slow(self, call: Callable[[], T]) -> T:
        await trio.sleep(self._random.random() * BUSY_SECONDS_MAX)
        result = await super().slow(call)
        await trio.sleep(self._random.random() * BUSY_SECONDS_MAX)
        return result
