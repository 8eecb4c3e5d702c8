"""SocketByteStream over real sockets, TCP and Unix; and a channel over them."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nfsfuse.protocol.limits import PAYLOAD_SIZE_MAX
from nfsfuse.protocol.messages import Message, ReadLink, Target
from nfsfuse.protocol.types import InodeHandle
from nfsfuse.rpc.address import TcpAddress, UnixAddress, connect
from nfsfuse.rpc.channel import Channel
from nfsfuse.rpc.exchange import Exchange, RequestArrived
from nfsfuse.rpc.link import Link
from nfsfuse.rpc.streams import (
    IOVEC_COUNT_MAX,
    RECEIVES_WITHOUT_YIELD_MAX,
    ConnectionLost,
    SocketByteStream,
)

FAMILIES = ["tcp", "unix"]
pytestmark = pytest.mark.parametrize("family", FAMILIES)


@asynccontextmanager
async def pair(family: str, tmp_path) -> AsyncIterator[tuple[socket.socket, socket.socket]]:
    """Two connected sockets, closed at the end; nothing may take longer than seconds."""
    with (
        trio.fail_after(20),
        socket.socket(socket.AF_UNIX if family == "unix" else socket.AF_INET) as listener,
    ):
        listener.bind(str(tmp_path / "socket") if family == "unix" else ("127.0.0.1", 0))
        listener.listen()
        name = listener.getsockname()
        one = await connect(UnixAddress(name) if family == "unix" else TcpAddress(*name))
        other, _ = listener.accept()
        with one, other:
            yield one, other


async def send_all(stream: SocketByteStream, buffers: list[memoryview]) -> None:
    while buffers:
        sent = stream.try_send(buffers)
        if sent == 0:
            await stream.wait_sendable()
        while buffers and sent >= len(buffers[0]):
            sent -= len(buffers.pop(0))
        if sent:
            buffers[0] = buffers[0][sent:]


async def receive_all(stream: SocketByteStream, piece: int = 100_000) -> bytes:
    got, buffer = bytearray(), memoryview(bytearray(piece))
    while count := await stream.receive_into(buffer):
        got += buffer[:count]
    return bytes(got)


@pytest.mark.parametrize("piece", [1000, 1 << 20])
async def test_much_data_in_many_buffers_arrives_as_it_was_sent(family, tmp_path, piece):
    content = bytes(range(251)) * 40_000
    cuts = [0, 1, 2, 1000, 5_000_000, *range(6_000_000, 6_000_000 + 3 * IOVEC_COUNT_MAX), len(content)]
    buffers = [memoryview(content)[start:end] for start, end in pairwise(cuts)]
    got: list[bytes] = []
    async with pair(family, tmp_path) as (first, second):
        one, other = SocketByteStream(first), SocketByteStream(second)

        async def receive() -> None:
            got.append(await receive_all(other, piece))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await send_all(one, buffers)
            one.close()
    assert got == [content]


async def test_a_full_socket_takes_nothing_and_then_again_something(family, tmp_path):
    async with pair(family, tmp_path) as (first, second):
        one, other = SocketByteStream(first), SocketByteStream(second)
        while one.try_send([bytes(100_000)]):
            pass
        sendable = trio.Event()

        async def wait() -> None:
            await one.wait_sendable()
            sendable.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            assert not sendable.is_set()
            nursery.start_soon(receive_all, other)
            await sendable.wait()
            assert one.try_send([b"more"]) > 0
            nursery.cancel_scope.cancel()


async def send_for_ever(stream: SocketByteStream, buffers: list[bytes]) -> None:
    while True:
        stream.try_send(buffers)
        await stream.wait_sendable()


async def test_a_peer_that_closes_is_the_end_and_then_a_broken_pipe(family, tmp_path):
    async with pair(family, tmp_path) as (first, second):
        one, other = SocketByteStream(first), SocketByteStream(second)
        other.try_send([b"last words"])
        other.close()
        assert await receive_all(one) == b"last words"
        assert await one.receive_into(memoryview(bytearray(1))) == 0
        for buffers in ([b"anybody?"], [b"anybody?", b"nobody"]):
            with pytest.raises(ConnectionLost):
                await send_for_ever(one, buffers)  # TCP learns from the answer to the first


async def test_a_reset_by_the_peer_is_lost(family, tmp_path):
    async with pair(family, tmp_path) as (first, second):
        one, other = SocketByteStream(first), SocketByteStream(second)
        one.try_send([b"never read"])
        await trio.lowlevel.wait_readable(second)
        other.close()  # with unread data: a reset
        with pytest.raises(ConnectionLost, match="reset"):
            await one.receive_into(memoryview(bytearray(10)))


async def test_what_arrived_before_a_failed_send_is_still_received(family, tmp_path):
    async with pair(family, tmp_path) as (first, second):
        one, other = SocketByteStream(first), SocketByteStream(second)
        other.try_send([b"done"])
        await trio.lowlevel.wait_readable(first)
        first.shutdown(socket.SHUT_WR)
        with pytest.raises(ConnectionLost, match=r"[Bb]roken pipe"):
            one.try_send([b"x"])
        assert await receive_all(one) == b"done"


async def test_close_wakes_whoever_waits_and_ends_every_method(family, tmp_path):
    lost: list[str] = []

    async def loses(method, *arguments) -> None:
        with pytest.raises(ConnectionLost, match=r"^closed$"):
            await method(*arguments)
        lost.append(method.__name__)

    async with pair(family, tmp_path) as (first, second):
        one = SocketByteStream(first)
        SocketByteStream(second)
        while one.try_send([bytes(100_000)]):
            pass
        async with trio.open_nursery() as nursery:
            nursery.start_soon(loses, one.receive_into, memoryview(bytearray(10)))
            nursery.start_soon(loses, one.wait_sendable)
            await wait_all_tasks_blocked()
            assert lost == []
            one.close()
        one.close()
        assert sorted(lost) == ["receive_into", "wait_sendable"]
        await loses(one.receive_into, memoryview(bytearray(10)))
        await loses(one.wait_sendable)
        for buffers in ([b"x"], [b"x", b"y"]):
            with pytest.raises(ConnectionLost, match=r"^closed$"):
                one.try_send(buffers)


async def test_a_busy_stream_lets_others_run(family, tmp_path):
    async with pair(family, tmp_path) as (first, second):
        one, other = SocketByteStream(first), SocketByteStream(second)
        other.try_send([bytes(100 * RECEIVES_WITHOUT_YIELD_MAX)])
        turns = 0

        async def count_turns() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(count_turns)
            await wait_for_some(one)
            before = turns
            for _ in range(90 * RECEIVES_WITHOUT_YIELD_MAX):
                assert await one.receive_into(memoryview(bytearray(1))) == 1
            assert turns - before >= 80
            nursery.cancel_scope.cancel()


async def wait_for_some(stream: SocketByteStream) -> None:
    assert await stream.receive_into(memoryview(bytearray(1))) == 1


async def test_a_channel_carries_the_largest_payloads_both_ways_at_once(family, tmp_path):
    may_ask: frozenset[type[Message]] = frozenset({ReadLink})
    content = bytes(range(256)) * (PAYLOAD_SIZE_MAX // 256)

    def answer(side: int, event: RequestArrived) -> None:
        assert event.payload == content
        channels[side].reply(event.id, Target(b""), event.payload)

    async def ask(channel: Channel) -> None:
        for _ in range(3):
            _, payload = await channel.call(ReadLink(InodeHandle(b"")), content)
            assert payload == content

    async def run_until_lost(channel: Channel) -> None:
        try:
            link = links[channels.index(channel)]
            channel.attach(link, 0)
            await channel.serve(link)
        except ConnectionLost:
            assert channel is channels[0], "the other end sees an ordinary end"

    async with pair(family, tmp_path) as sockets:
        links = [Link(SocketByteStream(sock)) for sock in sockets]
        channels = [
            Channel(Exchange(may_ask), partial(answer, side))
            for side, sock in enumerate(sockets)
        ]
        async with trio.open_nursery() as nursery:
            for channel in channels:
                nursery.start_soon(run_until_lost, channel)
            async with trio.open_nursery() as asking:
                for channel in channels * 2:
                    asking.start_soon(ask, channel)
            links[0].close()
    assert not any(channel.connected for channel in channels)
