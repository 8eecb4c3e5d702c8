"""Reads for that no task waits: answered where their pages arrive, or given up."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import trio
import trio.testing

from nfsfuse.engine import request_gate
from nfsfuse.engine.cached_file import CachedFile
from nfsfuse.engine.reading import ReadData
from nfsfuse.machines.data_tokens import Phase, Revocation
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.tokens import Resource, Token, TokenMode
from nfsfuse.protocol.types import PAGE_SIZE
from tests.helpers.fake_kernel import LONE_FILE, contended, reader_of_a_file, rig

pytestmark = pytest.mark.usefixtures("autojump_clock")

P = PAGE_SIZE


class Results(list[bytes | Exception]):
    """What reads have come to."""

    def take(self, result: ReadData | Exception) -> None:
        self.append(result if isinstance(result, Exception) else bytes(result))


async def test_a_page_of_another_client_is_answered_where_it_arrives() -> None:
    async with rig(2, link_seconds=lambda: 0.1) as world:
        world.make_file(b"file", b"x" * 4 * P)
        one, other = world.clients
        writing, reading = await one.open(b"file", os.O_RDWR), await other.open(b"file")
        await one.write(writing, 0, b"written")
        results = Results()
        with other.asks("Read"):
            assert other.fs.files.read_at_once(reading, 0, P, cached=True) is None
            assert other.fs.files.read_later(reading, 0, P, 0, results.take) is not None
            assert results == []
            await trio.sleep(1)
        assert results == [b"written" + b"x" * (P - 7)]
        tokens = other.file(reading).tokens
        assert tokens.in_kernel.intervals() == [(0, P)], "K1"
        assert not tokens._entitled
        assert not tokens._reads
        assert not other.file(reading).fetches
        with one.asks("GetToken"), trio.fail_after(5):
            await one.write(writing, 0, b"again")


async def test_a_read_that_is_given_up_is_not_answered_and_keeps_no_page() -> None:
    crossed = 0
    for milliseconds in range(50, 700, 50):
        async with rig(2, link_seconds=lambda: 0.1) as world:
            one, number, other, elsewhere = await contended(world)
            results = Results()
            give_up = other.fs.files.read_later(elsewhere, 0, P, 0, results.take)
            assert give_up is not None
            await trio.sleep(milliseconds / 1000)
            answered = bool(results)
            give_up()
            await trio.sleep(1)  # until everything has arrived
            assert bool(results) == answered
            tokens = other.file(elsewhere).tokens
            assert not tokens._reads
            crossed += bool(tokens.held) and not answered
            with trio.fail_after(5):
                assert await one.read(number, 0, 3) == b"one"
    assert crossed


async def test_a_read_of_what_is_being_recalled_or_has_no_room_does_not_begin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with rig() as world:
        world.make_file(b"file", b"x" * 4 * P)
        client = world.clients[0]
        number = await client.open(b"file")
        tokens, results = client.file(number).tokens, Results()
        recall = tokens.revoke(0, P, TokenMode.NONE)
        recall.phase = Phase.CLOSED
        assert client.fs.files.read_later(number, 0, P, 0, results.take) is None
        recall.phase = Phase.INVALIDATING
        tokens.reduce(0, P, TokenMode.NONE)
        assert client.fs.files.read_later(number, 0, 2 * P, 0, results.take) is None, "across its edge"
        tokens.revoked(recall)
        monkeypatch.setattr(request_gate, "WAITING_MAX", 0)
        assert client.fs.files.read_later(number, 0, P, 0, results.take) is None
        assert results == []
        assert not tokens._reads


async def test_the_end_of_the_session_is_told() -> None:
    async with rig() as world:
        world.make_file(b"file", b"x" * 4 * P)
        client = world.clients[0]
        number = await client.open(b"file")
        results = Results()
        client.connector.mute()
        assert client.fs.files.read_later(number, 0, P, 0, results.take) is not None
        client.remote.session.channel.end("it is over")
        (failure,) = results
        assert isinstance(failure, FsError)
        assert failure.errno == errno.EIO
        assert client.fs.files.read_later(number, P, P, 0, results.take) is not None
        assert len(results) == 2
        assert not client.file(number).tokens._reads


class Server:
    """Answers when it is told to; whoever waits in a task is answered at once."""

    def __init__(self) -> None:
        self.content = b"old!" * (P // 4)
        self.asked: list[tuple[m.Read, Callable[..., None], Callable[[FsError], None]]] = []
        self.calls = 0

    def ask(self, message: Any, payload: Any, apply: Any, failed: Any) -> Callable[[], None]:
        self.asked.append((message, apply, failed))
        return lambda: None

    async def call(self, message: Any, payload: Any = b"", apply: Any = None) -> Any:
        self.calls += 1
        await trio.lowlevel.checkpoint()
        apply(*self.answer(message))

    def answer(self, message: m.Read) -> tuple[m.Data, bytearray]:
        granted = (Token(LONE_FILE, Resource.DATA, 0, P, message.mode),) if message.mode else ()
        return m.Data(granted, None), bytearray(self.content)

    def has_room(self) -> bool:
        return True

    def leased(self, *, finishing: bool = False) -> bool:
        return True


@dataclass(slots=True)
class Waiting:
    """A read of 4 bytes for that no task waits, and what is behind it. It goes on in a task of *nursery*."""

    server: Server
    file: CachedFile
    results: Results
    nursery: trio.Nursery
    give_up: Callable[[], None]


@asynccontextmanager
async def a_read_that_waits() -> AsyncIterator[Waiting]:
    """It has been answered at the end, or given up."""
    server, results = Server(), Results()
    reader, file = reader_of_a_file(server)
    async with trio.open_nursery() as nursery:
        reader.nursery = nursery
        give_up = reader.read_later(file, 0, 4, 0, results.take)
        assert give_up is not None
        yield Waiting(server, file, results, nursery, give_up)
    assert not file.tokens._reads


async def arrives_behind_a_recall(waiting: Waiting) -> Revocation:
    """What was asked for comes while a recall of it has all operations parked."""
    recall = waiting.file.tokens.revoke(0, P, TokenMode.NONE)
    recall.phase = Phase.CLOSED
    message, apply, _ = waiting.server.asked.pop()
    apply(*waiting.server.answer(message))
    await trio.testing.wait_all_tasks_blocked()
    return recall


async def test_what_arrives_behind_a_recall_is_asked_for_again_in_a_task() -> None:
    async with a_read_that_waits() as waiting:
        server, tokens = waiting.server, waiting.file.tokens
        recall = await arrives_behind_a_recall(waiting)
        assert waiting.results == []
        server.content = b"new!" * (P // 4)
        tokens.reduce(0, P, TokenMode.NONE)
        tokens.revoked(recall)
        waiting.file.wake()
        await trio.testing.wait_all_tasks_blocked()
        assert waiting.results == [b"new!"]
        assert server.calls == 1


async def test_what_the_server_does_not_hold_for_us_any_more_is_asked_for_again() -> None:
    async with a_read_that_waits() as waiting:
        waiting.server.asked.pop()[2](FsError(errno.EAGAIN))
    assert waiting.results == [b"old!"]


async def test_a_read_that_goes_on_in_a_task_can_be_given_up() -> None:
    async with a_read_that_waits() as waiting:
        await arrives_behind_a_recall(waiting)
        waiting.give_up()
    assert waiting.results == []


async def test_a_read_that_goes_on_in_a_task_is_told_of_the_end_of_the_mount() -> None:
    async with a_read_that_waits() as waiting:
        await arrives_behind_a_recall(waiting)
        waiting.nursery.cancel_scope.cancel()
    (failure,) = waiting.results
    assert isinstance(failure, FsError)
    assert failure.errno == errno.EIO
