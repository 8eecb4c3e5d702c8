"""Carries out the steps of a handler: at once while none has to wait, or when what it waited for is granted;
what has to wait for anything else goes on in a task."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from functools import partial
from types import CoroutineType
from typing import Any, TypeAlias, cast, get_args

import trio

from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.tokens import Token
from nfsfuse.protocol.types import InodeHandle, SessionId
from nfsfuse_server.service.calls import (
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
    Tell,
    TellOthers,
    Unnaming,
    Use,
)
from nfsfuse_server.service.disk import Disk
from nfsfuse_server.service.growths import Growths
from nfsfuse_server.service.locks import Locks, LockWaiting
from nfsfuse_server.service.tokens import Tokens, Waiting
from nfsfuse_server.state.journal import Journal
from nfsfuse_server.state.records import Intent, Outcome

Wait: TypeAlias = "CoroutineType[Any, Any, Any]"


class Driver:
    """Drives handlers. An exception out of a step is raised at its ``yield``. *acknowledged*: how many frames
    of a session its client has."""

    def __init__(
        self,
        tokens: Tokens,
        locks: Locks,
        growths: Growths,
        disk: Disk,
        journal: Journal,
        acknowledged: Callable[[SessionId], int],
    ) -> None:
        self._tokens = tokens
        self._locks = locks
        self._disk = disk
        self._journal = journal
        self._acknowledged = acknowledged
        self._name_free = trio.lowlevel.ParkingLot()
        self._begin: Mapping[type[Step], Callable[[Call, Any], Any]] = {
            Quick: self._quick,
            Slow: self._slow,
            Change: self._change,
            Acquire: tokens.acquire,
            AcquireRun: tokens.acquire_run,
            Hold: tokens.hold,
            Clear: tokens.clear,
            Use: tokens.use,
            Locking: self._locking,
            GiveBack: self._give_back,
            Unnaming: self._unnaming,
            Tell: tokens.tell,
            TellOthers: growths.tell,
        }
        assert set(self._begin) == set(get_args(Step)), "every step is carried out"

    def advance(
        self, call: Call, handling: Handling, tokens: tuple[Token, ...] | None = None
    ) -> Reply | Waiting | Wait:
        """The reply if it can be had without waiting. Else the `Waiting` for tokens with which, once they are
        granted, it is to be called again; or a coroutine that returns the reply. Raises what the handler
        raises."""
        reply = self._advance(call, handling, tokens)
        if isinstance(reply, CoroutineType):
            return cast(Wait, self._continue(call, handling, reply))
        return reply

    async def _continue(self, call: Call, handling: Handling, waiting: Waiting | Wait) -> Reply:
        try:
            while True:
                result: Any = None
                failure: Exception | None = None
                try:
                    result = await (waiting.wait() if isinstance(waiting, Waiting) else waiting)
                except Exception as exc:
                    failure = exc
                try:
                    reply = self._advance(call, handling, result, failure)
                finally:
                    failure = None  # if it comes out of there it has been here
                if not isinstance(reply, (Waiting, CoroutineType)):
                    return reply
                waiting = reply
        finally:
            handling.close()
            for handle in call.unwanted:
                with trio.CancelScope(shield=True):
                    await self._disk.slow(partial(call.storage.unpin, handle))

    def _advance(
        self, call: Call, handling: Handling, result: Any = None, failure: Exception | None = None
    ) -> Reply | Waiting | Wait:
        """Go on with *result*, or with *failure*, of the step that *handling* waits for; or with neither, from
        its beginning."""
        while True:
            try:
                step = handling.send(result) if failure is None else handling.throw(failure)
            except StopIteration as stop:
                reply: Reply = stop.value
                return reply
            finally:
                failure = None  # if it comes out of there it has been here
            try:
                result = self._begin[type(step)](call, step)
            except Exception as exc:
                failure = exc
            else:
                if isinstance(result, (Waiting, CoroutineType)):
                    return result

    def _quick(self, call: Call, step: Quick) -> Any:
        return self._disk.quick(step.call)

    def _slow(self, call: Call, step: Slow) -> Any:
        return self._disk.slow(step.call)

    def _change(self, call: Call, step: Change) -> Any:
        if self._journal.busy(step.names):
            return self._change_in_turn(call, step)
        return self._change_now(call, step)

    def _locking(self, call: Call, step: Locking) -> Any:
        reply = self._locks.begin(call.session, step.message)
        return reply.wait() if isinstance(reply, LockWaiting) else reply

    def _give_back(self, call: Call, step: GiveBack) -> None:
        self._tokens.given_back(call.session, step.tokens, step.frames_received)

    def _unnaming(self, call: Call, step: Unnaming) -> Wait | None:
        return self.pin_if_held(step.handle)

    def pin_if_held(self, handle: InodeHandle) -> Wait | None:
        """*handle* has no name, or is about to lose one, perhaps its last: see `Tokens`. A coroutine if that
        has to wait. Raises FsError."""
        if not self._tokens.wants_pin(handle):
            return None
        waiting = self._disk.quick(partial(self._tokens.pin, handle))
        if isinstance(waiting, CoroutineType):
            return cast(Wait, self._pinned_later(handle, waiting))
        self._tokens.pinned(handle)
        return None

    async def _pinned_later(self, handle: InodeHandle, waiting: Wait) -> None:
        await waiting
        self._tokens.pinned(handle)

    def _change_now(self, call: Call, step: Change) -> Any:
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
            await self._name_free.park()
        result = self._change_now(call, step)
        return await result if isinstance(result, CoroutineType) else result

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
        self._name_free.unpark_all()
