"""What a session asks: each request is looked up in one table of handlers.

A handler decides synchronously, in the order in which requests arrived; only what has to wait gets a task.
"""

from __future__ import annotations

import errno
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import CoroutineType
from typing import Final, cast

import trio

from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError, ProtocolError
from nfsfuse.protocol.messages import CLIENT_REQUESTS, Message
from nfsfuse.protocol.tokens import Token
from nfsfuse.rpc.exchange import RequestArrived
from nfsfuse_server.machines.leases import Leases
from nfsfuse_server.service.attributes import ATTRIBUTE_HANDLERS
from nfsfuse_server.service.calls import Call, Handler, Handling, Quick, Reply
from nfsfuse_server.service.driver import Driver, Wait
from nfsfuse_server.service.files import FILE_HANDLERS
from nfsfuse_server.service.locks import LOCK_HANDLERS
from nfsfuse_server.service.names import NAME_HANDLERS
from nfsfuse_server.service.recovery import Recovery
from nfsfuse_server.service.session import Queued, Session
from nfsfuse_server.service.tokens import Tokens, Waiting
from nfsfuse_server.state.journal import Journal
from nfsfuse_server.state.records import Outcome
from nfsfuse_server.storage.interface import Storage

log = logging.getLogger(__name__)

SESSION_MESSAGES: Final[frozenset[type[Message]]] = frozenset(
    (m.Heartbeat, m.Goodbye, m.Cancel, m.ReturnTokens, m.Reclaim, m.ReclaimComplete)
)
"""Requests that are about the session, and answered without the storage."""


class Requests:
    """The requests of one session. They outlive the connection on which they came."""

    def __init__(
        self,
        session: Session,
        storage: Storage,
        driver: Driver,
        tokens: Tokens,
        leases: Leases,
        journal: Journal,
        recovery: Recovery,
    ) -> None:
        self._session = session
        self._storage = storage
        self._driver = driver
        self._tokens = tokens
        self._leases = leases
        self._journal = journal
        self._recovery = recovery
        self._behind: deque[RequestArrived] | None = None
        """What has arrived behind a `Reclaim` that waits for the disk: it may need what that takes back."""

    def arrived(self, event: RequestArrived) -> None:
        """Handle a request, or at least begin to."""
        session = self._session
        if session.over.is_set():
            raise ProtocolError(f"{type(event.message).__name__} after Goodbye")
        if self._behind is not None:
            self._behind.append(event)
            return
        if isinstance(event.message, m.Reclaim):
            self._reclaim(event)
            return
        if type(event.message) in SESSION_MESSAGES:
            session.channel.reply(event.id, self._of_session(event.message))
            return
        outcome = self._journal.outcome(session.id, event.id)
        if outcome is not None:
            self._answer_again(event, outcome)
        elif self._recovery.admits(session, event.message):
            self._begin(event)
        else:
            self._recovery.hold_back(session, event.id, lambda: self._begin_late(event))

    def _begin_late(self, event: RequestArrived) -> None:
        """Begin what was held back. What is wrong with it ends its own session: it is another's call that got
        us here."""
        if not self._session.over.is_set():
            self._ends_own_session(lambda: self._begin(event))

    def _ends_own_session(self, go_on: Callable[[], None]) -> None:
        try:
            go_on()
        except ProtocolError as exc:
            self._wrong(exc)

    def _wrong(self, exc: ProtocolError) -> None:
        """The client has asked what no correct one does."""
        log.warning("%s: ended: %s", self._session, exc)
        self._session.end(str(exc))

    def _begin(self, event: RequestArrived) -> None:
        session = self._session
        if isinstance(event.message, m.WRITES):
            self._leases.write_began(session.id)
        call = Call(session, event.message, event.payload, self._storage, event.id)
        self._advance(call, HANDLERS[type(event.message)](call))
        self._tokens.resume_granted()

    def _advance(self, call: Call, handling: Handling, tokens: tuple[Token, ...] | None = None) -> None:
        """Take *call* as far as it goes without waiting: from its beginning, or from where it is granted
        *tokens*."""
        session = self._session
        try:
            reply_or_wait = self._driver.advance(call, handling, tokens)
            if isinstance(reply_or_wait, Waiting):
                session.running[call.id] = Queued(partial(self._interrupt, call, handling, reply_or_wait))
                reply_or_wait.then(partial(self._granted, call, handling))
                return
            if isinstance(reply_or_wait, CoroutineType):
                # Registered here and not in the task: its cancellation may be the very next request.
                scope = session.running[call.id] = trio.CancelScope()
                session.nursery.start_soon(self._wait_for, call, reply_or_wait, scope)
                return
            self._reply(call, reply_or_wait)
        except ProtocolError:
            raise
        except Exception as exc:
            self._fail(call, exc)
        self._ended(call)

    def _granted(self, call: Call, handling: Handling, tokens: tuple[Token, ...]) -> None:
        """What *call* waited for is granted: it goes on. It is another's event that got us here."""
        del self._session.running[call.id]
        self._ends_own_session(lambda: self._advance(call, handling, tokens))

    def _interrupt(self, call: Call, handling: Handling, waiting: Waiting, answer: bool) -> None:
        """*call* is not waited for any more; *answer*: by a client that is still there."""
        del self._session.running[call.id]
        waiting.give_up()
        handling.close()
        if answer:
            self._interrupted(call)
        self._ended(call)
        self._tokens.resume_granted()

    def _interrupted(self, call: Call) -> None:
        channel = self._session.channel
        self._note(call, FsError(errno.EINTR))
        channel.fail_if_unanswered(call.id, errno.EINTR)

    def _of_session(self, message: Message) -> Message:
        """Do what is about the session itself; the reply."""
        session = self._session
        match message:
            case m.Cancel(request=request):
                if self._recovery.cancel(session, request):
                    session.channel.fail(request, errno.EINTR)
                session.cancel(request)
            case m.ReturnTokens(tokens=tokens, frames_received=frames_received):
                self._tokens.given_back(session, tokens, frames_received)
                self._tokens.resume_granted()
            case m.ReclaimComplete():
                self._journal.reclaimed(session.id)
                self._recovery.complete(session)
            case m.Goodbye():
                session.over.set()
        return m.Done()

    def _answer_again(self, event: RequestArrived, outcome: Outcome) -> None:
        """A request was done in the last epoch, and its answer did not arrive."""
        self._journal.answering(self._session.id, event.id)
        call = Call(self._session, event.message, b"", self._storage, event.id, again=True)
        self._advance(call, _done_before(call, outcome))

    def _reclaim(self, event: RequestArrived) -> None:
        self._behind = deque()
        call = Call(self._session, event.message, b"", self._storage, event.id)
        self._advance(call, self._recovery.reclaim(call))

    def _reclaimed(self) -> None:
        """A `Reclaim` is answered: what came behind it is next, up to another one that waits."""
        behind, self._behind = self._behind, None
        while behind and not self._session.over.is_set():
            self._ends_own_session(partial(self.arrived, behind.popleft()))
            if self._behind is not None:
                self._behind.extend(behind)
                return

    async def _wait_for(
        self, call: Call, waiting: Wait, scope: trio.CancelScope
    ) -> None:
        session, ending = self._session, True
        with scope:
            try:
                self._reply(call, await waiting)
                ending = False
            except ProtocolError as exc:
                self._wrong(exc)
            except Exception as exc:
                self._fail(call, exc)
                ending = False
            finally:
                del session.running[call.id]
                if scope.cancel_called:
                    self._interrupted(call)
                self._ended(call)
                if ending and not scope.cancel_called and not session.over.is_set():
                    self._tokens.end()  # of the server: what others have waited for is left to its successor
                self._tokens.resume_granted()
        await self._session.channel.writable()

    def _ended(self, call: Call) -> None:
        """The reply is queued: others may have now what the call kept from them. A call without one is of a
        session that is over; or the server is ending, and its successor will look what became of it."""
        if isinstance(call.message, m.WRITES):
            self._leases.write_ended(self._session.id, trio.current_time())
        if self._session.over.is_set():
            self._driver.ended(call, FsError(errno.ENOTCONN), None)
        self._tokens.ended(call)
        for handle in call.attributes_changed:
            self._tokens.attributes_changed(call.session, handle)
        if isinstance(call.message, m.Reclaim):
            self._reclaimed()

    def _reply(self, call: Call, reply: Reply) -> None:
        message, payload = reply if isinstance(reply, tuple) else (reply, b"")
        channel = self._session.channel
        if call.intended or call.again:
            self._note(call, message)
        channel.reply(call.id, message, payload)

    def _note(self, call: Call, outcome: Outcome) -> None:
        """The next frame answers *call* so: in the journal, if that is to know."""
        frame = self._session.channel.frames_sent + 1
        if call.again:
            self._journal.answered(self._session.id, call.id, frame)
        else:
            self._driver.ended(call, outcome, frame)

    def _fail(self, call: Call, exc: Exception) -> None:
        """The boundary of a handler: what it raises becomes an errno. A bug of ours costs its caller an EIO
        and us a traceback; the server goes on."""
        if isinstance(exc, FsError):
            failure = exc
        else:
            name = type(call.message).__name__
            log.error("%s: %s failed unexpectedly", self._session, name, exc_info=exc)
            failure = FsError(errno.EIO, "internal error of the server")
        channel = self._session.channel
        self._note(call, failure)
        channel.fail(call.id, failure.errno, failure.detail)


def _done_before(call: Call, outcome: Outcome) -> Handling:
    """The answer of an earlier epoch, with a new number for a file that it opened."""
    if isinstance(outcome, FsError):
        raise outcome.alone()
    if isinstance(outcome, m.Opened):
        handle = outcome.node.handle
        yield Quick(lambda: call.storage.pin(handle))
        outcome = replace(outcome, open_id=call.session.opened(handle))
    return outcome


HANDLERS: Final[dict[type[Message], Handler]] = {
    **NAME_HANDLERS,
    **ATTRIBUTE_HANDLERS,
    **FILE_HANDLERS,
    **LOCK_HANDLERS,
}
assert set(HANDLERS) | SESSION_MESSAGES | {m.Hello} == set(
    cast("tuple[type[Message], ...]", CLIENT_REQUESTS)
), "every request has its handler"

MAY_ASK: Final[frozenset[type[Message]]] = frozenset(CLIENT_REQUESTS) - {m.Hello}
"""What a session may ask. `Hello` comes before it."""
