"""Two channels over an in-memory stream pair, and what each of them was asked and ended with."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from nfsfuse.protocol.messages import Message
from nfsfuse.protocol.types import RequestId
from nfsfuse.rpc.channel import Channel
from nfsfuse.rpc.exchange import Exchange, RequestArrived
from nfsfuse.rpc.link import Link
from tests.helpers.streams import MemoryByteStream, memory_stream_pair


class Side:
    """One end: its channel, the requests that arrived at it, the ids its callers gave up on."""

    def __init__(self, stream: MemoryByteStream, may_ask_us: frozenset[type[Message]]) -> None:
        self.stream = stream
        self.arrived: list[RequestArrived] = []
        self.abandoned: list[RequestId] = []
        self.on_request: Callable[[RequestArrived], None] = self.arrived.append
        self.exchange = Exchange(may_ask_us)
        self.link = Link(stream)
        self.channel = Channel(self.exchange, lambda event: self.on_request(event), self.abandoned.append)
        self.ended = trio.Event()
        self.failure: Exception | None = None

    async def run(self) -> None:
        """Run the channel, and keep what it ended with (a group too: a test that expects one says so)."""
        try:
            self.channel.attach(self.link, 0)
            await self.channel.serve(self.link)
        except Exception as exc:
            self.failure = exc
        finally:
            # As if there were no next connection.
            self.channel.end("closed" if self.failure is None else str(self.failure))
            self.ended.set()

    def check_nothing_left(self) -> None:
        """Assert that the channel, being over, holds no call, no bytes and no stream."""
        assert self.channel.lost is not None
        assert self.stream.closed
        assert not self.channel._calls
        assert not self.link._queue
        assert self.link.queued_bytes == 0
        self.channel.check()


@asynccontextmanager
async def connected(
    may_ask: frozenset[type[Message]],
    capacity: int = 65536,
    *,
    there_seconds: float = 0.0,
    back_seconds: float = 0.0,
) -> AsyncIterator[tuple[Side, Side]]:
    """Both sides of a connection, running; either may ask *may_ask*. At the end it is closed and checked."""
    streams = memory_stream_pair(capacity, there_seconds=there_seconds, back_seconds=back_seconds)
    one, other = Side(streams[0], may_ask), Side(streams[1], may_ask)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.run)
        nursery.start_soon(other.run)
        yield one, other
        one.link.close()
        await one.ended.wait()
        await other.ended.wait()
    one.check_nothing_left()
    other.check_nothing_left()
