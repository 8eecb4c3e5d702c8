"""A server over memory storage, and sessions with it over in-memory streams, under trio's clock."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio
from trio.testing import wait_all_tasks_blocked

from nfsfuse.engine.session import Session
from nfsfuse.protocol.types import ClientId, Node
from nfsfuse_server.service.disk import Disk
from nfsfuse_server.service.service import Service, ServiceOptions
from nfsfuse_server.state.recover import recover
from nfsfuse_server.storage.interface import Storage
from tests.helpers.connector import Connector
from tests.helpers.disk import InlineDisk
from tests.helpers.memory_state import MemoryLog, MemoryRegistry
from tests.helpers.memory_storage import MemoryStorage
from tests.helpers.session_owner import HookedOwner, begin


@dataclass(frozen=True)
class Client:
    """A session of one client, and what it connects with."""

    session: Session
    connector: Connector
    root: Node
    owner: HookedOwner

    def cut(self) -> None:
        """The connection breaks; the session goes on over the next."""
        self.connector.cut()

    def vanish(self) -> None:
        """The connection breaks, and there is no other."""
        self.connector.reachable = False
        self.connector.cut()


class Serving:
    """A service that runs. `client` connects one more client."""

    def __init__(
        self, nursery: trio.Nursery, lease_seconds: float, storage: Storage | None, disk: Disk | None
    ) -> None:
        counter = itertools.count(1)
        self._nursery = nursery
        self._running = trio.CancelScope()
        self._numbers = itertools.count(1)
        self.storage = storage or MemoryStorage()
        self.registry, self.log = MemoryRegistry(), MemoryLog()
        recovered = recover(self.storage, self.registry, self.log, "", lease_seconds)
        self.service = Service(
            self.storage,
            ServiceOptions(int(lease_seconds * 1000)),
            recovered,
            lambda size: next(counter).to_bytes(size, "big"),
            disk or InlineDisk(),
        )

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Serve, until `end`."""
        with self._running:
            await self.service.run(task_status=task_status)

    async def end(self) -> None:
        """The service has ended; connections do not know it yet."""
        self._running.cancel()
        await wait_all_tasks_blocked()

    async def client(self, *, there_seconds: float = 0.0, back_seconds: float = 0.0) -> Client:
        """Connect; what the client sends arrives *there_seconds* later, the answers *back_seconds* later."""
        number = next(self._numbers)
        connector = Connector(
            self._nursery,
            self.service,
            f"stream {number}",
            there_seconds=there_seconds,
            back_seconds=back_seconds,
        )
        session = Session(connector.connect, ClientId(number.to_bytes(16, "big")), f"client-{number}")
        owner = HookedOwner()
        welcome = await begin(self._nursery, session, owner)
        return Client(session, connector, welcome.root, owner)


@asynccontextmanager
async def serving(
    lease_seconds: float = 3600.0, storage: Storage | None = None, disk: Disk | None = None
) -> AsyncIterator[Serving]:
    """A service, until the end of the block; its lock manager's invariants are checked then. Leases outlast
    the test, unless it says otherwise."""
    async with trio.open_nursery() as nursery:
        made = Serving(nursery, lease_seconds, storage, disk)
        await nursery.start(made.run)
        yield made
        made.service.locks.manager.check()
        nursery.cancel_scope.cancel()
