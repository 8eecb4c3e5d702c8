"""The service ends, and connections do not know it yet: what they bring is begun by nobody, and answered by
nobody. The client asks the successor."""

from __future__ import annotations

import itertools
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nfsfuse.engine.session import Session
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.tokens import RANGE_END, TokenMode
from nfsfuse.protocol.types import ClientId, Credentials
from nfsfuse.rpc.streams import ConnectionLost
from nfsfuse_server.service.service import Service, ServiceOptions
from nfsfuse_server.state.recover import recover
from tests.helpers.connector import Connector
from tests.helpers.disk import InlineDisk
from tests.helpers.memory_state import MemoryLog, MemoryRegistry
from tests.helpers.memory_storage import MemoryStorage
from tests.helpers.session_owner import begin

pytestmark = pytest.mark.usefixtures("autojump_clock")


@dataclass
class World:
    """A service, which *ends*, and what goes on."""

    nursery: trio.Nursery
    storage: MemoryStorage
    service: Service
    running: trio.CancelScope

    async def client(self, number: int = 1) -> Session:
        connector = Connector(self.nursery, self.service, f"stream {number}")
        session = Session(connector.connect, ClientId(bytes([number]) * 16), f"client {number}")
        await begin(self.nursery, session)
        return session


@asynccontextmanager
async def running() -> AsyncIterator[World]:
    numbers = itertools.count(1)
    storage = MemoryStorage()
    recovered = recover(storage, MemoryRegistry(), MemoryLog(), "", 3600.0)
    options = ServiceOptions(lease_ms=3_600_000)
    service = Service(
        storage, options, recovered, lambda size: next(numbers).to_bytes(size, "big"), InlineDisk()
    )
    scope = trio.CancelScope()

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        with scope:
            await service.run(task_status=task_status)

    async with trio.open_nursery() as nursery:
        await nursery.start(run)
        yield World(nursery, storage, service, scope)
        nursery.cancel_scope.cancel()


async def _ends(world: World) -> None:
    world.running.cancel()
    await wait_all_tasks_blocked()


async def test_a_request_that_arrives_is_not_answered(caplog: pytest.LogCaptureFixture) -> None:
    """Found by a test that was run often: its handler had no nursery any more, so it was answered EIO."""
    async with running() as world:
        session = await world.client()
        node = world.storage.create(
            world.storage.root().handle, b"file", 0o644, Credentials(0, 0)
        )
        await session.call(m.GetToken(node.handle, TokenMode.EXCLUSIVE, 0, RANGE_END, TokenMode.EXCLUSIVE))
        kept = world.service.sessions[session.session_id]
        await _ends(world)
        with trio.move_on_after(60) as waited:
            await session.call(m.Fsync(node.handle, False))
        assert waited.cancelled_caught, "nobody has answered"
        assert not kept.running
        assert not kept.channel.connected
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_client_that_comes_is_sent_away(caplog: pytest.LogCaptureFixture) -> None:
    async with running() as world:
        await _ends(world)
        with pytest.raises(ConnectionLost):
            await world.client()
        assert not world.service.sessions
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
