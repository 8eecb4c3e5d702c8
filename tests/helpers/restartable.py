"""A server that can be killed and started again, over what survives it: the storage, the registry, the log."""

from __future__ import annotations

import copy
from collections.abc import Callable

import trio

from nfsfuse_server.service.disk import Disk
from nfsfuse_server.service.service import Service, ServiceOptions
from nfsfuse_server.state.recover import recover
from tests.helpers.connector import Connector
from tests.helpers.memory_state import MemoryLog, MemoryRegistry
from tests.helpers.memory_storage import MemoryStorage


class RestartableServer:
    """One service after the other. Clients connect to it with a `connector`."""

    def __init__(
        self,
        nursery: trio.Nursery,
        storage: MemoryStorage,
        random_bytes: Callable[[int], bytes],
        disk: Callable[[], Disk],
        options: ServiceOptions,
    ) -> None:
        self._nursery = nursery
        self.storage = storage
        self._random_bytes = random_bytes
        self._disk = disk
        self._options = options
        self._connectors: list[Connector] = []
        self._process: trio.Nursery | None = None
        self._dead = trio.Event()
        self.registry = MemoryRegistry()
        self.log = MemoryLog()
        self.boot_id = "first boot"
        self.service = self._made()

    def _made(self) -> Service:
        lease_seconds = self._options.lease_ms / 1000
        recovered = recover(self.storage, self.registry, self.log, self.boot_id, lease_seconds)
        return Service(self.storage, self._options, recovered, self._random_bytes, self._disk())

    @property
    def serves(self) -> bool:
        """Whether the process lives, and has begun to serve."""
        return self._process is not None

    async def start(self) -> None:
        """Serve. Before the first start, and after a `kill`, nobody can connect."""
        await self._nursery.start(self._run)

    async def _run(self, *, task_status: trio.TaskStatus[None]) -> None:
        self._dead = trio.Event()
        async with trio.open_nursery() as process:
            await process.start(self.service.run)
            self._process = process
            for connector in self._connectors:
                connector.serve(process, self.service)
            task_status.started()
            await trio.sleep_forever()
        self._dead.set()

    def kill(self) -> None:
        """The process is dead, at this very instant: what its tasks do in their last gasp reaches nobody."""
        assert self._process is not None
        self._process.cancel_scope.cancel()
        self._process = None
        self.registry, self.log = copy.deepcopy(self.registry), copy.deepcopy(self.log)
        for connector in self._connectors:
            connector.lose()

    async def restart(self) -> None:
        """After a `kill`, on the same storage and state."""
        assert self._process is None
        await self._dead.wait()
        self.storage.restart()
        self.service = self._made()
        await self.start()

    def connector(
        self,
        name: str,
        capacity: int = 1 << 22,
        *,
        there_seconds: float | Callable[[], float] = 0.0,
        back_seconds: float | Callable[[], float] = 0.0,
    ) -> Connector:
        """A client's way to whichever service there is."""
        assert self._process is not None
        connector = Connector(
            self._process, self.service, name, capacity,
            there_seconds=there_seconds, back_seconds=back_seconds,
        )  # fmt: skip
        self._connectors.append(connector)
        return connector
