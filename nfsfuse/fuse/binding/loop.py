"""How pyfuse3's workers wait for requests.

pyfuse3 takes Lock and wait_readable from whatever its module variable ``trio`` is; its own asyncio mode puts
something else there (pyfuse3/asyncio.py). Here they are such that requests which need no waiting are dealt with
in the wait itself (`_supplement.receive`), by whichever worker waits for the device. That saves each of them a
turn of the scheduler, the switch to another worker, and a coroutine.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Protocol

import trio

from nfsfuse.fuse.binding.abi import Opcode
from nfsfuse.fuse.binding.libraries import Request, _supplement
from nfsfuse.fuse.upcalls.boundary import QuickAnswer

RETURNS_WITHOUT_YIELD_MAX: Final = 8
"""Requests passed to libfuse in succession before other tasks get a turn."""


class QuickAnswers(Protocol):
    """*answer* is asked first about every request of *opcodes*. It never raises, and keeps nothing of the body,
    which is what follows the header of the message."""

    @property
    def opcodes(self) -> frozenset[Opcode]: ...

    def answer(self, request: Request, body: memoryview) -> QuickAnswer: ...


class _NothingQuick:
    opcodes: frozenset[Opcode] = frozenset()

    def answer(self, request: Request, body: memoryview) -> QuickAnswer:
        raise AssertionError("there is no opcode to ask about")


NOTHING_QUICK: Final[QuickAnswers] = _NothingQuick()


class ReadLock:
    """Whose turn it is to wait for the device: trio.Lock, but for that taking it while it is free is no
    checkpoint. The wait that follows is one."""

    def __init__(self) -> None:
        self._taken = False
        self._waiting = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> None:
        while self._taken:
            await self._waiting.park()
        self._taken = True

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._taken = False
        if self._waiting:
            self._waiting.unpark()


class _LowLevel:
    """trio.lowlevel for pyfuse3. *receive* is `_supplement.receive`."""

    def __init__(self, receive: Callable[[], int]) -> None:
        self._receive = receive
        self._returns = 0  # since other tasks had a turn

    async def wait_readable(self, descriptor: int) -> None:
        """Deal with requests until there is one for libfuse."""
        if self._returns >= RETURNS_WITHOUT_YIELD_MAX:
            self._returns = 0
            await trio.lowlevel.checkpoint()
        while (found := self._receive()) != _supplement.MESSAGE:
            self._returns = 0
            if found == _supplement.TURN:
                # One turn to begin, and one more: what need not wait is done then, and not cut off by an
                # interrupt that comes right behind it.
                await trio.lowlevel.checkpoint()
            await trio.lowlevel.wait_readable(descriptor)
        self._returns += 1

    def __getattr__(self, name: str) -> Any:
        return getattr(trio.lowlevel, name)


class TrioForPyfuse3:
    """What pyfuse3 is to have for its variable ``trio``."""

    Lock = ReadLock

    def __init__(self, receive: Callable[[], int]) -> None:
        self.lowlevel = _LowLevel(receive)

    def __getattr__(self, name: str) -> Any:
        return getattr(trio, name)
