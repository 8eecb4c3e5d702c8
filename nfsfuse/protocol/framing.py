"""Frames on a byte stream, without the stream.

A connection begins with 8 bytes of MAGIC from each side. Then frames::

    u32 header size | u32 payload size | u64 received | header (msgpack) | payload (raw bytes)

little endian. *received* is how many numbered frames of the session its sender has received from the peer so
far, over all connections: the peer need not keep those any longer (`nfsfuse.rpc.sequence`). A frame of nothing
but that, both sizes 0, is an acknowledgement and not numbered itself. The payload is file data: it is received
straight into a buffer of its own and never passes through msgpack. `FrameReader` says where the next bytes
should be put (`buffer`) and is told how many came (`received`), so that whoever owns the socket can use
recv_into(2).
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from nfsfuse.protocol.errors import ProtocolError
from nfsfuse.protocol.limits import HEADER_SIZE_MAX, MAGIC, PAYLOAD_SIZE_MAX

_PREFIX: Final = struct.Struct("<IIQ")
PREFIX_SIZE: Final = _PREFIX.size
"""Bytes of a frame before its header."""

Payload = bytes | bytearray | memoryview
"""File data to be sent, or nothing."""

BUFFER_SIZE: Final = 64 * 1024
"""Bytes read ahead of parsing: a burst of small frames costs one system call, and of a large
payload little is copied."""


class Frame(NamedTuple):
    """One frame as it arrived. *payload* belongs to the receiver alone; *received* is what the sender had
    received by then."""

    header: bytes
    payload: bytearray | bytes
    received: int = 0


def frame_prefix(header: bytes, payload_size: int, received: int = 0) -> bytes:
    """What goes on the wire before the payload."""
    assert len(header) <= HEADER_SIZE_MAX, len(header)
    assert payload_size <= PAYLOAD_SIZE_MAX, payload_size
    return _PREFIX.pack(len(header), payload_size, received) + header


class FrameReader:
    """Cuts a stream of bytes into frames. After a ProtocolError it must not be used again."""

    def __init__(self) -> None:
        self._buffer = memoryview(bytearray(BUFFER_SIZE))
        self._start = 0  # of what is not yet parsed
        self._end = 0
        self._greeted = False
        self._header: bytes | None = None  # of the frame whose payload is being received
        self._acknowledged = 0  # by that frame
        self._payload = bytearray()
        self._payload_filled = 0

    def buffer(self) -> memoryview:
        """Where the next bytes received belong; never empty."""
        if self._header is not None:
            return memoryview(self._payload)[self._payload_filled :]
        if self._start == self._end:
            self._start = self._end = 0
        elif self._start > 0 and self._end == len(self._buffer):
            self._buffer[: self._end - self._start] = bytes(self._buffer[self._start : self._end])
            self._start, self._end = 0, self._end - self._start
        return self._buffer[self._end :]

    def received(self, count: int) -> list[Frame]:
        """*count* bytes were put into `buffer`: the frames that are complete with them."""
        if self._header is not None:
            self._payload_filled += count
            if self._payload_filled < len(self._payload):
                return []
            frame = Frame(self._header, self._payload, self._acknowledged)
            self._header, self._payload = None, bytearray()
            return [frame]
        self._end += count
        return self._complete() if self._greeted or self._greet() else []

    def at_boundary(self) -> bool:
        """Whether the stream may end here without cutting a frame in two."""
        return self._header is None and self._start == self._end

    def _greet(self) -> bool:
        got = bytes(self._buffer[self._start : min(self._end, self._start + len(MAGIC))])
        if not MAGIC.startswith(got):
            raise ProtocolError(f"this is not an nfsfuse peer: it began with {got!r}")
        if len(got) < len(MAGIC):
            return False
        self._start += len(MAGIC)
        self._greeted = True
        return True

    def _complete(self) -> list[Frame]:
        """The frames that are complete; of the next one, what is there of its payload is put in place."""
        frames: list[Frame] = []
        buffer, start, end = self._buffer, self._start, self._end
        while end - start >= PREFIX_SIZE:
            header_size, payload_size, acknowledged = _PREFIX.unpack_from(buffer, start)
            if header_size > HEADER_SIZE_MAX or payload_size > PAYLOAD_SIZE_MAX:
                raise ProtocolError(f"frame too large: header {header_size}, payload {payload_size} bytes")
            at = start + PREFIX_SIZE + header_size
            if at > end:
                self._start = start
                self._make_room(PREFIX_SIZE + header_size)
                return frames
            header = bytes(buffer[start + PREFIX_SIZE : at])
            start = at + payload_size
            if start <= end:
                payload = bytearray(buffer[at:start]) if payload_size else b""
                frames.append(Frame(header, payload, acknowledged))
            else:
                self._header, self._acknowledged = header, acknowledged
                self._payload, self._payload_filled = bytearray(payload_size), end - at
                self._payload[: end - at] = buffer[at:end]
                start = end
        self._start = start
        return frames

    def _make_room(self, size: int) -> None:
        """Let a header larger than the buffer fit; it shrinks again with the next connection only, as
        listings come in bursts."""
        if self._start + size > len(self._buffer):
            held = bytes(self._buffer[self._start : self._end])
            if size > len(self._buffer):
                self._buffer = memoryview(bytearray(size + BUFFER_SIZE))
            self._buffer[: len(held)] = held
            self._start, self._end = 0, len(held)
