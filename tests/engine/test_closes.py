"""Last closes: when the server is told of them, with what, and when it is not."""

from __future__ import annotations

import logging
import os

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nfsfuse.engine.closes import RELEASE_SECONDS, Closes
from nfsfuse.machines.inodes import ROOT
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.limits import ACCESSES_MAX, RELEASES_MAX
from nfsfuse.protocol.tokens import TokenMode
from nfsfuse.protocol.types import InodeHandle, OpenId
from tests.helpers.fake_kernel import ME, Client, Rig, rig

pytestmark = pytest.mark.usefixtures("autojump_clock")

LEASE = 10.0

Sent = list[tuple[float, list[int]]]
"""When, in seconds since the beginning, and which."""


def closed(number: int) -> m.Closed:
    return m.Closed(OpenId(number))


class Told:
    """What `Closes` has sent."""

    def __init__(self) -> None:
        self.began = trio.current_time()
        self.sent: Sent = []
        self.accessed: list[tuple[InodeHandle, ...]] = []
        self.closes = Closes(self._send, self.accessed.append)

    def _send(self, some: tuple[m.Closed, ...]) -> None:
        after = round(trio.current_time() - self.began, 6)
        self.sent.append((after, [each.open_id for each in some]))

    def add(self, *numbers: int) -> None:
        for number in numbers:
            self.closes.add(closed(number))


async def test_accesses_are_sent_together_and_each_file_once(nursery: trio.Nursery) -> None:
    told = Told()
    nursery.start_soon(told.closes.run)
    one, two = InodeHandle(b"one"), InodeHandle(b"two")
    for handle in (one, two, one):
        told.closes.accessed(handle)
    assert told.accessed == []
    await trio.sleep(1)
    assert told.accessed == [(one, two)]
    for number in range(ACCESSES_MAX):
        told.closes.accessed(InodeHandle(b"%d" % number))
    assert [len(handles) for handles in told.accessed] == [2, ACCESSES_MAX]
    assert told.sent == []


async def test_closes_are_sent_together_when_the_first_is_old_enough(nursery: trio.Nursery) -> None:
    told = Told()
    nursery.start_soon(told.closes.run)
    await trio.sleep(1)
    told.add(1)
    await trio.sleep(RELEASE_SECONDS / 2)
    told.add(2, 3)
    await trio.sleep(1)
    assert told.sent == [(1 + RELEASE_SECONDS, [1, 2, 3])]
    told.add(4)
    await trio.sleep(1)
    assert told.sent[1:] == [(2 + 1.5 * RELEASE_SECONDS, [4])]


async def test_those_that_were_there_before_anybody_ran_are_sent(nursery: trio.Nursery) -> None:
    told = Told()
    told.add(1)
    nursery.start_soon(told.closes.run)
    await trio.sleep(1)
    assert told.sent == [(RELEASE_SECONDS, [1])]


async def test_a_full_message_is_sent_at_once_and_the_rest_not_later_than_it_must(
    nursery: trio.Nursery,
) -> None:
    told = Told()
    nursery.start_soon(told.closes.run)
    numbers = list(range(RELEASES_MAX + 1))
    told.add(*numbers)
    assert told.sent == [(0, numbers[:-1])]
    await trio.sleep(1)
    assert told.sent[1:] == [(RELEASE_SECONDS, numbers[-1:])]


async def test_what_is_sent_or_dropped_is_not_sent_again(nursery: trio.Nursery) -> None:
    told = Told()
    nursery.start_soon(told.closes.run)
    told.closes.send()
    assert told.sent == []
    told.add(1)
    told.closes.send()
    told.add(2)
    assert told.closes.pending == (closed(2),)
    told.closes.drop()
    await trio.sleep(1)
    assert told.sent == [(0, [1])]


# --- in a client ---


def open_files(world: Rig, client: Client) -> int:
    """How many files the server believes that *client* has open."""
    return len(world.service.sessions[client.remote.session.session_id].open_files)


def releases(client: Client) -> int:
    return client.remote.session.requests["Release"]


async def make(client: Client, name: bytes) -> int:
    """A new file that is open."""
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR
    number, _ = await client.fs.files.create(ROOT, name, 0o644, flags, ME)
    await client.write(number, 0, b"hello")
    return number


def data_mode(world: Rig, client: Client, name: bytes) -> TokenMode:
    """What the server believes that *client* holds of the file's data."""
    handle = world.storage.lookup(world.storage.root().handle, name).handle
    held = world.service.tokens.manager.tokens_of(client.remote.session.session_id)
    return max(token.mode for token in held if (token.handle, token.resource.name) == (handle, "DATA"))


async def test_many_files_share_a_message() -> None:
    async with rig() as world:
        (client,) = world.clients
        for number in range(RELEASES_MAX + 2):
            await client.close(await make(client, b"%d" % number))
        await trio.sleep(2 * RELEASE_SECONDS)
        assert releases(client) == 2
        assert open_files(world, client) == 0
        assert data_mode(world, client, b"0") is TokenMode.SHARED


async def test_an_unlinked_file_is_released_at_once() -> None:
    async with rig() as world:
        (client,) = world.clients
        other = await make(client, b"other")
        number = await make(client, b"file")
        await client.fs.names.unlink(ROOT, b"file")
        await client.close(other)
        assert releases(client) == 0
        await client.close(number)
        assert releases(client) == 1, "of both"
        await wait_all_tasks_blocked()
        assert open_files(world, client) == 0


async def test_what_was_given_up_before_is_told_before_tokens_are_returned() -> None:
    async with rig() as world:
        (client,) = world.clients
        await client.close(await make(client, b"file"))
        inode = client.fs.inodes[await client.node(b"file")]
        await client.fs.names.unlink(ROOT, b"file")
        assert world.storage.orphans() == [inode.handle], "it is held"
        client.fs.names.forget(inode.node_id, inode.lookups)
        assert client.fs.inodes.by_handle(inode.handle) is None
        await wait_all_tasks_blocked()
        assert open_files(world, client) == 0
        held = world.service.tokens.manager.tokens_of(client.remote.session.session_id)
        assert not [token for token in held if token.handle == inode.handle]
        assert world.storage.orphans() == []


async def test_a_file_that_is_opened_again_before_its_close_is_told_keeps_its_tokens() -> None:
    """The close gives up what was held then, not what has been granted since."""
    async with rig(2) as world:
        client, other = world.clients
        await client.close(await make(client, b"file"))
        number = await client.open(b"file", os.O_RDWR)
        assert releases(client) == 0
        await trio.sleep(2 * RELEASE_SECONDS)
        assert releases(client) == 1
        assert open_files(world, client) == 1
        assert data_mode(world, client, b"file") is TokenMode.EXCLUSIVE
        await client.write(number, 0, b"jelly")
        theirs = await other.open(b"file")
        assert await other.read(theirs, 0, 5) == b"jelly"
        await client.close(number)
        await other.close(theirs)


async def cut(client: Client, seconds: float) -> None:
    """The client has no connection for so long, and then one again."""
    client.connector.reachable = False
    client.connector.cut()
    await trio.sleep(seconds)
    client.connector.reachable = True
    while not client.remote.session.connected:  # noqa: ASYNC110 - nothing tells of it but the log
        await trio.sleep(0.05)


async def test_closes_that_wait_are_dropped_with_their_session(caplog: pytest.LogCaptureFixture) -> None:
    async with rig(lease_seconds=LEASE) as world:
        (client,) = world.clients
        number = await make(client, b"file")
        await client.fs.files.flush(number)
        session, before = client.remote.session, client.owner.on_fenced
        dropped: list[tuple[m.Closed, ...]] = []

        def fenced() -> None:
            dropped.append(session.closes.pending)
            before()

        client.owner.on_fenced = fenced
        world.service.sessions[session.session_id].end("for the test")
        client.fs.files.release(number)
        assert len(session.closes.pending) == 1
        client.connector.cut()
        await trio.sleep(1)
        assert dropped == [()], "before anything else of the new session"
        assert session.session_id in world.service.sessions
        assert releases(client) == 0
        assert "the peer failed" not in caplog.text


@pytest.mark.parametrize("down_seconds", [0.0, 1.0])
async def test_a_restarted_server_is_not_told_of_closes_of_the_last_epoch(
    caplog: pytest.LogCaptureFixture, down_seconds: float
) -> None:
    async with rig(lease_seconds=LEASE) as world:
        (client,) = world.clients
        kept, number = await make(client, b"kept"), await make(client, b"file")
        await client.close(number)
        assert len(client.remote.session.closes.pending) == 1
        world.server.kill()
        await trio.sleep(down_seconds)
        await world.server.restart()
        await trio.sleep(LEASE)
        assert open_files(world, client) == 1
        assert data_mode(world, client, b"file") is TokenMode.SHARED
        assert data_mode(world, client, b"kept") is TokenMode.EXCLUSIVE
        assert [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR] == []
        assert "the peer failed" not in caplog.text
        await client.close(kept)
        await trio.sleep(2 * RELEASE_SECONDS)
        assert open_files(world, client) == 0


async def test_a_close_that_is_told_over_the_next_connection_is_told_once() -> None:
    async with rig(lease_seconds=LEASE) as world:
        (client,) = world.clients
        await client.close(await make(client, b"file"))
        await cut(client, 1.0)
        await trio.sleep(1)
        assert releases(client) == 1
        assert open_files(world, client) == 0


async def test_nothing_is_told_after_goodbye(caplog: pytest.LogCaptureFixture) -> None:
    async with rig() as world:
        (client,) = world.clients
        number = await make(client, b"file")
        await client.close(number)
        await client.remote.session.goodbye()
        await trio.sleep(2 * RELEASE_SECONDS)
        assert world.service.sessions == {}
        assert releases(client) == 0
        assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []


async def test_a_file_that_is_closed_while_a_recall_opens_it_on_the_server_is_closed_there_too() -> None:
    """Found by reading: the server kept it open for the rest of the session, and could not free what was
    unlinked."""
    async with rig(2, link_seconds=lambda: 0.01) as world:
        world.make_file(b"file", b"x" * 100)
        client, other = world.clients
        node = await client.node(b"file")
        await client.close(await client.open(b"file"))
        number = await client.fs.files.open(node, os.O_RDONLY)
        assert client.file(number).open_ids == [], "it was opened under tokens"
        await trio.sleep(1)
        assert open_files(world, client) == 0
        writing = await other.open(b"file", os.O_RDWR)
        async with trio.open_nursery() as nursery:
            with client.asks("Open"):
                nursery.start_soon(other.write, writing, 0, b"y")
                await trio.sleep(0.025)  # there and back, and half of the way to the server
            client.fs.files.release(number)
        await trio.sleep(1)
        assert open_files(world, client) == 0
