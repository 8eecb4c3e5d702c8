"""Last closes and accesses at the server: many in one request, each for itself."""

from __future__ import annotations

import errno
import os
from dataclasses import replace

import pytest
from trio.testing import wait_all_tasks_blocked

from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.limits import ACCESSES_MAX, RELEASES_MAX
from nfsfuse.protocol.tokens import RANGE_END, Resource, Token, TokenMode
from nfsfuse.protocol.types import ClientId, Credentials, InodeHandle, OpenId, SessionId
from nfsfuse_server.service.session import Session
from tests.helpers.service import Client, Serving, serving

pytestmark = pytest.mark.usefixtures("autojump_clock")

ME = Credentials(0, 0)
FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL
RESOURCES = (Resource.DATA, Resource.ATTR)


async def create(client: Client, name: bytes) -> m.Opened:
    opened, _ = await client.session.call(m.Create(client.root.handle, name, 0o644, FLAGS, ME))
    return opened


def shared(handle: InodeHandle) -> tuple[Token, ...]:
    return tuple(Token(handle, resource, 0, RANGE_END, TokenMode.SHARED) for resource in RESOURCES)


def held(server: Serving, client: Client, handle: InodeHandle) -> set[TokenMode]:
    """How the server believes that *client* holds data and attributes."""
    tokens = server.service.tokens.manager.tokens_of(client.session.session_id)
    return {token.mode for token in tokens if token.handle == handle and token.resource in RESOURCES}


def open_files(server: Serving, client: Client) -> dict[OpenId, InodeHandle]:
    return server.service.sessions[client.session.session_id].open_files


async def test_all_files_of_a_message_are_accessed_also_if_one_is_gone() -> None:
    async with serving() as server:
        client = await server.client()
        handles = [(await create(client, b"%d" % number)).node.handle for number in range(2)]
        before = [server.storage.getattr(handle) for handle in handles]
        await client.session.call(m.Accessed((handles[0], InodeHandle(b"no such"), handles[1])))
        after = [server.storage.getattr(handle) for handle in handles]
        for old, new in zip(before, after, strict=True):
            assert new.atime_ns > old.atime_ns
            assert new == replace(old, atime_ns=new.atime_ns)


async def test_too_many_accesses_end_the_session() -> None:
    async with serving() as server:
        client = await server.client()
        session_id = client.session.session_id
        client.session.post(m.Accessed((client.root.handle,) * (ACCESSES_MAX + 1)))
        await wait_all_tasks_blocked()
        assert session_id not in server.service.sessions


async def test_all_of_a_message_are_unpinned_and_give_back_their_tokens() -> None:
    async with serving() as server:
        client = await server.client()
        files = [await create(client, b"%d" % number) for number in range(3)]
        for number, file in enumerate(files):
            server.storage.unlink(client.root.handle, b"%d" % number)
            assert server.storage.getattr(file.node.handle).nlink == 0, "it is pinned"
        seen = client.session.channel.frames_received
        closed = [m.Closed(file.open_id, shared(file.node.handle), seen) for file in files]
        closed[1] = m.Closed(files[1].open_id)
        await client.session.call(m.Release(tuple(closed)))
        assert open_files(server, client) == {}
        assert server.storage.orphans() == []
        modes = [held(server, client, file.node.handle) for file in files]
        assert modes == [{TokenMode.SHARED}, {TokenMode.EXCLUSIVE}, {TokenMode.SHARED}]


async def test_one_that_is_not_open_does_not_keep_the_others() -> None:
    async with serving() as server:
        client = await server.client()
        files = [await create(client, b"%d" % number) for number in range(2)]
        kept = await create(client, b"kept")
        seen = client.session.channel.frames_received
        first, last = (m.Closed(file.open_id, shared(file.node.handle), seen) for file in files)
        for unknown in (OpenId(77), files[0].open_id):
            with pytest.raises(FsError) as caught:
                await client.session.call(m.Release((first, m.Closed(unknown), last)))
            assert caught.value.errno == errno.EBADF
            assert open_files(server, client) == {kept.open_id: kept.node.handle}
            assert [held(server, client, file.node.handle) for file in files] == [{TokenMode.SHARED}] * 2


async def test_each_gives_up_what_was_held_at_its_own_moment() -> None:
    """The second close comes after a grant that the first had not seen."""
    async with serving() as server:
        client = await server.client()
        one, two = await create(client, b"one"), await create(client, b"two")
        seen_of_both = client.session.channel.frames_received
        await client.session.call(m.Open(one.node.handle, os.O_RDWR, True))
        later = client.session.channel.frames_received
        third = await create(client, b"three")
        closed = (
            m.Closed(one.open_id, shared(one.node.handle), seen_of_both),
            m.Closed(two.open_id, shared(two.node.handle), later),
            m.Closed(third.open_id, shared(third.node.handle), client.session.channel.frames_received),
        )
        await client.session.call(m.Release(closed))
        assert held(server, client, one.node.handle) == {TokenMode.EXCLUSIVE}
        assert held(server, client, two.node.handle) == {TokenMode.SHARED}
        assert held(server, client, third.node.handle) == {TokenMode.SHARED}


async def test_too_many_in_one_message_end_the_session() -> None:
    async with serving() as server:
        client = await server.client()
        session_id = client.session.session_id
        client.session.post(m.Release((m.Closed(OpenId(1)),) * (RELEASES_MAX + 1)))
        await wait_all_tasks_blocked()
        assert session_id not in server.service.sessions


async def test_a_close_that_is_told_late_gives_up_nothing_that_is_being_granted() -> None:
    """Its data are granted already, its attributes still held by another: the reply is not queued."""
    async with serving() as server:
        client, other = await server.client(), await server.client()
        recalls = []
        other.owner.on_recall = lambda recall, acknowledge: recalls.append(acknowledge)
        client.owner.on_recall = lambda recall, acknowledge: acknowledge(m.Recalled(()))
        file = await create(client, b"file")
        handle = file.node.handle
        seen = client.session.channel.frames_received
        await other.session.call(m.GetToken(handle, TokenMode.NONE, 0, RANGE_END, TokenMode.EXCLUSIVE))
        client.session.post(m.Open(handle, os.O_RDWR, True))
        await wait_all_tasks_blocked()
        assert len(recalls) == 1
        client.session.post(m.Release((m.Closed(file.open_id, shared(handle), seen),)))
        await wait_all_tasks_blocked()
        recalls.pop()(m.Recalled(()))
        await wait_all_tasks_blocked()
        tokens = server.service.tokens.manager.tokens_of(client.session.session_id)
        data = {token.mode for token in tokens if token.resource is Resource.DATA}
        assert data == {TokenMode.EXCLUSIVE}, "as the reply says"
        server.service.tokens.check()


class _Frames:
    """A channel, as far as grants are counted by it."""

    def __init__(self) -> None:
        self.frames_sent = 0


async def test_what_was_given_up_before_something_else_may_be_told_after_it() -> None:
    session = Session(SessionId(b"s"), ClientId(b"c"), "client")
    channel = _Frames()
    session.channel = channel  # type: ignore[assignment]
    early, late = InodeHandle(b"early"), InodeHandle(b"late")
    for number, handle in enumerate((early, late), 1):
        channel.frames_sent = number
        session.granted(handle)
    assert session.knows_of_grants(late, 2)
    assert not session.knows_of_grants(late, 1), "it gave that up before it was granted"
    assert session.knows_of_grants(early, 2)
