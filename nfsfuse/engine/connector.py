"""How a client comes to its server: connections that are greeted, and how long to wait between attempts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Final

from nfsfuse.machines.session import SessionMachine
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.limits import PROTOCOL_VERSION
from nfsfuse.protocol.record import record
from nfsfuse.protocol.types import ClientId
from nfsfuse.rpc.greeting import greet
from nfsfuse.rpc.link import Link
from nfsfuse.rpc.streams import ByteStream

RETRY_SECONDS_MIN: Final = 0.1
"""The pause after the first attempt to connect, which is made at once; later pauses double."""

RETRY_SECONDS_MAX: Final = 2.0
"""The longest pause: a small part of the lease, which may have little left when the server can be reached
again; and a thousand clients that try as often are nothing to it."""

RETRIES_PER_LEASE_MIN: Final = 5
"""Attempts to connect in the time of a lease, at least."""


@record(frozen=True, slots=True)
class Greeted:
    """A new connection over which the server has answered a Hello that was sent at *sent_at*."""

    link: Link
    welcome: m.Welcome
    sent_at: float


class Connector:
    """The way of one client to its server. *connect* makes a connection (it raises OSError or
    ConnectionLost); *clock* gives seconds, *jitter* numbers from 0 to 1."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[ByteStream]],
        client_id: ClientId,
        client_name: str,
        clock: Callable[[], float],
        jitter: Callable[[], float],
    ) -> None:
        self._connect = connect
        self._client_id = client_id
        self._client_name = client_name
        self._clock = clock
        self._jitter = jitter

    async def greet(self, session: SessionMachine, frames_received: Callable[[], int]) -> Greeted:
        """Make a connection, and ask for *session*. Raises OSError, FsError if the server refuses,
        ConnectionLost, ProtocolError."""
        link = Link(await self._connect())
        try:
            sent_at = self._clock()
            hello = m.Hello(
                PROTOCOL_VERSION, self._client_id, session.session_id, session.epoch,
                frames_received(), session.replaces, self._client_name, (),
            )  # fmt: skip
            welcome = await greet(link, hello)
            session.verify(welcome)
        except BaseException:
            link.close()
            raise
        return Greeted(link, welcome, sent_at)

    def pauses(self, lease_seconds: float) -> Iterator[float]:
        """Seconds between attempts: twice as long each time; some less, so that the clients of a
        server that was away do not all come at the same moments."""
        # Several in a lease: a restarted server does not wait longer for those it knows.
        longest = min(RETRY_SECONDS_MAX, lease_seconds / RETRIES_PER_LEASE_MIN)
        pause = min(RETRY_SECONDS_MIN, longest)
        while True:
            yield pause * (1 - self._jitter() / 2)
            pause = min(2 * pause, longest)
