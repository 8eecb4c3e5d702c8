"""Carries out the steps of a handler: at once while none has to wait, else in a task."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, assert_never

from server.service.calls import (
    Acquire,
    Call,
    Clear,
    Handling,
    Hold,
    Locking,
    Quick,
    Reply,
    Slow,
    Step,
    Unnaming,
    Use,
)
from server.service.disk import Disk
from server.service.locks import Locks, LockWaiting
from server.service.tokens import Tokens, Waiting

Wait = Coroutine[Any, Any, Any]


class Driver:
    """Drives handlers. An exception out of a step is raised at its ``yield``."""

    def __init__(self, tokens: Tokens, locks: Locks, disk: Disk) -> None:
        self._tokens = tokens
        self._locks = locks
        self._disk = disk

    def advance(self, call: Call, handling: Handling) -> Reply | Wait:
        """The reply if it can be had without waiting, else a coroutine that returns it. Raises what the
        handler raises."""
        reply = self._advance(call, handling, lambda: next(handling))
        return self._continue(call, handling, reply) if isinstance(reply, Coroutine) else reply

    async def _continue(self, call: Call, handling: Handling, waiting: Wait) -> Reply:
        resume: Callable[[], Step]
        try:
            while True:
                try:
                    result = await waiting
                except Exception as exc:
                    resume = _thrower(handling, exc)
                else:
                    resume = _sender(handling, result)
                reply = self._advance(call, handling, resume)
                if not isinstance(reply, Coroutine):
                    return reply
                waiting = reply
        finally:
            handling.close()

    def _advance(self, call: Call, handling: Handling, resume: Callable[[], Step]) -> Reply | Wait:
        while True:
            try:
                step = resume()
            except StopIteration as stop:
                reply: Reply = stop.value
                return reply
            try:
                result = self._begin(call, step)
            except Exception as exc:
                resume = _thrower(handling, exc)
                continue
            if isinstance(result, Coroutine):
                waiting: Wait = result
                return waiting
            resume = _sender(handling, result)

    def _begin(self, call: Call, step: Step) -> Any:
        match step:
            case Quick():
                return self._disk.quick(step.call)
            case Slow():
                return self._disk.slow(step.call)
            case Acquire():
                got = self._tokens.acquire(call, step)
            case Hold():
                got = self._tokens.hold(call, step)
            case Clear():
                return self._tokens.clear(call, step)
            case Use():
                return self._tokens.use(call, step)
            case Locking(message=message):
                reply = self._locks.begin(call.session, message)
                return reply.wait() if isinstance(reply, LockWaiting) else reply
            case Unnaming(handle=handle):
                return self._tokens.pin_if_held(handle)
            case _:
                assert_never(step)
        return got.wait() if isinstance(got, Waiting) else got


def _sender(handling: Handling, value: Any) -> Callable[[], Step]:
    return lambda: handling.send(value)


def _thrower(handling: Handling, exc: Exception) -> Callable[[], Step]:
    return lambda: handling.throw(exc)
