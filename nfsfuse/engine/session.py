"""A client's session with its server: connect, greet, ask."""

from __future__ import annotations

import errno
import logging
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import trio

from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError, ProtocolError
from nfsfuse.protocol.limits import PROTOCOL_VERSION
from nfsfuse.protocol.messages import SERVER_REQUESTS, Message, Request
from nfsfuse.protocol.tokens import Token
from nfsfuse.protocol.types import ClientId, RequestId, SessionId
from nfsfuse.rpc.channel import Channel
from nfsfuse.rpc.exchange import Exchange, Payload, RequestArrived
from nfsfuse.rpc.streams import ByteStream, ConnectionLost

log = logging.getLogger(__name__)

R = TypeVar("R", bound=Message)


class Session:
    """One session over one connection; an implementation of the Remote port."""

    def __init__(self, stream: ByteStream, client_id: ClientId, client_name: str) -> None:
        self.on_recall: Callable[[m.Recall, Callable[[m.Recalled], None]], None] | None = None
        self.requests: Counter[str] = Counter()
        """Requests to the server so far, by message."""
        self._client_id = client_id
        self._client_name = client_name
        self._channel = Channel(stream, Exchange(frozenset(SERVER_REQUESTS)), self._called, self._abandoned)

    async def run(self, *, task_status: trio.TaskStatus[m.Welcome] = trio.TASK_STATUS_IGNORED) -> None:
        """Greet the server, then serve the connection until it ends. Raises FsError if the server refuses,
        ConnectionLost or ProtocolError if the connection breaks."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._channel.run)
            hello = m.Hello(PROTOCOL_VERSION, self._client_id, SessionId(b""), self._client_name, ())
            welcome, _ = await self._channel.call(hello)
            task_status.started(welcome)

    async def call(
        self,
        message: Request[R],
        payload: Payload = b"",
        apply: Callable[[Message, bytes | bytearray], None] | None = None,
        failed: Callable[[Exception], None] | None = None,
    ) -> tuple[R, bytes | bytearray]:
        self.requests[type(message).__name__] += 1
        try:
            return await self._channel.call(message, payload, apply, failed)
        except ConnectionLost as exc:
            raise FsError(errno.EIO, f"the connection to the server is lost: {exc}") from exc

    def post(self, message: Request[Message]) -> None:
        self.requests[type(message).__name__] += 1
        self._channel.post(message)

    def return_tokens(self, tokens: tuple[Token, ...]) -> None:
        self._channel.post(m.ReturnTokens(tokens, self._channel.frames_received))

    @property
    def requests_sent(self) -> int:
        """Requests since the session began."""
        return self._channel.frames_sent

    async def goodbye(self) -> None:
        """End the session in order."""
        try:
            await self._channel.call(m.Goodbye())
        except ConnectionLost as exc:
            log.warning("the server was not told goodbye: %s", exc)
        self._channel.close()

    def _called(self, event: RequestArrived) -> None:
        assert isinstance(event.message, m.Recall)
        if self.on_recall is None:
            raise ProtocolError("a recall before anything was granted")
        self.on_recall(event.message, partial(self._channel.reply, event.id))

    def _abandoned(self, number: RequestId) -> None:
        self._channel.post(m.Cancel(number))
