"""The numbered frames: kept until acknowledged, and each once and in order over any number of connections."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from nfsfuse.protocol.errors import ProtocolError
from nfsfuse.protocol.limits import ACKNOWLEDGE_BYTES, ACKNOWLEDGE_FRAMES
from nfsfuse.protocol.messages import Message, ReadLink, Target
from nfsfuse.protocol.types import InodeHandle
from nfsfuse.rpc.channel import Channel
from nfsfuse.rpc.exchange import Exchange, RequestArrived
from nfsfuse.rpc.link import Link
from nfsfuse.rpc.sequence import FrameSequence
from nfsfuse.rpc.streams import ConnectionLost
from tests.helpers.streams import memory_stream_pair


def headers(sequence: FrameSequence) -> list[bytes]:
    return [frame.header for frame in sequence.unacknowledged()]


def test_what_is_acknowledged_is_kept_no_longer():
    sequence = FrameSequence()
    for number in range(1, 5):
        assert sequence.send(b"%d" % number, b"x" * number, float(number)) == number
    assert sequence.kept_bytes == 4 + 10
    assert sequence.acknowledge(0) is None
    assert sequence.acknowledge(3) == 3.0, "when the newest of them was sent"
    assert sequence.acknowledge(3) is None
    assert headers(sequence) == [b"4"]
    assert sequence.kept_bytes == 5
    sequence.check()


@pytest.mark.parametrize("count", [1, 4, -1])
def test_what_cannot_have_been_received_is_refused(count: int):
    sequence = FrameSequence()
    for _ in range(3):
        sequence.send(b"h", b"", 0.0)
    sequence.acknowledge(2)
    with pytest.raises(ProtocolError, match="acknowledged"):
        sequence.acknowledge(count)


def test_an_acknowledgement_is_owed_for_many_frames_or_bytes_that_no_other_frame_told_of():
    sequence = FrameSequence()
    for _ in range(ACKNOWLEDGE_FRAMES - 1):
        sequence.receive(1)
    assert not sequence.owes_acknowledgement()
    assert sequence.tell() == ACKNOWLEDGE_FRAMES - 1
    for _ in range(ACKNOWLEDGE_FRAMES):
        sequence.receive(1)
    assert sequence.owes_acknowledgement()
    sequence.tell()
    sequence.receive(ACKNOWLEDGE_BYTES)
    assert sequence.owes_acknowledgement()
    sequence.tell()
    assert not sequence.owes_acknowledgement()


@given(st.lists(st.sampled_from(["send", "deliver", "tell", "cut"]), max_size=200))
def test_every_frame_arrives_once_and_in_order(steps):
    """One direction; what is under way when it is cut is lost, and what the peer told last may be, too."""
    sender, receiver = FrameSequence(), FrameSequence()
    under_way: list[bytes] = []
    arrived: list[bytes] = []
    for step in steps:
        match step:
            case "send":
                header = b"%d" % (sender.sent + 1)
                sender.send(header, b"", 0.0)
                under_way.append(header)
            case "deliver" if under_way:
                receiver.receive(1)
                arrived.append(under_way.pop(0))
            case "tell":
                sender.acknowledge(receiver.tell())
            case "cut":
                sender.acknowledge(receiver.received)
                under_way = headers(sender)
        sender.check()
        receiver.check()
    assert arrived + under_way == [b"%d" % number for number in range(1, sender.sent + 1)]


# --- whole channels, cut anywhere ---


MAY_ASK: frozenset[type[Message]] = frozenset({ReadLink})


class Peer:
    """One side: what it was asked, in order, and what it was answered."""

    def __init__(self) -> None:
        self.arrived: list[bytes] = []
        self.answered: list[int] = []
        self.channel = Channel(Exchange(MAY_ASK), self._on_request)

    def _on_request(self, event: RequestArrived) -> None:
        assert isinstance(event.message, ReadLink)
        handle = bytes(event.message.handle)
        self.arrived.append(handle)
        self.channel.reply(event.id, Target(handle), b"p" * (len(handle) * 4))

    async def ask(self, number: int, size: int) -> None:
        handle = b"%06d" % number + b"." * size
        reply, payload = await self.channel.call(ReadLink(InodeHandle(handle)))
        assert reply.target == handle
        assert payload == b"p" * (len(handle) * 4)
        self.answered.append(number)


@pytest.mark.parametrize("seed", range(25))
def test_channels_that_are_cut_after_any_byte_deliver_each_frame_once_and_in_order(seed: int):
    draw = random.Random(seed)
    sides: list[Peer] = []
    calls = 40

    async def serve(side: Peer, link: Link, received: int) -> None:
        with suppress(ConnectionLost):  # which is what this is about
            side.channel.attach(link, received)
            await side.channel.serve(link)

    async def connect_for_ever(one: Peer, other: Peer) -> None:
        while True:
            ends = memory_stream_pair(draw.choice([7, 100, 5000]), there_seconds=0.01, back_seconds=0.02)
            for end in ends:
                end.cut_after = draw.randrange(1, draw.choice([60, 400, 4000]))
            links = [Link(end) for end in ends]
            counts = other.channel.frames_received, one.channel.frames_received
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve, one, links[0], counts[0])
                nursery.start_soon(serve, other, links[1], counts[1])
            one.channel.check()
            other.channel.check()

    async def main() -> None:
        one, other = Peer(), Peer()
        sides.extend((one, other))
        async with trio.open_nursery() as connecting:
            connecting.start_soon(connect_for_ever, one, other)
            async with trio.open_nursery() as nursery:
                for number in range(calls):
                    await trio.sleep(draw.random() * 0.02)
                    nursery.start_soon(one.ask, number, draw.randrange(30))
                    nursery.start_soon(other.ask, number, draw.randrange(30))
            connecting.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))
    one, other = sides
    for asked, asker in ((other.arrived, one), (one.arrived, other)):
        assert sorted(asker.answered) == list(range(calls)), "each answered once"
        assert [int(handle[:6]) for handle in asked] == list(range(calls)), "each asked once, in order"
