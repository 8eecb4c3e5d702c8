"""How many requests may be unanswered at a time; the others wait here, before they are sent."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

import trio

from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.limits import REQUESTS_IN_FLIGHT_MAX
from nfsfuse.protocol.messages import Message, Request
from nfsfuse.rpc.channel import Channel
from nfsfuse.rpc.exchange import Payload
from nfsfuse.rpc.streams import ConnectionLost

WAITING_MAX: Final = REQUESTS_IN_FLIGHT_MAX * 3 // 4
"""Requests that may wait for answers. The others wait here; room is left for those that recalls need."""

ESSENTIAL: Final = (*m.WRITES, m.Open, m.Heartbeat)
"""What a recall may need: it waits for no room."""

R = TypeVar("R", bound=Message)


class RequestGate:
    """The way of all requests to *channel*. `call`, `ask` and `has_room` are those of the Remote port."""

    def __init__(self, channel: Channel) -> None:
        self.requests: Counter[str] = Counter()
        """Requests to the server so far, by message."""
        self._channel = channel
        self._waiting = 0
        self._room = trio.lowlevel.ParkingLot()

    async def call(
        self,
        message: Request[R],
        payload: Payload = b"",
        apply: Callable[[Message, bytes | bytearray], None] | None = None,
        failed: Callable[[Exception], None] | None = None,
    ) -> tuple[R, bytes | bytearray]:
        """Ask when there is room, and wait for the answer. Raises FsError: EIO at the end of the session."""
        self.requests[type(message).__name__] += 1
        while not (self.has_room() or isinstance(message, ESSENTIAL)):
            await self._room.park()
        self._waiting += 1
        try:
            return await self._channel.call(message, payload, apply, failed)
        except ConnectionLost as exc:
            raise FsError(errno.EIO, str(exc)) from exc
        finally:
            self._ended()

    def ask(
        self,
        message: Request[Message],
        payload: Payload,
        apply: Callable[[Message, bytes | bytearray], None],
        failed: Callable[[FsError], None],
    ) -> Callable[[], None]:
        """Ask at once; there has to be room. What is returned abandons the request."""
        assert self.has_room() or isinstance(message, ESSENTIAL), "it waits for no room"
        self.requests[type(message).__name__] += 1
        self._waiting += 1

        def answered(reply: Message, payload: bytes | bytearray) -> None:
            apply(reply, payload)
            self._ended()

        def refused(failure: FsError | ConnectionLost) -> None:
            self._ended()
            failed(failure if isinstance(failure, FsError) else FsError(errno.EIO, str(failure)))

        asked = self._channel.ask(message, payload, answered, refused)
        return _nothing if asked is None else partial(self._channel.abandon, asked)

    def has_room(self) -> bool:
        """Whether a `call` would be sent at once."""
        return self._waiting < WAITING_MAX

    def post(self, message: Request[Message]) -> None:
        """Ask without waiting; it takes no room, and nobody is told of the answer."""
        self.requests[type(message).__name__] += 1
        self._channel.post(message)

    def _ended(self) -> None:
        """A request is not unanswered any more."""
        self._waiting -= 1
        if self._room:
            self._room.unpark()


def _nothing() -> None:
    """It was never asked: there is nothing to abandon."""
