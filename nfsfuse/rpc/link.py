"""One connection: frames over a `ByteStream`.

Sending never waits: what the socket does not take at once is queued in order and sent by a task of the link
(`send_queued`); who produces much waits in `writable` first.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Final

import trio

from nfsfuse.protocol.framing import Frame, FrameReader, Payload
from nfsfuse.protocol.limits import MAGIC
from nfsfuse.rpc.streams import IOVEC_COUNT_MAX, ByteStream, ConnectionLost

QUEUED_BYTES_MAX: Final = 8 << 20
"""Bytes queued for sending above which `writable` waits: two of the largest frames each way."""


class Link:
    """A stream, which belongs to it from now on, cut into frames."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._reader = FrameReader()
        self._unread: list[Frame] = []
        self._queue: deque[memoryview] = deque()
        self._more_to_send = trio.Event()
        self._drained = trio.Event()
        self.queued_bytes = 0
        self.closed = False
        self.failure: ConnectionLost | None = None
        """Why a send failed. The reader meets the end too, but perhaps without the reason: the kernel reports
        an error of a socket only once."""
        self.send([MAGIC])

    # --- receiving ---

    async def receive(self) -> list[Frame] | None:
        """Frames, perhaps none yet, but something has arrived; None at the end of the stream. Raises
        ConnectionLost if that is inside a frame, and ProtocolError."""
        if self._unread:
            frames, self._unread = self._unread, []
            return frames
        count = await self._stream.receive_into(self._reader.buffer())
        if count == 0:
            if not self._reader.at_boundary():
                # A killed peer's kernel ends the stream anywhere: nothing the peer did wrong.
                raise ConnectionLost("the stream ended inside a frame")
            return None
        return self._reader.received(count)

    async def receive_one(self) -> Frame:
        """The next frame by itself. Raises ConnectionLost at the end of the stream, and ProtocolError."""
        while True:
            frames = await self.receive()
            if frames is None:
                raise ConnectionLost("closed by the peer")
            if frames:
                self._unread = frames[1:]
                return frames[0]

    # --- sending ---

    def send(self, parts: list[Payload]) -> None:
        """Send *parts*, after what was sent before. Does nothing once the link is broken or closed."""
        if self.closed or self.failure is not None:
            return
        if self._queue:
            self._enqueue([memoryview(part) for part in parts])
            return
        try:
            sent = self._stream.try_send(parts)
        except ConnectionLost as exc:
            self.failure = exc.alone()
            return
        if sent < sum(map(len, parts)):
            self._enqueue(_after([memoryview(part) for part in parts], sent))

    async def writable(self) -> None:
        """Wait while too much is queued for sending; not longer than the link lasts."""
        while self.queued_bytes > QUEUED_BYTES_MAX and not self.closed:
            if self._drained.is_set():  # else others wait for it already
                self._drained = trio.Event()
            await self._drained.wait()

    async def flush(self) -> None:
        """Send what is queued now. Raises ConnectionLost."""
        if self.failure is not None:
            raise self.failure.alone()
        while self._queue:
            await self._stream.wait_sendable()
            self._sent(self._stream.try_send(list(islice(self._queue, IOVEC_COUNT_MAX))))

    async def send_queued(self) -> None:
        """Send what is queued, as it comes, until cancelled. Raises ConnectionLost."""
        while True:
            await self._more_to_send.wait()
            self._more_to_send = trio.Event()
            await self.flush()

    def close(self) -> None:
        """End it now; idempotent."""
        self.closed = True
        self._stream.close()
        self._queue.clear()
        self.queued_bytes = 0
        self._drained.set()

    def _enqueue(self, views: list[memoryview]) -> None:
        self._queue.extend(views)
        self.queued_bytes += sum(map(len, views))
        self._more_to_send.set()

    def _sent(self, count: int) -> None:
        self.queued_bytes -= count
        while count > 0:
            first = self._queue.popleft()
            if count < len(first):
                self._queue.appendleft(first[count:])
                break
            count -= len(first)
        if self.queued_bytes <= QUEUED_BYTES_MAX:
            self._drained.set()


def _after(views: list[memoryview], sent: int) -> list[memoryview]:
    """What is left of *views* when the first *sent* bytes are gone."""
    rest = []
    for view in views:
        if sent < len(view):
            rest.append(view[sent:])
            sent = 0
        else:
            sent -= len(view)
    return rest
