"""What a watcher tells reaches the clients, over memory streams: a change of the storage behind their backs."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import trio
import trio.testing

from nfsfuse.protocol import messages as m
from nfsfuse.protocol.tokens import Resource, TokenMode, name_point
from nfsfuse.protocol.types import AttributeChanges, Credentials, InodeHandle
from nfsfuse_server.service.direct import DirectChanges
from nfsfuse_server.service.orphans import sweep_orphans
from nfsfuse_server.watch.interface import (
    AttributesChanged,
    Change,
    ContentChanged,
    NameChanged,
    Overflow,
    Watcher,
)
from tests.helpers.disk import InlineDisk
from tests.helpers.service import Client, Serving, serving

ME = Credentials(0, 0)


class FakeWatcher(Watcher):
    """Tells what it is told to."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[list[Change]](10)

    def tell(self, *changes: Change) -> None:
        self._send.send_nowait(list(changes))

    def fail(self) -> None:
        self._send.close()

    async def changes(self) -> list[Change]:
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            raise OSError("the queue is broken") from None

    def close(self) -> None:
        self._send.close()


class World:
    """A service with a watcher, and a client that records what is recalled from it."""

    def __init__(self, made: Serving, nursery: trio.Nursery, client: Client) -> None:
        self.storage = made.storage
        self.tokens = made.service.tokens
        self.client = client
        self.root = client.root.handle
        self.watcher = FakeWatcher()
        self.recalled: list[m.Recall] = []
        client.owner.on_recall = self._recall
        self.direct = DirectChanges(self.tokens)
        nursery.start_soon(self.direct.follow, self.watcher)

    def _recall(self, recall: m.Recall, acknowledge: Callable[[m.Recalled], None]) -> None:
        self.recalled.append(recall)
        acknowledge(m.Recalled(()))

    def held(self) -> set[tuple[InodeHandle, Resource]]:
        return set(self.tokens.manager.held())


async def file_of(world: World) -> InodeHandle:
    """A file that the client has looked up and read: it holds tokens of everything."""
    handle = world.storage.create(world.root, b"file", 0o644, ME).handle
    world.storage.write(handle, 0, b"content")
    call = world.client.session.call
    await call(m.Lookup(world.root, b"file"))
    await call(m.GetAttr(world.root))
    await call(m.Open(handle, 0, True))
    return handle


@pytest.mark.parametrize("what", ["name", "attributes", "content", "somebody else's"])
async def test_only_what_has_changed_is_recalled(what: str, autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as made, trio.open_nursery() as nursery:
        world = World(made, nursery, await made.client())
        file = await file_of(world)
        all_held = {
            (world.root, Resource.DIR), (world.root, Resource.ATTR),
            (file, Resource.ATTR), (file, Resource.DATA),
        }  # fmt: skip
        assert world.held() == all_held
        change: Change
        match what:
            case "name":
                change, gone = NameChanged(world.root, b"file"), {(world.root, Resource.ATTR)}
            case "attributes":
                change, gone = AttributesChanged(file), {(file, Resource.ATTR)}
            case "content":
                change, gone = ContentChanged(file), {(file, Resource.ATTR), (file, Resource.DATA)}
            case _:
                change, gone = ContentChanged(InodeHandle(b"outside")), set()
        world.watcher.tell(change)
        await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(1)
        assert world.held() == all_held - gone
        point = name_point(b"file")
        session = next(iter(made.service.sessions))
        knows_name = world.tokens.manager.holds(
            session, world.root, Resource.DIR, point, point + 1, TokenMode.SHARED
        )
        assert knows_name == (what != "name")
        assert world.direct.recalled == (what != "somebody else's")
        world.tokens.check()
        nursery.cancel_scope.cancel()


async def test_after_an_overflow_nobody_holds_anything(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as made, trio.open_nursery() as nursery:
        world = World(made, nursery, await made.client())
        file = await file_of(world)
        assert world.held()
        world.storage.setattr(file, AttributeChanges(mode=0o600))
        with caplog.at_level(logging.WARNING):
            world.watcher.tell(Overflow())
            await trio.sleep(1)
        assert "everything is recalled" in caplog.text
        assert world.held() == set()
        nursery.cancel_scope.cancel()


async def test_the_service_goes_on_when_watching_fails(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as made, trio.open_nursery() as nursery:
        world = World(made, nursery, await made.client())
        await file_of(world)
        world.watcher.fail()
        await trio.sleep(1)
        assert "not noticed any more" in caplog.text
        assert world.held() == set()
        await world.client.session.call(m.Lookup(world.root, b"file"))
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("holds", [False, True])
async def test_a_sweep_keeps_what_somebody_holds_a_token_of(
    holds: bool, autojump_clock: trio.testing.MockClock
) -> None:
    """As after a restart: nothing is pinned, and the client has its tokens back."""
    async with serving() as made, trio.open_nursery() as nursery:
        client = await made.client()
        handle = made.storage.create(client.root.handle, b"file", 0o644, ME).handle
        made.storage.pin(handle)
        made.storage.unlink(client.root.handle, b"file")
        made.storage.restart()
        if holds:
            await client.session.call(m.GetAttr(handle))
        await sweep_orphans(made.storage, made.service.driver, InlineDisk())
        assert made.storage.orphans() == ([handle] if holds else [])
        made.storage.check()
        nursery.cancel_scope.cancel()
