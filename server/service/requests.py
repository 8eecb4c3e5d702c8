"""What a session asks: each request is looked up in one table of handlers.

A handler decides synchronously, in the order in which requests arrived; only what has to wait gets a task.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

import trio

from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError, ProtocolError
from nfsfuse.protocol.messages import CLIENT_REQUESTS, Message
from nfsfuse.protocol.types import RequestId
from nfsfuse.rpc.exchange import RequestArrived
from server.machines.leases import Leases
from server.service.calls import Call, Handler, Reply
from server.service.driver import Driver
from server.service.files import FILE_HANDLERS
from server.service.locks import LOCK_HANDLERS
from server.service.names import NAME_HANDLERS
from server.service.session import Session
from server.service.tokens import Tokens
from server.storage.interface import Storage

log = logging.getLogger(__name__)

SESSION_MESSAGES: Final = (m.Heartbeat, m.Goodbye, m.Cancel, m.ReturnTokens)
"""Requests that are about the session, and answered without the storage."""


class Requests:
    """The requests of one session. They outlive the connection on which they came."""

    def __init__(
        self, session: Session, storage: Storage, driver: Driver, tokens: Tokens, leases: Leases
    ) -> None:
        self._session = session
        self._storage = storage
        self._driver = driver
        self._tokens = tokens
        self._leases = leases

    def arrived(self, event: RequestArrived) -> None:
        """Handle a request, or at least begin to."""
        session = self._session
        if session.over.is_set():
            raise ProtocolError(f"{type(event.message).__name__} after Goodbye")
        if isinstance(event.message, SESSION_MESSAGES):
            self._of_session(event.message)
            session.channel.reply(event.id, m.Done())
            return
        if isinstance(event.message, m.Write):
            self._leases.written(session.id, trio.current_time())
        call = Call(session, event.message, event.payload, self._storage)
        handling = HANDLERS[type(event.message)](call)
        with self._answering(event):
            reply_or_wait = self._driver.advance(call, handling)
            if isinstance(reply_or_wait, Coroutine):
                # Registered here and not in the task: its cancellation may be the very next request.
                scope = session.running[event.id] = trio.CancelScope()
                session.nursery.start_soon(self._wait_for, event, call, reply_or_wait, scope)
                return
            self._reply(event.id, reply_or_wait)
        self._ended(call)

    def _of_session(self, message: Message) -> None:
        """Do what is about the session itself."""
        if isinstance(message, m.Cancel):
            self._session.cancel(message.request)
        elif isinstance(message, m.ReturnTokens):
            self._tokens.given_back(self._session, message.tokens, message.frames_received)
        elif isinstance(message, m.Goodbye):
            self._session.over.set()

    async def _wait_for(
        self,
        event: RequestArrived,
        call: Call,
        waiting: Coroutine[Any, Any, Reply],
        scope: trio.CancelScope,
    ) -> None:
        with scope:
            try:
                with self._answering(event):
                    self._reply(event.id, await waiting)
            finally:
                del call.session.running[event.id]
                if scope.cancel_called:
                    self._session.channel.fail_if_unanswered(event.id, errno.EINTR)
                self._ended(call)
        await self._session.channel.writable()

    @contextmanager
    def _answering(self, event: RequestArrived) -> Iterator[None]:
        """The boundary of a handler: what it raises becomes an errno. A bug of ours costs its caller an EIO
        and us a traceback; the server goes on."""
        channel = self._session.channel
        try:
            yield
        except FsError as exc:
            channel.fail(event.id, exc.errno, exc.detail)
        except ProtocolError:
            raise
        except Exception:
            log.exception("%s: %s failed unexpectedly", self._session, type(event.message).__name__)
            channel.fail(event.id, errno.EIO, "internal error of the server")

    def _ended(self, call: Call) -> None:
        """The reply is queued: others may have now what the call kept from them."""
        self._tokens.ended(call)
        for handle in call.attributes_changed:
            self._tokens.attributes_changed(call.session, handle)

    def _reply(self, number: RequestId, reply: Reply) -> None:
        if isinstance(reply, tuple):
            self._session.channel.reply(number, reply[0], reply[1])
        else:
            self._session.channel.reply(number, reply)


HANDLERS: Final[dict[type[Message], Handler]] = {**NAME_HANDLERS, **FILE_HANDLERS, **LOCK_HANDLERS}
assert set(HANDLERS) | set(SESSION_MESSAGES) | {m.Hello} == set(
    cast("tuple[type[Message], ...]", CLIENT_REQUESTS)
), "every request has its handler"

MAY_ASK: Final[frozenset[type[Message]]] = frozenset(CLIENT_REQUESTS) - {m.Hello}
"""What a session may ask. `Hello` comes before it."""
