"""How a client under test connects to its service: over memory streams that can be cut, refused and stopped."""

from __future__ import annotations

from collections.abc import Callable

import trio

from nfsfuse.rpc.streams import ConnectionLost
from nfsfuse_server.service.service import Service
from tests.helpers.streams import MemoryByteStream, memory_stream_pair


class Connector:
    """The way of one client to *service*. *reachable*: whether a new connection can be had."""

    def __init__(
        self,
        nursery: trio.Nursery,
        service: Service,
        name: str,
        capacity: int = 1 << 22,
        *,
        there_seconds: float | Callable[[], float] = 0.0,
        back_seconds: float | Callable[[], float] = 0.0,
    ) -> None:
        self._nursery = nursery
        self.service = service
        self._name = name
        self._capacity = capacity
        self._there_seconds = there_seconds
        self._back_seconds = back_seconds
        self.reachable = True
        self.served = True
        """There is a service."""
        self.delay_seconds = 0.0
        """How long a new connection takes."""
        self.attempts = 0
        self.streams: list[MemoryByteStream] = []
        """The client's ends, oldest first."""

    async def connect(self) -> MemoryByteStream:
        """What a `Session` connects with."""
        await trio.lowlevel.checkpoint()
        self.attempts += 1
        await trio.sleep(self.delay_seconds)
        if not (self.reachable and self.served):
            raise ConnectionLost("unreachable")
        near, far = memory_stream_pair(
            self._capacity, there_seconds=self._there_seconds, back_seconds=self._back_seconds
        )
        self._nursery.start_soon(self.service.serve, far, self._name)
        self.streams.append(near)
        return near

    def serve(self, nursery: trio.Nursery, service: Service) -> None:
        """New connections go to *service* from now on, which runs in *nursery*."""
        self._nursery, self.service = nursery, service
        self.served = True

    def lose(self) -> None:
        """The service is dead: nothing can be reached, nothing under way arrives."""
        self.served = False
        for stream in self.streams:
            stream.cut("the server is dead")

    def delay_answers(self, seconds: float) -> None:
        """What the server sends over the newest connection from now on arrives so much later."""
        self.streams[-1].receives_after(seconds)

    def mute(self) -> None:
        """What the client sends over the newest connection from now on never arrives, and it is not told."""
        self.streams[-1].sends_nothing()

    def cut(self) -> None:
        """Break the newest connection: nothing under way arrives."""
        self.streams[-1].cut()
