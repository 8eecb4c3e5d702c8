"""A server over memory storage, and sessions with it over in-memory streams, under trio's clock."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from nfsfuse.engine.session import Session
from nfsfuse.protocol.types import ClientId, Node
from nfsfuse.rpc.streams import ConnectionLost
from server.service.service import Service, ServiceOptions
from server.state.memory import MemoryLog, MemoryRegistry
from server.state.recover import recover
from server.storage.memory import MemoryStorage
from tests.helpers.streams import MemoryByteStream, memory_stream_pair


@dataclass(frozen=True)
class Client:
    """A session of one client, and its end of the stream."""

    session: Session
    stream: MemoryByteStream
    root: Node


class Serving:
    """A service that runs. `client` connects one more client."""

    def __init__(self, nursery: trio.Nursery) -> None:
        counter = itertools.count(1)
        self._nursery = nursery
        self._numbers = itertools.count(1)
        self.storage = MemoryStorage()
        self.registry, self.log = MemoryRegistry(), MemoryLog()
        recovered = recover(self.storage, self.registry, self.log, "")
        self.service = Service(
            self.storage, ServiceOptions(), recovered, lambda size: next(counter).to_bytes(size, "big")
        )

    async def client(self, *, there_seconds: float = 0.0, back_seconds: float = 0.0) -> Client:
        """Connect; what the client sends arrives *there_seconds* later, the answers *back_seconds* later."""
        near, far = memory_stream_pair(there_seconds=there_seconds, back_seconds=back_seconds)
        number = next(self._numbers)
        self._nursery.start_soon(self.service.serve, far, f"stream {number}")
        session = Session(near, ClientId(number.to_bytes(16, "big")), f"client-{number}")
        welcome = await self._nursery.start(_run, session)
        return Client(session, near, welcome.root)


async def _run(session: Session, task_status: trio.TaskStatus[object]) -> None:
    try:
        await session.run(task_status=task_status)  # type: ignore[arg-type]
    except* ConnectionLost:
        pass  # the test has cut it


@asynccontextmanager
async def serving() -> AsyncIterator[Serving]:
    """A service, until the end of the block; its lock manager's invariants are checked then."""
    async with trio.open_nursery() as nursery:
        made = Serving(nursery)
        yield made
        made.service.locks.manager.check()
        nursery.cancel_scope.cancel()
