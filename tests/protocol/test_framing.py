"""The frame reader: how the stream was cut into pieces makes no difference, and nothing strange gets in."""

from __future__ import annotations

import struct
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfsfuse.protocol.errors import ProtocolError
from nfsfuse.protocol.framing import BUFFER_SIZE, Frame, FrameReader, frame_prefix
from nfsfuse.protocol.limits import HEADER_SIZE_MAX, MAGIC, PAYLOAD_SIZE_MAX

INTERESTING_SIZES = [
    0, 1, 7, 8, 9, 300,
    BUFFER_SIZE - 17, BUFFER_SIZE - 16, BUFFER_SIZE - 9, BUFFER_SIZE - 8, BUFFER_SIZE - 7,
    BUFFER_SIZE - 1, BUFFER_SIZE, BUFFER_SIZE + 1, 2 * BUFFER_SIZE + 5,
]  # fmt: skip
SIZES = st.integers(0, 40) | st.sampled_from(INTERESTING_SIZES)
Sizes = list[tuple[int, int]]
"""Of the header and the payload of each frame, in bytes."""

FRAME_SIZES = st.lists(st.tuples(SIZES, SIZES), max_size=6)


def made(sizes: Iterable[tuple[int, int]]) -> list[Frame]:
    """A frame for each pair of header and payload size, all bytes different from their neighbours'."""
    cycle = bytes(range(251)) * (PAYLOAD_SIZE_MAX // 251 + 2)
    return [
        Frame(cycle[number : number + header], cycle[100 + number : 100 + number + payload], 7 * number)
        for number, (header, payload) in enumerate(sizes)
    ]


def on_the_wire(frames: Iterable[Frame]) -> bytes:
    parts: list[bytes | bytearray] = [MAGIC]
    for frame in frames:
        parts += [frame_prefix(frame.header, len(frame.payload), frame.received), frame.payload]
    return b"".join(parts)


def feed(reader: FrameReader, data: bytes, pieces: Iterable[int] = ()) -> list[Frame]:
    """Give *data* to *reader* in *pieces* bytes at a time, the rest in pieces as large as fit."""
    frames: list[Frame] = []
    pieces = iter(pieces)
    at = 0
    while at < len(data):
        buffer = reader.buffer()
        assert len(buffer) > 0, "no room would look like the end of the stream"
        piece = data[at : at + min(next(pieces, len(buffer)), len(buffer))]
        buffer[: len(piece)] = piece
        at += len(piece)
        frames += reader.received(len(piece))
    return frames


@given(FRAME_SIZES, st.lists(st.integers(1, 50) | st.sampled_from([8, 4096, BUFFER_SIZE]), max_size=60))
@settings(max_examples=300)
def test_any_chunking_gives_the_same_frames(sizes: Sizes, pieces: list[int]) -> None:
    frames = made(sizes)
    reader = FrameReader()
    assert feed(reader, on_the_wire(frames), pieces) == frames
    assert reader.at_boundary()


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 8, 9, 4095])
def test_even_chunking_gives_the_same_frames(piece: int) -> None:
    frames = made(
        [(5, 0), (0, 0), (0, 7), (300, 300), (BUFFER_SIZE - 8, 3), (BUFFER_SIZE + 3, BUFFER_SIZE + 3), (9, 1)]
    )
    data = on_the_wire(frames)
    assert feed(FrameReader(), data, [piece] * (len(data) // piece + 1)) == frames


@given(FRAME_SIZES.filter(bool), st.data())
def test_a_stream_that_ends_inside_a_frame_is_not_at_a_boundary(sizes: Sizes, data: st.DataObject) -> None:
    frames = made(sizes)
    wire = on_the_wire(frames)
    end = data.draw(st.integers(1, len(wire) - 1))
    boundaries = {len(on_the_wire(frames[:count])) for count in range(len(frames) + 1)}
    reader = FrameReader()
    whole = feed(reader, wire[:end])
    assert whole == frames[: len(whole)]
    assert reader.at_boundary() == (end in boundaries)


def test_a_stream_of_nothing_is_at_a_boundary() -> None:
    assert FrameReader().at_boundary()


@pytest.mark.parametrize(
    "sizes", [(HEADER_SIZE_MAX, 0), (0, PAYLOAD_SIZE_MAX), (HEADER_SIZE_MAX, PAYLOAD_SIZE_MAX)]
)
def test_the_largest_frames_pass_and_small_ones_after_them(sizes: tuple[int, int]) -> None:
    frames = made([(3, 3), sizes, sizes, (3, 3)])
    assert feed(FrameReader(), on_the_wire(frames)) == frames


@pytest.mark.parametrize(
    "sizes", [(HEADER_SIZE_MAX + 1, 0), (0, PAYLOAD_SIZE_MAX + 1), (2**32 - 1, 2**32 - 1)]
)
@pytest.mark.parametrize("piece", [1, BUFFER_SIZE])
def test_an_oversized_frame_is_refused_by_its_lengths_alone(sizes: tuple[int, int], piece: int) -> None:
    wire = MAGIC + struct.pack("<IIQ", *sizes, 0)
    reader = FrameReader()
    feed(reader, wire[:-1], [piece] * len(wire))
    with pytest.raises(ProtocolError, match="too large"):
        feed(reader, wire[-1:])


@pytest.mark.parametrize("sizes", [(HEADER_SIZE_MAX + 1, 0), (1, PAYLOAD_SIZE_MAX + 1)])
def test_an_oversized_frame_is_not_sent(sizes: tuple[int, int]) -> None:
    with pytest.raises(AssertionError):
        frame_prefix(bytes(sizes[0]), sizes[1])


@pytest.mark.parametrize(
    "stranger", [b"GET / HTTP/1.1\r\n", b"nfsfuse\0", b"NFSFUSE\n", b"\0" * 8, b"n" * 8, b"nfsfuze"]
)
@pytest.mark.parametrize("piece", [1, 2, 8, 100])
def test_a_stranger_is_refused_at_its_first_wrong_byte(stranger: bytes, piece: int) -> None:
    wrong = next(index for index, (got, due) in enumerate(zip(stranger, MAGIC, strict=False)) if got != due)
    reader = FrameReader()
    start = wrong - wrong % piece
    assert feed(reader, stranger[:start], [piece] * len(stranger)) == []
    with pytest.raises(ProtocolError, match="not an nfsfuse peer"):
        feed(reader, stranger[start : start + piece])


def test_a_payload_is_received_straight_into_its_buffer() -> None:
    size = BUFFER_SIZE * 3
    (frame,) = made([(10, size)])
    wire = on_the_wire([frame])
    before = len(wire) - size
    reader = FrameReader()
    assert feed(reader, wire[: before + 100]) == []
    assert len(reader.buffer()) == size - 100, "exactly what is missing of it, so nothing else gets in"
    target = reader.buffer().obj
    target_again = reader.buffer().obj
    assert feed(reader, wire[before + 100 : before + 5000]) == []
    (arrived,) = feed(reader, wire[before + 5000 :])
    assert arrived == frame
    assert arrived.payload is target is target_again, "no copy was made of it"
    assert reader.buffer().obj is not target, "the payload belongs to its receiver now"


def test_payloads_do_not_share_memory_with_what_comes_later() -> None:
    first, second = made([(4, 50), (4, 60)])
    reader = FrameReader()
    (arrived,) = feed(reader, on_the_wire([first]))
    feed(reader, on_the_wire([second])[len(MAGIC) :])
    assert arrived == first


def test_a_frame_of_nothing_is_an_acknowledgement() -> None:
    reader = FrameReader()
    (frame,) = feed(reader, MAGIC + frame_prefix(b"", 0, 2**63))
    assert frame == Frame(b"", b"", 2**63)
    assert reader.at_boundary()


def test_a_burst_of_small_frames_is_one_receive() -> None:
    frames = made([(12, 0)] * 1000)
    wire = on_the_wire(frames)
    assert len(wire) < BUFFER_SIZE
    reader = FrameReader()
    reader.buffer()[: len(wire)] = wire
    assert reader.received(len(wire)) == frames
