"""The file service: connections in, replies and callbacks out.

A connection must begin with `Hello`; what it is asked afterwards is looked up in one table of handlers. A
handler decides synchronously, in the order in which requests arrived; only what has to wait gets a task.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final, cast

import trio

from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError, ProtocolError
from nfsfuse.protocol.limits import PROTOCOL_VERSION
from nfsfuse.protocol.messages import CLIENT_REQUESTS, Message
from nfsfuse.protocol.types import ClientId, SessionId
from nfsfuse.rpc.channel import Channel
from nfsfuse.rpc.exchange import Exchange, RequestArrived
from nfsfuse.rpc.streams import ByteStream, ConnectionLost
from server.service.calls import Call, Handler, Reply
from server.service.disk import Disk
from server.service.driver import Driver
from server.service.files import FILE_HANDLERS
from server.service.locks import LOCK_HANDLERS, Locks
from server.service.names import NAME_HANDLERS
from server.service.session import Session
from server.service.tokens import Tokens
from server.state.recover import Recovered
from server.storage.interface import Storage

log = logging.getLogger(__name__)

SESSION_MESSAGES: Final = (m.Hello, m.Heartbeat, m.Goodbye, m.Cancel, m.ReturnTokens)
"""Requests that are about the session, and answered without the storage."""

HELLO_SECONDS_MAX: Final = 10.0
"""How long a connection may stay without a Hello: strangers must not use up descriptors."""

IDENTITY_SIZE: Final = 16
"""Bytes in a client's and a session's id."""


@dataclass(frozen=True, slots=True)
class ServiceOptions:
    """What the administrator chooses."""

    lease_ms: int = 10_000


class Service:
    """One export, served to any number of connections."""

    def __init__(
        self,
        storage: Storage,
        options: ServiceOptions,
        recovered: Recovered,
        random_bytes: Callable[[int], bytes],
        disk: Disk | None = None,
    ) -> None:
        self._storage = storage
        self._options = options
        self._epoch = recovered.start.epoch
        self._journal = recovered.journal
        self._random_bytes = random_bytes
        self._root = storage.root()
        self.sessions: dict[SessionId, Session] = {}
        self.tokens = Tokens(self.sessions, storage.pin, storage.unpin)
        self.locks = Locks()
        self.driver = Driver(
            self.tokens, self.locks, disk or Disk(), self._journal, self._acknowledged
        )

    async def serve(self, stream: ByteStream, peer: str) -> None:
        """Serve one connection until it ends. Whatever its peer does wrong ends it, with a line in the log,
        and nothing else."""
        connection = _Connection(self, stream, peer)
        try:
            await connection.run()
        except (ConnectionLost, ProtocolError) as exc:
            log.warning("%s: connection ended: %s", connection, exc)
        finally:
            if connection.session is not None:
                self._end(connection.session)

    def welcome(self, hello: m.Hello, channel: Channel) -> tuple[Session, m.Welcome]:
        """A session for a client that said *hello*."""
        if hello.version != PROTOCOL_VERSION:
            raise FsError(
                errno.EPROTONOSUPPORT,
                f"the server speaks protocol version {PROTOCOL_VERSION}, the client {hello.version}",
            )
        if len(hello.client_id) != IDENTITY_SIZE:
            raise ProtocolError(f"a client id has {IDENTITY_SIZE} bytes")
        session = Session(
            SessionId(self._random_bytes(IDENTITY_SIZE)),
            ClientId(hello.client_id),
            hello.client_name,
            channel,
        )
        self.sessions[session.id] = session
        log.info("%s: session opened", session)
        return session, m.Welcome(
            session.id, self._epoch, self._options.lease_ms, version("nfsfuse"), self._root
        )

    def call(self, session: Session, event: RequestArrived) -> Call:
        """A request of *session*, to be handled."""
        return Call(session, event.message, event.payload, self._storage, event.id)

    def _acknowledged(self, session: SessionId) -> int:
        return 0

    def _end(self, session: Session) -> None:
        """Release what a session that is over held."""
        del self.sessions[session.id]
        self.locks.dropped(session)
        self.tokens.dropped(session)
        self._journal.forget(session.id)
        for handle in session.open_files.values():
            self._storage.unpin(handle)
        session.open_files.clear()
        log.info("%s: session closed", session)


class _Connection:
    """One connection: its channel, its tasks, and its session once there is one."""

    def __init__(self, service: Service, stream: ByteStream, peer: str) -> None:
        self._service = service
        self._peer = peer
        self._channel = Channel(stream, Exchange(frozenset(CLIENT_REQUESTS)), self._on_request)
        self._nursery: trio.Nursery | None = None
        self._greeted = trio.Event()
        self.session: Session | None = None

    def __str__(self) -> str:
        return str(self.session) if self.session is not None else self._peer

    async def run(self) -> None:
        failure: ConnectionLost | ProtocolError | None = None
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._expect_hello)
            try:
                await self._channel.run()
            except (ConnectionLost, ProtocolError) as exc:
                failure = exc
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _expect_hello(self) -> None:
        with trio.move_on_after(HELLO_SECONDS_MAX):
            await self._greeted.wait()
            return
        log.warning("%s: said nothing for %g s", self._peer, HELLO_SECONDS_MAX)
        self._channel.close()

    def _on_request(self, event: RequestArrived) -> None:
        if isinstance(event.message, SESSION_MESSAGES):
            try:
                reply = self._of_session(event.message)
            except FsError as exc:
                self._channel.fail(event.id, exc.errno, exc.detail)
            else:
                self._channel.reply(event.id, reply)
            return
        if self.session is None:
            raise ProtocolError(f"{type(event.message).__name__} before Hello")
        call = self._service.call(self.session, event)
        handling = HANDLERS[type(event.message)](call)
        with self._answering(event, call):
            reply_or_wait = self._service.driver.advance(call, handling)
            if isinstance(reply_or_wait, Coroutine):
                assert self._nursery is not None
                # Registered here and not in the task: its cancellation may be the very next request.
                scope = call.session.running[event.id] = trio.CancelScope()
                self._nursery.start_soon(self._wait_for, event, call, reply_or_wait, scope)
                return
            self._reply(call, reply_or_wait)
        self._ended(call)

    def _of_session(self, message: Message) -> Message:
        """Answer what is about the session itself."""
        if isinstance(message, m.Hello):
            if self.session is not None:
                raise ProtocolError("a second Hello")
            self.session, welcome = self._service.welcome(message, self._channel)
            self._greeted.set()
            return welcome
        if self.session is None:
            raise ProtocolError(f"{type(message).__name__} before Hello")
        if isinstance(message, m.Cancel):
            self.session.cancel(message.request)
        elif isinstance(message, m.ReturnTokens):
            self._service.tokens.given_back(self.session, message.tokens, message.frames_received)
        return m.Done()

    async def _wait_for(
        self,
        event: RequestArrived,
        call: Call,
        waiting: Coroutine[Any, Any, Reply],
        scope: trio.CancelScope,
    ) -> None:
        with scope:
            try:
                with self._answering(event, call):
                    self._reply(call, await waiting)
            finally:
                del call.session.running[event.id]
                if scope.cancel_called:
                    interrupted = FsError(errno.EINTR)
                    self._service.driver.ended(call, interrupted, self._channel.frames_sent + 1)
                    self._channel.fail_if_unanswered(event.id, interrupted.errno)
                self._ended(call)
        await self._channel.writable()

    @contextmanager
    def _answering(self, event: RequestArrived, call: Call) -> Iterator[None]:
        """The boundary of a handler: what it raises becomes an errno. A bug of ours costs its caller an EIO
        and us a traceback; the server goes on."""
        try:
            yield
        except FsError as exc:
            self._fail(call, exc)
        except ProtocolError:
            raise
        except Exception:
            log.exception("%s: %s failed unexpectedly", self, type(event.message).__name__)
            self._fail(call, FsError(errno.EIO, "internal error of the server"))

    def _ended(self, call: Call) -> None:
        """The reply is queued: others may have now what the call kept from them."""
        self._service.driver.ended(call, FsError(errno.ENOTCONN), None)  # unless it has been answered
        self._service.tokens.ended(call)
        for handle in call.attributes_changed:
            self._service.tokens.attributes_changed(call.session, handle)

    def _reply(self, call: Call, reply: Reply) -> None:
        message, payload = reply if isinstance(reply, tuple) else (reply, b"")
        self._service.driver.ended(call, message, self._channel.frames_sent + 1)
        self._channel.reply(call.id, message, payload)

    def _fail(self, call: Call, failure: FsError) -> None:
        self._service.driver.ended(call, failure, self._channel.frames_sent + 1)
        self._channel.fail(call.id, failure.errno, failure.detail)


HANDLERS: Final[dict[type[Message], Handler]] = {**NAME_HANDLERS, **FILE_HANDLERS, **LOCK_HANDLERS}
assert set(HANDLERS) | set(SESSION_MESSAGES) == set(
    cast("tuple[type[Message], ...]", CLIENT_REQUESTS)
), "every request has its handler"
