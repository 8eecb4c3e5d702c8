"""Reads: what comes from the server is used under the token it came with, or not at all."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import trio
import trio.testing

from nfsfuse.machines.data_tokens import Phase
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.messages import Message
from nfsfuse.protocol.tokens import Resource, Token, TokenMode
from nfsfuse.protocol.types import PAGE_SIZE
from tests.helpers.fake_kernel import LONE_FILE, reader_of_a_file


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
