"""A disk without threads, which a simulated clock could not wait for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio

from server.service.disk import Disk

T = TypeVar("T")


class InlineDisk(Disk):
    """Slow calls take a turn of the scheduler, and are made here."""

    async def slow(self, call: Callable[[], T]) -> T:
        await trio.lowlevel.checkpoint()
        return call()
