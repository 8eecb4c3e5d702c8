"""Carries out the steps of a handler: at once while none has to wait, or when what it waited for is granted;
what has to wait for anything else goes on in a task."""

from __future__ import annotations

import errno
from collections.abc import Callable, Coroutine
from functools import partial
from types import CoroutineType
from typing import Any, assert_never, cast

import trio

from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.tokens import Token
from nfsfuse.protocol.types import SessionId
from server.service.calls import (
    Acquire,
    AcquireRun,
    Call,
    Change,
    Clear,
    GiveBack,
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
from server.state.journal import Journal
from server.state.records import Intent, Outcome

Wait = Coroutine[Any, Any, Any]


class Driver:
    """Drives handlers. An exception out of a step is raised at its ``yield``. *acknowledged*: how many frames
    of a session its client has."""

    def __init__(
        self,
        tokens: Tokens,
        locks: Locks,
        disk: Disk,
        journal: Journal,
        acknowledged: Callable[[SessionId], int],
    ) -> None:
        self._tokens = tokens
        self._locks = locks
        self._disk = disk
        self._journal = journal
        self._acknowledged = acknowledged
        self._changed = trio.lowlevel.ParkingLot()

    def advance(
        self, call: Call, handling: Handling, tokens: tuple[Token, ...] | None = None
    ) -> Reply | Waiting | Wait:
        """The reply if it can be had without waiting. Else the `Waiting` for tokens with which, once they are
        granted, it is to be called again; or a coroutine that returns the reply. Raises what the handler
        raises."""
        resume = partial(next, handling) if tokens is None else partial(handling.send, tokens)
        reply = self._advance(call, handling, resume)
        if type(reply) is CoroutineType:  # an isinstance of the abstract Coroutine takes three calls
            return self._continue(call, handling, cast(Wait, reply))
        return reply

    async def _continue(self, call: Call, handling: Handling, waiting: Waiting | Wait) -> Reply:
        resume: Callable[[], Step]
        try:
            while True:
                try:
                    result = await (waiting.wait() if isinstance(waiting, Waiting) else waiting)
                except Exception as exc:
                    resume = partial(handling.throw, exc)
                else:
                    resume = partial(handling.send, result)
                reply = self._advance(call, handling, resume)
                if not isinstance(reply, (Waiting, Coroutine)):
                    return reply
                waiting = reply
        finally:
            handling.close()

    def _advance(self, call: Call, handling: Handling, resume: Callable[[], Step]) -> Reply | Waiting | Wait:
        while True:
            try:
                step = resume()
            except StopIteration as stop:
                reply: Reply = stop.value
                return reply
            try:
                result = self._begin(call, step)
            except Exception as exc:
                resume = partial(handling.throw, exc)
                continue
            if type(result) in (Waiting, CoroutineType):
                return cast("Waiting | Wait", result)
            resume = partial(handling.send, result)

    def _begin(self, call: Call, step: Step) -> Any:
        match step:
            case Quick():
                return self._disk.quick(step.call)
            case Slow():
                return self._disk.slow(step.call)
            case Change():
                if self._journal.busy(step.names):
                    return self._change_in_turn(call, step)
                return self._change(call, step)
            case Acquire():
                return self._tokens.acquire(call, step)
            case AcquireRun():
                return self._tokens.acquire_run(call, step)
            case Hold():
                return self._tokens.hold(call, step)
            case Clear():
                return self._tokens.clear(call, step)
            case Use():
                return self._tokens.use(call, step)
            case Locking(message=message):
                reply = self._locks.begin(call.session, message)
                return reply.wait() if isinstance(reply, LockWaiting) else reply
            case GiveBack(tokens=returned, frames_received=frames_received):
                return self._tokens.given_back(call.session, returned, frames_received)
            case Unnaming(handle=handle):
                return self._tokens.pin_if_held(handle)
            case _:
                assert_never(step)

    def _change(self, call: Call, step: Change) -> Any:
        assert not call.intended, "one change in a request"
        intent = Intent(
            call.session.id, call.id, call.message, bytes(call.payload), step.names, step.was
        )  # fmt: skip
        try:
            self._journal.intend(intent, self._acknowledged)
        except OSError as exc:
            raise FsError(exc.errno or errno.EIO, f"the server's journal: {exc}") from exc
        call.intended = True
        return self._disk.slow(step.call) if step.slow else self._disk.quick(step.call)

    async def _change_in_turn(self, call: Call, step: Change) -> Any:
        """Another operation of the same session is at these names. It waits for nothing but the disk."""
        while self._journal.busy(step.names):
            await self._changed.park()
        result = self._change(call, step)
        return await result if isinstance(result, Coroutine) else result

    def ended(self, call: Call, outcome: Outcome, frame: int | None) -> None:
        """*call* has ended so; its reply is about to be sent as the session's frame number *frame*, or to
        nobody. To be called before what it holds is let go.

        There is room for the record. If it cannot be written all the same the server ends at once (SystemExit):
        nobody else may touch what the call was about before its end is known, and the next start finds that
        out."""
        if not call.intended:
            return
        call.intended = False
        try:
            self._journal.done(call.session.id, call.id, outcome, frame)
        except OSError as exc:
            raise SystemExit(f"nfsfuse-server: cannot write the journal: {exc}") from exc
        self._changed.unpark_all()
