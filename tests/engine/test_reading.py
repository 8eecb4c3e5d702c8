"""Reads: what comes from the server is used under the token it came with, or not at all."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from nfsfuse.engine.filesystem import CacheOptions
from nfsfuse.machines.blocks import BLOCK_SIZE
from nfsfuse.machines.data_tokens import Phase
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.messages import Message
from nfsfuse.protocol.tokens import Resource, Token, TokenMode
from nfsfuse.protocol.types import PAGE_SIZE
from tests.helpers.fake_kernel import LONE_FILE, reader_of_a_file, rig


class Server:
    """Answers reads with *content*, and grants what is asked for. *on_reply* is called after each reply has
    been applied, before whoever asked runs."""

    def __init__(self) -> None:
        self.content = b""
        self.reads = 0
        self.on_reply: Callable[[], None] = lambda: None

    async def call(self, message: Any, payload: Any = b"", apply: Any = None) -> Any:
        assert isinstance(message, m.Read), message
        self.reads += 1
        assert self.reads < 10, "it reads for ever"
        content = bytearray(self.content)
        token = Token(LONE_FILE, Resource.DATA, 0, PAGE_SIZE, message.mode)
        reply = m.Data((token,) if message.mode is not TokenMode.NONE else (), None)
        await trio.lowlevel.checkpoint()
        apply(reply, content)
        self.on_reply()
        return reply, content

    def post(self, message: Message) -> None:
        raise AssertionError(message)

    def leased(self, *, finishing: bool = False) -> bool:
        return True

    async def until_leased(self) -> None:
        """The lease always runs."""


async def test_what_came_before_a_recall_is_not_used_after_it() -> None:
    """The recall was in its last invalidation when the data came, which ended before the reader ran. Then a
    write of this client had the pages granted again: the reader finds them held, and what it has is old."""
    server = Server()
    reader, file = reader_of_a_file(server)
    file.tokens.granted(0, PAGE_SIZE, TokenMode.EXCLUSIVE)
    recall = file.tokens.revoke(0, PAGE_SIZE, TokenMode.NONE)
    recall.phase = Phase.INVALIDATING
    server.content = b"old!" * 1024
    server.on_reply = lambda: operator.setitem(recall.returned, 0, 1)
    found: list[bytes] = []

    async def read() -> None:
        found.append(bytes(await reader.read(file, 0, 3, cached=True)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        assert server.reads == 1
        server.on_reply = lambda: None
        server.content = b"new!" * 1024  # by the client that has the pages now
        file.tokens.in_kernel.clear()
        file.tokens.reduce(0, PAGE_SIZE, TokenMode.NONE)
        file.changes(0, PAGE_SIZE)
        file.tokens.revoked(recall)
        file.tokens.granted(0, PAGE_SIZE, TokenMode.EXCLUSIVE)
        file.wake()
    assert found == [b"new"]
    assert server.reads == 2


@pytest.mark.usefixtures("autojump_clock")
async def test_a_read_of_more_than_the_cache_has_room_for_comes_to_an_end() -> None:
    """Found by the simulator: what came was put into the cache beside a valid block, which that, and then the
    first of what came, had to leave for the rest. So it was asked for again, for ever."""
    size = 3 * BLOCK_SIZE
    options = CacheOptions(BLOCK_SIZE, BLOCK_SIZE, guard=True)
    async with rig(1, options=options, link_seconds=lambda: 0.001) as world:
        world.make_file(b"file", b"old" * BLOCK_SIZE)
        (client,) = world.clients
        number = await client.open(b"file", os.O_RDWR)
        await client.write(number, BLOCK_SIZE + 7, b"new")
        await client.fs.files.fsync(number, False)
        with trio.fail_after(1):
            found = bytes(await client.fs.files.read(number, 0, size, cached=False))
        expected = bytearray(b"old" * BLOCK_SIZE)
        expected[BLOCK_SIZE + 7 : BLOCK_SIZE + 10] = b"new"
        assert found == expected
