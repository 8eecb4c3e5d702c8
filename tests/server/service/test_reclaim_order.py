"""What a client takes back after a restart is pinned in a thread, and its other requests wait behind that: they
may be about it."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import count
from typing import Any, ClassVar

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nfsfuse.engine.session import Session
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.tokens import RANGE_END, Resource, Token, TokenMode
from nfsfuse.protocol.types import ClientId, Credentials, OpenFile, OpenId
from nfsfuse_server.service.service import ServiceOptions
from tests.helpers.disk import InlineDisk
from tests.helpers.memory_storage import MemoryStorage
from tests.helpers.restartable import RestartableServer
from tests.helpers.session_owner import HookedOwner, begin

pytestmark = pytest.mark.usefixtures("autojump_clock")

GONE = OpenId(77)


class LatePins(InlineDisk):
    """What is pinned for a reclaim waits for `gate`."""

    gate: ClassVar[trio.Event]

    async def slow(self, call: Callable[[], Any]) -> Any:
        if getattr(getattr(call, "func", None), "__name__", "") == "_pin_all":
            await self.gate.wait()
        return await super().slow(call)


@pytest.mark.parametrize("ends", [False, True])
async def test_requests_wait_for_what_is_reclaimed(ends: bool) -> None:
    numbers = count(1)
    LatePins.gate = trio.Event()
    storage = MemoryStorage(lambda: next(numbers))
    root = storage.root().handle
    async with trio.open_nursery() as nursery:
        server = RestartableServer(
            nursery, storage, lambda size: next(numbers).to_bytes(size, "big"), LatePins, ServiceOptions()
        )
        await server.start()
        session = Session(server.connector("client").connect, ClientId(b"c" * 16), "client")
        refused: list[m.Reclaimed] = []
        owner = HookedOwner(on_refused=refused.append)
        await begin(nursery, session, owner)
        create = m.Create(root, b"file", 0o644, os.O_RDWR | os.O_CREAT, Credentials(0, 0))
        opened, _ = await session.call(create)
        file = opened.node.handle
        claims = m.Reclaim(
            (Token(file, Resource.DATA, 0, RANGE_END, TokenMode.EXCLUSIVE),),
            (OpenFile(opened.open_id, file), OpenFile(GONE, type(file)(b"no such file"))),
            (),
        )
        owner.on_new_epoch = lambda welcome: [claims]
        server.kill()
        await server.restart()
        await trio.sleep(1)  # it connects again
        done: list[m.Message] = []

        async def go_on() -> None:
            try:
                written, _ = await session.call(m.Write(file, 0), b"data")
                released, _ = await session.call(m.Release((m.Closed(opened.open_id),)))
            except FsError:
                assert ends, "with its session"
            else:
                done.extend((written, released))

        nursery.start_soon(go_on)
        await wait_all_tasks_blocked()
        assert done == []
        there = server.service.sessions[session.session_id]
        if ends:
            there.end("a test")
            await wait_all_tasks_blocked()
            LatePins.gate.set()
            await wait_all_tasks_blocked()
            storage.unlink(root, b"file")
            assert storage.orphans() == [], "nothing keeps a pin"
        else:
            LatePins.gate.set()
            await wait_all_tasks_blocked()
            assert [type(reply) for reply in done] == [m.Written, m.Done]
            assert [each.open_files for each in refused] == [(GONE,)]
            assert there.open_files == {}
        nursery.cancel_scope.cancel()
